"""A chart of braille dots: each character is two dots wide and four high."""

from __future__ import annotations

from typing import Final

from parity_cli.charts.curves import Panel

__all__ = ["terminal_chart"]

_BLANK: Final = 0x2800
_DOTS: Final = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # by row, by column
_AXIS_CHARS: Final = 10  # of the numbers at the left


def terminal_chart(panel: Panel, *, width: int, height: int) -> str:
    """Return a panel as lines of text without colour.

    Args:
        panel: What is drawn. Curves are told apart by their last values, which stand under the chart.
        width: Characters of a line, at least 30.
        height: Lines of the plot itself, at least 3.
    """
    columns, rows = max(20, width - _AXIS_CHARS - 3), max(3, height)
    cells = [[0] * columns for _ in range(rows)]
    span = max(1, panel.last - panel.first)
    for curve in panel.curves:
        places = [
            (
                round((number - panel.first) / span * (2 * columns - 1)),
                round((panel.high - value) / (panel.high - panel.low) * (4 * rows - 1)),
            )
            for number, value in curve.points
        ]
        for here, there in zip(places, places[1:] or places, strict=False):
            for x, y in _line(here, there):
                cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
    lines = [panel.title]
    for row, each in enumerate(cells):
        mark = {0: panel.high, rows - 1: panel.low, (rows - 1) // 2: (panel.high + panel.low) / 2}.get(row)
        label = "" if mark is None else f"{mark:.4g}"
        lines.append(f"{label:>{_AXIS_CHARS}} ┤{''.join(chr(_BLANK + dots) for dots in each)}")
    lines.append(f"{'':>{_AXIS_CHARS}} └{'─' * columns}")
    ends = f"round {panel.first}"
    lines.append(f"{'':>{_AXIS_CHARS}}  {ends}{panel.last!s:>{columns - len(ends)}}")
    last = "   ".join(f"{curve.name} {curve.points[-1][1]:.4f}" for curve in panel.curves)
    lines.append(f"{'':>{_AXIS_CHARS}}  {last}")
    return "\n".join(lines)


def _line(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    return [
        (
            start[0] + round((end[0] - start[0]) * step / steps),
            start[1] + round((end[1] - start[1]) * step / steps),
        )
        for step in range(steps + 1)
    ]
