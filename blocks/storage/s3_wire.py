"""One connection to an S3 server: requests signed with Signature Version 4, answers, and what failures mean.

The table of failures is here, for all S3-compatible servers. What is asked of the server, and when, is in `s3.py`
(sessions) and `s3_transfer.py` (files on their way).

Not boto3, because a shipment has thousands of small files and Python one interpreter lock. A PutObject of 4 KiB costs
1.9 ms of CPU with boto3, 0.5 ms with urllib3 and this signature, 0.25 ms with `http.client` and this signature.
Credentials still come from prefect-aws and botocore (`s3.py`).
"""

from __future__ import annotations

import email.utils
import hashlib
import hmac
import http.client
import random
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import quote
from xml.etree import ElementTree

from blocks.errors import (
    AuthError,
    ConfigError,
    Conflict,
    DiskFull,
    HashMismatch,
    NetworkError,
    NotFound,
    OnblockError,
    PermissionRefused,
    UnknownError,
)

if TYPE_CHECKING:
    Body = bytes | bytearray | memoryview

UNSIGNED = "UNSIGNED-PAYLOAD"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
TRIES = 4
"""How often one request is sent before its failure counts: a part of a large file should not cost the file."""
DELAY_S = 0.15
"""Before the second try; doubled for each after it."""

CODES: dict[str, type[OnblockError]] = {
    "InvalidAccessKeyId": AuthError, "SignatureDoesNotMatch": AuthError, "ExpiredToken": AuthError,
    "InvalidToken": AuthError, "TokenRefreshRequired": AuthError, "InvalidClientTokenId": AuthError,
    "InvalidSecurity": AuthError, "NotSignedUp": AuthError, "RequestTimeTooSkewed": AuthError,
    "RequestExpired": AuthError, "AuthorizationHeaderMalformed": ConfigError, "NoCredentials": AuthError,
    "AccessDenied": PermissionRefused, "AllAccessDisabled": PermissionRefused, "AccountProblem": PermissionRefused,
    "MethodNotAllowed": PermissionRefused, "InvalidObjectState": PermissionRefused, "ObjectLocked": PermissionRefused,
    "InvalidPayer": PermissionRefused, "UnauthorizedAccess": PermissionRefused, "Unauthorized": AuthError,
    "NoSuchBucket": NotFound, "NoSuchKey": NotFound, "NoSuchUpload": UnknownError, "NoSuchVersion": NotFound,
    "PreconditionFailed": Conflict, "ConditionalRequestConflict": Conflict, "ExistingObjectIsDirectory": Conflict,
    "ExistingObjectIsFile": Conflict, "XMinioObjectExistsAsDirectory": Conflict, "XMinioParentIsObject": Conflict,
    "QuotaExceeded": DiskFull, "XMinioStorageFull": DiskFull, "XMinioAdminBucketQuotaExceeded": DiskFull,
    "StorageFull": DiskFull, "InsufficientCapacity": DiskFull, "storage_cap_exceeded": DiskFull,
    "BadDigest": HashMismatch, "XAmzContentSHA256Mismatch": HashMismatch, "XAmzContentChecksumMismatch": HashMismatch,
    "SlowDown": NetworkError, "SlowDownRead": NetworkError, "SlowDownWrite": NetworkError,
    "ServiceUnavailable": NetworkError, "InternalError": NetworkError, "InternalServerError": NetworkError,
    "RequestTimeout": NetworkError, "Throttling": NetworkError, "TooManyRequests": NetworkError,
    "OperationAborted": NetworkError, "IncompleteBody": NetworkError, "XMinioServerNotInitialized": NetworkError,
    "InvalidBucketName": ConfigError, "KeyTooLongError": ConfigError, "KeyTooLong": ConfigError,
    "PermanentRedirect": ConfigError, "TemporaryRedirect": ConfigError, "IllegalLocationConstraintException": ConfigError,
    "InvalidArgument": ConfigError, "InvalidRequest": ConfigError, "InvalidStorageClass": ConfigError,
    "InvalidEncryptionAlgorithmError": ConfigError, "KMS.NotFoundException": ConfigError, "InvalidTag": ConfigError,
    "InvalidURI": ConfigError, "NotImplemented": ConfigError, "EntityTooLarge": ConfigError,
    "MetadataTooLarge": ConfigError, "XMinioInvalidObjectName": ConfigError, "InvalidRetentionPeriod": ConfigError,
    "ObjectLockConfigurationNotFoundError": ConfigError, "InvalidBucketState": ConfigError,
}  # fmt: skip
"""By the code in the answer's body."""

STATUS: dict[int, type[OnblockError]] = {
    301: ConfigError, 307: ConfigError, 308: ConfigError, 401: AuthError, 403: PermissionRefused, 404: NotFound,
    405: PermissionRefused, 408: NetworkError, 409: Conflict, 411: ConfigError, 412: Conflict, 413: ConfigError,
    414: ConfigError, 429: NetworkError, 501: ConfigError, 507: DiskFull,
}  # fmt: skip
"""By the status, where there is no body or its code is not in the table; 5xx else is NETWORK, the rest UNKNOWN."""

EXCEPTIONS: tuple[tuple[type[BaseException], type[OnblockError]], ...] = (
    (ssl.SSLCertVerificationError, ConfigError),
    (TimeoutError, NetworkError),
    (OSError, NetworkError),  # refused, reset, no route, name not resolved, TLS
    (http.client.HTTPException, NetworkError),
)
"""By what Python raises, the first that fits."""

FULL = (
    "no free volumes",
    "no writable volumes",
    "no more free space",
    "not enough space",
    "no space left",
    "disk full",
)
"""Words of servers that call a full disk an InternalError."""

_REMEDY = {
    "RequestTimeTooSkewed": "set this machine's clock (NTP)",
    "RequestExpired": "set this machine's clock (NTP)",
    "ExpiredToken": "the session token has ended: put a new one into the credentials block",
    "NoSuchBucket": "make the bucket, or correct `bucket`, `endpoint` or `region` in the storage's block",
    "KeyTooLongError": "S3 takes 1,024 bytes: shorten it with the job's `path` template, or the block's `prefix`",
    "KeyTooLong": "S3 takes 1,024 bytes: shorten it with the job's `path` template, or the block's `prefix`",
    "PermanentRedirect": "correct `region` or `endpoint` in the storage's block",
    "AuthorizationHeaderMalformed": "correct `region` in the storage's block",
    "IllegalLocationConstraintException": "correct `region` in the storage's block",
    "NoSuchUpload": "the server no longer knows the upload that was under way: sent again by itself",
    "InvalidObjectState": "it lies in an archive class: restore it first",
    "AccessDenied": "give the access key the right to it in the bucket's policy, then run the job again",
    "InvalidStorageClass": "correct `storage_class` in the storage's block",
    "NotImplemented": "the server lacks what the block asks for: leave out its storage class, encryption, lock or tags",
}
LINE_MAX, MOST_LINES = 65536, 200
"""Of the headers of an answer."""
AGAIN = {"SlowDown", "SlowDownRead", "SlowDownWrite", "ServiceUnavailable", "InternalError", "RequestTimeout",
         "Throttling", "TooManyRequests", "OperationAborted", "ConditionalRequestConflict", "XMinioServerNotInitialized",
         "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "IncompleteBody"}  # fmt: skip
"""Codes after which the same request is sent again: the server is busy, or the bytes were hurt on the way."""


class Keys(NamedTuple):
    """What a request is signed with. An empty `access_key` means: not at all (a public bucket)."""

    access_key: str
    secret_key: str
    token: str = ""

    def __repr__(self) -> str:
        return "Keys(...)"


@dataclass(frozen=True)
class Server:
    """Where requests go and how: a host (with the bucket in its name, or in `base`), TLS, region, keys."""

    host: str
    port: int
    base: str  # "/bucket" or ""
    region: str
    tls: ssl.SSLContext | None
    keys: Callable[[], Keys] = field(repr=False)
    timeout: float = 60.0
    """Seconds without a byte after which the server counts as away."""

    @property
    def netloc(self) -> str:
        """The Host header."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == (443 if self.tls else 80) else f"{name}:{self.port}"


class Answer(NamedTuple):
    """What came back: status, headers (lower-case names), body (empty where it is streamed from `stream`)."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    stream: http.client.HTTPResponse | None = None

    def xml(self) -> ElementTree.Element:
        """The body, without namespaces."""
        return parse(self.body)


class Refused(Exception):
    """The server's answer was an error. Never leaves the storage: `as_failure` makes one of the taxonomy of it."""

    def __init__(self, answer: Answer):
        self.answer, self.status = answer, answer.status
        self.code = self.message = self.region = ""
        self.doubtful = False  # an earlier try of the same request may have been carried out
        if answer.body[:1] == b"<":
            with suppress(ElementTree.ParseError):
                root = answer.xml()
                self.code, self.message = root.findtext("Code") or "", root.findtext("Message") or ""
                self.region = root.findtext("Region") or ""
        self.region = self.region or answer.headers.get("x-amz-bucket-region", "")
        super().__init__(f"{self.status} {self.code} {self.message}".strip())


FAILURES = (Refused, OSError, http.client.HTTPException)
"""What a request may raise: never leaves the storage."""


def parse(body: bytes) -> ElementTree.Element:
    """XML without its namespaces."""
    root = ElementTree.fromstring(body)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def kind_of(status: int, code: str, message: str) -> type[OnblockError]:
    """The class for an answer, by the tables."""
    if any(words in message.lower() for words in FULL):
        return DiskFull
    if code in CODES:
        return CODES[code]
    return STATUS.get(status, NetworkError if status >= 500 else UnknownError)


def as_failure(error: Exception, doing: str, path: str, place: str) -> OnblockError:
    """The class of the taxonomy for what went wrong, with `error` as its cause. `place` names server and bucket."""
    if isinstance(error, OnblockError):
        return error
    remedy: str | None = None
    if isinstance(error, Refused):
        kind = kind_of(error.status, error.code, error.message)
        said = ": ".join(s for s in (error.code, error.message[:300]) if s) or f"HTTP status {error.status}"
        what, remedy = f"{doing} at {place}: {said}", _REMEDY.get(error.code)
        if kind is ConfigError and error.region:
            remedy = f"set `region: {error.region}` in the storage's block"
        if error.code in ("RequestTimeTooSkewed", "RequestExpired") and (skew := _skew(error.answer)) is not None:
            what += f" (this machine's clock is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'})"
    else:
        kind = next((k for raised, k in EXCEPTIONS if isinstance(error, raised)), UnknownError)
        what = f"{doing} at {place}: {_reason(error)}"
        if isinstance(error, ssl.SSLCertVerificationError):
            remedy = "give the issuer's certificate as `ca_file` in the storage's block"
    failure = kind(what, path=path, remedy=remedy)
    failure.__cause__ = error
    return failure


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "the connection was refused"
    if isinstance(error, socket.gaierror):
        return "the host's name is not known"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({getattr(error, 'verify_message', error)})"
    if isinstance(error, http.client.RemoteDisconnected | ConnectionError | http.client.IncompleteRead):
        return "the connection was broken"
    return f"{type(error).__name__}: {error}"


def _skew(answer: Answer) -> float | None:
    """Seconds by which this machine's clock is ahead of the server's."""
    try:
        return time.time() - email.utils.parsedate_to_datetime(answer.headers.get("date", "")).timestamp()
    except ValueError:
        return None


def quoted(text: str) -> str:
    """A key or value as Signature Version 4 wants it in a path."""
    return quote(text, safe="/-_.~")


class Wire:
    """One connection, kept alive. For one thread at a time."""

    def __init__(self, server: Server):
        self.server = server
        self._connection: http.client.HTTPConnection | None = None
        self._signing: tuple[tuple[Keys, str], bytes] | None = None

    def ask(
        self,
        method: str,
        key: str = "",
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Body = b"",
        *,
        sha256: str | None = None,
        stream: bool = False,
        ok: tuple[int, ...] = (200, 204, 206),
        tries: int = TRIES,
    ) -> Answer:
        """Send a request; the answer, if its status is one of `ok`. Busy servers and broken connections are tried again.

        `sha256` is that of the body, or UNSIGNED. With `stream` the body is left to be read from the answer; nothing else
        may be asked of this wire before that is done. Raises Refused, OSError, http.client.HTTPException.
        """
        doubtful = False
        for turn in range(1, tries + 1):
            fresh = self._connection is None
            try:
                return self._once(method, key, query or {}, headers or {}, body, sha256, stream, ok)
            except Refused as refused:
                error = refused
                if method == "HEAD" and error.status in (400, 403) and not error.code:
                    error = self._with_reason(error, key, query or {}, headers or {})
                error.doubtful = doubtful
                busy = error.code in AGAIN or (error.status in (429, 500, 502, 503, 504) and error.code not in CODES)
                if not busy or turn == tries or kind_of(error.status, error.code, error.message) is DiskFull:
                    raise error from None
                doubtful = doubtful or error.status >= 500
            except (OSError, http.client.HTTPException) as error:
                self.close()
                doubtful = True
                gone = isinstance(error, ConnectionRefusedError | TimeoutError | ssl.SSLCertVerificationError)
                if turn == tries or gone or isinstance(error, socket.gaierror):
                    raise
                if not fresh and turn == 1:
                    continue  # the server ended a connection that lay idle: at once over a new one
            time.sleep(DELAY_S * 2 ** (turn - 1) * (1 + random.random()))
        raise AssertionError("the last try returns or raises")

    def _with_reason(self, refused: Refused, key: str, query: Mapping[str, str], headers: Mapping[str, str]) -> Refused:
        """The answer to a HEAD has no body to say why: the same, asked as a GET of one byte, as far as it is refused too."""
        try:
            self._once("GET", key, query, {**headers, "range": "bytes=0-0"}, b"", None, True, (200, 206))
        except Refused as told:
            return told if told.code and told.status == refused.status else refused
        except (OSError, http.client.HTTPException):
            pass
        self.close()
        return refused

    def _once(
        self, method: str, key: str, query: Mapping[str, str], headers: Mapping[str, str], body: Body,
        sha256: str | None, stream: bool, ok: tuple[int, ...],
    ) -> Answer:  # fmt: skip
        server = self.server
        path = quoted(f"{server.base}/{key}")
        text = "&".join(f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in sorted(query.items()))
        sent = {k.lower(): " ".join(v.split()) for k, v in headers.items()} | {"host": server.netloc}
        self._sign(method, path, text, sent, sha256 or (hashlib.sha256(body).hexdigest() if body else EMPTY_SHA256))
        connection = self._connection or self._connect()
        target = f"{path}?{text}" if text else path
        if method in ("PUT", "POST"):
            sent["content-length"] = str(len(body))
        try:
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in sent.items():
                connection.putheader(name, value)
            connection.endheaders(None)
            if len(body):
                connection.send(body)
        except (BrokenPipeError, ConnectionResetError):
            # a server that refuses early stops reading: what it says is worth more than that the pipe broke
            with suppress(OSError, http.client.HTTPException):
                early = cast(_Response, connection.getresponse())
                if early.status >= 300:
                    answer = Answer(early.status, early.fields, early.read())
                    self.close()
                    raise Refused(answer) from None
            raise
        response = cast(_Response, connection.getresponse())
        good = response.status in ok
        if stream and good:
            return Answer(response.status, response.fields, b"", response)
        answer = Answer(response.status, response.fields, response.read())
        if response.will_close:
            self.close()
        # a copy or a completion may fail after it answered 200
        if not good or (method in ("PUT", "POST") and b"<Error>" in answer.body[:400]):
            raise Refused(answer)
        return answer

    def _connect(self) -> http.client.HTTPConnection:
        server = self.server
        if server.tls is None:
            connection = http.client.HTTPConnection(server.host, server.port, timeout=server.timeout, blocksize=1 << 20)
        else:
            proxy = "" if urllib.request.proxy_bypass(server.host) else urllib.request.getproxies().get("https", "")
            host, port = server.host, server.port
            if proxy:
                host, _, number = proxy.rpartition("/")[2].rpartition("@")[2].partition(":")
                port = int(number or 80)
            connection = http.client.HTTPSConnection(
                host, port, timeout=server.timeout, context=server.tls, blocksize=1 << 20
            )
            if proxy:
                connection.set_tunnel(server.host, server.port)
        connection.response_class = _Response
        connection.connect()
        self._connection = connection
        return connection

    def _sign(self, method: str, path: str, query: str, headers: dict[str, str], sha256: str) -> None:
        """Add the headers of Signature Version 4 (AWS, "Authenticating requests: using the Authorization header")."""
        keys = self.server.keys()
        headers["x-amz-content-sha256"] = sha256
        if not keys.access_key:
            return
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        headers["x-amz-date"] = stamp
        if keys.token:
            headers["x-amz-security-token"] = keys.token
        names = sorted(headers)
        signed = ";".join(names)
        canonical = "\n".join((method, path, query, *(f"{n}:{headers[n]}" for n in names), "", signed, sha256))
        day = stamp[:8]
        if self._signing is None or self._signing[0] != (keys, day):
            key = b"AWS4" + keys.secret_key.encode()
            for part in (day, self.server.region, "s3", "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._signing = (keys, day), key
        scope = f"{day}/{self.server.region}/s3/aws4_request"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        signature = hmac.digest(
            self._signing[1], f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}".encode(), "sha256"
        ).hex()
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={keys.access_key}/{scope}, SignedHeaders={signed}, Signature={signature}"
        )

    def close(self) -> None:
        """End the connection; the next request makes a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _Response(http.client.HTTPResponse):
    """An answer whose headers are read as the few lines they are: the email package, which http.client asks, takes ten
    times as long, and a small file is little more than headers."""

    fields: dict[str, str]

    def begin(self) -> None:
        if self.headers is not None:
            return
        while True:
            version, status, reason = self._read_status()  # type: ignore[attr-defined]
            if status != 100:
                break
            self._read_fields()  # "go on": the answer proper follows
        self.code = self.status = status
        self.reason, self.version = reason.strip(), 10 if version.startswith("HTTP/1.0") else 11
        fields = self.fields = self._read_fields()
        self.headers = self.msg = _Headers(fields)  # type: ignore[assignment]
        self.chunked = fields.get("transfer-encoding", "").lower() == "chunked"
        self.chunk_left = None
        self.length = None
        if not self.chunked and fields.get("content-length", "").isdecimal():
            self.length = int(fields["content-length"])
        if status in (204, 304) or self._method == "HEAD":  # type: ignore[attr-defined]
            self.length = 0
        self.will_close = self._check_close() or (not self.chunked and self.length is None)  # type: ignore[attr-defined]

    def _read_fields(self) -> dict[str, str]:
        fields: dict[str, str] = {}
        for _ in range(MOST_LINES):
            line = self.fp.readline(LINE_MAX + 1)
            if line in (b"\r\n", b"\n", b""):
                return fields
            if len(line) > LINE_MAX:
                break
            name, _, value = line.decode("latin-1").partition(":")
            name, value = name.strip().lower(), value.strip()
            fields[name] = f"{fields[name]}, {value}" if name in fields else value
        raise http.client.HTTPException("the headers of the answer have no end")


class _Headers(dict[str, str]):
    """As http.client asks it: names in any case."""

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)

    def get_all(self, name: str, default: Any = None) -> Any:
        return [self[name.lower()]] if name.lower() in self else default
