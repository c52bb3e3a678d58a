"""Markdown tables between markers of a page, and plots as SVG."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

from harness import write_atomically

COLOURS = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777", "#222222", "#994455"]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 420, 70, 190, 40, 60


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A figure, or a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:{'+' if sign else ''}.{digits}f}"


def replace_marked(path: Path, name: str, text: str, title: str) -> None:
    """Writes `text` between `<!-- name -->` and `<!-- end name -->` of a page, which is made if it is not there."""
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    page = path.read_text() if path.is_file() else f"# {title}\n"
    if begin not in page:
        page = f"{page.rstrip()}\n\n{begin}\n{end}\n"
    head, rest = page.split(begin, 1)
    if end not in rest:
        raise SystemExit(f"{path}: `{begin}` has no `{end}`")
    write_atomically(path, f"{head}{begin}\n{text.strip()}\n{end}{rest.split(end, 1)[1]}")


class _Plot:
    """Axes of one plot; y from low to high, x in pixels."""

    def __init__(self, title: str, unit: str, low: float, high: float):
        step = _step(high - low)
        self.low, self.high = math.floor(low / step) * step, math.ceil(high / step) * step or step
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
            f'<text x="{LEFT}" y="20" font-size="15">{escape(title)}</text>',
            f'<text x="14" y="{HEIGHT / 2}" transform="rotate(-90 14 {HEIGHT / 2})" text-anchor="middle">{escape(unit)}</text>',
        ]
        for i in range(round((self.high - self.low) / step) + 1):
            value = self.low + i * step
            self.line(LEFT, value, WIDTH - RIGHT, value, "#999999" if abs(value) < step / 2 else "#e4e4e4")
            self.text(LEFT - 6, self.y(value) + 4, f"{value:.4g}" if abs(value) > step / 2 else "0", "end")

    def y(self, value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (self.high - value) / (self.high - self.low)

    def line(self, x1, v1, x2, v2, colour, width=1):
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{self.y(v1):.1f}" x2="{x2:.1f}" y2="{self.y(v2):.1f}" stroke="{colour}" stroke-width="{width}"/>'
        )

    def text(self, x, y, text, anchor="middle"):
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def legend(self, names: list[str]):
        for i, name in enumerate(names):
            y = TOP + 18 * i
            colour = COLOURS[i % len(COLOURS)]
            self.parts.append(f'<rect x="{WIDTH - RIGHT + 16}" y="{y}" width="12" height="12" fill="{colour}"/>')
            self.text(WIDTH - RIGHT + 34, y + 11, name, "start")

    def write(self, path: Path):
        write_atomically(path, "\n".join([*self.parts, "</svg>"]) + "\n")


def _step(span: float) -> float:
    """A round step that gives four to ten lines."""
    if not span > 0:
        return 1.0
    power = 10 ** math.floor(math.log10(span / 4))
    return next(m * power for m in (5, 2, 1) if span / (m * power) >= 4 or m == 1)


def _limits(series: dict[str, dict[str, tuple]]) -> tuple[float, float]:
    values = [v for points in series.values() for p in points.values() for v in p if v is not None]
    return (min(0.0, *values), max(0.0, *values)) if values else (0.0, 1.0)


def bars(path: Path, title: str, unit: str, labels: list[str], series: dict[str, dict[str, tuple]]) -> None:
    """Grouped bars: `series[name][label] = (value, low, high)`, the interval as a whisker."""
    plot = _Plot(title, unit, *_limits(series))
    slot = (WIDTH - LEFT - RIGHT) / max(len(labels), 1)
    bar = slot * 0.84 / max(len(series), 1)
    for g, label in enumerate(labels):
        plot.text(LEFT + slot * (g + 0.5), HEIGHT - BOTTOM + 20, label)
        for i, points in enumerate(series.values()):
            if label not in points or points[label][0] is None:
                continue
            value, low, high = points[label]
            x, top = LEFT + slot * (g + 0.08) + bar * i, plot.y(max(value, 0))
            plot.parts.append(
                f'<rect x="{x:.1f}" y="{top:.1f}" width="{bar * 0.9:.1f}" height="{abs(plot.y(value) - plot.y(0)):.1f}" '
                f'fill="{COLOURS[i % len(COLOURS)]}"/>'
            )
            if low is not None and high is not None:
                plot.line(x + bar * 0.45, low, x + bar * 0.45, high, "black")
    plot.legend(list(series))
    plot.write(path)


def lines(path: Path, title: str, unit: str, labels: list[str], series: dict[str, dict[str, tuple]]) -> None:
    """Lines over labels at equal distances: `series[name][label] = (value, low, high)`."""
    plot = _Plot(title, unit, *_limits(series))
    at = {label: LEFT + (WIDTH - LEFT - RIGHT) * (i + 0.5) / len(labels) for i, label in enumerate(labels)}
    for label, x in at.items():
        plot.text(x, HEIGHT - BOTTOM + 20, label)
    for i, points in enumerate(series.values()):
        colour, known = COLOURS[i % len(COLOURS)], [k for k in labels if k in points and points[k][0] is not None]
        for a, b in zip(known, known[1:]):
            plot.line(at[a], points[a][0], at[b], points[b][0], colour, 2)
        for k in known:
            value, low, high = points[k]
            plot.parts.append(f'<circle cx="{at[k]:.1f}" cy="{plot.y(value):.1f}" r="3.5" fill="{colour}"/>')
            if low is not None and high is not None:
                plot.line(at[k] + 3 * i, low, at[k] + 3 * i, high, colour)
    plot.legend(list(series))
    plot.write(path)
