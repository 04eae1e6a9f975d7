"""What `capture.py` measured, as one picture. Whatever was not measured is left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, OTHERS, LIMIT = "#1f6fb4", "#d98c2b", "#b03030"


def draw(found: dict[str, Any], out: Path) -> None:
    """Write capture.png into the folder `out`."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    shown = [(title, panel, found[key]) for key, (title, panel) in PANELS.items() if key in found]
    if not shown:
        return
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(6.4 * columns, 3.3 * rows + 0.5), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, (title, panel, values) in zip(axes.flat, shown, strict=False):
        axis.set_title(title, fontsize=10, pad=12)
        axis.spines[["top", "right"]].set_visible(False)
        panel(axis, values)
    figure.suptitle("Recording on the device", fontsize=12)
    figure.savefig(out / "capture.png", dpi=120)
    plt.close(figure)


def _cpu(axis: Axes, values: dict[str, list[float]]) -> None:
    for x, (name, each) in enumerate(values.items()):
        axis.bar(x, median(each), 0.55, color=OURS if name == "recorded" else OTHERS)
        axis.vlines(x, min(each), max(each), color="black", linewidth=1)
        axis.annotate(
            f"{median(each):.2f} ms", (x, max(each)), (0, 2), textcoords="offset points", ha="center", fontsize=8
        )
    axis.set_xticks(range(len(values)), list(values))
    axis.set_ylabel("CPU ms a frame")
    axis.set_ylim(0, max(max(each) for each in values.values()) * 1.25)


def _memory(axis: Axes, rss: list[int]) -> None:
    from tests.benchmarks.capture import RSS_LIMIT
    from tests.benchmarks.capture_parts import LOOK_EVERY_S

    axis.plot([LOOK_EVERY_S * (n + 1) for n in range(len(rss))], [r / 1e6 for r in rss], color=OURS)
    axis.axhline(RSS_LIMIT / 1e6, color=LIMIT, linewidth=1, linestyle="--")
    axis.set_ylim(0, max(RSS_LIMIT, *rss) / 1e6 * 1.1)
    axis.set_xlabel("s")
    axis.set_ylabel("RSS, MB")


def _kills(axis: Axes, lost: dict[str, list[int]]) -> None:
    for x, (name, each) in enumerate(lost.items()):
        for n in sorted(set(each)):
            axis.scatter([x], [n], s=18 * each.count(n), color=OURS if n <= 1 else LIMIT)
            axis.annotate(f"{each.count(n)} x", (x, n), (14, -3), textcoords="offset points", fontsize=8)
        axis.annotate(name, (x, -0.45), ha="center", fontsize=8)
    axis.axhline(1, color=LIMIT, linewidth=1, linestyle="--")
    axis.set_xticks([])
    axis.set_xlim(-0.6, len(lost) - 0.4)
    axis.set_ylim(-0.6, max(2, *(max(each) for each in lost.values())) + 0.4)
    axis.set_ylabel("frames or samples lost")


def _bars(axis: Axes, values: dict[str, tuple[str, float]], label: str) -> None:
    for x, (color, value) in enumerate(values.values()):
        axis.bar(x, value, 0.55, color=color)
        axis.annotate(f"{value:.0f}", (x, value), (0, 2), textcoords="offset points", ha="center", fontsize=8)
    axis.set_xticks(range(len(values)), list(values))
    axis.set_ylabel(label)
    axis.set_ylim(0, max(value for _, value in values.values()) * 1.2)


def _merge(axis: Axes, speeds: dict[str, float]) -> None:
    _bars(axis, {
        "onblock": (OURS, speeds["seconds"]), "onblock,\nread back and hashed": (OURS, speeds["whole"]),
        "ffmpeg\n-f concat -c copy": (OTHERS, speeds["ffmpeg"]),
    }, "MB/s")  # fmt: skip


def _mishaps(axis: Axes, kept: dict[str, tuple[float, float]]) -> None:
    for x, (ours, theirs) in enumerate(kept.values()):
        for at, value, color in ((x - 0.2, ours, OURS), (x + 0.2, theirs, OTHERS)):
            axis.bar(at, value * 100, 0.36, color=color)
            axis.annotate(
                f"{value:.0%}", (at, value * 100), (0, 2), textcoords="offset points", ha="center", fontsize=8
            )
    names = {"kill": "SIGKILL after 25 s", "dead": "a camera dies", "steps": "the date jumps"}
    axis.set_xticks(range(len(kept)), [names.get(name, name) for name in kept])
    axis.set_ylabel("frames kept, %")
    axis.set_ylim(0, 125)
    for name, color in (("onblock", OURS), ("omgrab 0.1.2", OTHERS)):
        axis.bar(0, 0, color=color, label=name)
    axis.legend(fontsize=8, loc="upper right", ncols=2)


PANELS: dict[str, tuple[str, Callable[[Axes, Any], None]]] = {
    "cpu": ("two 720p30 cameras, x264 ultrafast, and a 200 Hz sensor", _cpu),
    "memory": ("memory over a recording of short segments", _memory),
    "kills": ("lost by SIGKILL at random moments", _kills),
    "merge": ("merging 30 segments of 10 s", _merge),
    "mishaps": ("two cameras: what is left after a mishap", _mishaps),
}
