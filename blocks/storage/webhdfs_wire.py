"""How WebHDFS is spoken: questions to NameNodes, connections to DataNodes, and what their refusals mean.

Questions go to the NameNode through the `hdfs` package: its operations, its URLs, the next NameNode when one is away or
in standby. What is asked, and in which order, is in `webhdfs.py`; files on their way are in `webhdfs_transfer.py`.
"""

from __future__ import annotations

import getpass
import http.client
import json
import logging
import re
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import certifi
import hdfs
import requests
from hdfs.client import _Request
from pydantic import SecretStr
from requests.auth import AuthBase

from blocks import names
from blocks.errors import (
    AuthError,
    ConfigError,
    Conflict,
    Corrupt,
    DiskFull,
    NetworkError,
    NotFound,
    OnblockError,
    PermissionRefused,
    UnknownError,
)
from blocks.storage import kerberos
from blocks.storage.hdfs_checksum import FarChecksum
from blocks.storage.hdfs_names import hdfs_path

DEFAULT_BLOCK = 128 << 20
"""Bytes in a block, where neither the block nor the cluster says otherwise."""

EXCEPTIONS: dict[str, type[OnblockError]] = {
    "FileNotFoundException": NotFound,
    "FileAlreadyExistsException": Conflict, "ParentNotDirectoryException": Conflict,
    "PathIsNotEmptyDirectoryException": Conflict, "PathIsNotDirectoryException": Conflict,
    "AccessControlException": PermissionRefused, "AuthorizationException": PermissionRefused,
    "SnapshotAccessControlException": PermissionRefused,
    "SecurityException": AuthError, "InvalidToken": AuthError, "AuthenticationException": AuthError,
    "DSQuotaExceededException": DiskFull, "NSQuotaExceededException": DiskFull, "QuotaExceededException": DiskFull,
    "QuotaByStorageTypeExceededException": DiskFull, "MaxDirectoryItemsExceededException": DiskFull,
    "DiskOutOfSpaceException": DiskFull,
    "PathComponentTooLongException": ConfigError, "InvalidPathException": ConfigError,
    "IllegalArgumentException": ConfigError, "UnsupportedOperationException": ConfigError,
    "UnresolvedPathException": ConfigError, "HadoopIllegalArgumentException": ConfigError,
    "ChecksumException": Corrupt,
    # what passes by waiting
    "SafeModeException": NetworkError, "StandbyException": NetworkError, "RetriableException": NetworkError,
    "AlreadyBeingCreatedException": NetworkError, "RecoveryInProgressException": NetworkError,
    "LeaseExpiredException": NetworkError, "NotReplicatedYetException": NetworkError,
    "BlockMissingException": NetworkError, "ConnectException": NetworkError, "SocketTimeoutException": NetworkError,
    "NoRouteToHostException": NetworkError, "UnknownHostException": NetworkError, "EOFException": NetworkError,
    "ClosedChannelException": NetworkError, "InterruptedIOException": NetworkError,
    "ServerException": UnknownError,
}  # fmt: skip
"""The one table for WebHDFS, by the exception a node names; then come `MESSAGES`, then `STATUS`."""

MESSAGES: tuple[tuple[str, type[OnblockError]], ...] = (
    (r"There are 0 datanode|Failed to find datanode|no datanodes|Could not obtain block|All datanodes .* are bad",
     NetworkError),
    (r"could only be (replicated|written) to 0 ", DiskFull),
    (r"quota .*exceeded|[Qq]uota of ", DiskFull),
    (r"Name node is in safe mode|safemode", NetworkError),
    (r"must both be directories|is not a directory|already exists", Conflict),
    (r"Path is not a file|does not exist|is not found", NotFound),
    (r"Invalid path name|invalid escape sequence|component name .* exceeded|Path(name)? too long", ConfigError),
    (r"Token .*(expired|can't be found)|token .* is expired", AuthError),
    (r"Permission denied", PermissionRefused),
)  # fmt: skip
"""For exceptions that say little by their name: IOException, RemoteException."""

STATUS: dict[int, type[OnblockError]] = {
    400: ConfigError, 401: AuthError, 403: PermissionRefused, 404: NotFound, 405: ConfigError, 411: ConfigError,
    413: ConfigError, 414: ConfigError, 429: NetworkError, 500: UnknownError, 502: NetworkError, 503: NetworkError,
    504: NetworkError,
}  # fmt: skip
"""For answers that are not Hadoop's: a gateway's, a web server's."""

REMEDY: dict[str, str] = {
    "SafeModeException": "tried again by itself; HDFS leaves safe mode when enough blocks are reported",
    "AlreadyBeingCreatedException": "tried again by itself; HDFS gives up a dead writer after 60 s",
    "PathComponentTooLongException": "shorten it with the job's `path` template",
    "NSQuotaExceededException": "ask for a larger name quota, or remove files, then run the job again",
    "DSQuotaExceededException": "ask for a larger space quota, or make room, then run the job again",
    "InvalidToken": "get a new delegation token",
}


def classify(exception: str | None, message: str, status: int = 0) -> type[OnblockError]:
    """The class of the taxonomy for an answer of HDFS that is no success."""
    if exception in EXCEPTIONS:
        return EXCEPTIONS[exception]
    for pattern, kind in MESSAGES:
        if re.search(pattern, message):
            return kind
    return STATUS.get(status, UnknownError) if exception is None else UnknownError  # Hadoop says 403 to most


def refused(exception: str | None, message: str, path: str, status: int = 0) -> OnblockError:
    """The failure for an answer of HDFS that is no success."""
    text = names.display(message.split("\n\tat ")[0].split("\n")[0].strip()[:300])
    said = f"HDFS says {exception or status}: {without_token(text)}"
    return classify(exception, message, status)(said, path=path, remedy=REMEDY.get(exception or ""))


_TOKEN = re.compile(r"(delegation|token)=[^&\s'\")]+", re.IGNORECASE)


def without_token(text: str) -> str:
    """The text with stars for the delegation tokens in its URLs."""
    return _TOKEN.sub(r"\1=***", text)


class _NoToken(logging.Filter):
    """urllib3 logs each URL; a delegation token in one is worth as much as a password."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(without_token(a) if isinstance(a, str) else a for a in record.args)
        return True


logging.getLogger("urllib3.connectionpool").addFilter(_NoToken())


class _Client(hdfs.Client):
    """The `hdfs` package's client, with names taken as they are and redirects to DataNodes left to us."""

    _open = _Request("GET", allow_redirects=False)
    _get_file_checksum = _Request("GET", allow_redirects=False)
    _truncate = _Request("POST")
    _list_status = _Request("GET", stream=True)
    _list_status_batch = _Request("GET")

    def resolve(self, hdfs_path: str) -> str:
        """No '#LATEST' and no normalising: a file may have that name."""
        return hdfs_path

    def _request(self, method: str, url: str, **kwargs: Any) -> requests.Response:
        auth = self._session.auth
        if not isinstance(auth, _Spnego):
            return super()._request(method, url, **kwargs)
        answer = super()._request(method, url, **kwargs)
        if answer.status_code == 401 and auth.trusted_cookie:
            self._session.cookies.clear()  # its cookie has ended before its ticket
            answer = super()._request(method, url, **kwargs)
        return answer


class _Spnego(AuthBase):
    """Shows a Kerberos ticket to a NameNode, until it gives a cookie."""

    def __init__(self, ticket: kerberos.Ticket):
        self.ticket = ticket
        self.trusted_cookie = False

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        self.trusted_cookie = "hadoop.auth=" in str(request.headers.get("Cookie", ""))
        if not self.trusted_cookie:
            host = urlsplit(request.url or "").hostname
            request.headers["Authorization"] = kerberos.negotiate(self.ticket, str(host))
        return request


def bad_answer(status: int, body: bytes, path: str) -> OnblockError:
    """The failure for an answer of a DataNode that is no success."""
    try:
        remote = json.loads(body)["RemoteException"]
        return refused(str(remote["exception"]), str(remote["message"]), path, status)
    except (ValueError, KeyError, TypeError):
        return refused(None, body[:300].decode("utf-8", "replace"), path, status)


class Settings(Protocol):
    """What the block says that matters here; its fields say what each is."""

    namenodes: list[str]
    root: str
    user: str
    principal: str
    keytab: str
    ticket_cache: str
    token: SecretStr | None
    verify_tls: bool
    ca_file: str
    permission: str
    replication: int | None
    block_size: int | None
    timeout_s: float


class Wire:
    """One user's way to a cluster. Everything it raises is of the taxonomy, and holds no token."""

    def __init__(self, storage: Settings):
        self.storage = storage
        self._http = requests.Session()
        self._http.trust_env = False  # no proxy, no .netrc: what the block says is what is done
        self._secure = storage.namenodes[0].startswith("https:")
        bundle = storage.ca_file or certifi.where()
        self._http.verify = bundle if storage.verify_tls else False
        try:
            self.tls = ssl.create_default_context(cafile=bundle)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError("the certificates in `ca_file` cannot be read", path=storage.ca_file) from error
        if not storage.verify_tls:
            self.tls.check_hostname, self.tls.verify_mode = False, ssl.CERT_NONE
        if storage.token is not None:
            self._http.params = {"delegation": storage.token.get_secret_value()}
        elif storage.keytab or storage.ticket_cache:
            self._http.auth = _Spnego(kerberos.ticket(storage.principal, storage.keytab, storage.ticket_cache))
        else:
            self._http.params = {"user.name": storage.user or getpass.getuser()}
        timeout = (min(storage.timeout_s, 15.0), storage.timeout_s)
        self._client = _Client(";".join(storage.namenodes), timeout=timeout, session=self._http)
        self.crc = "CRC32C"  # of this cluster, until it tells otherwise
        self._decodes_twice: bool | None = None
        self._prover: ThreadPoolExecutor | None = None

    @property
    def where(self) -> str:
        """The NameNode we talk to."""
        return self._client._urls[0]

    @property
    def prover(self) -> ThreadPoolExecutor:
        """The thread that hashes a chunk while it is on its way."""
        if self._prover is None:
            self._prover = ThreadPoolExecutor(1, "onblock-hdfs-proof")
        return self._prover

    def at(self, path: str) -> str:
        """The absolute path of a legal relative one. Raises ConfigError."""
        return f"{self.storage.root.rstrip('/')}/{hdfs_path(path)}"

    def close(self) -> None:
        """Let go of the connections to the NameNode."""
        self._http.close()
        if self._prover is not None:
            self._prover.shutdown()
            self._prover = None

    def ask(self, operation: str, full: str, path: str, **params: object) -> requests.Response:
        """One question to the NameNode. Raises only of the taxonomy; `path` is for people."""
        failed: OnblockError
        try:
            return getattr(self._client, f"_{operation}")(full, **params)
        except hdfs.HdfsError as error:
            message = error.message if isinstance(error.message, str) else str(error.message, "utf-8", "replace")
            status = 401 if message.startswith("Authentication failure") else 0
            failed = refused(error.exception, message, path, status)
        except requests.RequestException as error:
            failed = self.unreachable(error, path)
        except (ValueError, KeyError, TypeError) as error:
            failed = UnknownError(f"{self.where} does not answer as a NameNode does", path=path)
            failed.__cause__ = error
        raise failed  # outside: what `requests` raises holds the URL, and with it a token

    def unreachable(
        self, error: BaseException, path: str, node: http.client.HTTPConnection | None = None
    ) -> OnblockError:
        """The failure for a connection that did not work; its cause is the innermost, which knows of no URL."""
        where = f"the DataNode {node.host}:{node.port}" if node is not None else self.where
        root: BaseException | None = error
        seen = {id(error)}
        certificate = isinstance(error, ssl.SSLError)
        while root is not None:
            nested = [root.__cause__, root.__context__, getattr(root, "reason", None), *root.args[:1]]
            inner = next((e for e in nested if isinstance(e, BaseException) and id(e) not in seen), None)
            if inner is None:
                break
            root = inner
            seen.add(id(root))
            certificate = certificate or isinstance(root, ssl.SSLError)
        assert root is not None
        if certificate and "certificate" in str(root).lower():
            failed: OnblockError = ConfigError(
                f"the certificate of {where} is not trusted", path=path,
                remedy="give the authority that signed it as `ca_file`",
            )  # fmt: skip
        elif isinstance(root, socket.gaierror):
            failed = NetworkError(f"the host of {where} is not known", path=path)
        else:
            said = without_token(str(root)) if isinstance(root, OSError | http.client.HTTPException) else ""
            failed = NetworkError(f"no answer from {where}: {said or type(root).__name__}", path=path)
        if isinstance(root, OSError) and not isinstance(root, requests.RequestException):
            failed.__cause__ = root
        return failed

    def status(self, path: str, full: str) -> dict[str, Any]:
        """FileStatus of a file. Raises NotFound, Conflict for a folder."""
        answer = self.ask("get_file_status", full, path).json()["FileStatus"]
        if answer["type"] != "FILE":
            raise Conflict(f"is a {str(answer['type']).lower()}, not a file", path=path)
        return answer

    def datanode(self, answer: requests.Response, full: str, path: str) -> tuple[http.client.HTTPConnection, str]:
        """A connection to the DataNode that the NameNode named, and what to ask it for.

        The path is ours: in the NameNode's, a name is put into another form of Unicode.
        """
        parts = urlsplit(answer.headers.get("Location", ""))
        if not parts.hostname:
            raise UnknownError(f"{self.where} named no DataNode", path=path)
        if self._secure and parts.scheme != "https":
            raise ConfigError(
                f"{self.where} sends us to {parts.netloc} without TLS", path=path,
                remedy="set dfs.http.policy to HTTPS_ONLY, or give the http address of the NameNode if that is meant",
            )  # fmt: skip
        if "%" in full or "+" in full:
            if self._decodes_twice is None:
                self._decodes_twice = self._find_out_decoding(parts, path)
            if self._decodes_twice:
                full = full.replace("%", "%25").replace("+", "%2B")
        return self._connect(parts), f"/webhdfs/v1{quote(full)}?{parts.query}"

    def _connect(self, parts: Any) -> http.client.HTTPConnection:
        timeout = self.storage.timeout_s
        if parts.scheme == "https":
            return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout, context=self.tls)
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)

    def _find_out_decoding(self, parts: Any, path: str) -> bool:
        """DataNodes before Hadoop 3.3 decode the path twice: asked for %41, such a one misses A."""
        query = [(k, v) for k, v in parse_qsl(parts.query) if k not in ("op", "overwrite", "permission", "offset")]
        connection = self._connect(parts)
        try:
            target = f"/webhdfs/v1/.onblock-%2541-none?{urlencode([('op', 'GETFILECHECKSUM'), *query])}"
            connection.request("GET", target)
            return b"%41" not in connection.getresponse().read(4096)
        except (OSError, http.client.HTTPException) as error:
            failed = self.unreachable(error, path, connection)
        finally:
            connection.close()
        raise failed

    def far_checksum(self, full: str, path: str) -> FarChecksum:
        """What HDFS says it holds, from the CRCs beside its blocks."""
        answer = self.ask("get_file_checksum", full, path)
        if answer.status_code == 307:
            connection, target = self.datanode(answer, full, path)
            body = self.exchange(connection, "GET", target, path)
        else:
            body = answer.content
        try:
            found = json.loads(body)["FileChecksum"]
            far = FarChecksum(str(found["algorithm"]), str(found["bytes"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UnknownError("HDFS gave no checksum", path=path) from error
        self.crc = far.crc or self.crc  # the next file is computed alike
        return far

    def over_quota(self, full: str, path: str) -> OnblockError | None:
        """DiskFull if a folder above has no room left for one more block: a DataNode does not always tell."""
        folder = full.rpartition("/")[0]
        while folder:
            try:
                found = self.ask("get_content_summary", folder, path).json()["ContentSummary"]
            except OnblockError:
                return None
            block = (self.storage.block_size or DEFAULT_BLOCK) * (self.storage.replication or 1)
            if 0 <= found.get("spaceQuota", -1) < found.get("spaceConsumed", 0) + block:
                return DiskFull(
                    f"the space quota of {names.display(folder)} at {self.where} is used up: "
                    f"{found['spaceConsumed']} of {found['spaceQuota']} bytes, and a block takes {block}",
                    path=path, remedy=REMEDY["DSQuotaExceededException"],
                )  # fmt: skip
            folder = folder.rpartition("/")[0]
        return None

    def exchange(self, connection: http.client.HTTPConnection, method: str, target: str, path: str) -> bytes:
        """One short request to a DataNode; the body of its answer."""
        try:
            connection.request(method, target)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status < 300:
                return body
            failed = bad_answer(answer.status, body, path)
        except (OSError, http.client.HTTPException) as error:
            failed = self.unreachable(error, path, connection)
        finally:
            connection.close()
        raise failed

    def rename(
        self, full: str, target: str, path: str, to: str, *, replace: bool = False, folders: bool = False
    ) -> None:
        """One step, which overwrites nothing unless told so. Raises NotFound, Conflict."""
        options = {"destination": target, "renameoptions": "OVERWRITE" if replace else "NONE"}
        try:
            answer = self.ask("rename", full, path, **options)
        except NotFound as error:
            if not folders or "destination parent" not in error.what:
                raise
            self.ask("mkdirs", target.rpartition("/")[0] or "/", to)
            answer = self.ask("rename", full, path, **options)
        except Conflict as conflict:
            raise Conflict("something is already at the final name", path=to) from conflict
        if b'"boolean":false' in answer.content:  # a gateway that knows no options says no more than that
            self.status(path, full)
            raise Conflict("something is already at the final name", path=to)
