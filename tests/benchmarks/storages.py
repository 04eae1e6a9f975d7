"""What is measured against servers: sftp, s3, webhdfs and ten. Each server is started for its scenario and taken away
with all it holds; it runs here too and shares the processors with whoever talks to it, all programs alike.

Up is from a folder to the server, down the other way; whatever onblock sent up is fetched by the others too.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blocks.storage.hdfs_checksum import HdfsChecksum
from tests.benchmarks.material import Material, large, small
from tests.benchmarks.measure import Sample, Series
from tests.benchmarks.scenarios import FAR_FILES as FILES
from tests.benchmarks.scenarios import GIB, KIB, MIB, Bench, times
from tests.benchmarks.tools import Tools, local, must_hold, program
from tests.servers.base import Server
from tests.servers.hdfs import Hdfs
from tests.servers.s3 import SeaweedFS
from tests.servers.sshd import Sshd

SIZE = GIB
SHA = hashlib.sha256
Proofs = Mapping[str, tuple[Callable[[], Any], ...]]
"""Per way what is taken of each byte."""
TWICE: Proofs = {"up": (SHA, SHA), "down": (SHA, SHA)}
"""What was read, and what lies there: hashed by the server's own program, or read back here."""
OF_S3: Proofs = {"up": (SHA,), "down": (SHA, SHA)}
OF_HDFS: Proofs = {"up": (SHA, HdfsChecksum), "down": (SHA, SHA, HdfsChecksum)}
"""Held against the checksum that HDFS has of the file."""
FILE_SIZE, FOLDERS = 4 * KIB, 50
HUGE = 10 * GIB
HUGE_RSS = 300e6

Rival = Callable[[Material, str, Path | None], Sample]
"""Moves a material to a place at the server, or, with a folder, from there into it."""


class Far(ABC):
    """A server, and the programs that talk to it."""

    def __init__(self, tools: Tools, server: Server):
        self.tools, self.server, self.info = tools, server, server.info

    @abstractmethod
    def place(self) -> str:
        """An empty place at the server."""

    @abstractmethod
    def block(self, place: str) -> dict[str, Any]:
        """The block of a place."""

    def rivals(self) -> dict[str, Rival]:
        """For one large file."""
        return {}

    def small_rivals(self) -> dict[str, Rival]:
        """For many small files."""
        return {}

    def clear(self, place: str) -> None:
        """Give the room back that the large file took, where that is quickly done."""

    def rclone(self, what: Material, place: str, back: Path | None) -> Sample:
        there = f"far:{place}"
        ways = [there, str(back)] if back else [str(what.folder), there]
        return self.tools.run("rclone", [program("rclone"), "copy", "--transfers", "8", *ways])

    def remote(self, **options: object) -> None:
        """Tell rclone of the server."""
        lines = "".join(f"{key} = {value}\n" for key, value in options.items())
        (self.tools.work / "rclone.conf").write_text(f"[far]\n{lines}")


class FarSftp(Far):
    """OpenSSH's server."""

    server: Sshd

    def __init__(self, tools: Tools, server: Sshd):
        super().__init__(tools, server)
        i = self.info
        self.remote(
            type="sftp", host=i["host"], port=i["port"], user=i["user"], key_file=i["key"],
            known_hosts_file=i["known_hosts"], shell_type="unix",
        )  # fmt: skip

    def place(self) -> str:
        return str(self.server.new_folder())

    def block(self, place: str) -> dict[str, Any]:
        i = self.info
        return {
            "type": "sftp-storage", "host": i["host"], "port": i["port"], "user": i["user"], "key_file": i["key"],
            "known_hosts": i["known_hosts"], "root": place,
        }  # fmt: skip

    def sftp(self, what: Material, place: str, back: Path | None) -> Sample:
        """OpenSSH's client, one file."""
        (name,) = os.listdir(what.folder)
        if back:
            back.mkdir()
        batch = self.tools.log("sftp").with_suffix(".batch")
        batch.write_text(
            f"get {place}/{name} {back}/{name}\n" if back else f"put {what.folder}/{name} {place}/{name}\n"
        )
        i = self.info
        login = ["-i", i["key"], "-o", f"UserKnownHostsFile={i['known_hosts']}", "-o", "IdentitiesOnly=yes"]
        to = f"{i['user']}@{i['host']}"
        return self.tools.run("sftp", [program("sftp"), "-q", *login, "-P", str(i["port"]), "-b", str(batch), to])

    def rivals(self) -> dict[str, Rival]:
        return {"sftp": self.sftp, "rclone": self.rclone}

    def small_rivals(self) -> dict[str, Rival]:
        return {"rclone": self.rclone}

    def clear(self, place: str) -> None:
        shutil.rmtree(place)


class FarScp(FarSftp):
    """The same server, as if it had no SFTP."""

    def block(self, place: str) -> dict[str, Any]:
        return super().block(place) | {"type": "scp-storage"}


class FarRsync(FarSftp):
    """The same server, by rsync."""

    def block(self, place: str) -> dict[str, Any]:
        return super().block(place) | {"type": "rsync-storage"}


class FarRclone(FarSftp):
    """The same server, by rclone."""

    def block(self, place: str) -> dict[str, Any]:
        return {
            "type": "rclone-storage",
            "remote": "far",
            "root": place,
            "config_file": self.tools.env["RCLONE_CONFIG"],
        }


class FarS3(Far):
    """SeaweedFS."""

    def __init__(self, tools: Tools, server: SeaweedFS):
        super().__init__(tools, server)
        i = self.info
        self.env = {"AWS_ACCESS_KEY_ID": i["access_key"], "AWS_SECRET_ACCESS_KEY": i["secret_key"]}
        self.remote(
            type="s3", provider="SeaweedFS", endpoint=i["endpoint"], access_key_id=i["access_key"],
            secret_access_key=i["secret_key"],
        )  # fmt: skip
        self._s5cmd("mb", "s3://bench")

    def _s5cmd(self, *arguments: str, cwd: Path | None = None) -> Sample:
        argv = [program("s5cmd"), "--endpoint-url", self.info["endpoint"], "--log", "error", *arguments]
        return self.tools.run("s5cmd", argv, cwd, **self.env)

    def place(self) -> str:
        return f"bench/{secrets.token_hex(6)}"

    def block(self, place: str) -> dict[str, Any]:
        bucket, _, prefix = place.partition("/")
        i = self.info
        return {
            "type": "s3-storage", "preset": "other", "endpoint": i["endpoint"], "bucket": bucket, "prefix": prefix,
            "access_key": i["access_key"], "secret_key": i["secret_key"],
        }  # fmt: skip

    def s5cmd(self, what: Material, place: str, back: Path | None) -> Sample:
        return self._s5cmd("cp", *([f"s3://{place}/*", f"{back}/"] if back else [f"{what.folder}/", f"s3://{place}/"]))

    def rivals(self) -> dict[str, Rival]:
        return {"rclone": self.rclone, "s5cmd": self.s5cmd}

    small_rivals = rivals

    def clear(self, place: str) -> None:
        self._s5cmd("rm", f"s3://{place}/*")


class FarHdfs(Far):
    """HDFS 2.7 by WebHDFS."""

    server: Hdfs

    def place(self) -> str:
        return f"/bench/{secrets.token_hex(6)}"

    def block(self, place: str) -> dict[str, Any]:
        i = self.info
        return {
            "type": "webhdfs-storage", "namenodes": [i["url"]], "root": place, "user": i["user"], "create_root": True
        }  # fmt: skip

    def curl(self, what: Material, place: str, back: Path | None) -> Sample:
        """One file; nothing of it is sent to the NameNode, which answers before."""
        (name,) = os.listdir(what.folder)
        user = self.info["user"]
        url = f"{self.info['url']}/webhdfs/v1{place}/{name}?user.name={user}&op="
        if back:
            back.mkdir()
            return self.tools.run("curl", [program("curl"), "-sSfL", "-o", f"{back}/{name}", f"{url}OPEN"])
        return self.tools.run("curl", [program("curl"), "-sSfL", "-T", f"{what.folder}/{name}", f"{url}CREATE"])

    def hadoop(self, what: Material, place: str, back: Path | None) -> Sample:
        fs, (name,) = [self.info["hadoop"], "fs"], os.listdir(what.folder)
        if back:
            back.mkdir()
            return self.tools.run("hadoop", [*fs, "-get", f"{place}/{name}", f"{back}/{name}"])
        return self.tools.run("hadoop", [*fs, "-put", str(what.folder), place])

    def rivals(self) -> dict[str, Rival]:
        return {"curl": self.curl, "hadoop fs": self.hadoop}

    def clear(self, place: str) -> None:
        self.server.hadoop("fs", "-rm", "-r", "-skipTrash", place)


class FarHadoop(FarHdfs):
    """The same by Hadoop's command line."""

    def block(self, place: str) -> dict[str, Any]:
        return {
            "type": "hadoop-cli-storage", "program": self.info["hadoop"], "root": place, "create_root": True
        }  # fmt: skip


SERVERS: dict[type[Far], type[Server]] = {
    FarSftp: Sshd, FarScp: Sshd, FarRsync: Sshd, FarRclone: Sshd, FarS3: SeaweedFS, FarHdfs: Hdfs, FarHadoop: Hdfs
}  # fmt: skip


@contextmanager
def reach(bench: Bench, kind: type[Far]) -> Iterator[Far]:
    """Start the server of `kind`, and take it away."""
    folder = bench.tools.fresh("server")
    bench.tell(f"starting {SERVERS[kind].__name__}")
    try:
        with SERVERS[kind](folder) as server:
            yield kind(bench.tools, server)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def both_ways(
    bench: Bench, far: Far, name: str, what: Material, rivals: dict[str, Rival]
) -> dict[str, dict[str, Series]]:
    """Rounds of up and down; the series by direction and program."""
    tools = bench.tools
    ran = {way: bench.start(f"({name}) {way}", what, "onblock", *rivals) for way in ("up", "down")}
    for _ in range(bench.rounds):
        place, back = far.place(), tools.fresh("back")
        bench.note(ran["up"]["onblock"], tools.job(what, local(what.folder), far.block(place), tools.fresh("home"))[0])
        bench.note(ran["down"]["onblock"], tools.job(what, far.block(place), local(back), tools.fresh("home"))[0])
        _took(back, what, "onblock")
        for tool, move in rivals.items():
            there, back = far.place(), tools.fresh("back")
            bench.note(ran["up"][tool], move(what, there, None))
            bench.note(ran["down"][tool], move(what, there, back))
            _took(back, what, tool)
            if what.files == 1:
                far.clear(there)
        if what.files == 1:
            far.clear(place)
    return ran


def _took(folder: Path, what: Material, tool: str) -> None:
    must_hold(folder, what, tool)
    if what.files == 1:
        shutil.rmtree(folder)


def _one(bench: Bench, size: int) -> Material:
    folder = bench.tools.work / f"one-{size}"
    if not folder.exists():
        bench.tell(f"making one file of {size} bytes")
        large(folder, size)
    what = Material(folder, 1, size)
    what.warm()
    return what


def _many(bench: Bench) -> Material:
    folder = bench.tools.work / "many"
    if not folder.exists():
        bench.tell(f"making {FILES} files of {FILE_SIZE} bytes")
        small(folder, FILES, FILE_SIZE, FOLDERS)
    what = Material(folder, FILES, FILE_SIZE)
    what.warm()
    return what


def _claims(
    bench: Bench, name: str, ran: dict[str, dict[str, Series]], least: dict[str, float | None],
    proofs: Proofs,
) -> None:  # fmt: skip
    """`least`: per rival how many times its speed is promised; None is told only. `proofs`: per way what onblock takes of
    each byte, here or through the server, to prove that it arrived; no rival does."""
    for way, series in ran.items():
        for tool, wanted in least.items():
            value = 1 / times(series["onblock"], series[tool])
            text = f"({name}) speed of onblock's job to {tool}'s, {way}"
            bench.claim(
                text,
                f"{value:.2f} x",
                None if wanted is None else f"at least {wanted:g} x",
                wanted is None or value >= wanted,
            )
            if wanted is not None and value < wanted and series[tool].bytes >= MIB:
                bench.claim(f"{text}: the most there can be", _most(series[tool], proofs[way]), None, True)


def _most(rival: Series, proofs: tuple[Callable[[], Any], ...]) -> str:
    """What a program can reach at most that does what the rival does, as well as it, and takes the proofs beside it."""
    cores = len(os.sched_getaffinity(0))
    block, began = memoryview(bytes(64 * MIB)), time.thread_time()
    for proof in proofs:
        proof().update(block)
    hashing = (time.thread_time() - began) / len(block) * rival.bytes
    wall, idle = rival.mid(lambda s: s.wall), rival.mid(lambda s: s.idle)
    most = wall / (wall + max(0.0, hashing - idle) / cores)
    return f"{most:.2f} x ({idle:.1f} of {cores * wall:.1f} processor seconds were idle, its proofs take {hashing:.1f})"


def sftp(bench: Bench) -> None:
    """1 GiB and 5,000 small files to OpenSSH's server and back."""
    with reach(bench, FarSftp) as far:
        name = "sftp, 1 GiB"
        _claims(
            bench,
            name,
            both_ways(bench, far, name, _one(bench, SIZE), far.rivals()),
            {"sftp": 1, "rclone": None},
            TWICE,
        )
        name = f"sftp, {FILES:,} x 4 KiB"
        _claims(bench, name, both_ways(bench, far, name, _many(bench), far.small_rivals()), {"rclone": 2}, TWICE)


def s3(bench: Bench) -> None:
    """1 GiB and 5,000 small files to SeaweedFS and back."""
    with reach(bench, FarS3) as far:
        for name, what in (("s3, 1 GiB", _one(bench, SIZE)), (f"s3, {FILES:,} x 4 KiB", _many(bench))):
            _claims(bench, name, both_ways(bench, far, name, what, far.rivals()), {"rclone": 1, "s5cmd": None}, OF_S3)


def webhdfs(bench: Bench) -> None:
    """1 GiB to HDFS and back."""
    with reach(bench, FarHdfs) as far:
        name = "webhdfs, 1 GiB"
        ran = both_ways(bench, far, name, _one(bench, SIZE), far.rivals())
        _claims(bench, name, ran, {"curl": 0.9, "hadoop fs": 1}, OF_HDFS)


def ten(bench: Bench) -> None:
    """Peak memory for one file of 10 GiB by every storage, up and down; one run each."""
    tools = bench.tools
    folder = tools.work / "ten"
    folder.mkdir()
    with (folder / "recording.bin").open("wb") as file:
        file.truncate(HUGE)  # of zeros, which take no room here
    what = Material(folder, 1, HUGE)
    for kind in SERVERS:
        with reach(bench, kind) as far:
            place, back = far.place(), tools.fresh("back")
            name = str(far.block(place)["type"]).removesuffix("-storage")
            ran = bench.start("(ten) one file of 10 GiB", what, f"onblock, {name} up", f"onblock, {name} down")
            up, down = ran.values()
            bench.note(up, tools.job(what, local(folder), far.block(place), tools.fresh("home"))[0])
            bench.note(down, tools.job(what, far.block(place), local(back), tools.fresh("home"))[0])
            _took(back, what, "onblock")
        _peak(bench, name, up, down)
    back = tools.fresh("back")
    (copied,) = bench.start("(ten) one file of 10 GiB", what, "onblock, local").values()
    bench.note(copied, tools.job(what, local(folder), local(back), tools.fresh("home"))[0])
    _took(back, what, "onblock")
    _peak(bench, "local", copied)


def _peak(bench: Bench, name: str, *series: Series) -> None:
    peak, limit = max(s.rss for one in series for s in one.samples), f"under {HUGE_RSS / 1e6:.0f} MB"
    bench.claim(f"(ten) peak RSS, 10 GiB by {name}", f"{peak / 1e6:.0f} MB", limit, peak < HUGE_RSS)


SCENARIOS: dict[str, Callable[[Bench], None]] = {"sftp": sftp, "s3": s3, "webhdfs": webhdfs, "ten": ten}
