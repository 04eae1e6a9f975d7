"""How the machine is: processors, memory, disk, temperature, the signal of the WiFi, whether the clock is right."""

from __future__ import annotations

import ctypes
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from blocks.errors import ToolMissing, as_onblock

SENSORS = ("cpu_thermal", "coretemp", "k10temp", "soc_thermal", "cpu-thermal", "acpitz")
"""Where a processor's temperature stands, the best first; else any."""
TIME_ERROR = 5
"""Of adjtimex(2): the clock is not synchronised."""


class Metrics(NamedTuple):
    """Percent, bytes, degrees Celsius, seconds. `cpu_percent` is since the last look; None what cannot be known."""

    cpu_percent: float | None
    cpu_per_core: list[float]
    temperature_c: float | None
    memory_total: int
    memory_available: int
    disk_total: int | None
    disk_free: int | None
    wifi_signal_dbm: int | None
    uptime_s: float


class SystemMetrics:
    """Looks at the machine. The load is that between two looks, so the first one knows none. Of one thread."""

    def __init__(self, folder: Path, proc: Path = Path("/proc"), clock: Callable[[], float] = time.monotonic):
        self._psutil: Any = _psutil()
        self._folder, self._proc, self._clock = folder, proc, clock
        self._psutil.cpu_percent(percpu=True)  # from here on it counts
        self._looked = False

    def read(self) -> Metrics:
        """A look. Raises an OnblockError where the machine does not tell how it is."""
        try:
            cores = [float(c) for c in self._psutil.cpu_percent(percpu=True)]
            memory = self._psutil.virtual_memory()
            uptime = time.clock_gettime(time.CLOCK_BOOTTIME)
        except (OSError, RuntimeError) as error:
            raise as_onblock(error, str(self._proc)) from error
        total, free = self._disk()
        return Metrics(
            cpu_percent=round(sum(cores) / len(cores), 1) if cores else None, cpu_per_core=cores,
            temperature_c=self._temperature(), memory_total=int(memory.total), memory_available=int(memory.available),
            disk_total=total, disk_free=free, wifi_signal_dbm=wifi_signal(self._proc), uptime_s=round(uptime, 1),
        )  # fmt: skip

    def _disk(self) -> tuple[int | None, int | None]:
        there = next(p for p in (self._folder, *self._folder.parents) if p.exists())
        try:
            usage = shutil.disk_usage(there)
        except OSError:
            return None, None
        return usage.total, usage.free

    def _temperature(self) -> float | None:
        try:
            found: dict[str, Any] = self._psutil.sensors_temperatures()
        except (OSError, AttributeError):
            return None
        for name in (*SENSORS, *found):
            for one in found.get(name, ()):
                if one.current:
                    return round(float(one.current), 1)
        return None


def wifi_signal(proc: Path = Path("/proc")) -> int | None:
    """Signal of the first wireless interface in dBm, from /proc/net/wireless; None if there is none."""
    try:
        lines = (proc / "net/wireless").read_text().splitlines()[2:]
    except OSError:
        return None
    for line in lines:
        fields = line.split()
        try:
            level = float(fields[3].rstrip("."))
        except (IndexError, ValueError):
            continue
        return int(level) if level < 0 else None  # other drivers tell a quality of their own
    return None


def clock_synchronised() -> bool | None:
    """Whether the kernel holds the clock for synchronised (adjtimex(2)); None where it does not say."""
    buffer = (ctypes.c_long * 64)()  # struct timex, `modes` 0: only asked
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(buffer))
    return None if state < 0 else state != TIME_ERROR


def _psutil() -> Any:
    try:
        import psutil
    except ImportError as error:
        raise ToolMissing("psutil is not installed", remedy="`pip install onblock[device]` brings it") from error
    return psutil


def software_version() -> str:
    """The version of onblock that runs here."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("onblock")
    except PackageNotFoundError:
        return "unknown"
