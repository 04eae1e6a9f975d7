# Every target builds .venv itself; when it is there and fresh that takes no time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Every command here starts programs of onblock's, some thousand in the tests: a second each is saved if they are compiled once.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo test up bench torture lint docs screenshots clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt 'pip>=25.1'
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e . --group dev
	@touch $@

demo: $(READY)
	@$(BIN)/onblock demo

test: $(READY)
	@$(BIN)/python -m tests.servers.install
	$(BIN)/python -m pytest -n 2

up: $(READY)
	@$(BIN)/onblock up

bench: $(READY)
	@$(BIN)/python -m tests.servers.install
	$(BIN)/python -m tests.benchmarks.run

torture: $(READY)
	@$(BIN)/python -m tests.faults.torture --count 1000

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: $(READY)
	@$(BIN)/python -m tests.docs.storages

screenshots: $(READY)
	@$(BIN)/python -m tests.servers.install
	$(BIN)/python -m tests.docs.screenshots

clean:
	rm -rf $(VENV)
