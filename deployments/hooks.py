"""`onblock hook`: send webhooks from scripts, and make the secrets that sign them."""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

hook = typer.Typer(
    help="Tell the console that a flight has ended or a device is connected; make senders.", no_args_is_help=True
)

Url = Annotated[str, typer.Option(envvar="ONBLOCK_CONSOLE_URL", help="Where the console is.")]
Sender = Annotated[str, typer.Option(envvar="ONBLOCK_HOOK_SENDER", help="The name of the sender's block.")]
SecretFile = Annotated[Path | None, typer.Option(help="A file with the secret, if it is not in ONBLOCK_HOOK_SECRET.")]
Key = Annotated[str | None, typer.Option(help="Idempotency key: two messages with the same one are one.")]
Devices = Annotated[list[str], typer.Option("--device", help="A device; may be given again.")]
CONSOLE = "http://127.0.0.1:4280"
TRIES_S = 60.0
"""So long a console that is away, or asks to come again, is tried."""


@hook.command("flight-end")
def flight_end(
    flight: Annotated[str, typer.Option(help="The flight that has ended.")], device: Devices, url: Url = CONSOLE,
    sender: Sender = "onblock", secret_file: SecretFile = None, key: Key = None,
) -> None:  # fmt: skip
    """A flight has ended: the jobs of its devices run."""
    _send(url, "flight-end", {"flight": flight, "devices": device}, sender, secret_file, key)


@hook.command("device-connected")
def device_connected(
    device: Devices, url: Url = CONSOLE, sender: Sender = "onblock", secret_file: SecretFile = None, key: Key = None
) -> None:
    """Devices are connected: their jobs run, and what was put off is due."""
    _send(url, "device-connected", {"devices": device}, sender, secret_file, key)


@hook.command("send")
def send(
    name: Annotated[str, typer.Argument(help="The hook.")],
    body: Annotated[str, typer.Argument(help="A JSON object.")] = "{}",
    url: Url = CONSOLE, sender: Sender = "onblock", secret_file: SecretFile = None, key: Key = None,
) -> None:  # fmt: skip
    """Any other hook: emits `onblock.hook.NAME`."""
    from blocks.errors import ConfigError

    try:
        content = json.loads(body)
    except ValueError:
        raise ConfigError("the body is no JSON") from None
    _send(url, name, content, sender, secret_file, key)


@hook.command("sender")
def make_sender(
    name: Annotated[str, typer.Argument(help="Its name: small letters, digits, dashes.")],
    rotate: Annotated[bool, typer.Option("--rotate", help="A new secret; the last one stays valid beside it.")] = False,
    device: Annotated[list[str] | None, typer.Option(help="It may speak for these devices only.")] = None,
    allow: Annotated[list[str] | None, typer.Option("--hook", help="It may call these hooks only.")] = None,
) -> None:
    """Make a sender, or give it a new secret; prints the secret, once."""
    from pydantic import SecretStr

    from blocks.errors import ConfigError
    from blocks.sender import WebhookSender
    from deployments.bootstrap import connect

    new = secrets.token_urlsafe(32)
    with connect():
        try:
            before = WebhookSender.load(name, _sync=True)  # pyright: ignore[reportCallIssue]
        except ValueError:
            before = None
        if before is not None and not rotate:
            raise ConfigError(f"there is a sender {name!r} already", remedy="`--rotate` gives it a new secret")
        block = WebhookSender(
            secret=SecretStr(new), previous=before and before.secret,
            hooks=allow or (before.hooks if before else []), devices=device or (before.devices if before else []),
        )  # fmt: skip
        try:
            block.save(name, overwrite=rotate, _sync=True)  # pyright: ignore[reportCallIssue]
        except ValueError as error:
            raise ConfigError(f"the sender cannot be made: {error}") from None
    print(new)


def _send(
    url: str, name: str, content: Any, sender: str, secret_file: Path | None, key: str | None
) -> None:  # fmt: skip
    """Sign, send, and send again while the console asks for that. Prints the answer. Raises OnblockError."""
    import httpx

    from blocks.errors import ConfigError, NetworkError
    from deployments.console.webhooks import sign

    secret, body = _secret(secret_file, sender), json.dumps(content).encode()
    deadline = time.monotonic() + TRIES_S
    while True:
        stamp = str(int(time.time()))
        head = {
            "X-Onblock-Sender": sender, "X-Onblock-Timestamp": stamp, "Content-Type": "application/json",
            "X-Onblock-Signature": f"sha256={sign(secret, stamp, body)}",
        } | ({"Idempotency-Key": key} if key else {})  # fmt: skip
        again = 1.0
        try:
            answer = httpx.post(f"{url.rstrip('/')}/hooks/{name}", content=body, headers=head, timeout=30)
            if answer.status_code < 300:
                print(answer.text)
                return
            said = f"{answer.status_code} {answer.text[:500]}"
            again = float(answer.headers.get("Retry-After", 1))
            if answer.status_code < 500:
                raise ConfigError(f"the console does not take it: {said}")
        except httpx.HTTPError as error:
            said = f"{type(error).__name__}"
        if time.monotonic() + again > deadline:
            raise NetworkError(f"the console at {url} does not take it: {said}", remedy="start it with `onblock up`")
        print(f"onblock: {said}; again in {again:.0f} s", file=sys.stderr)
        time.sleep(again)


def _secret(file: Path | None, sender: str) -> str:
    """From the file, the environment, or, on the machine of the server, the sender's block."""
    from blocks.errors import ConfigError

    if file is not None:
        try:
            return file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the secret cannot be read: {error}", path=str(file)) from None
    if secret := os.environ.get("ONBLOCK_HOOK_SECRET"):
        return secret
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value():
        from blocks.sender import WebhookSender
        from deployments.bootstrap import connect

        with connect():
            try:
                block = WebhookSender.load(sender, _sync=True)  # pyright: ignore[reportCallIssue]
                return block.secret.get_secret_value()
            except ValueError:
                raise ConfigError(
                    f"there is no sender {sender!r}", remedy=f"`onblock hook sender {sender}` makes it"
                ) from None
    raise ConfigError("no secret to sign with", remedy="set ONBLOCK_HOOK_SECRET, or give `--secret-file`")
