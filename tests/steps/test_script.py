"""The step `script`: real scripts that do well, fail, hang, flood, and try to give what is not theirs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from blocks.errors import Cancelled, ConfigError, NotFound, OnblockError, PermissionRefused, ToolMissing, UnknownError
from flows.transfer.steps.script import FOLDER, Script
from tests.steps.conftest import Bench


class Scripts:
    """The folder for scripts, and one input."""

    def __init__(self, folder: Path):
        self.folder = folder / "scripts"
        self.folder.mkdir()
        self.input = folder / os.fsdecode(b"it's $HOME \xff\n`id`.csv")
        self.input.write_bytes(b"a,b\n")

    def write(self, body: str, mode: int = 0o755, name: str = "s.sh") -> Path:
        path = self.folder / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(mode)
        return path


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scripts:
    made = Scripts(tmp_path)
    monkeypatch.setenv(FOLDER, str(made.folder))
    return made


def left_over(bench: Bench) -> list[int]:
    """Processes of ours that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if (
                    f"ONBLOCK_WORK={bench.folder}".encode() in (entry / "environ").read_bytes()
                    and "\nState:\tZ" not in (entry / "status").read_text()
                ):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_what_it_leaves_replaces_the_input(bench: Bench, scripts: Scripts) -> None:
    scripts.write(
        'mkdir d; cat "$1" > d/"$2"; cmp "$1" "$ONBLOCK_INPUT"; printf "%s|%s|%s" "$ONBLOCK_FLIGHT" "$3" "$4" > told; pwd >&2'
    )
    step = Script(program="s.sh", args=["{input}", "{stem}.out", "{flight} ${{HOME}", "{job}'; touch /x"])
    out = bench.go(step, scripts.input, flight="F7", device="cam1")
    name = os.fsdecode(b"d/it's $HOME \xff\n`id`.out")
    assert set(out) == {name, "told"}
    assert out[name].read_bytes() == b"a,b\n"
    assert out["told"].read_text() == "F7|F7 ${{HOME}|'; touch /x"


def test_the_last_line_may_name_the_one_output(bench: Bench, scripts: Scripts) -> None:
    scripts.write("echo x > a; echo y > b; echo working; echo; echo $PWD/b; echo")
    assert set(bench.go(Script(program="s.sh"), scripts.input)) == {"b"}
    scripts.write('echo x > a; echo "$1"')
    simple = scripts.input.with_name("simple")
    simple.write_bytes(b"")
    assert bench.go(Script(program="s.sh"), simple) == {"simple": simple}
    scripts.write("echo x > a; echo $PWD/gone")
    with pytest.raises(NotFound, match="not there"):
        bench.go(Script(program="s.sh"), simple)


def test_it_may_only_look(bench: Bench, scripts: Scripts) -> None:
    scripts.write("exit 0")
    assert list(bench.go(Script(program="s.sh", keep_input=True), scripts.input).values()) == [scripts.input]
    with pytest.raises(ConfigError, match="left no file"):
        bench.go(Script(program="s.sh"), scripts.input)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("echo /etc/hostname", "outside its folder"), ("echo $PWD/../x", "outside its folder"),
        ("echo $PWD/../../../../../../etc/hostname", "outside its folder"), ("ln -s /etc/hostname x; echo $PWD/x", "link or device"),
        ("ln -s /etc/hostname x", "link or device"), ("ln -s /etc d", "link or device"), ("mkfifo p", "link or device"),
        ("mkdir d; ln -s / d/x", "link or device"), ('echo x > a; ln a b', "link or device"),
    ],
)  # fmt: skip
def test_what_is_not_its_to_give_is_refused(bench: Bench, scripts: Scripts, body: str, said: str) -> None:
    scripts.write(body)
    with pytest.raises(ConfigError, match=said):
        bench.go(Script(program="s.sh"), scripts.input)
    assert bench.nothing_left()


def test_a_failure_says_how_and_is_final_unless_asked(bench: Bench, scripts: Scripts) -> None:
    scripts.write("echo part > a; echo 'no licence' >&2; exit 3; ")
    for retry, kind in ((False, ConfigError), (True, UnknownError)):
        with pytest.raises(kind, match=r"s\.sh exited with 3: no licence") as caught:
            bench.go(Script(program="s.sh", retry=retry), scripts.input)
        assert caught.value.kind is kind.kind
        assert bench.nothing_left()
    scripts.write("kill -SEGV $$")
    with pytest.raises(ConfigError, match="signal 11"):
        bench.go(Script(program="s.sh"), scripts.input)


def test_one_that_hangs_is_ended_with_its_children(bench: Bench, scripts: Scripts) -> None:
    scripts.write(
        "trap '' TERM; sleep 1000 & setsid sleep 1001 & (setsid bash -c 'trap \"\" TERM HUP; sleep 1002' &) ; wait"
    )
    began = time.monotonic()
    with pytest.raises(ConfigError, match="had not ended after"):
        bench.go(Script(program="s.sh", time_limit="500ms"), scripts.input)  # type: ignore[arg-type]
    assert time.monotonic() - began < 60, "it was not waited for"
    assert not left_over(bench)
    assert bench.nothing_left()


def test_children_do_not_outlive_one_that_ends_well(bench: Bench, scripts: Scripts) -> None:
    scripts.write("setsid sleep 1000 & sleep 1001 & echo x > out")
    assert set(bench.go(Script(program="s.sh"), scripts.input)) == {"out"}
    assert not left_over(bench)


def test_a_flood_on_its_output_is_not_kept(bench: Bench, scripts: Scripts) -> None:
    import resource

    scripts.write(
        "head -c 300000000 /dev/zero | tr '\\0' x; head -c 100000000 /dev/zero >&2; echo; echo x > out; echo $PWD/out"
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert set(bench.go(Script(program="s.sh"), scripts.input)) == {"out"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_cancelled_it_is_ended(bench: Bench, scripts: Scripts) -> None:
    scripts.write("sleep 1000 & setsid sleep 1000 & wait")
    bench.stop_after = 5
    with pytest.raises(Cancelled):
        bench.go(Script(program="s.sh"), scripts.input)
    assert not left_over(bench)
    assert bench.nothing_left()


def test_it_gets_no_keys_of_the_server(bench: Bench, scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "pnu_secret")
    monkeypatch.setenv("ONBLOCK_LEDGER_URL", "postgresql://u:secret@h/d")
    scripts.write("env > out; cat > in")  # and its standard input is empty
    out = bench.go(Script(program="s.sh"), scripts.input)
    assert b"secret" not in out["out"].read_bytes()
    assert out["in"].read_bytes() == b""


def test_which_programs_may_be_run(bench: Bench, scripts: Scripts) -> None:
    def refused(program: str, kind: type[OnblockError]) -> None:
        with pytest.raises(kind):
            bench.go(Script(program=program), scripts.input)

    scripts.write("exit 0", 0o644)
    refused("s.sh", PermissionRefused)
    refused("none.sh", ToolMissing)
    refused("/bin/true", ConfigError)
    (scripts.folder / "link.sh").symlink_to("/bin/true")
    refused("link.sh", ConfigError)
    scripts.write("exit 0", name="bad").write_bytes(b"#!/no/such/interpreter\n")
    refused("bad", ConfigError)
    scripts.write("echo x > out")
    assert set(bench.go(Script(program=str(scripts.folder / "s.sh")), scripts.input)) == {"out"}


def test_the_folder_is_in_the_home_of_onblock(
    bench: Bench, scripts: Scripts, onblock_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FOLDER)
    with pytest.raises(ToolMissing, match=str(onblock_home)):
        bench.go(Script(program="s.sh"), scripts.input)
    scripts.write("echo x > out")
    onblock_home.mkdir()
    scripts.folder.rename(onblock_home / "scripts")
    assert set(bench.go(Script(program="s.sh"), scripts.input)) == {"out"}
