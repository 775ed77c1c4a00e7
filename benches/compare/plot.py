"""Time over size as an SVG picture, both axes logarithmic.

Without a library: the comparison should need none that it does not compare.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 960, 560
LEFT, RIGHT, TOP, BOTTOM = 76, 250, 44, 48
COLOURS = (
    "#1f77b4",
    "#2ca02c",
    "#9467bd",
    "#8c564b",
    "#e377c2",
    "#7f7f7f",
    "#bcbd22",
    "#17becf",
    "#ff7f0e",
    "#393b79",
    "#637939",
    "#843c39",
)
OWN, FLOOR = "#d62728", "#000000"


@dataclass(frozen=True)
class Line:
    """One candidate: (bytes, ns), ascending."""

    label: str
    points: Sequence[tuple[float, float]]
    own: bool = False
    floor: bool = False


def svg(title: str, lines: Sequence[Line]) -> str:
    """The picture as a document."""
    if not lines:
        raise ValueError("nothing to draw")
    sizes = sorted({x for line in lines for x, _ in line.points})
    values = [y for line in lines for _, y in line.points]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values) * 1.01))

    def at(x: float, y: float) -> tuple[float, float]:
        across = (math.log2(x) - math.log2(sizes[0])) / max(math.log2(sizes[-1]) - math.log2(sizes[0]), 1)
        up = (math.log10(y) - low) / max(high - low, 1)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="26" font-size="17">{escape(title)} (p50, lower is better)</text>',
    ]
    for power in range(low, high + 1):
        x, y = at(sizes[0], 10.0**power)
        parts.append(f'<path d="M{x:.0f} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 8:.0f}" y="{y + 4:.1f}" text-anchor="end">{time_name(power)}</text>')
    for size in sizes:
        x, _ = at(size, 10.0**low)
        parts.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#eee"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{size_name(size)}</text>')
    # The legend in the order in which the lines end, so that names stand beside them where they can.
    others = iter(COLOURS * (1 + len(lines) // len(COLOURS)))
    place = float(TOP)
    for line in sorted(lines, key=lambda line: -line.points[-1][1]):
        colour = OWN if line.own else FLOOR if line.floor else next(others)
        dash = ' stroke-dasharray="6 4"' if line.floor else ""
        path = " ".join("{:.1f},{:.1f}".format(*at(*point)) for point in line.points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{3 if line.own else 1.7}"{dash}/>'
        )
        dots = [at(*point) for point in line.points]
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in dots]
        end = dots[-1]
        place = max(place, end[1])
        parts.append(
            f'<path d="M{end[0] + 5:.1f} {end[1]:.1f}L{WIDTH - RIGHT + 22} {place:.1f}"'
            f' stroke="{colour}" stroke-width="0.5"/>'
        )
        parts.append(f'<text x="{WIDTH - RIGHT + 26}" y="{place + 4:.1f}" fill="{colour}">{escape(line.label)}</text>')
        place += 17
    return "\n".join([*parts, "</svg>", ""])


def time_name(power: int) -> str:
    unit = ("ns", "µs", "ms", "s")[min(power // 3, 3)]
    return f"{10 ** (power - 3 * min(power // 3, 3)):.0f} {unit}"


def size_name(size: float) -> str:
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:.0f} {name}"
    return f"{size:.0f} B"
