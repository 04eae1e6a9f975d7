"""The units and environment files of a fleet: what systemd, Prefect and onblock say to them; and what `onblock up --profile
fleet` says to an environment that makes no fleet."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deployments import fleet, server_settings
from tests.fleet import units
from tests.servers.base import free_port

UNITS = sorted(path.name for path in units.FOLDER.glob("onblock-*.service") if path.name != "onblock-agent@.service")


def test_there_is_one_for_each_part() -> None:
    assert {u.removeprefix("onblock-").removesuffix(".service") for u in UNITS} == {
        "api", "services", "worker@", "console", "migrate"
    }  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_takes_it(unit: str, tmp_path: Path) -> None:
    text = (units.FOLDER / unit).read_text()
    for name in units.PROGRAMS:
        program = tmp_path / Path(name).name
        program.write_text(f"#!{sys.executable}\n")
        program.chmod(0o755)
        text = text.replace(name, str(program))
    assert str(tmp_path) in text
    file = tmp_path / unit.replace("@", "@1")
    file.write_text(text)
    verify = ["systemd-analyze", "verify", "--man=no", str(file)]
    done = subprocess.run(verify, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")  # it exits with 0 for keys that it does not know

    file.write_text(text.replace("TimeoutStopSec=", "TimeoutStopSek=").replace("Type=oneshot", "Typ=oneshot"))
    assert "Unknown key" in subprocess.run(verify, capture_output=True, text=True, timeout=60).stderr


@pytest.mark.parametrize("unit", UNITS)
def test_its_command_takes_its_options(unit: str) -> None:
    program, *arguments = units.command(unit, units.settings(units.environment_file(unit)))[3:]
    assert program in ("deployments.cli", "prefect")
    words = arguments[: next((n for n, word in enumerate(arguments) if word.startswith("-")), len(arguments))]
    if unit == "onblock-worker@.service":
        words.remove("onblock")  # the pool
    asked = [sys.executable, "-P", "-m", program, *words, "--help"]
    env = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    told = subprocess.run(asked, capture_output=True, text=True, timeout=120, env=env)
    assert told.returncode == 0, told.stderr
    for option in (word for word in arguments if word.startswith("-")):
        assert re.search(rf"{option}\b", told.stdout), f"{option} is unknown\n{told.stdout}"


def _known() -> set[str]:
    """The names of settings that Prefect and prefect-redis know."""
    from prefect.settings.legacy import _get_settings_fields
    from prefect.settings.models.root import Settings
    from prefect_redis.cleanup_queue import RedisWorkerCleanupQueueSettings
    from prefect_redis.client import RedisMessagingSettings

    names = {setting.name for setting in _get_settings_fields(Settings).values()}
    for model in (RedisMessagingSettings, RedisWorkerCleanupQueueSettings):
        names |= {f"{model.model_config['env_prefix']}{name}".upper() for name in model.model_fields}
    return names | {"PREFECT_SERVER_ENCRYPTION_KEY"}  # read where it is used


@pytest.mark.parametrize("file", ["server.env", "client.env"])
def test_its_names_are_known(file: str) -> None:
    known, given = _known(), units.settings(file)
    assert len(known) > 200
    ours = {"ONBLOCK_LEDGER_URL", "API_PROCESSES", "POOL", "RUNS_AT_ONCE", "CONSOLE_HOST", "CONSOLE_PORT"}
    for name in given:
        assert name in known | ours, f"{name} is no setting"
    used = {name for unit in UNITS for name in re.findall(r"\$\{(\w+)\}", units.values(unit, "ExecStart")[0])}
    assert ours - {"ONBLOCK_LEDGER_URL"} <= used


def test_the_server_is_told_what_up_would_tell_it() -> None:
    given = units.settings("server.env")
    for name, value in (server_settings.SERVER | fleet.SETTINGS).items():
        assert given.get(name) == value
    own = {n: v for n, v in given.items() if n in ("ONBLOCK_LEDGER_URL", "PREFECT_REDIS_MESSAGING_URL", fleet.DATABASE)}
    assert set(fleet.fleet_environment(own)) <= set(given)


# -- what makes no fleet ----------------------------------------------------------------------------------------------


GOOD = {
    "ONBLOCK_LEDGER_URL": "postgresql://u:p@127.0.0.1:1/ledger",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql+asyncpg://u:p@127.0.0.1:1/prefect",
    "PREFECT_REDIS_MESSAGING_URL": "redis://:secret@127.0.0.1:1/0",
}
NAMES = [*GOOD, "PREFECT_API_DATABASE_CONNECTION_URL", "PREFECT_REDIS_MESSAGING_HOST"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ONBLOCK_LEDGER_URL": None}, "ONBLOCK_LEDGER_URL is not set"),
        ({"ONBLOCK_LEDGER_URL": "sqlite:////x"}, "ONBLOCK_LEDGER_URL is no PostgreSQL"),
        ({"PREFECT_SERVER_DATABASE_CONNECTION_URL": None}, "PREFECT_SERVER_DATABASE_CONNECTION_URL is not set"),
        ({"PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql://u:p@h/d"}, "is no PostgreSQL by asyncpg"),
        ({"ONBLOCK_LEDGER_URL": "postgresql://u:p@127.0.0.1:1/prefect"}, "are the same database"),
        ({"ONBLOCK_LEDGER_URL": "postgresql://u:p@127.0.0.1:x/prefect"}, "is no address of a database"),
        ({"PREFECT_REDIS_MESSAGING_URL": None}, "neither PREFECT_REDIS_MESSAGING_URL nor PREFECT_REDIS_MESSAGING_HOST is set"),
        ({"PREFECT_REDIS_MESSAGING_URL": "http://x"}, "is no address of Redis"),
        ({"PREFECT_REDIS_MESSAGING_URL": "redis://:secret/rest@127.0.0.1:6379/0"}, "a '/' %2F"),
        ({"PREFECT_REDIS_MESSAGING_URL": "redis://:secret#rest@127.0.0.1:6379/0"}, "a '#' %23"),
        ({"PREFECT_REDIS_MESSAGING_URL": "redis://:80808/rest@127.0.0.1:6379/0"}, "is no address of Redis"),
        ({"PREFECT_REDIS_MESSAGING_URL": "redis://me:80808?rest@127.0.0.1:6379/0"}, "is no address of Redis"),
        ({"PREFECT_REDIS_MESSAGING_URL": "redis://127.0.0.1:1/0?secret=1"}, "is no address of Redis"),
        ({}, "Redis does not answer"),
    ],
)  # fmt: skip
def test_what_is_missing_is_told_in_one_line(change: dict[str, str | None], said: str, onblock_home: Path) -> None:
    given = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    env = {key: value for key, value in os.environ.items() if key not in NAMES} | given
    up = [sys.executable, "-P", "-m", "deployments.cli", "up", "--profile", "fleet"]
    ports = ["--port", str(free_port()), "--console-port", str(free_port())]
    done = subprocess.run([*up, *ports], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert said in line and "secret" not in line and "80808" not in line
    assert not (onblock_home / "logs").exists(), "nothing was started"


def test_what_migrates_tells_no_part_of_a_password() -> None:
    """It reads the address of Prefect's database by itself: nobody has looked at it before."""
    url = "postgresql+asyncpg://u:p@w:secret@127.0.0.1:1/prefect"
    env = {key: value for key, value in os.environ.items() if key not in NAMES} | {fleet.DATABASE: url}
    command = [sys.executable, "-P", "-m", "deployments.cli", "migrate"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "%40" in done.stderr
    assert "secret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--profile", "big"], "there are `embedded` and `fleet`"),
        (["--workers", "2"], "go with `--profile fleet`"),
        (["--profile", "fleet", "--api-servers", "0"], "--api-servers is 0"),
    ],
)
def test_options_that_make_no_fleet(options: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "deployments.cli", "up", *options], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and said in done.stderr


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({"HOST": "r"}, "redis://r:6379/0"),
        ({"HOST": "r", "PORT": "7", "DB": "2", "PASSWORD": "p@/", "SSL": "true"}, "rediss://default:p%40%2F@r:7/2"),
        ({"HOST": "r", "URL": "redis://s:1/0"}, "redis://s:1/0"),
    ],
)
def test_the_address_of_redis(given: dict[str, str], url: str) -> None:
    assert fleet.redis_url({f"PREFECT_REDIS_MESSAGING_{key}": value for key, value in given.items()}) == url
