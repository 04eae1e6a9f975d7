from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from blocks.errors import ToolMissing
from blocks.hardware.system import SystemMetrics, clock_synchronised, wifi_signal

WIRELESS = """Inter-| sta-|   Quality        |   Discarded packets               | Missed | WE
 face | tus | link level noise |  nwid  crypt   frag  retry   misc | beacon | 22
 wlan0: 0000   58.  -52.  -256        0      0      0      0      0        0
"""


def test_the_load_is_that_since_the_last_look(tmp_path: Path):
    metrics = SystemMetrics(tmp_path)
    until = time.thread_time() + 0.3
    while time.thread_time() < until:  # work, however long that takes here
        pass
    seen = metrics.read()
    assert seen.cpu_percent is not None and 0 < seen.cpu_percent <= 100
    assert len(seen.cpu_per_core) == psutil.cpu_count() and max(seen.cpu_per_core) > 0


def test_memory_disk_and_uptime(tmp_path: Path):
    seen = SystemMetrics(tmp_path / "not" / "there yet").read()
    assert seen.disk_total == shutil.disk_usage(tmp_path).total and 0 < (seen.disk_free or 0) <= seen.disk_total
    assert 0 < seen.memory_available <= seen.memory_total
    assert 0 < seen.uptime_s <= time.clock_gettime(time.CLOCK_BOOTTIME) + 0.1


@pytest.mark.parametrize(
    ("found", "degrees"),
    [
        ({"nvme": [41.0], "cpu_thermal": [55.123]}, 55.1),
        ({"other": [41.0]}, 41.0),
        ({"cpu_thermal": [0.0], "coretemp": [50.0]}, 50.0),
        ({}, None),
    ],
)
def test_the_temperature_of_the_processor(
    found: dict[str, list[float]], degrees: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sensors = {name: [SimpleNamespace(current=c) for c in several] for name, several in found.items()}
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: sensors)
    assert SystemMetrics(tmp_path).read().temperature_c == degrees


@pytest.mark.parametrize(
    ("text", "dbm"), [(WIRELESS, -52), ("", None), (WIRELESS.replace("-52.", "52."), None), ("a\nb\nwlan0: x\n", None)]
)
def test_the_signal_of_the_wifi(text: str, dbm: int | None, tmp_path: Path):
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "wireless").write_text(text)
    assert wifi_signal(tmp_path) == dbm
    assert wifi_signal(tmp_path / "nowhere") is None


def test_the_kernel_says_whether_the_clock_is_right():
    assert clock_synchronised() in (True, False, None)


def test_without_psutil_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(ToolMissing, match=r"onblock\[device\]"):
        SystemMetrics(tmp_path)
