"""A chart as one HTML page: inline SVG, no script, nothing loaded from anywhere."""

from __future__ import annotations

from html import escape
from typing import Final

from parity_cli.charts.curves import Curve, Panel

__all__ = ["COLOURS", "html_page"]

# Of Okabe and Ito (2008): told apart by people with any kind of colour vision.
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f", "#000000")

_WIDTH, _HEIGHT = 760, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 16, 36
_TICKS: Final = 5
_STYLE: Final = (
    "body{font:15px system-ui,sans-serif;max-width:800px;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}"
    "h1{font-size:1.3rem}h2{font-size:1rem;margin:1.6rem 0 .3rem}svg{width:100%;height:auto}"
    "text{font:12px system-ui,sans-serif;fill:#555}.grid{stroke:#e3e3e3}.axis{stroke:#888}"
    "polyline{fill:none;stroke-width:2;stroke-linejoin:round}.key{display:inline-block;margin-right:1.2rem}"
    ".key i{display:inline-block;width:1.4em;height:.25em;margin-right:.4em;vertical-align:middle}"
    "dl{display:grid;grid-template-columns:max-content auto;gap:.1rem 1rem}dt{color:#555}dd{margin:0;word-break:break-all}"
)


def html_page(title: str, panels: tuple[Panel, ...], facts: dict[str, str]) -> str:
    """Return a complete page.

    Args:
        title: Heading.
        panels: Drawn one under the other.
        facts: Shown under the charts, name and value.
    """
    charts = "".join(f"<h2>{escape(panel.title)}</h2>{_key(panel)}{_svg(panel)}" for panel in panels)
    told = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{escape(title)}</h1>{charts}<dl>{told}</dl></body></html>\n"
    )


def _key(panel: Panel) -> str:
    entries = (
        f'<span class="key"><i style="background:{_colour(place)}"></i>{escape(curve.name)} '
        f"{curve.points[-1][1]:.4f}</span>"
        for place, curve in enumerate(panel.curves)
    )
    return f"<p>{''.join(entries)}</p>"


def _svg(panel: Panel) -> str:
    inner = _WIDTH - _LEFT - _RIGHT
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(panel.title)} by round">']
    for tick in range(_TICKS):
        value = panel.low + (panel.high - panel.low) * tick / (_TICKS - 1)
        y = _y(panel, value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    ends = sorted({panel.first, (panel.first + panel.last) // 2, panel.last})
    for number in ends:
        x, y = _x(panel, number), _HEIGHT - _BOTTOM + 18
        parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{number}</text>')
    below = f'x="{_LEFT + inner / 2:.0f}" y="{_HEIGHT - 4}"'
    parts.append(f'<text {below} text-anchor="middle">round</text>')
    base = _HEIGHT - _BOTTOM
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>')
    parts.extend(_curve(panel, curve, place) for place, curve in enumerate(panel.curves))
    parts.append("</svg>")
    return "".join(parts)


def _curve(panel: Panel, curve: Curve, place: int) -> str:
    colour = _colour(place)
    if len(curve.points) == 1:
        ((number, value),) = curve.points
        return f'<circle cx="{_x(panel, number):.1f}" cy="{_y(panel, value):.1f}" r="3" fill="{colour}"/>'
    points = " ".join(f"{_x(panel, number):.1f},{_y(panel, value):.1f}" for number, value in curve.points)
    return f'<polyline points="{points}" stroke="{colour}"/>'


def _x(panel: Panel, number: int) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (number - panel.first) / max(1, panel.last - panel.first)


def _y(panel: Panel, value: float) -> float:
    share = (panel.high - value) / (panel.high - panel.low)
    return _TOP + (_HEIGHT - _TOP - _BOTTOM) * share


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]
