"""The Hadoop CLI beyond the contract: what its complaints mean, many files at once, tickets, what breaks on the way.

Each run of the program is a JVM: few tests, each with much in it.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from blocks.errors import (
    AuthError,
    Cancelled,
    ConfigError,
    Conflict,
    Corrupt,
    DiskFull,
    NetworkError,
    NotFound,
    OnblockError,
    PermissionRefused,
    SourceChanged,
    SourceVanished,
    ToolMissing,
    UnknownError,
)
from blocks.storage.hadoop_cli import HadoopCliSession, HadoopCliStorage
from blocks.storage.hadoop_run import escape, failure
from tests.contract.data import HOSTILE, MIB, begin, fetch, listing, payload
from tests.contract.hdfs_place import HdfsPlace
from tests.servers.base import LOOPBACK, free_port
from tests.servers.hdfs import Hdfs
from tests.servers.kdc import REALM, Kdc

_numbers = itertools.count()


def storage(cluster: Hdfs, **options: object) -> HadoopCliStorage:
    options = {
        "program": cluster.info["hadoop"], "root": f"/test-cli/{next(_numbers)}", "create_root": True,
    } | options  # fmt: skip
    return HadoopCliStorage(**options)  # type: ignore[arg-type]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# -- the table --------------------------------------------------------------------------------------------------------

COMPLAINTS: list[tuple[int, str, type[OnblockError]]] = [
    (1, "put: Permission denied: user=bob, access=WRITE, inode=\"/a\":root:supergroup:drwxr-xr-x", PermissionRefused),
    (1, "cat: `/a': No such file or directory", NotFound),
    (1, "mv: `/a/b': File exists", Conflict),
    (1, "rm: `/a': Is a directory", Conflict),
    (1, "put: `/d/File exists/x': No such file or directory", NotFound),
    (1, "put: The DiskSpace quota of /a is exceeded: quota = 1048576 B = 1 MB but diskspace consumed = 134217728 B",
     DiskFull),
    (1, "put: The NameSpace quota (directories and files) of directory /a is exceeded: quota=3 file count=4", DiskFull),
    (1, "put: Cannot create file /a. Name node is in safe mode.", NetworkError),
    (1, "ls: Call From h/127.0.0.1 to h:8020 failed on connection exception: java.net.ConnectException: Connection "
     "refused; For more details see:  http://wiki.apache.org/hadoop/ConnectionRefused", NetworkError),
    (1, "-ls: java.net.UnknownHostException: nn.example", NetworkError),
    (1, "ls: Invalid host name: local host is: (unknown); destination host is: \"nn.example\":8020; "
     "java.net.UnknownHostException; For more details see:  http://wiki.apache.org/hadoop/UnknownHost", NetworkError),
    (1, "-ls: Incomplete HDFS URI, no host: hdfs:///a", ConfigError),
    (1, "put: File /a could only be replicated to 0 nodes instead of minReplication (=1).  There are 0 datanode(s) "
     "running", NetworkError),
    (1, "put: File /a could only be replicated to 0 nodes instead of minReplication (=1).  There are 2 datanode(s) "
     "running", DiskFull),
    (1, "put: The maximum path component name limit of aaa in directory / is exceeded: limit=255 length=300",
     ConfigError),
    (1, "ls: Failed on local exception: java.io.IOException: javax.security.sasl.SaslException: GSS initiate failed "
     "[Caused by GSSException: No valid credentials provided (Mechanism level: Failed to find any Kerberos tgt)]",
     AuthError),
    (1, "ls: SIMPLE authentication is not enabled.  Available:[TOKEN, KERBEROS]", AuthError),
    (1, "cat: Checksum error: /a at 0 exp: 1 got: 2", Corrupt),
    (1, "appendToFile: Failed to APPEND_FILE /a because this file lease is currently owned by X", NetworkError),
    (255, "-truncate: Unknown command", ConfigError),
    (1, "Error: JAVA_HOME is not set and could not be found.", ToolMissing),
    (1, "Error: Could not find or load main class org.apache.hadoop.fs.FsShell", ToolMissing),
    (127, "sh: 1: java: not found", ToolMissing),
    (126, "Permission denied", ToolMissing),
    (-9, "", UnknownError),
    (143, "", UnknownError),
    (1, "", UnknownError),
    (1, "2026-01-01 00:00:00,000 WARN x: y\nput: something nobody has seen", UnknownError),
]  # fmt: skip


@pytest.mark.parametrize(("code", "complaint", "kind"), COMPLAINTS)
def test_what_a_complaint_means(code: int, complaint: str, kind: type[OnblockError]) -> None:
    error = failure(complaint, code, "cannot do it", "a/file")
    assert type(error) is kind
    assert (error.path, str(error).isprintable()) == ("a/file", True)
    assert "WARN" not in str(error)


def test_patterns_are_escaped() -> None:
    assert escape("/a*b?[c]{d,e}\\f") == r"/a\*b\?\[c\]\{d\,e\}\\f"


# -- many files -------------------------------------------------------------------------------------------------------


def test_every_name_there_and_back(hdfs_cluster: Hdfs, tmp_path: Path) -> None:
    """Pushed, proven, committed, listed and pulled: all names of the contract. One in the way stays as it was."""
    place = HdfsPlace(block := storage(hdfs_cluster), hdfs_cluster, block.root)
    files = {f"d/{name}": payload(100 + n, n) for n, name in enumerate(HOSTILE) if place.holds(name)}
    local: dict[str, Path] = {}
    for n, (name, data) in enumerate(files.items()):
        local[name] = tmp_path / str(n)
        local[name].write_bytes(data)
    place.put("d/*", b"was here first")
    with block.open() as session:
        uploads = {name: session.upload(name, len(data), key="k") for name, data in files.items()}
        moved: list[int] = []
        hashes = session.push([(str(local[n]), u) for n, u in uploads.items()], moved.append, threading.Event())
        assert sum(moved) == sum(map(len, files.values()))
        for (name, data), found in zip(files.items(), hashes, strict=True):
            long = len(name.rpartition("/")[2].encode()) > 245  # `-put` makes them longer: sent by themselves
            assert found == (None if long else sha256(data)), ascii(name)
            if long:
                uploads.pop(name).abort()
        for name in uploads:
            assert uploads[name].digest() == sha256(files[name])
        assert place.everything() - {"d/*"} == {
            f"{u.folder.removeprefix(block.root + '/')}/{n.rpartition('/')[2]}" for n, u in uploads.items()
        }  # type: ignore[attr-defined]
        done = dict(zip(uploads, session.commit_all(list(uploads.values())), strict=True))
        assert isinstance(done.pop("d/*"), Conflict)
        assert all(name == said for name, said in done.items())
        uploads["d/*"].abort()
        assert listing(session) == set(uploads)
        assert place.everything() == set(uploads)
        back = [(name, str(tmp_path / f"back-{n}")) for n, name in enumerate([*uploads, "d/none"])]
        results = session.pull(back, moved.append, threading.Event())
        assert [name for (name, _), error in zip(back, results, strict=True) if error] == ["d/none"]
        for name, target in back[:-1]:
            assert Path(target).read_bytes() == (b"was here first" if name == "d/*" else files[name])


def test_what_changes_while_it_is_fetched_is_told(hdfs_cluster: Hdfs, tmp_path: Path) -> None:
    """Between the first look and the second: another file of the same size, one that is longer, one that is gone."""
    block = storage(hdfs_cluster)
    place = HdfsPlace(block, hdfs_cluster, block.root)
    for n in range(4):
        place.put(f"d/{n}", payload(1000, n), 1_600_000_000_000_000_000)
    real = block.program
    (script := tmp_path / "hadoop").write_text(
        f"""#!/bin/sh
case " $* " in *" -get "*)
    {real} "$@"
    touch {tmp_path}/fetched
    while [ -e {tmp_path}/fetched ]; do sleep 0.1; done
    exit 0
esac
exec {real} "$@"
"""
    )
    script.chmod(0o755)

    def meanwhile() -> None:
        while not (tmp_path / "fetched").exists():
            time.sleep(0.05)
        place.put("d/1", payload(1000, 9), 1_700_000_000_000_000_000)
        place.put("d/2", payload(2000, 2), 1_600_000_000_000_000_000)
        place.remove("d/3")
        (tmp_path / "fetched").unlink()

    wanted = [(f"d/{n}", str(tmp_path / f"{n}")) for n in range(4)]
    with block.model_copy(update={"program": str(script)}).open() as session, ThreadPoolExecutor(1) as pool:
        pool.submit(meanwhile)
        results = session.pull(wanted, lambda n: None, threading.Event())
    assert [type(r) for r in results] == [type(None), SourceChanged, SourceChanged, SourceVanished]
    assert (tmp_path / "0").read_bytes() == payload(1000, 0)


def test_push_stops_within_two_seconds(hdfs_cluster: Hdfs, tmp_path: Path) -> None:
    """And nothing that was started lives on."""
    (tmp_path / "f").write_bytes(b"x")
    with storage(hdfs_cluster).open() as session:
        upload, stop = session.upload("f", 1, key="k"), threading.Event()
        timer = threading.Timer(0.3, stop.set)
        timer.start()
        with pytest.raises(Cancelled):
            while True:
                session.push([(str(tmp_path / "f"), upload)], lambda n: None, stop)
        timer.join()
        assert not [p for p in psutil.Process().children(recursive=True) if "FsShell" in " ".join(p.cmdline())]
        upload.abort()


def test_one_name_has_one_winner(hdfs_cluster: Hdfs) -> None:
    block = storage(hdfs_cluster)
    barrier = threading.Barrier(3, timeout=120)

    def work(number: int) -> str:
        with block.open() as session:
            upload = begin(session, "d/f", payload(500, number), key=str(number))
            upload.seal()
            barrier.wait()
            try:
                return upload.commit()
            except Conflict:
                upload.abort()
                return ""

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(work, range(3)))
    assert sorted(results) == ["", "", "d/f"]
    place = HdfsPlace(block, hdfs_cluster, block.root)
    assert place.get("d/f") == payload(500, results.index("d/f"))
    assert place.everything() == {"d/f"}


# -- what breaks ------------------------------------------------------------------------------------------------------


def test_no_program(hdfs_cluster: Hdfs, tmp_path: Path) -> None:
    (script := tmp_path / "hadoop").write_text("#!/bin/sh\nexec java-that-is-not-there\n")
    script.chmod(0o755)
    (plain := tmp_path / "plain").write_text("no program")
    for program in ("no-such-hadoop", str(plain), str(script)):
        with pytest.raises(ToolMissing):
            storage(hdfs_cluster, program=program).open()


def test_a_program_that_says_nothing_is_given_up(hdfs_cluster: Hdfs, tmp_path: Path) -> None:
    (script := tmp_path / "hadoop").write_text("#!/bin/sh\nsleep 1000 & wait\n")
    script.chmod(0o755)
    with pytest.raises(NetworkError):
        storage(hdfs_cluster, program=str(script), timeout_s=0.5).open()
    assert not [p for p in psutil.Process().children(recursive=True) if p.name() == "sleep"]


def test_a_program_that_stops_in_the_middle_is_given_up(hdfs_cluster: Hdfs, tmp_path: Path) -> None:
    """Of a listing, of a file before its first byte and after it; what is fetched with others hears at once of a stop."""
    block = storage(hdfs_cluster)
    HdfsPlace(block, hdfs_cluster, block.root).put("late", b"xyz and more")
    (script := tmp_path / "hadoop").write_text(
        f"""#!/bin/sh
case " $* " in
*" -stat "*) exec {block.program} "$@" ;;
*" -get "*) exit 1 ;;
*" -find "*) printf '/\\0' ;;
*" -cat "*late*) printf xyz; touch {tmp_path}/begun ;;
esac
sleep 1000 & wait
"""
    )
    script.chmod(0o755)
    session = HadoopCliSession(block.model_copy(update={"program": str(script), "timeout_s": 0.5}))
    with pytest.raises(NetworkError):
        list(session.scan())
    with pytest.raises(NetworkError):
        session.read("early")
    with session.read("late") as reader, pytest.raises(NetworkError) as caught:
        reader.readinto(bytearray(4))
    assert caught.value.path == "late"
    (tmp_path / "begun").unlink()
    patient = HadoopCliSession(block.model_copy(update={"program": str(script), "timeout_s": 1000}))
    stop = threading.Event()

    def end_it() -> None:
        while not (tmp_path / "begun").exists():
            time.sleep(0.05)
        stop.set()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(end_it)
        with pytest.raises(Cancelled):
            patient.pull([("late", str(tmp_path / "f"))], lambda n: None, stop)
    assert not [p for p in psutil.Process().children(recursive=True) if p.name() == "sleep"]


def test_nobody_there(hdfs_cluster: Hdfs) -> None:
    with pytest.raises(NetworkError) as caught:
        storage(hdfs_cluster, filesystem=f"hdfs://{LOOPBACK}:{free_port()}").open()
    assert "refused" in str(caught.value)
    with pytest.raises(NetworkError) as caught:
        storage(hdfs_cluster, filesystem="hdfs://no-such-host.invalid:8020").open()
    assert "filesystem" in str(caught.value)
    with pytest.raises(NotFound):
        storage(hdfs_cluster, create_root=False).open()


def test_refusals(hdfs_cluster: Hdfs) -> None:
    """No permission, no quota, safe mode: each its kind, and after it is gone the same upload goes through."""
    block = storage(hdfs_cluster)
    with block.open() as session:
        stranger = HadoopCliSession(block.model_copy(update={"user": "somebody"}))
        with pytest.raises(PermissionRefused) as caught:
            begin(stranger, "f", b"x").commit()
        assert caught.value.path == "f"
        hdfs_cluster.hadoop("dfsadmin", "-setSpaceQuota", "1m", block.root)
        with pytest.raises(DiskFull):
            begin(session, "f", payload(2 * MIB)).commit()
        hdfs_cluster.hadoop("dfsadmin", "-clrSpaceQuota", block.root)
        hdfs_cluster.hadoop("dfsadmin", "-safemode", "enter")
        try:
            with pytest.raises(NetworkError) as refused:
                begin(session, "f", b"x").commit()
            assert "safe mode" in str(refused.value)
        finally:
            hdfs_cluster.hadoop("dfsadmin", "-safemode", "leave")
        assert begin(session, "f", b"x").commit() == "f"
        assert fetch(session, "f") == b"x"


def test_a_program_killed_in_mid_file(hdfs_cluster: Hdfs) -> None:
    """HDFS gives up the dead writer after 60 s, or when it is told to, as here; then no more than 32 MiB go twice."""
    data = payload(12 * MIB)
    block = storage(hdfs_cluster)
    place = HdfsPlace(block, hdfs_cluster, block.root)
    with block.open() as session:
        upload = session.upload("f", len(data), key="k")
        upload.write(memoryview(data)[: 6 * MIB])
        while not place.everything():
            time.sleep(0.05)
        running = [p for p in psutil.Process().children(recursive=True) if "-appendToFile" in p.cmdline()]
        for one in running:
            one.kill()
        with pytest.raises(OnblockError):
            upload.write(memoryview(data)[6 * MIB :])
            upload.keep()
        (staged,) = place.everything()
        hdfs_cluster.hadoop("debug", "recoverLease", "-path", f"{block.root}/{staged}", "-retries", "10")
        resumed = session.upload("f", len(data), key="k", resume=True)
        resumed.write(memoryview(data)[resumed.offset :])
        assert resumed.digest() == sha256(data)
        resumed.commit()
    assert place.get("f") == data
    assert place.everything() == {"f"}


@pytest.mark.parametrize("after", ["discarded", "resumed", "aborted"])
def test_a_replacement_cut_off_in_the_middle_leaves_the_old_file(
    hdfs_cluster: Hdfs, tmp_path: Path, after: str
) -> None:
    """HDFS falls silent, or we are killed, when the old file is aside and the new one is not there: it gets its name back."""
    block = storage(hdfs_cluster)
    place = HdfsPlace(block, hdfs_cluster, block.root)
    place.put("d/.old", b"the old one")
    (script := tmp_path / "hadoop").write_text(
        f"""#!/bin/sh
[ -e {tmp_path}/silent ] && {{ echo "mv: Connection refused" >&2; exit 1; }}
case " $* " in *" -mv {block.root}/d/.old "*) touch {tmp_path}/silent;; esac
exec {block.program} "$@"
"""
    )
    script.chmod(0o755)
    with HadoopCliSession(block.model_copy(update={"program": str(script)})) as session:
        upload = begin(session, "d/.old", b"new and better", key="k")
        with pytest.raises(NetworkError):
            upload.commit(replace=True)
        assert place.get("d/.old") is None
        with pytest.raises(NetworkError):
            upload.abort()
        (tmp_path / "silent").unlink()
        if after == "aborted":
            upload.abort()
    with block.open() as session:
        if after == "discarded":
            session.discard("d/.old", "k")
        if after == "resumed":
            session.rekey("d/.old", "k", "k2")
            again = session.upload("d/.old", 14, key="k2", resume=True)
            assert place.get("d/.old") == b"the old one"
            assert again.offset == 14
            again.commit(replace=True)
    assert place.get("d/.old") == (b"new and better" if after == "resumed" else b"the old one")
    assert place.everything() == {"d/.old"}


def test_a_replacement_cut_off_at_its_end_leaves_the_new_file(hdfs_cluster: Hdfs, tmp_path: Path) -> None:
    block = storage(hdfs_cluster)
    place = HdfsPlace(block, hdfs_cluster, block.root)
    place.put("d/f", b"the old one")
    (script := tmp_path / "hadoop").write_text(
        f"""#!/bin/sh
case " $* " in *" -rm "*.part/* | *" -rm "*) [ -e {tmp_path}/late ] && exit 1;; esac
exec {block.program} "$@"
"""
    )
    script.chmod(0o755)
    session = HadoopCliSession(block.model_copy(update={"program": str(script)}))
    upload = begin(session, "d/f", b"new and better", key="k")
    upload.seal()
    (tmp_path / "late").touch()
    with pytest.raises(OnblockError):
        upload.commit(replace=True)
    assert place.get("d/f") == b"new and better"
    with block.open() as session:
        session.discard("d/f", "k")
    assert place.get("d/f") == b"new and better"
    assert place.everything() == {"d/f"}


# -- Kerberos ---------------------------------------------------------------------------------------------------------


def test_by_keytab(kerberos_hdfs: Hdfs, realm: Kdc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One `kinit` for many operations, into a cache that no environment names; without a ticket nobody gets in."""
    for name, value in realm.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KRB5CCNAME", f"FILE:{tmp_path}/superuser")
    keytab = str(kerberos_hdfs.folder / "hdfs.keytab")
    subprocess.run(["kinit", "-k", "-t", keytab, "hdfs/localhost"], check=True)
    root = f"/cli/{next(_numbers)}"
    kerberos_hdfs.hadoop("fs", "-mkdir", "-p", root)
    kerberos_hdfs.hadoop("fs", "-chown", "pilot", root)
    monkeypatch.setenv("KRB5CCNAME", f"FILE:{tmp_path}/none")
    (count := tmp_path / "bin").mkdir()
    (count / "kinit").write_text(f'#!/bin/sh\necho x >> {tmp_path}/kinits\nexec /usr/bin/kinit "$@"\n')
    (count / "kinit").chmod(0o755)
    monkeypatch.setenv("PATH", f"{count}:{os.environ['PATH']}")
    principal = f"commander@{REALM}"
    realm.add("commander", str(tmp_path / "commander.keytab"))
    mine = storage(kerberos_hdfs, root=root, principal=principal, keytab=str(tmp_path / "commander.keytab"))
    with mine.open() as session:
        with pytest.raises(PermissionRefused):
            begin(session, "f", b"x").commit()
        assert listing(session) == set()
    assert (tmp_path / "kinits").read_text() == "x\n"
    assert not (tmp_path / "none").exists()
    with pytest.raises(AuthError):
        storage(kerberos_hdfs, root=root).open()
    with pytest.raises(AuthError):
        storage(kerberos_hdfs, root=root, principal=f"nobody@{REALM}", keytab=realm.info["keytab"]).open()


def test_fields_are_checked() -> None:
    for options in (
        {"root": "relative"}, {"principal": "p@R"}, {"keytab": "/k"}, {"user": "u", "ticket_cache": "c"},
        {"filesystem": "nn:8020"}, {"filesystem": "hdfs://nn -D x=y"}, {"block_size": 5000},
    ):  # fmt: skip
        with pytest.raises(ValueError):
            HadoopCliStorage(**{"root": "/r"} | options)  # type: ignore[arg-type]
