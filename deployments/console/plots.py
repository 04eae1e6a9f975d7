"""Plots as SVG, made here from numbers: no script, no style, nothing from elsewhere. Colours are those of the page's classes."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from deployments.console.shown import size

WIDTH, HEIGHT, LEFT, BOTTOM = 1160, 170, 70, 22


def bars(values: Sequence[tuple[str, int, int]], title: str) -> Markup:
    """Bytes by the hour, as bars: (when, files, bytes) each; with a table of the same for those who cannot see it in the
    titles of the bars."""
    most = max((b for _, _, b in values), default=0)
    top = _round(most)
    step = (WIDTH - LEFT) / max(len(values), 1)
    out: list[Markup] = []
    for i in range(3):
        y = 6 + (HEIGHT - BOTTOM - 6) * i / 2
        label = size(top * (2 - i) / 2)
        out.append(_line(LEFT, y, WIDTH, y))
        out.append(
            Markup('<text class="axis" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(LEFT - 6, y + 4, label)
        )
    for i, (when, files, n) in enumerate(values):
        high = (HEIGHT - BOTTOM - 6) * n / top if top else 0
        if n:
            high = max(high, 1.5)
        out.append(Markup(
            '<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>'
        ).format(LEFT + i * step + 1, HEIGHT - BOTTOM - high, max(step - 2, 1), high, f"{when}: {files:,} files, {size(n)}"))  # fmt: skip
        if i % 12 == 0:
            out.append(
                Markup('<text class="axis" x="{:.1f}" y="{}">{}</text>').format(LEFT + i * step, HEIGHT - 4, when)
            )
    return Markup('<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, title, Markup("").join(out)
    )


def _line(x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="grid" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(x1, y1, x2, y2)


def _round(most: int) -> int:
    """The next larger of 1, 2, 5 times a power of ten."""
    if most <= 0:
        return 0
    ten = 10 ** (len(str(most)) - 1)
    return next(n * ten for n in (1, 2, 5, 10) if n * ten >= most)
