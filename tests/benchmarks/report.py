"""What was measured, as Markdown, as JSON and as two plots. Nothing is measured here."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from tests.benchmarks.measure import Claim, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {
    "onblock": "#1f6fb4", "with server": "#1f6fb4", "without": "#7fb2dc", "rclone": "#d98c2b", "rsync": "#5a9a57",
    "cp": "#9a9a9a", "cp + sha256sum": "#9a9a9a", "sha256sum": "#6d6d6d",
}  # fmt: skip
PALE = 0.45


def speed(series: Series, seconds: float) -> str:
    """Files/s, or MB/s for large files."""
    if not series.files or seconds <= 0:
        return ""
    if series.bytes / series.files >= 1 << 20:
        return f"{series.bytes / seconds / 1e6:,.0f} MB/s"
    return f"{series.files / seconds:,.0f} files/s"


def markdown(series: Sequence[Series], claims: Sequence[Claim], rounds: int) -> str:
    lines = [
        "# onblock, measured",
        "",
        f"{os.cpu_count()} CPUs, {platform.system()} {platform.release()}, Python {platform.python_version()}. "
        f"Medians of {rounds} rounds, programs taking turns; ratios are medians of the ratios of each round.",
        "",
    ]
    table = [
        "Job: from the first listing to the last verified row, as onblock prints it. Command: the whole program, from "
        "start to exit. The others have no such difference. CPU: user and system, of the whole command. Peak RSS: of the "
        "whole command; what is near 25 MB may be less (the floor of the measurement).",
        "",
        "| scenario | program | runs | job s | command s | CPU s | peak RSS MB | speed (job) | speed (command) |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for s in series:
        job, wall = s.mid(lambda x: x.job), s.mid(lambda x: x.wall)
        table.append(
            f"| {s.scenario} | {s.tool} | {len(s.samples)} | {job:.2f} | {wall:.2f} | {s.mid(lambda x: x.cpu):.2f} "
            f"| {max(x.rss for x in s.samples) / 1e6:.0f} | {speed(s, job)} | {speed(s, wall)} |"
        )
    lines += [*table, ""] if series else []
    lines += ["| what | measured | wanted | reached |", "|---|--:|--:|:-:|"]
    lines += [f"| {c.text} | {c.value} | {c.wanted or ''} | {_answer(c)} |" for c in claims]
    return "\n".join(lines) + "\n"


def _answer(claim: Claim) -> str:
    if claim.wanted is None:
        return ""
    return "yes" if claim.reached else "**no**"


def write(
    out: Path, series: Sequence[Series], claims: Sequence[Claim], rounds: int,
    pictures: Sequence[Callable[[Path], None]] = (),
) -> str:  # fmt: skip
    """Write bench.md, bench.json, speed.png and cost.png, and further pictures; the Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    text = markdown(series, claims, rounds)
    (out / "bench.md").write_text(text, "utf-8")
    raw = {"rounds": rounds, "series": [asdict(s) for s in series], "claims": [asdict(c) for c in claims]}
    (out / "bench.json").write_text(json.dumps(raw, indent=1), "utf-8")
    if series:
        plots(out, series)
    for picture in pictures:
        picture(out)
    return text


def plots(out: Path, series: Sequence[Series]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    scenarios: dict[str, list[Series]] = {}
    for s in series:
        scenarios.setdefault(s.scenario, []).append(s)
    shown = {name: group for name, group in scenarios.items() if len(group) > 1}
    if shown:
        _grid(plt, out / "speed.png", "Seconds (median; line: least to most)", shown, _seconds)
    _grid(plt, out / "cost.png", "What it costs (onblock: of the whole command)", scenarios, _cost)


def _grid(
    plt: object,
    path: Path,
    title: str,
    scenarios: dict[str, list[Series]],
    draw: Callable[[Axes, list[Series]], None],
) -> None:
    columns = min(2, len(scenarios))
    rows = -(-len(scenarios) // columns)
    figure, axes = plt.subplots(  # type: ignore[attr-defined]
        rows, columns, figsize=(6.4 * columns, 3.5 * rows + 0.5), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(scenarios) :]:
        axis.set_visible(False)
    for axis, (name, group) in zip(axes.flat, scenarios.items(), strict=False):
        axis.set_title(name, fontsize=10, pad=12)
        axis.spines[["top", "right"]].set_visible(False)
        draw(axis, group)
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, dpi=120)
    plt.close(figure)  # type: ignore[attr-defined]


def _bar(
    axis: Axes, x: float, width: float, values: list[float], label: str, *, color: str, alpha: float = 1.0
) -> None:
    mid = median(values)
    axis.bar(x, mid, width, color=color, alpha=alpha)
    if len(values) > 1:
        axis.vlines(x, min(values), max(values), color="black", linewidth=1)
    axis.annotate(label, (x, max(values)), (0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=8)


def _seconds(axis: Axes, group: list[Series]) -> None:
    """Per program one bar, or two where the job is not the whole command; speed written on it."""
    for x, s in enumerate(group):
        color = COLORS.get(s.tool.partition(",")[0], "#777777")
        job, wall = [y.job for y in s.samples], [y.wall for y in s.samples]
        if job == wall:
            _bar(axis, x, 0.55, wall, _label(s, wall), color=color)
        else:
            _bar(axis, x - 0.24, 0.44, job, _label(s, job) + "\njob", color=color)
            _bar(axis, x + 0.24, 0.44, wall, _label(s, wall) + "\ncommand", color=color, alpha=PALE)
    axis.set_xticks(range(len(group)), [s.tool.replace(", ", "\n") for s in group])
    axis.set_ylabel("s")
    axis.set_ylim(0, max(y.wall for s in group for y in s.samples) * 1.32)


def _label(series: Series, values: list[float]) -> str:
    seconds = median(values)
    return f"{seconds:.2f} s\n{speed(series, seconds)}".rstrip()


def _cost(axis: Axes, group: list[Series]) -> None:
    """CPU seconds on the left scale, peak RSS on the right."""
    right = axis.twinx()
    right.spines["top"].set_visible(False)
    most_cpu = most_rss = 0.0
    for x, s in enumerate(group):
        color = COLORS.get(s.tool.partition(",")[0], "#777777")
        used, peak = [y.cpu for y in s.samples], [y.rss / 1e6 for y in s.samples]
        most_cpu, most_rss = max(most_cpu, *used), max(most_rss, *peak)
        _bar(axis, x - 0.21, 0.38, used, f"{median(used):.2f} s\nCPU", color=color)
        _bar(right, x + 0.21, 0.38, peak, f"{median(peak):.0f} MB\nRSS", color=color, alpha=PALE)
    axis.set_xticks(range(len(group)), [s.tool.replace(", ", "\n") for s in group])
    axis.set_xlim(-0.7, len(group) - 0.3)
    axis.set_ylabel("CPU s")
    right.set_ylabel("peak RSS, MB")
    axis.set_ylim(0, most_cpu * 1.3)
    right.set_ylim(0, max(most_rss, 1) * 1.3)
