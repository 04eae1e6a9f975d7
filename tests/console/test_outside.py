"""The console behind a proxy that speaks TLS (`--public-url`): what browsers see, whom the console takes for whom."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from blocks.errors import ConfigError
from deployments.console.access import WRONG, People, Role
from deployments.console.audit import Audit
from deployments.console.connections import MOST_OF_ONE
from deployments.console.outside import DIRECT, Outside, household, public_origin
from flows.ledger import Ledger
from tests.console.conftest import Site, serving
from tests.console.test_abuse import place

pytestmark = pytest.mark.timeout(600)
PUBLIC = "https://console.example"


@pytest.fixture
def proxied(onblock_home: Path) -> Iterator[Site]:
    with Ledger.open() as ledger:
        yield Site(ledger, onblock_home / "console", outside=Outside(public_origin(PUBLIC)))


def asked_by(proxy: str, address: str) -> httpx.Client:
    """What a proxy sends on of somebody's requests: the name it was asked for is its own affair."""
    return httpx.Client(base_url=proxy, headers={"X-Forwarded-For": address, "Host": "inside:4280"}, timeout=180)


def test_a_browser_behind_a_proxy_has_a_session_as_by_tls(onblock_home: Path) -> None:
    """As `onblock up --public-url` starts it."""
    with serving(onblock_home, "--public-url", PUBLIC) as url:
        token = (onblock_home / "console" / "admin.token").read_text().strip()
        with asked_by(url, "6.6.6.6, 9.9.9.9") as client:
            for origin in (
                "http://console.example",
                f"{PUBLIC}:8443",
                "https://evil.example",
                url,
                "http://inside:4280",
            ):
                answer = client.post("/login", data={"token": token}, headers={"Origin": origin})
                assert answer.status_code == 403, origin
            answer = client.post("/login", data={"token": token}, headers={"Origin": PUBLIC})
            told = answer.headers["set-cookie"]
            assert answer.status_code == 303
            assert told.startswith("__Host-onblock=") and "Secure" in told and "HttpOnly" in told
            assert "max-age" in answer.headers["strict-transport-security"]
            cookie = {"Cookie": told.partition(";")[0]}
            assert client.get("/transfers", headers=cookie).status_code == 200
            assert client.post("/logout", headers=cookie | {"Origin": PUBLIC}).status_code == 303
    lines = [o for o in Audit(onblock_home / "console" / "audit.jsonl").recent() if "address" in o]
    assert {o["address"] for o in lines} == {"9.9.9.9"}
    assert "log in" in [o["what"] for o in lines]


@pytest.mark.usefixtures("long_minute")
def test_who_guesses_behind_a_proxy_is_told_apart_from_the_others(proxied: Site) -> None:
    with proxied.served() as url, asked_by(url, "9.9.9.9") as guessing, asked_by(url, "9.9.9.9, 8.8.8.8:4711") as other:
        codes = [guessing.post("/login", data={"token": "x"}).status_code for _ in range(WRONG + 1)]
        assert codes == [401] * WRONG + [429]
        assert other.post("/login", data={"token": "x"}).status_code == 401


@pytest.mark.usefixtures("long_minute")
def test_without_a_proxy_nobody_says_who_he_is(site: Site, url: str) -> None:
    codes = []
    for i in range(WRONG + 1):
        with asked_by(url, f"9.9.9.{i}") as client:
            codes.append(client.post("/login", data={"token": "x"}).status_code)
    assert codes == [401] * WRONG + [429]
    assert {o["address"] for o in site.audit.recent() if o["what"] == "wrong token"} == {"127.0.0.1"}


def test_a_proxy_may_have_more_connections_than_one_address_and_each_behind_it_no_more(proxied: Site) -> None:
    with proxied.served() as url, ExitStack() as stack:
        head = f"Host: x\r\nX-Forwarded-For: 9.9.9.9\r\nAuthorization: Bearer {proxied.tokens[Role.VIEWER]}\r\n"
        for _ in range(MOST_OF_ONE):
            one = stack.enter_context(socket.create_connection(place(url), 180))
            one.sendall(f"GET /api/v1/stream HTTP/1.1\r\n{head}\r\n".encode())
            assert one.recv(100).startswith(b"HTTP/1.1 200 ")
        with asked_by(url, "9.9.9.9") as client, asked_by(url, "8.8.8.8") as other:
            assert client.get("/health").status_code == 429
            assert other.get("/health").status_code == 200


@pytest.mark.parametrize(
    "url", ["console.example", "ftp://console.example", "https://", "https://a/onblock", "https://a/?x", "https://u:p@a", "https://[", "https://a:b", "https://mümchen.example"],
)  # fmt: skip
def test_what_is_no_address_of_a_console_is_refused_by_onblock_up(onblock_home: Path, url: str) -> None:
    with pytest.raises(ConfigError):
        public_origin(url)
    if url.startswith("https://a/o"):  # the others by the same lines
        done = subprocess.run(
            [sys.executable, "-P", "-m", "deployments.cli", "up", "--public-url", url], capture_output=True, text=True, timeout=180
        )  # fmt: skip
        assert done.returncode == 2 and "--public-url" in done.stderr and not onblock_home.exists()


def test_a_public_address_is_an_origin() -> None:
    assert public_origin("https://Console.Example/") == ("https", "console.example", 443)
    assert public_origin("http://10.0.0.1:8080") == ("http", "10.0.0.1", 8080)
    assert Outside(public_origin("http://10.0.0.1")).secure is False
    assert Outside(public_origin(PUBLIC)).secure and Outside(tls=True).secure and not DIRECT.secure


def test_an_ipv6_subscriber_is_one_however_many_addresses_he_has() -> None:
    assert household("2001:db8:1:2:3::4") == household("2001:db8:1:2:ffff::1%eth0") != household("2001:db8:1:3::4")
    assert household("10.0.0.1") == "10.0.0.1" != household("10.0.0.2")
    assert household("::ffff:10.0.0.1") != household("::ffff:10.0.0.2")
    assert household("") == ""


def test_the_command_line_of_the_console_refuses_it_too(onblock_home: Path) -> None:
    command = [sys.executable, "-P", "-m", "deployments.console", "--public-url", "https://a/b"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 2 and "without a path" in done.stderr
    assert People().all() == []
