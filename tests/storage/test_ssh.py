"""Reaching a host, knowing it, logging in, and what is said where that fails: `blocks/storage/ssh.py`."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import pytest
from pydantic import SecretStr, ValidationError

from blocks.errors import AuthError, ConfigError, Kind, NetworkError, OnblockError
from blocks.storage import ScpStorage, SftpStorage
from blocks.storage.sftp import SftpSession
from blocks.storage.ssh import FAILURES, Shell, failure, quote
from blocks.storage.ssh_login import SshStorage
from tests.contract.data import begin
from tests.servers.base import LOOPBACK, free_port
from tests.servers.faultproxy import FaultProxy
from tests.servers.sshd import Sshd


def storage(server: Sshd, **changes: object) -> SftpStorage:
    """One that works; what is changed to None is left out."""
    info = server.info
    fields = {
        "host": info["host"], "port": info["port"], "user": info["user"], "root": str(server.new_folder()),
        "key_file": info["key"], "known_hosts": info["known_hosts"], "connect_timeout": 10, "io_timeout": 10,
    }  # fmt: skip
    fields.update(changes)
    return SftpStorage(**{k: v for k, v in fields.items() if v is not None})  # type: ignore[arg-type]


def works(one: SshStorage) -> bool:
    with one.open() as session:
        return list(session.scan()) == []


def refused(one: SshStorage, *secrets: str) -> OnblockError:
    """What `open` raises. It names the host and says what to do, in one line without a secret."""
    with pytest.raises(OnblockError) as caught:
        one.open()
    said = str(caught.value)
    assert one.host in said or one.user in said, said
    assert caught.value.todo and "\n" not in said
    hidden = [v.get_secret_value() for v in one.__dict__.values() if isinstance(v, SecretStr)]
    whole = "".join(map(str, (said, repr(caught.value), caught.value.__cause__)))
    assert not [s for s in (*hidden, *secrets) if s in whole]
    return caught.value


# -- logging in -----------------------------------------------------------------------------------------------------


def test_ways_to_log_in(sshd: Sshd) -> None:
    info = sshd.info
    rsa = sshd.accept("rsa", "schlüssel")
    text = Path(info["key"]).read_text()
    for way in (
        {"key_file": info["key"]},
        {"private_key": text},
        {"private_key": text.strip()},  # a form eats the last newline
        {"key_file": info["key_passphrase"], "passphrase": info["passphrase"]},
        {"private_key": Path(rsa).read_text(), "passphrase": "schlüssel"},
        {"password": info["password"]},
        {
            "key_file": str(_a_key(sshd, "stranger")),
            "password": info["password"],
        },  # the key is refused, then the password
    ):
        assert works(storage(sshd, **{"key_file": None, **way})), way


def _a_key(server: Sshd, name: str) -> Path:
    path = server.folder / name
    if not path.exists():
        server.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path))
    return path


@pytest.fixture
def agent(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A running ssh-agent; its environment, and ours."""
    told = subprocess.run(
        ["ssh-agent", "-s", "-a", str(tmp_path / "agent")], check=True, capture_output=True, text=True
    ).stdout
    pid = int(told.partition("SSH_AGENT_PID=")[2].partition(";")[0])
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    try:
        yield {**os.environ, "SSH_AUTH_SOCK": str(tmp_path / "agent")}
    finally:
        os.kill(pid, signal.SIGTERM)


def test_a_key_of_the_agent(sshd: Sshd, agent: dict[str, str]) -> None:
    one = storage(sshd, key_file=None, use_agent=True)
    assert isinstance(refused(one), AuthError)
    subprocess.run(["ssh-add", "-q", sshd.info["key"]], check=True, env=agent)
    assert works(one)


def test_logins_that_are_refused(sshd: Sshd) -> None:
    for change in (
        {"password": "falsch", "key_file": None},
        {"key_file": str(_a_key(sshd, "stranger"))},
        {"user": "nobody-here"},
        {"user": "nobody-here", "key_file": None, "password": "falsch"},
    ):
        error = refused(storage(sshd, **change))
        assert error.kind is Kind.AUTH, change
        assert "tried: " in str(error)


def test_keys_that_cannot_be_used(sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a key")
    locked = sshd.info["key_passphrase"]
    for change, word in (
        ({"key_file": locked}, "passphrase"),
        ({"key_file": locked, "passphrase": "falsch"}, "passphrase"),
        ({"key_file": str(tmp_path / "none")}, "No such file"),
        ({"key_file": str(tmp_path / "text")}, "no private key"),
        ({"key_file": None, "private_key": "-----BEGIN geheim"}, "no private key"),
    ):
        with pytest.raises(ConfigError) as caught:
            storage(sshd, **change).open()
        assert word in str(caught.value)
        assert "geheim" not in str(caught.value) and "falsch" not in str(caught.value)


def test_the_block_asks_for_one_way_in() -> None:
    for kind in (SftpStorage, ScpStorage):
        with pytest.raises(ValidationError, match="one way to log in"):
            kind(host="nas", user="u", root="/x")
        for bad in (
            {"host": "a b"},
            {"host": ""},
            {"root": ""},
            {"port": 0},
            {"user": "a\nb"},
            {"host_key": "rubbish"},
        ):
            with pytest.raises(ValidationError):
                kind(**{"host": "nas", "user": "u", "root": "/x", "password": "p", **bad})  # type: ignore[arg-type]


def test_the_form(sshd: Sshd) -> None:
    for kind, slug in ((SftpStorage, "sftp-storage"), (ScpStorage, "scp-storage")):
        schema = kind.model_json_schema()
        assert kind.get_block_type_slug() == slug
        assert schema["required"] == ["host", "root", "user"]
        assert set(schema["secret_fields"]) == {"password", "private_key", "passphrase"}
        assert all(p["description"] for p in schema["properties"].values())
    one = SftpStorage(host="nas", user="me", root="/data/", password="geheim")  # type: ignore[arg-type]
    assert one.place() == "sftp://me@nas/data"
    assert SftpStorage(host="fe80::1", port=2222, user="me", root="in", password="geheim").place() == (  # type: ignore[arg-type]
        "sftp://me@[fe80::1]:2222/~/in"
    )
    assert "geheim" not in repr(one) + str(one.model_dump())
    assert SftpStorage.model_validate(one.model_dump()).place() == one.place()


# -- knowing the host ---------------------------------------------------------------------------------------------------


def test_a_host_that_is_not_known(sshd: Sshd, tmp_path: Path) -> None:
    for known in (tmp_path / "none", tmp_path / "empty"):
        if known.name == "empty":
            known.write_text("")
        error = refused(storage(sshd, known_hosts=str(known)))
        assert error.kind is Kind.AUTH
        assert "SHA256:" in str(error) and "accept_new_host_key" in str(error)
    assert not (tmp_path / "none").exists()


def test_a_host_that_has_another_key(sshd: Sshd, tmp_path: Path) -> None:
    host, kind, key = Path(sshd.info["known_hosts"]).read_text().split()
    other = (_a_key(sshd, "another").with_suffix(".pub")).read_text().split()[1]
    (tmp_path / "changed").write_text(f"{host} {kind} {other}\n")
    for change in (
        {"known_hosts": str(tmp_path / "changed")},
        {"known_hosts": str(tmp_path / "changed"), "accept_new_host_key": True},  # new is not changed
        {"host_key": f"{kind} {other}"},
        {"host_key": f"{kind} {other}", "accept_new_host_key": True},
    ):
        error = refused(storage(sshd, **change))
        assert error.kind is Kind.AUTH
        assert "is not the one" in str(error) and "in between" in str(error)
    assert key not in (tmp_path / "changed").read_text()


def test_a_pinned_key(sshd: Sshd, tmp_path: Path) -> None:
    other = (_a_key(sshd, "another").with_suffix(".pub")).read_text().strip()
    for pinned in (sshd.info["host_key"], f"{other}\n{sshd.info['host_key']} a comment\n"):
        assert works(storage(sshd, host_key=pinned, known_hosts=str(tmp_path / "none")))
    assert not (tmp_path / "none").exists()


def test_a_new_key_is_accepted_once_where_that_is_asked_for(sshd: Sshd, tmp_path: Path) -> None:
    known = tmp_path / "new/known_hosts"
    for _ in range(2):
        assert works(storage(sshd, known_hosts=str(known), accept_new_host_key=True))
    assert known.read_text() == Path(sshd.info["known_hosts"]).read_text()
    assert known.stat().st_mode & 0o077 == 0
    assert works(storage(sshd, known_hosts=str(known)))


def test_a_new_key_gets_a_line_of_its_own(sshd: Sshd, tmp_path: Path) -> None:
    """Also where somebody's editor has left the last line without its end."""
    other = " ".join((_a_key(sshd, "another").with_suffix(".pub")).read_text().split()[:2])
    known = tmp_path / "known_hosts"
    known.write_text(f"other {other}")
    for _ in range(2):
        assert works(storage(sshd, known_hosts=str(known), accept_new_host_key=True))
    assert known.read_text() == f"other {other}\n" + Path(sshd.info["known_hosts"]).read_text()


def test_a_damaged_known_hosts_file_is_told(sshd: Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    for bad, word in ((b"nas ssh-ed25519 AAAA=A", "line 3"), (b"# K\xfcche", "decode")):
        known.write_bytes(Path(sshd.info["known_hosts"]).read_bytes() + b"\n" + bad + b"\n")
        with pytest.raises(ConfigError) as caught:
            storage(sshd, known_hosts=str(known)).open()
        assert str(known) in str(caught.value) and word in str(caught.value) and "known_hosts" in caught.value.todo


def test_a_hashed_known_hosts_file(sshd: Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text("# a comment\n\n" + Path(sshd.info["known_hosts"]).read_text())
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(known)], check=True, capture_output=True)
    assert "127.0.0.1" not in known.read_text()
    assert works(storage(sshd, known_hosts=str(known)))


# -- reaching it --------------------------------------------------------------------------------------------------------


def test_nobody_listens(sshd: Sshd) -> None:
    error = refused(storage(sshd, port=free_port()))
    assert error.kind is Kind.NETWORK and "refused" in str(error)


def test_a_name_that_nobody_knows(sshd: Sshd) -> None:
    assert refused(storage(sshd, host="no-such-host.invalid")).kind is Kind.NETWORK


def test_somebody_else_listens(sshd: Sshd) -> None:
    """A server that says nothing, and one that speaks something else."""
    with socket.create_server((LOOPBACK, 0)) as silent:
        error = refused(storage(sshd, port=silent.getsockname()[1], connect_timeout=0.5))
        assert error.kind is Kind.NETWORK


def test_cut_off_or_left_hanging_while_connecting(sshd: Sshd, fault_proxy: Callable[[int], FaultProxy]) -> None:
    proxy = fault_proxy(sshd.info["port"])
    known = sshd.folder / f"known-{proxy.port}"
    known.write_text(f"[{LOOPBACK}]:{proxy.port} {sshd.info['host_key']}\n")
    one = storage(sshd, port=proxy.port, known_hosts=str(known), connect_timeout=1.5, io_timeout=1.5)
    assert works(one)
    for at in (10, proxy.bytes_up // 3, proxy.bytes_up // 2):  # (up is the smaller way)
        for way in ("up", "down"):
            proxy.heal()
            proxy.cut_after = (at, way)  # type: ignore[assignment]
            assert refused(one).kind is Kind.NETWORK
            proxy.heal()
            proxy.cut_after, proxy.cut_how = (at, way), "hang"  # type: ignore[assignment]
            assert refused(one).kind is Kind.NETWORK
    proxy.heal()
    assert works(one)
    proxy.down()
    assert refused(one).kind is Kind.NETWORK


# -- the table ----------------------------------------------------------------------------------------------------------


TABLE: list[tuple[BaseException, Kind]] = [
    (paramiko.PasswordRequiredException("x"), Kind.CONFIG),
    (paramiko.BadAuthenticationType("x", ["publickey"]), Kind.AUTH),
    (paramiko.AuthenticationException("x"), Kind.AUTH),
    (paramiko.ssh_exception.IncompatiblePeer("x"), Kind.CONFIG),  # type: ignore[attr-defined]
    (paramiko.ChannelException(1, "x"), Kind.NETWORK),
    (paramiko.SSHException("x"), Kind.NETWORK),
    (socket.gaierror(-2, "x"), Kind.NETWORK),
    (ConnectionRefusedError(111, "x"), Kind.NETWORK),
    (ConnectionResetError(104, "x"), Kind.NETWORK),
    (TimeoutError(), Kind.NETWORK),
    (EOFError(), Kind.NETWORK),
    (OSError("Socket is closed"), Kind.NETWORK),
    (KeyError("a defect of ours"), Kind.UNKNOWN),
]


@pytest.mark.parametrize(("error", "kind"), TABLE, ids=lambda v: type(v).__name__ if isinstance(v, Exception) else v)
def test_the_table(error: BaseException, kind: Kind) -> None:
    made = failure(error, "cannot do it to me@nas", "a/file")
    assert made.kind is kind
    assert made.__cause__ is error
    assert str(made).startswith("a/file: cannot do it to me@nas: ") and made.todo


def test_every_line_of_the_table_is_tested() -> None:
    for cls, kind, _ in FAILURES:
        assert any(isinstance(error, cls) and k is kind.kind for error, k in TABLE), cls


# -- the shell ----------------------------------------------------------------------------------------------------------


def test_a_shell_runs_one_script_after_the_other(sshd: Sshd) -> None:
    from blocks.storage.ssh import Connection, Failed

    connection = Connection(storage(sshd))
    shell = Shell(connection, b"onblock_x() { printf '%s' \"$1\"; }")
    assert shell.run(b"echo hello; cat") == b"hello\n"  # cat finds no input: the next script is not eaten
    with pytest.raises(Failed) as caught:
        shell.run(b"echo out; echo wrong >&2; exit 7")
    assert (caught.value.status, caught.value.said) == (7, "wrong")
    assert shell.run(b"head -c 3000000 /dev/zero") == bytes(3_000_000)
    for name in ("a b", "new\nline", "'", '"$(id)`id`\\', "\udcff\udcfe", "-n", "*"):
        assert shell.run(b"onblock_x " + quote(f"/{name}")) == os.fsencode(f"/{name}")
    assert shell.run(b"") == b""
    connection.close()
    with pytest.raises((OSError, EOFError)):
        shell.run(b"echo hello")


def test_a_hang_in_the_shell_ends(sshd: Sshd) -> None:
    from blocks.storage.ssh import Connection

    connection = Connection(storage(sshd, io_timeout=0.5))
    with pytest.raises(TimeoutError):
        Shell(connection).run(b"sleep 60")
    connection.close()


def test_a_late_answer_is_not_taken_for_the_next_one(sshd: Sshd) -> None:
    from blocks.storage.ssh import Connection

    pipe = sshd.new_folder() / "pipe"
    os.mkfifo(pipe)
    connection = Connection(storage(sshd))
    shell = Shell(connection, b"onblock_x() { echo mine; }")
    with pytest.raises(TimeoutError):
        shell.run(b"cat " + quote(str(pipe)), 0.3)
    pipe.write_text("late\n")
    for _ in range(2):
        assert shell.run(b"onblock_x") == b"mine\n"
    listing = shell.stream(b"head -c 3000000 /dev/zero")
    assert next(listing)
    listing.close()  # nobody wants the rest
    assert shell.run(b"onblock_x") == b"mine\n"
    connection.close()


@pytest.mark.parametrize("kind", [SftpStorage, ScpStorage])
def test_a_slow_hash_spoils_no_other_file(sshd: Sshd, kind: type[SftpStorage | ScpStorage]) -> None:
    """What comes after it in the same session is answered for itself."""
    root = sshd.new_folder()
    os.mkfifo(root / "slow")
    whole = {f"f{n}": os.urandom(2 << 20) for n in range(3)}
    for name, data in whole.items():
        (root / name).write_bytes(data)
    fields = storage(sshd, root=str(root), io_timeout=1).model_dump()
    with kind(**{name: value for name, value in fields.items() if name in kind.model_fields}).open() as session:
        asked = session.server if isinstance(session, SftpSession) else session.host
        with pytest.raises(NetworkError):
            asked.hash_there(asked.at("slow"), 0, "slow", fresh=False)  # type: ignore[arg-type]
        (root / "slow").write_text("now it says so")
        assert {n: session.checksum(n) for n in whole} == {n: hashlib.sha256(d).hexdigest() for n, d in whole.items()}
        uploads = [begin(session, f"new{n}", b"x") for n in range(3)]
        assert session.commit_all(uploads) == ["new0", "new1", "new2"]


def test_what_is_closed_leaves_no_thread_behind(sshd: Sshd) -> None:
    before = set(threading.enumerate())
    for _ in range(3):
        storage(sshd).open().close()
    for port in (free_port(), sshd.info["port"]):
        with pytest.raises(OnblockError):
            storage(sshd, port=port, key_file=str(_a_key(sshd, "stranger"))).open()
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
        assert not thread.is_alive(), thread
