"""Hadoop 2.7.4 as jars, made once in the user's cache folder from what PyPI and Debian carry.

The Hadoop jars come in the source archive of pyspark 3.0.1 (204 MB), the last one with NameNode and DataNode in it;
Jersey 1, which WebHDFS needs and Spark lacks, from Debian. What is kept is 95 MB. `hdfs.py` runs servers from it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PYSPARK = "3.0.1"
JARS = (
    "hadoop-common", "hadoop-hdfs", "hadoop-auth", "hadoop-annotations", "jetty-6", "jetty-sslengine-6", "jetty-util-6",
    "javax.servlet-api", "guava-14", "protobuf-java-2.5", "log4j-1", "slf4j-api", "slf4j-log4j12", "htrace-core",
    "commons-cli", "commons-codec", "commons-collections", "commons-configuration", "commons-httpclient",
    "commons-io-2", "commons-lang-2", "commons-logging", "commons-math3", "commons-net", "jackson-core-asl",
    "jackson-mapper-asl", "netty-all", "leveldbjni", "xercesImpl", "xmlenc", "apacheds-i18n", "apacheds-kerberos-codec",
    "api-asn1", "api-util", "httpclient-4", "httpcore", "curator-framework", "curator-client", "zookeeper", "jaxb-api",
    "activation-1", "gson", "avro-1",
)  # fmt: skip
DEBIAN = (
    "libjersey1-core-java", "libjersey1-server-java", "libjersey1-servlet-java", "libjersey1-json-java",
    "libjsr311-api-java", "libasm-java",
)  # fmt: skip
DEBIAN_JARS = ("jersey1-core", "jersey1-server", "jersey1-servlet", "jersey1-json", "jsr311-api", "asm")


def home() -> Path:
    """Where it lies: `lib/*.jar`, `webroot/`, `home/` and, once a cluster has run, `classes.jsa` and `formatted/`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "onblock-tests" / "hadoop-2.7.4"


def installed() -> bool:
    """Whether `prepare` has done its work."""
    return (home() / "complete").exists()


def prepare() -> None:
    """Download and unpack what is missing. Raises RuntimeError with the output of the command that failed."""
    if installed():
        return
    home().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home().parent, prefix="hadoop-") as name:
        made = Path(name, "made")
        (made / "lib").mkdir(parents=True)
        (made / "home/bin").mkdir(parents=True)
        _pyspark(Path(name), made / "lib")
        _debian(Path(name), made / "lib")
        _impatient(made / "lib")
        for app in ("hdfs", "datanode"):  # not in the jars; empty ones serve WebHDFS and JMX
            folder = made / "webroot/webapps" / app / "WEB-INF"
            folder.mkdir(parents=True)
            (folder / "web.xml").write_text('<web-app version="2.4" xmlns="http://java.sun.com/xml/ns/j2ee"/>')
        (made / "webroot/webapps/static").mkdir()
        (made / "complete").touch()
        shutil.rmtree(home(), ignore_errors=True)
        with contextlib.suppress(OSError):  # somebody else was as quick: theirs is as good
            made.rename(home())


def _pyspark(folder: Path, lib: Path) -> None:
    run(folder, sys.executable, "-m", "pip", "download", "--quiet", "--no-cache-dir", "--disable-pip-version-check",
         "--no-deps", "--no-binary", ":all:", "-d", ".", f"pyspark=={PYSPARK}")  # fmt: skip
    archive = folder / f"pyspark-{PYSPARK}.tar.gz"
    with tarfile.open(archive) as tar:
        for member in tar:
            jar = Path(member.name)
            if member.isfile() and jar.parent.parts[-2:] == ("deps", "jars") and jar.name.startswith(JARS):
                source = tar.extractfile(member)
                assert source is not None
                with source, (lib / jar.name).open("wb") as target:
                    shutil.copyfileobj(source, target)
    archive.unlink()


def _debian(folder: Path, lib: Path) -> None:
    download = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", *DEBIAN]
    try:
        run(folder, *download)
    except RuntimeError:  # no package lists yet
        run(folder, "apt-get", "update", "-qq")
        run(folder, *download)
    for package in folder.glob("*.deb"):
        run(folder, "dpkg-deb", "-x", str(package), "debian")
    for jar in DEBIAN_JARS:
        shutil.copyfile(folder / f"debian/usr/share/java/{jar}.jar", lib / f"{jar}.jar")


_OUTPUT = "org/apache/hadoop/hdfs/DFSOutputStream.class"
_LONG_400, _LONG_10 = (b"\x05" + value.to_bytes(8, "big") for value in (400, 10))  # in a class's pool of constants


def _impatient(lib: Path) -> None:
    """A writer that closes a file asks again after 10 ms, not 400, whether its last block was reported.

    Later versions have a setting (`dfs.client.block.write.locateFollowingBlock.initial.delay.ms`); in this one each
    second file of a test would wait.
    """
    (jar,) = lib.glob("hadoop-hdfs-*.jar")
    changed = jar.with_suffix(".new")
    with zipfile.ZipFile(jar) as old, zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename == _OUTPUT:
                assert data.count(_LONG_400) == 1
                data = data.replace(_LONG_400, _LONG_10)
            new.writestr(entry, data)
    changed.rename(jar)


def run(folder: Path, *argv: str) -> None:
    """A command in `folder`. Raises RuntimeError with its output if it fails."""
    done = subprocess.run(
        argv, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace",
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv[:3])} exited {done.returncode}: {done.stdout[-2000:]}")
