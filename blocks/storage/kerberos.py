"""Kerberos tickets for HDFS: got from a keytab into a cache of our own, renewed before they end, never in the environment
of this process.

`kinit` is run when a ticket is due, not for each operation, and one ticket serves all sessions of this process. What a
ticket is shown to is in `webhdfs.py` (SPNEGO) and `hadoop_cli.py` (KRB5CCNAME of the child).
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from blocks.errors import AuthError, ConfigError, NetworkError, OnblockError, ToolMissing, UnknownError

AHEAD_S = 300.0
"""A ticket is renewed when it ends within this time, or within a fifth of its life if that is less."""
TIMEOUT_S = 60.0
"""For `kinit` to get an answer; it asks each KDC of the realm in turn."""

MESSAGES: tuple[tuple[str, type[OnblockError], str], ...] = (
    (r"Server.* not found in Kerberos database", ConfigError, "the service has no principal of that host name"),
    (r"not found in Kerberos database", AuthError, "check `principal`"),
    (r"Preauthentication failed|Password incorrect|Decrypt integrity check failed|Integrity check",
     AuthError, "the key in `keytab` is not that of the principal any more: get a new keytab"),
    (r"no suitable keys", AuthError, "`keytab` is for another principal; `klist -k` shows which"),
    (r"Key table file '.*' not found|Permission denied while|Unsupported key table format|keytab.*(missing|not found)",
     ConfigError, "check that `keytab` is there and readable for the account that runs onblock"),
    (r"has expired|have been revoked|LOCKED_OUT|Requested principal.*expired", AuthError, "ask who runs the realm"),
    (r"Clock skew too great", ConfigError, "set this machine's clock"),
    (r"Cannot find KDC|Configuration file does not specify default realm|Improper format of Kerberos|Malformed",
     ConfigError, "check `principal` and krb5.conf"),
    (r"Cannot contact any KDC|Cannot resolve|A service is not available|timed out", NetworkError, NetworkError.remedy),
    (r"[Tt]icket expired|Ticket.*not yet valid", AuthError, "run `kinit` again, or give `keytab` and `principal`"),
    (r"No Kerberos credentials|No credentials|can't find|No such file|not found: FILE:", AuthError,
     "run `kinit`, or give `keytab` and `principal`"),
)  # fmt: skip
"""The one table for Kerberos: what `kinit` and the GSSAPI say. The first that fits; what is not here is UNKNOWN."""


def failure(said: str, principal: str) -> OnblockError:
    """The class of the taxonomy for a message of Kerberos."""
    text = " ".join(said.split())[-300:]
    for pattern, kind, remedy in MESSAGES:
        if re.search(pattern, said):
            return kind(f"Kerberos refused {principal}: {text}", remedy=remedy)
    return UnknownError(f"no Kerberos ticket for {principal}: {text}")


class Ticket:
    """The ticket of one principal: from `keytab` into a private cache, or from a `cache` that somebody else fills."""

    def __init__(self, principal: str, keytab: str = "", cache: str = ""):
        self.principal, self.keytab = principal, keytab
        self._cache = cache
        self._lock = threading.Lock()
        self._due = 0.0  # on the monotonic clock

    def cache(self) -> str:
        """The name of a cache (KRB5CCNAME) with a ticket that is valid for some time yet. Thread-safe."""
        if not self.keytab:
            return self._cache or os.environ.get("KRB5CCNAME", "")
        with self._lock:
            if not self._cache:
                folder = tempfile.mkdtemp(prefix="onblock-krb5-")  # for nobody but us
                atexit.register(shutil.rmtree, folder, ignore_errors=True)
                self._cache = f"FILE:{folder}/ccache"
            if time.monotonic() >= self._due:
                self._renew()
            return self._cache

    def _renew(self) -> None:
        path = Path(self._cache.removeprefix("FILE:"))
        fresh = path.with_name("fresh")  # whoever reads the cache meanwhile sees the old or the new one
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
        argv = ["kinit", "-c", f"FILE:{fresh}", "-k", "-t", self.keytab, self.principal]
        said = _run(argv, self.principal)
        if said is not None:
            raise failure(said, self.principal)
        left = _seconds_left(f"FILE:{fresh}")
        fresh.rename(path)
        self._due = time.monotonic() + max(left - min(AHEAD_S, left / 5), 0.5)


def _run(argv: list[str], principal: str) -> str | None:
    """What the program complained of; None if it did not."""
    env = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, text=True,
            errors="replace", timeout=TIMEOUT_S, start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise ToolMissing(
            f"{argv[0]} is not installed", remedy="install the Kerberos client (krb5-user), then run the job again"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise NetworkError(f"the KDC gave no ticket for {principal} within {TIMEOUT_S:.0f} s") from error
    return done.stdout if done.returncode else None


def _seconds_left(cache: str) -> float:
    """How long the first ticket of a cache is valid, as `klist` shows it; a minute where that is not understood."""
    env = {**os.environ, "LC_ALL": "C", "TZ": "UTC"}
    try:
        done = subprocess.run(["klist", "-c", cache], capture_output=True, env=env, text=True, timeout=10, check=False)
        found = re.search(
            r"^\d\d/\d\d/\d\d \d\d:\d\d:\d\d  (\d\d/\d\d/\d\d \d\d:\d\d:\d\d)  krbtgt/", done.stdout, re.M
        )
        if found:
            end = datetime.strptime(found[1], "%m/%d/%y %H:%M:%S").replace(tzinfo=UTC)
            return (end - datetime.now(UTC)).total_seconds()
    except (OSError, subprocess.TimeoutExpired):
        pass
    return 60.0


_tickets: dict[tuple[str, ...], Ticket] = {}
_lock = threading.Lock()


def ticket(principal: str, keytab: str, cache: str = "") -> Ticket:
    """The ticket that all sessions of this process share."""
    key = (principal, keytab, cache, os.environ.get("KRB5_CONFIG", ""))
    with _lock:
        return _tickets.setdefault(key, Ticket(principal, keytab, cache))


def negotiate(one: Ticket, host: str) -> str:
    """The value of an `Authorization` header that shows `one` to the web service of `host` (SPNEGO, RFC 4559)."""
    try:
        import gssapi  # type: ignore[import-not-found]  # compiled on installation: asked for only where Kerberos is
        from gssapi.raw.misc import GSSError  # type: ignore[import-not-found]
    except ImportError as error:
        raise ToolMissing(
            "Python's gssapi is not installed",
            remedy="pip install 'onblock[hdfs-kerberos]' (needs gcc and libkrb5-dev), or use the `hadoop` program",
        ) from error
    cache = one.cache()
    try:
        store = {"ccache": cache} if cache else None
        credentials = gssapi.Credentials(usage="initiate", store=store)  # type: ignore[arg-type]
        name = gssapi.Name(f"HTTP@{host}", gssapi.NameType.hostbased_service)
        mechanism = gssapi.OID.from_int_seq("1.3.6.1.5.5.2")
        context = gssapi.SecurityContext(name=name, creds=credentials, mech=mechanism, usage="initiate")
        token = context.step()
    except GSSError as error:
        raise failure(str(error), one.principal or "the present user") from error
    assert token is not None  # the first step of SPNEGO always speaks
    return "Negotiate " + base64.b64encode(token).decode("ascii")
