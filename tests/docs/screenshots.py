"""Takes the pictures in `docs/pictures/` of a running system: `make screenshots`.

`onblock up` on its embedded default, an agent with a test camera, three jobs, flights of the demo's recordings, one of them
on its way while the pictures are taken. Debian's Chromium, in light and dark, and as wide as a phone.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from deployments.flight import make_card
from tests.deployments.conftest import free_port

T = TypeVar("T")
PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
PAGES = {
    "overview": "/", "transfers": "/transfers", "problems": "/problems", "jobs": "/jobs", "devices": "/devices",
    "recordings": "/recordings", "logs": "/logs",
}  # fmt: skip
WIDE, PHONE = {"width": 1200, "height": 760}, {"width": 390, "height": 780}
COLOURS = 96
PATIENCE_S = 300.0
FLIGHTS = ("F0041", "F0042")


def jobs(root: Path) -> dict[str, dict[str, Any]]:
    """The JOB.yaml files, by name."""
    card, place = {"type": "local-storage", "root": str(root / "card")}, {"type": "local-storage", "create_root": True}
    return {
        "card": {
            "source": card, "destination": place | {"root": str(root / "archive")}, "device": "cam-01", "path": "{flight}/{device}/{path}",
            "gate": {"placeholder": "hard"},
        },
        "video": {
            "source": card, "destination": place | {"root": str(root / "web")}, "device": "cam-01", "include": ["*.MP4", "*.mp4"],
            "path": "{flight}/{device}/{path}", "steps": [{"kind": "thumbnail"}, {"kind": "hls"}], "lineage": True,
        },
        "uplink": {
            "source": {"type": "local-storage", "root": str(root / "raw")}, "destination": place | {"root": str(root / "office")},
            "schedule": {"cron": "30 5 * * *", "timezone": "Europe/Berlin"}, "bandwidth": {"up": "3 MiB"}, "shipping": {"large": "8 MiB"},
        },
    }  # fmt: skip


def agent_yaml() -> dict[str, Any]:
    """A device with one test camera and a sensor."""
    camera = {"name": "left", "input": "testsrc2=size=640x360:rate=15,realtime", "format": "lavfi"}
    sensor = {"name": "imu", "kind": "simulated-imu", "rate": 100}
    return {"capture": {"streams": [camera], "sensors": [sensor]}, "gpio": None, "battery": None, "wifi": None}


def make_data(root: Path) -> None:
    """A card with a flight, and large files for the uplink."""
    make_card(root / "card")
    (root / "raw").mkdir()
    for number in range(3):
        file = root / "raw" / f"GX01{number:04}.mp4"
        file.write_bytes(random.Random(number).randbytes(60 << 20) * 5)
        os.utime(file, (1_700_000_000, 1_700_000_000))


def make_trouble(root: Path) -> None:
    """What a second flight adds: a clip, a photo that the gate blocks, and a file that is no video."""
    media = root / "card" / "DCIM" / "100MEDIA"
    (media / "DJI_0004.MP4").write_bytes((media / "DJI_0001.MP4").read_bytes())
    (media / "DJI_0003.MP4").write_bytes(random.Random(2).randbytes(400_000))
    (root / "card" / "DCIM" / "TODO name me.jpg").write_bytes(random.Random(1).randbytes(90_000))


def until(what: str, look: Callable[[], T]) -> T:
    """The first true answer."""
    deadline = time.monotonic() + PATIENCE_S
    while not (answer := look()):
        if time.monotonic() > deadline:
            sys.exit(f"screenshots: not within {PATIENCE_S:.0f} s: {what}")
        time.sleep(0.5)
    return answer


@contextmanager
def running(name: str, argv: list[str], env: dict[str, str], root: Path) -> Iterator[Path]:
    """A command of onblock while this lasts; its log."""
    log = root / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "deployments.cli", *argv], env=env, cwd=root, stdin=subprocess.DEVNULL,
            stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    try:
        yield log
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def act(api: httpx.Client, path: str, body: dict[str, Any] | None = None) -> Any:
    """POST, again while the server asks for that."""

    def taken() -> httpx.Response | None:
        answer = api.post(path, json=body or {})
        if answer.status_code >= 500:
            return None
        return answer.raise_for_status()

    return until(path, taken).json()


def fly(api: httpx.Client, root: Path) -> None:
    """Two flights, a recording on the device, and a long way to the office."""

    def over(flight: str) -> bool:
        there = [
            api.get("/recordings", params={"flight": flight, "job": job, "limit": 1}).json()["items"]
            for job in ("card", "video")
        ]
        totals = api.get("/stats/summary").json()["totals"]
        return all(there) and not totals["queued"] + totals["moving"]

    for flight in FLIGHTS:
        for job in ("card", "video"):
            act(api, f"/jobs/{job}/run", {"flight": flight})
        until(f"the files of {flight}", lambda: over(flight))  # noqa: B023
        make_trouble(root)
    act(api, "/devices/cam-01/recording/start")
    until("a recording", lambda: api.get("/recordings/here").json())
    time.sleep(10)
    act(api, "/devices/cam-01/recording/stop")
    until("the recording", lambda: any(r.get("merged") for r in api.get("/recordings/here").json()))
    act(api, "/jobs/uplink/run")
    until(
        "files on their way",
        lambda: api.get("/transfers", params={"job": "uplink", "state": "DELIVERING"}).json()["items"],
    )


def take(browser: Browser, url: str, token: str, how: str, scheme: Any, size: Any) -> None:
    """A picture of every page."""
    context = browser.new_context(
        base_url=url, color_scheme=scheme, viewport=size, timezone_id="Europe/Berlin", locale="en-GB"
    )
    page = context.new_page()
    page.set_default_timeout(PATIENCE_S * 1000)
    page.goto("/login")
    page.get_by_label("Your token").fill(token)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/")
    for name, path in PAGES.items():
        page.goto(path, wait_until="load")
        if name == "transfers":
            page.get_by_text("MB/s").first.wait_for()
        page.wait_for_timeout(3000)  # the stream has told twice
        save(page, PICTURES / f"{name}-{how}.png")
    context.close()


def save(page: Page, file: Path) -> None:
    """With few colours: a fifth of the bytes."""
    picture = Image.open(io.BytesIO(page.screenshot()))
    picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)


def main() -> None:
    """All of it."""
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("screenshots: Chromium is not installed: python -m tests.servers.install")
    with tempfile.TemporaryDirectory(prefix="flights-", dir="/var/tmp") as folder, ExitStack() as stack:
        root, port, console = Path(folder), free_port(), free_port()
        make_data(root)
        (root / "home").mkdir()
        (root / "agent-home").mkdir()
        (root / "agent-home" / "agent.yaml").write_text(yaml.safe_dump(agent_yaml()))
        files = []
        for name, job in jobs(root).items():
            files.append(root / f"{name}.yaml")
            files[-1].write_text(yaml.safe_dump({"name": name, **job}))
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "ONBLOCK_"))}
        plain["PYTHONPATH"] = str(Path(__file__).parents[2])
        env = plain | {"ONBLOCK_HOME": str(root / "home"), "PREFECT_PROFILES_PATH": str(root / "profiles.toml")}
        up = ["up", *map(str, files), "--port", str(port), "--console-port", str(console)]
        log = stack.enter_context(running("up", up, env, root))
        until("onblock is up", lambda: "onblock is up" in log.read_text())
        of_agent = env | {"ONBLOCK_HOME": str(root / "home"), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
        settings = str(root / "agent-home" / "agent.yaml")
        stack.enter_context(running("agent", ["agent", "--device", "cam-01", "--settings", settings], of_agent, root))
        url, token = f"http://127.0.0.1:{console}", (root / "home/console/admin.token").read_text().strip()
        head = {"Authorization": f"Bearer {token}"}
        api = stack.enter_context(httpx.Client(base_url=f"{url}/api/v1", headers=head, timeout=60))
        until("the device", lambda: any(d["can_record"] and d["status"] for d in api.get("/devices").json()))
        fly(api, root)
        PICTURES.mkdir(parents=True, exist_ok=True)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"]
            )
            for how, scheme, size in (("light", "light", WIDE), ("dark", "dark", WIDE), ("phone", "light", PHONE)):
                take(browser, url, token, how, scheme, size)
            browser.close()
    pictures = sorted(PICTURES.glob("*.png"))
    print(f"{len(pictures)} pictures, {sum(p.stat().st_size for p in pictures) // 1024} KiB, in {PICTURES}")


if __name__ == "__main__":
    main()
