"""HDFS under test, and a look behind its back by WebHDFS with `requests` alone.

Bytes are written and read by file id (`/.reserved/.inodes`) or under a plain name that is renamed: a DataNode of Hadoop
2.7 takes some names for others.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
import requests

from blocks.storage.base import Storage
from blocks.storage.hadoop_cli import HadoopCliStorage
from blocks.storage.webhdfs import WebHdfsStorage
from tests.contract.places import SAMPLES, Place, place
from tests.servers.hdfs import Hdfs

_numbers = itertools.count()


class HdfsPlace(Place):
    """A folder of a cluster, seen by its superuser."""

    many, sequences = 200, 8
    puts_mtime = True

    def __init__(self, storage: Storage, cluster: Hdfs, root: str):
        super().__init__(storage)
        self.root, self.url, self.user = root, cluster.info["url"], cluster.info["user"]
        self.http = requests.Session()
        self.ask("PUT", root, "MKDIRS", permission="777")

    def ask(self, verb: str, full: str, op: str, data: bytes | None = None, **params: object) -> requests.Response:
        query = {"op": op, "user.name": self.user, **params}
        url = f"{self.url}/webhdfs/v1{quote(full)}"
        answer = self.http.request(verb, url, params=query, allow_redirects=False)  # type: ignore[arg-type]
        if answer.status_code == 307:
            answer = self.http.request(verb, answer.headers["Location"], data=data)
        return answer

    def status(self, path: str) -> dict[str, Any] | None:
        answer = self.ask("GET", f"{self.root}/{path}", "GETFILESTATUS")
        return answer.json()["FileStatus"] if answer.ok else None

    def put(self, path: str, data: bytes, mtime_ns: int | None = None) -> None:
        full = f"{self.root}/{path}"
        plain = path.isascii() and path.replace("/", "").replace(".", "").isalnum()
        written = full if plain else f"/foreign-{next(_numbers)}"
        assert self.ask("PUT", written, "CREATE", data, overwrite="true").status_code == 201
        if mtime_ns is not None:
            assert self.ask("PUT", written, "SETTIMES", modificationtime=mtime_ns // 1_000_000).ok
        if not plain:
            assert self.ask("PUT", full.rpartition("/")[0], "MKDIRS").ok
            answer = self.ask("PUT", written, "RENAME", destination=full, renameoptions="OVERWRITE")
            assert answer.ok, answer.text

    def get(self, path: str) -> bytes | None:
        status = self.status(path)
        if status is None or status["type"] != "FILE":
            return None
        answer = self.ask("GET", f"/.reserved/.inodes/{status['fileId']}", "OPEN")
        assert answer.status_code == 200, answer.text
        return answer.content

    def everything(self) -> set[str]:
        found, folders = set(), [""]
        while folders:
            folder = folders.pop()
            answer = self.ask("GET", f"{self.root}/{folder}", "LISTSTATUS")
            for entry in answer.json()["FileStatuses"]["FileStatus"]:
                name = f"{folder}{entry['pathSuffix']}"
                if entry["type"] == "DIRECTORY":
                    folders.append(f"{name}/")
                else:
                    found.add(name)
        return found

    def remove(self, path: str) -> None:
        assert self.ask("DELETE", f"{self.root}/{path}", "DELETE").json()["boolean"]

    def holds(self, path: str) -> bool:
        return ":" not in path


def new_root(cluster: Hdfs) -> str:
    """A folder nobody has used."""
    return f"/contract/{next(_numbers)}"


@place("webhdfs")
def webhdfs(request: pytest.FixtureRequest) -> Iterator[Place]:
    cluster: Hdfs = request.getfixturevalue("hdfs_cluster")
    root = new_root(cluster)
    storage = WebHdfsStorage(namenodes=[cluster.info["url"]], root=root, user=cluster.info["user"])
    yield HdfsPlace(storage, cluster, root)


@place("hadoop-cli")
def hadoop_cli(request: pytest.FixtureRequest) -> Iterator[Place]:
    cluster: Hdfs = request.getfixturevalue("hdfs_cluster")
    root = new_root(cluster)
    storage = HadoopCliStorage(program=cluster.info["hadoop"], root=root)
    one = HdfsPlace(storage, cluster, root)
    one.dear = True
    yield one


SAMPLES["hadoop-cli"] = {
    "test_the_table",
    "test_a_hostile_name_goes_all_the_way", "test_an_illegal_name_is_refused_by_every_method",
    "test_scan_enters_only_where_it_may",
    "test_read_from_an_offset", "test_read_of_what_is_not_there",
    "test_what_is_sent_arrives", "test_conflict_then_replace",
    "test_rewind", "test_one_key_takes_over_from_another", "test_delete_takes_no_folder", "test_move_never_overwrites",
    "test_push_of_what_does_not_go", "test_pull",
}  # fmt: skip
"""Each call is a JVM. What these leave out, all names among it, is in `tests/storage/test_hadoop_cli.py`."""
