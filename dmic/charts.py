"""Charts over epochs as inline SVG: lines and stacked bars. Colours and dashes come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

# A chart, in units of its view box: 12 of them are the height of its letters.
WIDTH, HEIGHT = 420, 236
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 22, 38
MAX_MARKS = 40  # values of a line up to which each gets a dot that says its number
NUM_STYLES = 5  # classes s0 to s4 of the style sheet


@dataclass(frozen=True)
class Series:
    """One line, or one colour of a stack.

    Attributes:
        name: for the legend.
        values: one for each epoch of the chart; None or NaN leaves a gap.
        spreads: half the height of a band around each value; none if empty.
        style: colour and dashes, from 0.
    """

    name: str
    values: Sequence[float | None]
    spreads: Sequence[float | None] = ()
    style: int = 0

    @property
    def last(self) -> float | None:
        """The last value that is a number."""
        return next((value for value in reversed(self.values) if is_number(value)), None)


@dataclass(frozen=True)
class Span:
    """Epochs `first` to `last`, both included, under one name: a stage of training."""

    name: str
    first: int
    last: int


@dataclass(frozen=True)
class Axes:
    """Where an epoch and a value are, in the view box."""

    first: int
    last: int
    top: float

    def x(self, epoch: float) -> float:
        return LEFT + (epoch - self.first + 0.5) / (self.last - self.first + 1) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - min(max(value / self.top, 0.0), 1.0) * (HEIGHT - TOP - BOTTOM)


def is_number(value: float | None) -> bool:
    """Not None, not NaN, not infinite."""
    return value is not None and math.isfinite(value)


def short_number(value: float | None) -> str:
    """`0.613`, `61.3`, `1,204`: about three digits; `-` where there is no value."""
    if not is_number(value):
        return "-"
    if abs(value) >= 100 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def line_chart(
    title: str,
    unit: str,
    epochs: Sequence[int],
    series: Sequence[Series],
    spans: Sequence[Span] = (),
    *,
    reference: tuple[str, float] | None = None,
    highest: float = 0.0,
    show: Callable[[float | None], str] = short_number,
) -> str:
    """A figure with a legend that says the last value of every line; the vertical axis starts at 0.

    Args:
        title: what is drawn.
        unit: of the values; it stands beside the title.
        epochs: ascending, one for each value of the series.
        series: lines; those without a number are left out.
        spans: marked on the horizontal axis.
        reference: name and height of a horizontal line.
        highest: a value that the vertical axis reaches at least, so that charts can share it.
        show: a value as text.

    Returns:
        HTML, or "" if no series has a number.

    Raises:
        ValueError: a series that has not one value per epoch.
    """
    for line in series:
        if len(line.values) != len(epochs) or (line.spreads and len(line.spreads) != len(epochs)):
            raise ValueError(f"line_chart: {line.name!r} must have {len(epochs)} values, got {len(line.values)}")
    series = [line for line in series if line.last is not None]
    if not series:
        return ""
    tops = [value + spread for line in series for value, spread in _points(line) if value is not None]
    axes, ticks = _axes(epochs, max([*tops, highest, reference[1] if reference else 0.0]))
    parts = [_frame(axes, ticks, spans)]
    if reference:
        y = f"{axes.y(reference[1]):.1f}"
        parts.append(f'<path class="reference" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
    parts += [_line(axes, epochs, line, unit, show) for line in series]
    legend = [(f"s{line.style % NUM_STYLES}", line.name, show(line.last)) for line in series]
    if reference:
        legend.append(("reference", reference[0], show(reference[1])))
    return _figure(title, unit, legend, parts)


def stacked_bars(
    title: str, unit: str, epochs: Sequence[int], series: Sequence[Series], spans: Sequence[Span] = ()
) -> str:
    """A figure with one bar per epoch, series on top of each other; its legend says each one's sum and share.

    Args:
        title, unit, epochs, spans: as for `line_chart`.
        series: at least 0 everywhere; a gap counts as 0.

    Returns:
        HTML, or "" if there is nothing to stack.
    """
    heights = [[value if is_number(value) else 0.0 for value in part.values] for part in series]
    sums = [sum(column) for column in zip(*heights, strict=True)]
    if not sum(sums):
        return ""
    axes, ticks = _axes(epochs, max(sums))
    width = min(0.8 * (axes.x(1) - axes.x(0)), 40.0)
    parts = [_frame(axes, ticks, spans)]
    for position, epoch in enumerate(epochs):
        below = 0.0
        for part, values in zip(series, heights, strict=True):
            y, bottom = axes.y(below + values[position]), axes.y(below)
            hint = f"epoch {epoch}: {part.name} {short_number(values[position])} {unit}"
            parts.append(
                f'<rect class="s{part.style % NUM_STYLES}" x="{axes.x(epoch) - width / 2:.1f}" y="{y:.1f}" '
                f'width="{width:.1f}" height="{bottom - y:.1f}"><title>{escape(hint)}</title></rect>'
            )
            below += values[position]
    legend = [
        (f"s{part.style % NUM_STYLES}", part.name, f"{short_number(sum(values))} {unit}, {sum(values) / sum(sums):.0%}")
        for part, values in zip(series, heights, strict=True)
    ]
    return _figure(title, unit, legend, parts, kind="bars")


def _points(line: Series) -> list[tuple[float | None, float]]:
    """Values, None for a gap, and their spreads, 0 where there is none."""
    spreads = line.spreads or [0.0] * len(line.values)
    return [
        (value if is_number(value) else None, spread if is_number(spread) else 0.0)
        for value, spread in zip(line.values, spreads, strict=True)
    ]


def _axes(epochs: Sequence[int], highest: float) -> tuple[Axes, list[float]]:
    """Axes from 0 to the first round number at or above `highest`, and the ticks of the vertical one."""
    step = _round_step(highest if highest > 0 else 1.0, 5)
    count = max(1, math.ceil((highest if highest > 0 else 1.0) / step - 1e-9))
    return Axes(epochs[0], epochs[-1], count * step), [number * step for number in range(count + 1)]


def _round_step(length: float, num_steps: int) -> float:
    """The smallest of 1, 2, 5, 10, ... times a power of ten that covers a length in `num_steps` steps."""
    power = 10.0 ** math.floor(math.log10(length / num_steps))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power * num_steps >= length * (1 - 1e-9))


def _frame(axes: Axes, ticks: Sequence[float], spans: Sequence[Span]) -> str:
    """Stages, grid, ticks and the names of the axes."""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for number, span in enumerate(spans):
        start, stop = axes.x(max(span.first, axes.first) - 0.5), axes.x(min(span.last, axes.last) + 0.5)
        if stop <= start:
            continue
        kind = "even" if number % 2 else "odd"
        parts.append(
            f'<rect class="stage {kind}" x="{start:.1f}" y="{TOP}" width="{stop - start:.1f}" '
            f'height="{bottom - TOP}"><title>{escape(span.name)}</title></rect>'
        )
        if stop - start > 7 * len(span.name):
            parts.append(f'<text class="note" x="{start + 4:.1f}" y="{TOP - 7}">{escape(span.name)}</text>')
    for value in ticks:
        y = axes.y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
        label = f"{value:,.0f}" if axes.top >= 1000 else f"{round(value, 9):g}"
        parts.append(f'<text class="end" x="{LEFT - 6}" y="{y + 4:.1f}">{label}</text>')
    step = max(1, round(_round_step(axes.last - axes.first + 1, 8)))
    for epoch in range(math.ceil(axes.first / step) * step, axes.last + 1, step):
        parts.append(f'<text class="middle" x="{axes.x(epoch):.1f}" y="{bottom + 16}">{epoch}</text>')
    parts.append(f'<text class="note middle" x="{(LEFT + right) / 2:.1f}" y="{HEIGHT - 5}">epoch</text>')
    return "".join(parts)


def _line(axes: Axes, epochs: Sequence[int], line: Series, unit: str, show: Callable[[float | None], str]) -> str:
    """A band, the line with its gaps, and a dot with a hint for every value; one value alone always has its dot."""
    runs: list[list[tuple[int, float, float]]] = [[]]
    for epoch, (value, spread) in zip(epochs, _points(line), strict=True):
        if value is not None:
            runs[-1].append((epoch, value, spread))
        elif runs[-1]:
            runs.append([])
    runs = [run for run in runs if run]
    style = f"s{line.style % NUM_STYLES}"
    parts = []
    for run in runs:
        if any(spread for _, _, spread in run):
            edge = [(epoch, value + spread) for epoch, value, spread in run]
            edge += [(epoch, value - spread) for epoch, value, spread in reversed(run)]
            path = "L".join(f"{axes.x(epoch):.1f} {axes.y(value):.1f}" for epoch, value in edge)
            parts.append(f'<path class="band {style}" d="M{path}Z"/>')
        path = "L".join(f"{axes.x(epoch):.1f} {axes.y(value):.1f}" for epoch, value, _ in run)
        parts.append(f'<path class="line {style}" d="M{path}"/>')
    marked = sum(map(len, runs)) <= MAX_MARKS
    for epoch, value, _ in (point for run in runs if marked or len(run) == 1 for point in run):
        hint = escape(f"epoch {epoch}: {line.name} {show(value)} {unit}")
        parts.append(
            f'<circle class="{style}" cx="{axes.x(epoch):.1f}" cy="{axes.y(value):.1f}" r="2.6">'
            f"<title>{hint}</title></circle>"
        )
    return "".join(parts)


def _figure(
    title: str, unit: str, legend: Sequence[tuple[str, str, str]], parts: Sequence[str], kind: str = "lines"
) -> str:
    swatch = '<path class="line {0}" d="M1 6H23"/>' if kind == "lines" else '<rect class="{0}" width="12" height="12"/>'
    width = 24 if kind == "lines" else 12
    keys = "".join(
        f'<span class="key"><svg width="{width}" height="12" viewBox="0 0 {width} 12" aria-hidden="true">'
        f"{swatch.format(style)}</svg>{escape(name)} <b>{escape(value)}</b></span>"
        for style, name, value in legend
    )
    label = escape(f"{title}, {unit}, by epoch", quote=True)
    plot = f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    caption = f"<figcaption>{escape(title)} <span>{escape(unit)}</span></figcaption>"
    return f'<figure class="chart">{caption}<div class="legend">{keys}</div>{plot}</figure>'
