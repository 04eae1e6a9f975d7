"""`/metrics`, as Prometheus reads it: the figures of `figures.py` under names by its conventions. A token of a viewer opens
it. Nothing is counted here: a console that is started anew goes on where the ledger is.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from blocks import names
from blocks.errors import OnblockError
from deployments.console import shown
from deployments.console.figures import Snapshot
from deployments.console.office import Office
from flows.ledger.states import State

JOB = "onblock_job"
"""The label of jobs: `job` is one of Prometheus' own, which would take ours for another."""
SCRAPE_S = 5.0
"""So long new figures are waited for: Prometheus waits for ten."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _Collector:
    def __init__(self, office: Office):
        self._office = office

    def collect(self) -> Iterator[Metric]:
        """All of it, as of one moment. Numbers of a ledger that does not answer are left out, so that nobody takes them for
        new ones."""
        try:
            now = self._office.figures.now(SCRAPE_S)
        except OnblockError:
            now = None
        up = now is not None and self._office.figures.stale() is None
        yield _one("onblock_ledger_up", "Whether the ledger answers.", up)
        yield _one("onblock_prefect_up", "Whether the Prefect server answers.", self._office.server.trouble() is None)
        if now is not None:
            yield _one("onblock_counted_timestamp_seconds", "When the ledger was counted last.", now.at / 1000)
            if up:
                yield from self._counted(now)
                yield from self._ended(now)
            yield from self._disks(now)
        yield from self._devices()

    def _counted(self, now: Snapshot) -> Iterator[Metric]:
        files = _gauge("onblock_files", "File versions in the ledger, by job and state.", JOB, "state")
        for (job, state), n in sorted(now.counts.items()):
            files.add_metric([job, state.value], n)
        yield files
        failed = _gauge("onblock_failed_files", "Files that failed or are in quarantine, by kind.", JOB, "kind")
        deferred = _gauge("onblock_deferred_files", "Files that wait for another attempt, by kind.", JOB, "kind")
        waiting = _gauge("onblock_waiting_bytes", "Bytes of files that are not where they belong.", JOB, "state")
        oldest: dict[str, int] = {}
        sums: dict[tuple[int, str, str], int] = {}
        for w in now.waiting:
            for number, label, value in (
                (0, w.kind or "UNKNOWN", w.files if w.state in (State.FAILED, State.QUARANTINED) else 0),
                (1, w.kind or "", w.files if w.state is State.QUEUED and w.kind else 0), (2, w.state.value, w.bytes),
            ):  # fmt: skip
                if value:
                    sums[number, w.job, label] = sums.get((number, w.job, label), 0) + value
            if w.state is State.QUEUED:
                oldest[w.job] = min(oldest.get(w.job, w.oldest_at), w.oldest_at)
        for (number, job, label), value in sorted(sums.items()):
            (failed, deferred, waiting)[number].add_metric([job, label], value)
        yield from (failed, deferred, waiting)
        age = _gauge("onblock_queue_age_seconds", "How long the oldest file that waits has waited.", JOB)
        for job, at in sorted(oldest.items()):
            age.add_metric([job], max(0.0, (now.at - at) / 1000))
        yield age

    def _ended(self, now: Snapshot) -> Iterator[Metric]:
        """Of transfers. A job of which none has had success, or none has run, has its 0: a rule sees that."""
        called = ("onblock_last_success_timestamp_seconds", "onblock_last_run_timestamp_seconds")
        success = _gauge(
            called[0], "When a run ended in which nothing failed; 0 if none did in 30 days.", JOB, "device"
        )
        run = _gauge(called[1], "When a run ended; 0 if none did in 30 days.", JOB, "device")
        ended = {(one.job, one.device): (one.succeeded_at or 0, one.ended_at) for one in now.last}
        have_run = {job for job, _ in ended}
        ended |= {(job, ""): (0, 0) for job in self._office.job_names(now) if job not in have_run}
        for (job, device), at in sorted(ended.items()):
            for gauge, ms in zip((success, run), at, strict=True):
                gauge.add_metric([job, device], ms / 1000)
        yield from (success, run)
        size = _gauge("onblock_delivered_bytes_30d", "Bytes that runs of the last 30 days delivered.", JOB)
        for job, n in sorted(now.delivered_bytes.items()):
            size.add_metric([job], n)
        yield size

    def _disks(self, now: Snapshot) -> Iterator[Metric]:
        free = _gauge("onblock_disk_free_bytes", "Room at places of this machine.", "path")
        up = _gauge("onblock_disk_up", "Whether a place of this machine answers.", "path")
        for disk in now.disks:
            free.add_metric([names.display(disk.path)], disk.free)
            up.add_metric([names.display(disk.path)], 1)
        for path in now.silent:
            up.add_metric([names.display(path)], 0)
        yield from (free, up)

    def _devices(self) -> Iterator[Metric]:
        drops = _gauge("onblock_capture_dropped", "Frames and samples the recording under way has dropped.", "device")
        battery = _gauge("onblock_device_battery_percent", "Charge of a device, as its agent told.", "device")
        for device in self._office.devices():
            told = device["status"]
            if (n := shown.dropped(told)) is not None:
                drops.add_metric([device["name"]], n)
            if (percent := shown.number(told, "battery", "percent")) is not None:
                battery.add_metric([device["name"]], percent)
        yield from (drops, battery)


def _gauge(name: str, what: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, what, labels=labels)


def _one(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, what, value=value)


def told(office: Office) -> bytes:
    """The text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(office))  # pyright: ignore[reportArgumentType]
    return generate_latest(registry)
