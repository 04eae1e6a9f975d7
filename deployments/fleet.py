"""What `onblock up --profile fleet` starts instead of one server and one worker, and what it needs for that.

    API servers   processes behind one port, without Prefect's background services
    services      scheduler, automations, events and what else is to run once, in a process of its own
    workers       as many as asked for
    databases     Prefect's and the ledger, both on PostgreSQL; Redis carries events, held slots and tasks of the services

The same parts on several hosts are units of systemd (`systemd/`, `docs/fleet.md`). Processes are started in `up.py`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from blocks.errors import ConfigError, NetworkError
from deployments import trust

DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
DATABASE_CA = "PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_TLS_CA_FILE"
OLD_DATABASE = "PREFECT_API_DATABASE_CONNECTION_URL"
"""Its name in older versions of Prefect, which still counts."""
LEDGER = "ONBLOCK_LEDGER_URL"
REDIS = "PREFECT_REDIS_MESSAGING_"
REDIS_TOO = ("PREFECT_SERVER_DOCKET_URL", "PREFECT_REDIS_WORKER_CLEANUP_QUEUE_URL")
"""Where its address stands once more."""
SETTINGS = {
    "PREFECT_SERVER_EVENTS_MESSAGING_BROKER": "prefect_redis.messaging",
    "PREFECT_SERVER_EVENTS_MESSAGING_CACHE": "prefect_redis.messaging",
    "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "deployments.leases",
    "PREFECT_SERVER_WORKER_CHANNEL_CLEANUP_QUEUE_STORAGE": "prefect_redis.cleanup_queue",
    # one transaction for many: so 7,000 of 7,000 tasks of a burst were kept, with the defaults the rest was dropped
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
    # a Redis whose machine is gone without a word is known to be gone; reads block for 1 s
    REDIS + "SOCKET_TIMEOUT": "15",
    REDIS + "SOCKET_CONNECT_TIMEOUT": "5",
    # done once by `migrate.py`, before the servers start: two at a time would be in each other's way
    "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false",
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
}
"""For API servers and services, on whatever host, beside `server_settings.SERVER`."""
ESCAPES = "in its password a '%' is %25, an '@' %40, a '/' %2F, a '#' %23, a '?' %3F, a ':' %3A"
PATIENCE_S = 10
"""Seconds a database or Redis has to answer before anything is started."""


class Profile(NamedTuple):
    """What is started. `first` runs to its end; `server` are further arguments of `prefect server start`."""

    workers: int = 1
    server: tuple[str, ...] = ()
    beside: tuple[tuple[str, tuple[str, ...]], ...] = ()
    first: tuple[tuple[str, tuple[str, ...]], ...] = ()
    fleet: bool = False


EMBEDDED = Profile()
"""All in one server on SQLite, with one worker."""


def fleet(api_servers: int, workers: int) -> Profile:
    """The profile of a fleet. Raises ConfigError for numbers that make none."""
    for number, option in ((api_servers, "--api-servers"), (workers, "--workers")):
        if number < 1:
            raise ConfigError(f"{option} is {number}; a fleet has at least one")
    return Profile(
        workers, ("--no-services", "--workers", str(api_servers)),
        beside=(("the Prefect services", ("prefect", "server", "services", "start")),),
        first=(("the migration", ("deployments.migrate",)),),
        fleet=True,
    )  # fmt: skip


def named(profile: str, api_servers: int | None, workers: int | None) -> Profile:
    """The profile that the command line asks for. Raises ConfigError."""
    if profile == "fleet":
        return fleet(2 if api_servers is None else api_servers, 2 if workers is None else workers)
    if profile != "embedded":
        raise ConfigError(f"--profile is {profile!r}; there are `embedded` and `fleet`")
    if (api_servers, workers) != (None, None):
        raise ConfigError("--api-servers and --workers go with `--profile fleet`")
    return EMBEDDED


def fleet_environment(env: Mapping[str, str]) -> dict[str, str]:
    """What `env` says, and what a fleet has besides, for `server_settings.environment`. What the user set stays. Raises
    ConfigError for what is missing."""
    ledger, database = env.get(LEDGER), env.get(DATABASE) or env.get(OLD_DATABASE)
    if not ledger or not ledger.startswith(("postgresql://", "postgresql+psycopg://")):
        raise ConfigError(
            f"{LEDGER} {'is no PostgreSQL' if ledger else 'is not set'}: the hosts of a fleet share one ledger",
            remedy="set it to postgresql://USER:PASSWORD@HOST/DATABASE",
        )
    if not database or not database.startswith("postgresql+asyncpg://"):
        raise ConfigError(
            f"{DATABASE} {'is no PostgreSQL by asyncpg' if database else 'is not set'}: the servers of a fleet share one database",
            remedy="set it to postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE",
        )
    if _place(ledger) == _place(database):
        raise ConfigError(
            f"{LEDGER} and {DATABASE} are the same database: the migrations of one would break the other",
            remedy="make a database for each with `createdb`",
        )
    redis = dict.fromkeys(REDIS_TOO, redis_url(env))
    return {**SETTINGS, DATABASE: database, **redis, **env}


def _place(url: str) -> tuple[str | None, int, str | None]:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # it may hold a password anywhere: not quoted
        raise ConfigError(f"{LEDGER} or {DATABASE} is no address of a database", remedy=ESCAPES) from None
    return parsed.host, parsed.port or 5432, parsed.database


def redis_url(env: Mapping[str, str]) -> str:
    """The address of Redis, however it is set: whole or in parts. Raises ConfigError."""
    given = {key.removeprefix(REDIS).lower(): value for key, value in env.items() if key.startswith(REDIS) and value}
    if url := given.get("url"):
        return url
    if "host" not in given:
        raise ConfigError(
            f"neither {REDIS}URL nor {REDIS}HOST is set: the servers of a fleet tell each other by Redis",
            remedy=f"set {REDIS}URL to redis://:PASSWORD@HOST:6379/0, or rediss:// for TLS",
        )
    user, password = given.get("username", "default"), given.get("password")
    login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if password else ""
    scheme = "rediss" if given.get("ssl", "").lower() in ("1", "true", "yes", "on") else "redis"
    return f"{scheme}://{login}{given['host']}:{given.get('port', '6379')}/{given.get('db', '0')}"


def reach(env: Mapping[str, str]) -> list[str]:
    """Ask Redis and both databases for a sign of life; what is not as it should be but no hindrance, a line each.
    Raises ConfigError, NetworkError, AuthError. Brings the ledger up to date."""
    from flows.ledger import Ledger

    remarks = reach_what_servers_need(env)
    Ledger.open(env[LEDGER]).close()
    return remarks


def reach_what_servers_need(env: Mapping[str, str]) -> list[str]:
    """The same for Redis, at each of its addresses, and Prefect's database, as far as `env` names them."""
    asked: dict[str, str] = {}
    if env.get(f"{REDIS}URL") or env.get(f"{REDIS}HOST"):
        asked[redis_url(env)] = f"{REDIS}URL"
    for name in REDIS_TOO:
        if (url := env.get(name, "")).startswith("redis"):
            asked.setdefault(url, name)
    remarks = [remark for url, name in asked.items() for remark in _reach_redis(url, name)]
    if (database := env.get(DATABASE) or env.get(OLD_DATABASE) or "").startswith("postgresql"):
        _reach_prefect(database)
    return list(dict.fromkeys(remarks))


def _reach_redis(url: str, name: str) -> list[str]:
    try:
        import prefect_redis  # noqa: F401
        from redis import Redis, exceptions
    except ImportError:
        raise ConfigError(
            "prefect-redis is not installed, and a fleet needs it", remedy="pip install 'onblock[fleet]'"
        ) from None
    refused = ConfigError(
        f"{name} is no address of Redis", remedy=f"write it as redis://:PASSWORD@HOST:6379/0; {ESCAPES}"
    )
    if _has_half_a_login(url):
        raise refused
    try:
        client = Redis.from_url(url, socket_connect_timeout=PATIENCE_S, socket_timeout=PATIENCE_S)
    except ValueError:  # it quotes what it takes for the port
        raise refused from None
    with client:
        try:
            client.ping()
        except TypeError:  # what stands behind the '?' is nothing that a connection takes
            raise refused from None
        except exceptions.AuthenticationError as error:
            raise ConfigError(f"Redis refused the login: {error}", remedy=f"check the password in {name}") from None
        except (exceptions.RedisError, OSError) as error:
            raise NetworkError(
                f"Redis does not answer: {error}",
                remedy=f"check that it is on and reachable, and {name}, with TLS also its ssl_ca_certs",
            ) from None
        try:
            kept = client.config_get("appendonly").get("appendonly")  # pyright: ignore[reportAttributeAccessIssue]
        except exceptions.RedisError:  # not everybody may ask that
            return []
    return [] if kept == "yes" else [
        "Redis keeps no log of its writes (`appendonly yes`): a restart of it loses held slots and events, see docs/fleet.md"
    ]  # fmt: skip


def _has_half_a_login(url: str) -> bool:
    """Whether a password ends where it should not: its beginning would be taken for the port, and told as such."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return True
    no_host = parts.scheme in ("redis", "rediss") and not parts.hostname
    return no_host or ("@" not in parts.netloc and "@" in f"{parts.path}{parts.query}{parts.fragment}")


def _reach_prefect(url: str) -> None:
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.ext.asyncio import create_async_engine

    _place(url)
    tls = _tls()

    async def ask() -> None:
        engine = create_async_engine(url, connect_args={"timeout": PATIENCE_S} | ({"ssl": tls} if tls else {}))
        try:
            async with engine.connect():
                pass
        finally:
            await engine.dispose()

    try:
        asyncio.run(ask())
    except (SQLAlchemyError, OSError, TimeoutError, TypeError, ValueError, *_refusals()) as error:
        raise NetworkError(
            f"Prefect's database cannot be opened: {str(error) or type(error).__name__}",
            remedy=f"check that it is on and reachable, and {DATABASE}, with TLS also {DATABASE_CA}",
        ) from None


def _tls() -> ssl.SSLContext | None:
    """As Prefect's server will speak with its database."""
    from prefect.settings import get_current_settings

    told = get_current_settings().server.database.sqlalchemy.connect_args.tls
    if not told.enabled:
        return None
    tls = trust.context(told.ca_file, DATABASE_CA)
    if told.cert_file and told.key_file:
        tls.load_cert_chain(told.cert_file, told.key_file)
    tls.check_hostname = told.check_hostname
    return tls


def _refusals() -> tuple[type[Exception], ...]:
    import asyncpg

    return (asyncpg.PostgresError, asyncpg.InterfaceError)  # of a connection that SQLAlchemy did not get to see
