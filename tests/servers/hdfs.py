"""HDFS 2.7.4 on loopback: one NameNode and one DataNode with WebHDFS, and a `hadoop` command line, from `hadoop.py`.

The first cluster ever started leaves an archive of its classes and a formatted name folder in the cache: later ones,
and every run of `hadoop`, then start 40 % faster.
"""

from __future__ import annotations

import getpass
import http.client
import http.server
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from tests.servers import hadoop
from tests.servers.base import LOOPBACK, Server, free_port, program
from tests.servers.kdc import Kdc

_OPENS = (
    "java.base/java.lang", "java.base/java.net", "java.base/java.nio", "java.base/sun.nio.ch",
    "java.security.jgss/sun.security.krb5", "java.security.jgss/sun.security.jgss",
)  # fmt: skip
_NAMENODE = "org.apache.hadoop.hdfs.server.namenode.NameNode"
_DATANODE = "org.apache.hadoop.hdfs.server.datanode.DataNode"
_COMMANDS = {
    "fs": "org.apache.hadoop.fs.FsShell",
    "dfs": "org.apache.hadoop.fs.FsShell",
    "dfsadmin": "org.apache.hadoop.hdfs.tools.DFSAdmin",
    "debug": "org.apache.hadoop.hdfs.tools.DebugAdmin",
}
_LOG4J = """\
log4j.rootLogger={level},c
log4j.appender.c=org.apache.log4j.ConsoleAppender
log4j.appender.c.target=System.err
log4j.appender.c.layout=org.apache.log4j.PatternLayout
log4j.appender.c.layout.ConversionPattern=%d{{ISO8601}} %p %c{{1}}: %m%n
log4j.logger.org.apache.hadoop.util.NativeCodeLoader=ERROR
"""


class DataNode(Server):
    """The process that keeps the blocks; started, killed and started again by its cluster."""

    def __init__(self, folder: Path, argv: list[str]):
        super().__init__(folder)
        self.argv = argv

    def launch(self) -> dict[str, Any]:
        self.spawn(*self.argv)
        return {}


class Hdfs(Server):
    """A cluster whose superuser is whoever starts it. Options are settings of hdfs-site.xml.

    `info`: url (of WebHDFS), fs (of the command line), user (the superuser), hadoop (the program), conf (its folder),
    namenode_http, namenode_rpc, datanode_http, datanode_data (ports).
    """

    stop_timeout = 1.0  # nobody needs what it holds

    def __init__(self, folder: Path, kdc: Kdc | None = None, **options: str):
        super().__init__(folder, **options)
        self.kdc = kdc
        self.datanode: DataNode | None = None
        self.argv: list[str] = []

    def launch(self) -> dict[str, Any]:
        jars = hadoop.home()
        if not hadoop.installed():
            raise FileNotFoundError("Hadoop is not there: python -m tests.servers.install")
        if not (jars / "classes.jsa").exists() and not self.options.get("onblock.record"):
            _archive()
        rpc, web, data, data_web, data_ipc = (free_port() for _ in range(5))
        host = "localhost" if self.kdc else LOOPBACK  # Kerberos principals name the host
        (self.folder / "tmp").mkdir()
        self._configure(host, rpc, web, data, data_web, data_ipc)
        common = self._java(jars)
        server = [*common, "-Xmx512m", "-cp", f"{_classpath(jars)}:{jars}/webroot:{self.folder}/conf"]
        if (jars / "formatted").exists():
            shutil.copytree(jars / "formatted", self.folder / "name")
        else:
            self.run(*server, _NAMENODE, "-format", "-nonInteractive", "-force")
        self.argv = [*server, *self._record("namenode"), _NAMENODE]
        self.spawn(*self.argv)
        self.datanode = DataNode(self.folder / "datanode", [*server, *self._record("datanode"), _DATANODE]).start()
        (self.folder / "cli").mkdir()
        (self.folder / "cli/log4j.properties").write_text(_LOG4J.format(level="WARN"))
        client = [*common, "-Xmx256m", "-cp", f"{_classpath(jars)}:{self.folder}/cli:{self.folder}/conf"]
        program_path = self.folder / "bin/hadoop"
        program_path.parent.mkdir()
        cases = "".join(f"{name}) class={value};;\n" for name, value in _COMMANDS.items())
        program_path.write_text(
            f"#!/bin/sh\ncommand=$1; shift\ncase $command in\n{cases}*) exit 2;;\nesac\n"
            f'exec {shlex.join(client)} $HADOOP_OPTS $class "$@"\n'
        )
        program_path.chmod(0o755)
        self.info = {
            "url": f"http://{host}:{web}", "fs": f"hdfs://{host}:{rpc}", "user": getpass.getuser(),
            "hadoop": str(program_path), "conf": str(self.folder / "conf"), "namenode_http": web, "namenode_rpc": rpc,
            "datanode_http": data_web, "datanode_data": data,
        }  # fmt: skip
        self.wait(self.ready, 90)
        return self.info

    def _java(self, jars: Path) -> list[str]:
        java = program("java")
        if java is None:
            raise FileNotFoundError("java is not installed: python -m tests.servers.install")
        archive = ["-Xshare:off"] if "onblock.record" in self.options else [f"-XX:SharedArchiveFile={jars}/classes.jsa"]
        opens = [part for name in _OPENS for part in ("--add-opens", f"{name}=ALL-UNNAMED")]
        kerberos = [f"-Djava.security.krb5.conf={self.kdc.env['KRB5_CONFIG']}"] if self.kdc else []
        return [
            java, *archive, *opens, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData",
            f"-Djava.io.tmpdir={self.folder}/tmp", f"-Dhadoop.home.dir={jars}/home", "-Djava.net.preferIPv4Stack=true",
            *kerberos,
        ]  # fmt: skip

    def _record(self, name: str) -> list[str]:
        folder = self.options.get("onblock.record")
        return [f"-XX:DumpLoadedClassList={folder}/{name}.lst"] if folder else []

    def _configure(self, host: str, rpc: int, web: int, data: int, data_web: int, data_ipc: int) -> None:
        core = {"fs.defaultFS": f"hdfs://{host}:{rpc}", "hadoop.tmp.dir": f"{self.folder}/tmp"}
        hdfs = {
            "dfs.namenode.name.dir": f"file://{self.folder}/name",
            "dfs.datanode.data.dir": f"file://{self.folder}/data",
            "dfs.namenode.rpc-address": f"{host}:{rpc}",
            "dfs.namenode.http-address": f"{host}:{web}",
            "dfs.datanode.address": f"{LOOPBACK}:{data}",
            "dfs.datanode.http.address": f"{LOOPBACK}:{data_web}",
            "dfs.datanode.ipc.address": f"{LOOPBACK}:{data_ipc}",
            "dfs.datanode.hostname": host,
            "dfs.replication": "1",
            "dfs.namenode.fs-limits.min-block-size": "4096",
            "dfs.webhdfs.enabled": "true",
            "dfs.permissions.enabled": "true",
            "dfs.namenode.safemode.extension": "0",
            "dfs.namenode.edits.noeditlogchannelflush": "true",
            "dfs.datanode.du.reserved": "0",
            "dfs.heartbeat.interval": "1",
            "dfs.namenode.heartbeat.recheck-interval": "1000",
            "dfs.client.block.write.replace-datanode-on-failure.policy": "NEVER",
            "dfs.client.block.write.locateFollowingBlock.retries": "10",  # hadoop.py made them quick
        }
        if self.kdc:
            realm, keytab = self.kdc.info["realm"], str(self.folder / "hdfs.keytab")
            for name in ("hdfs/localhost", "HTTP/localhost"):
                self.kdc.add(name, keytab)
            core |= {
                "hadoop.security.authentication": "kerberos",
                "hadoop.security.authorization": "true",
                "hadoop.rpc.protection": "authentication",
                "hadoop.security.auth_to_local": f"RULE:[2:$1@$0](hdfs@{realm})s/@.*// DEFAULT",
            }
            for node in ("namenode", "datanode"):
                hdfs |= {
                    f"dfs.{node}.keytab.file": keytab,
                    f"dfs.{node}.kerberos.principal": f"hdfs/localhost@{realm}",
                }
            hdfs |= {
                "dfs.web.authentication.kerberos.principal": f"HTTP/localhost@{realm}",
                "dfs.web.authentication.kerberos.keytab": keytab,
                "dfs.block.access.token.enable": "true",
                "ignore.secure.ports.for.testing": "true",
            }
        hdfs |= {key: value for key, value in self.options.items() if not key.startswith("onblock.")}
        (self.folder / "conf").mkdir()
        (self.folder / "conf/log4j.properties").write_text(_LOG4J.format(level="INFO"))
        for file, settings in (("core-site.xml", core), ("hdfs-site.xml", hdfs)):
            rows = "".join(f"<property><name>{k}</name><value>{v}</value></property>\n" for k, v in settings.items())
            (self.folder / "conf" / file).write_text(f"<configuration>\n{rows}</configuration>\n")

    def ready(self) -> bool:
        """Out of safe mode, with a live DataNode."""
        connection = http.client.HTTPConnection(self.info["url"].rpartition("/")[2], timeout=10)
        try:
            connection.request("GET", "/jmx?qry=Hadoop:service=NameNode,name=FSNamesystemState")
            (bean,) = json.loads(connection.getresponse().read())["beans"]
        except (http.client.HTTPException, ValueError) as error:
            raise RuntimeError(str(error)) from error
        finally:
            connection.close()
        return bean["NumLiveDataNodes"] >= 1 and bean["FSState"] == "Operational"

    def hadoop(self, *arguments: str, **env: str) -> str:
        """One run of the command line, as its superuser."""
        return self.run(self.info["hadoop"], *arguments, env=env)

    def kill_datanode(self) -> None:
        """As by a power cut; `start_datanode` brings it back on its old ports."""
        assert self.datanode is not None
        assert self.datanode.process is not None
        os.kill(self.datanode.process.pid, signal.SIGKILL)
        self.datanode.stop()

    def start_datanode(self) -> None:
        """Once it answers, it is known again to its NameNode."""
        assert self.datanode is not None
        self.datanode.start()
        port = self.info["datanode_http"]
        self.wait(lambda: socket.create_connection((LOOPBACK, port), 1).close() is None, 60)

    def stop(self) -> None:
        if self.datanode is not None:
            self.datanode.stop_timeout = self.stop_timeout
            self.datanode.stop()
        super().stop()


def _classpath(jars: Path) -> str:
    return ":".join(sorted(map(str, (jars / "lib").glob("*.jar"))))


def _archive() -> None:
    """Run a cluster and the command line once; keep the classes they load (60 MB) and the formatted name folder."""
    jars = hadoop.home()
    with tempfile.TemporaryDirectory(dir=jars) as name:
        folder = Path(name)
        with Hdfs(folder / "hdfs", **{"onblock.record": name}) as cluster:
            formatted = folder / "formatted"
            shutil.copytree(folder / "hdfs/name", formatted, ignore=shutil.ignore_patterns("in_use.lock", "edits*"))
            (formatted / "current/seen_txid").write_text("0\n")
            commands = ("-mkdir -p /a", f"-put {__file__} /a/f", "-stat %b /a/f", "-checksum /a/f", "-cat /a/f",
                        "-mv /a/f /a/g", "-find / -print0", "-appendToFile /dev/null /a/h", "-rm -skipTrash /a/g")  # fmt: skip
            for number, command in enumerate(commands):
                lists = f"-XX:DumpLoadedClassList={name}/cli{number}.lst"
                cluster.hadoop("fs", *command.split(), HADOOP_OPTS=lists)
        found = {
            word for lst in folder.glob("*.lst") for word in lst.read_text().splitlines()
            if word[:1] not in ("#", "@") and " " not in word
        }  # fmt: skip
        (folder / "all").write_text("\n".join(sorted(found)))
        java = program("java")
        assert java is not None
        subprocess.run(
            [java, "-Xshare:dump", "-XX:+UseSerialGC", "-Xlog:cds=off", f"-XX:SharedClassListFile={name}/all",
             f"-XX:SharedArchiveFile={name}/classes.jsa", "-cp", _classpath(jars)],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        if not (jars / "formatted").exists():
            formatted.rename(jars / "formatted")
        (folder / "classes.jsa").rename(jars / "classes.jsa")


def installed() -> bool:
    """Whether this machine has what a cluster needs."""
    return hadoop.installed() and program("java") is not None


class Front(Server):
    """A NameNode's web address that sends clients to another port for the DataNode: a fault proxy's."""

    def __init__(self, cluster: Hdfs, datanode_port: int):
        super().__init__(cluster.folder)
        upstream, old, new = cluster.info["url"], cluster.info["datanode_http"], datanode_port

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                connection = http.client.HTTPConnection(upstream.rpartition("/")[2], timeout=30)
                connection.request(self.command, self.path)
                answer = connection.getresponse()
                body = answer.read()
                self.send_response(answer.status)
                if location := answer.getheader("Location"):
                    self.send_header("Location", location.replace(f":{old}/", f":{new}/"))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                connection.close()

            do_GET = do_PUT = do_POST = do_DELETE = forward

            def log_message(self, format: str, *arguments: object) -> None:
                return

        self.web = http.server.ThreadingHTTPServer((LOOPBACK, 0), Handler)

    def launch(self) -> dict[str, Any]:
        threading.Thread(target=self.web.serve_forever, daemon=True).start()
        return {"url": f"http://{LOOPBACK}:{self.web.server_port}"}

    def stop(self) -> None:
        self.web.shutdown()
        self.web.server_close()
