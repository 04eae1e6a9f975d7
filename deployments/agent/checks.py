"""`onblock doctor --device NAME`: what the agent needs on this machine, one line each, and what to do about it.

Looks only: no recording is made, no line is driven. Tuples of `doctor.py`: what, fine or not or (None) merely worth
knowing, what was found.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from blocks.errors import ConfigError, OnblockError, ToolMissing
from blocks.hardware.battery import Ina219Battery
from blocks.hardware.gpio import look
from blocks.hardware.system import clock_synchronised
from blocks.home import home
from deployments.agent.settings import AgentSettings, load_settings

Found = tuple[str, bool | None, str]

LOW_BYTES = 5 << 30
BEFORE_US = 1_704_067_200
"""2024 began: a clock that says less has never been set."""
_OTHER = "it takes or makes no pictures by itself: a codec, or a camera's metadata"
CAMERA_ERRORS: dict[int, tuple[bool | None, str]] = {
    errno.EBUSY: (False, "is used by another program; see which (`fuser -v {path}`), and end it"),
    errno.EACCES: (False, "may not be used; add the account that runs onblock to the group video"),
    errno.EPERM: (False, "may not be used; add the account that runs onblock to the group video"),
    errno.ENODEV: (None, _OTHER),
    errno.ENOTTY: (None, _OTHER),
    errno.EINVAL: (None, _OTHER),
    errno.EIO: (False, "fails (input/output error); unplug it, plug it in, look at `dmesg`"),
    errno.ENOSPC: (False, "has no room on its USB controller; plug it into another port, or ask for less"),
}
"""By errno of opening a camera."""


def examine_device(device: str, dev: Path = Path("/dev")) -> Iterator[Found]:
    """All checks, one after another."""
    try:
        settings = load_settings(device)
        yield (
            "agent settings",
            True,
            "what is recorded is said" if settings.capture else "nothing is said about what to record",
        )
    except ConfigError as error:
        settings = AgentSettings()
        yield "agent settings", False, str(error)
    yield from _jobs(settings, device)
    yield from _cameras(settings, device, dev)
    yield _battery(settings)
    yield _gpio(settings)
    yield _wifi(settings)
    yield _disk()
    yield _clock()


def _jobs(settings: AgentSettings, device: str) -> Iterator[Found]:
    for file in settings.jobs:
        from deployments.agent.work import own_job

        try:
            yield "job", True, f"{own_job(device, file).name}, of {file}"
        except OnblockError as error:
            yield "job", False, str(error)


def _cameras(settings: AgentSettings, device: str, dev: Path) -> Iterator[Found]:
    nodes = sorted(
        (p for p in dev.glob("video*") if re.fullmatch(r"video\d+", p.name)),
        key=lambda p: int(p.name.removeprefix("video")),
    )
    spec = settings.spec(device)
    wanted = [s.input for s in spec.streams if s.input.startswith("/dev/")] if spec else []
    for path in wanted:
        if not Path(path).exists():
            yield (
                "camera",
                False,
                f"{path} is to be recorded, and is not there; plug it in, or correct `capture` in agent.yaml",
            )
    if not nodes:
        yield "camera", None if not wanted else False, f"no {dev}/video*; plug one in, or load its driver (`dmesg`)"
    for node in nodes:
        yield _camera(node)


def _camera(node: Path) -> Found:
    import av
    import av.error

    try:
        with av.open(str(node), format="v4l2") as container:
            video = container.streams.video[0]
            return "camera", True, f"{node}: {video.codec_context.name} {video.width}x{video.height}"
    except (av.error.FFmpegError, OSError, IndexError) as error:
        ok, what = camera_trouble(getattr(error, "errno", None) or 0, str(error))
        return "camera", ok, f"{node} {what.format(path=node)}"


def camera_trouble(number: int, said: str) -> tuple[bool | None, str]:
    """Whether that is bad, and what it means. Pure."""
    return CAMERA_ERRORS.get(
        number, (False, f"cannot be opened: {said.replace('{', '(').replace('}', ')')}; look at `dmesg`")
    )


def _battery(settings: AgentSettings) -> Found:
    if settings.battery is None:
        return "battery", None, "none, as agent.yaml says"
    battery = Ina219Battery(
        settings.battery.bus, settings.battery.address, settings.battery.empty_v, settings.battery.full_v
    )
    try:
        r = battery.read()
    except OnblockError as error:
        return "battery", False, f"{error}; if there is none, write `battery: null` in agent.yaml"
    finally:
        battery.close()
    how = "charging" if r.charging else "not charging"
    return "battery", True, f"{battery.place}: {r.percent:.0f} %, {r.voltage_v:.2f} V, {r.current_a:+.2f} A, {how}"


def _gpio(settings: AgentSettings) -> Found:
    gpio = settings.gpio
    if gpio is None:
        return "GPIO", None, "no panel, as agent.yaml says"
    lines = [*([gpio.button] if gpio.button is not None else []), *gpio.lights().values()]
    try:
        return "GPIO", True, look(gpio.chip, lines)
    except OnblockError as error:
        return "GPIO", False, f"{error}; if there is no panel, write `gpio: null` in agent.yaml"


def _wifi(settings: AgentSettings) -> Found:
    if settings.wifi is None:
        return "WiFi set-up", None, "none, as agent.yaml says"
    if found := shutil.which("nmcli"):
        return "WiFi set-up", True, found
    error = ToolMissing("is not installed", path="nmcli", remedy="install the package network-manager")
    return "WiFi set-up", False, f"{error}; or write `wifi: null` in agent.yaml"


def _disk() -> Found:
    folder = home() / "recordings"
    there = next(p for p in (folder, *folder.parents) if p.exists())
    if not os.access(there, os.W_OK):
        return "disk", False, f"{folder} cannot be written; give it to the account that runs onblock"
    free = shutil.disk_usage(there).free
    found = f"{free / 1e9:.1f} GB free for {folder}, {free / 1e6 / 3600:.0f} h at 8 Mbit/s"
    return "disk", free > LOW_BYTES, found + ("" if free > LOW_BYTES else "; deliver recordings, and clean up")


def _clock() -> Found:
    now = time.time()
    if now < BEFORE_US:
        return (
            "clock",
            False,
            f"{time.strftime('%Y-%m-%d', time.gmtime(now))}: it was never set; `timedatectl set-ntp true`",
        )
    if clock_synchronised():
        return "clock", True, "synchronised"
    said = "not synchronised (`timedatectl set-ntp true`); recordings keep their times among themselves all the same"
    return "clock", None, said
