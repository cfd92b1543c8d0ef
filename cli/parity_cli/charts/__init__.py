"""Lines over rounds: on a terminal, as an HTML page with inline SVG, and as a PNG; nothing but the standard library."""

from parity_cli.charts.curves import Curve, Panel, panels_of
from parity_cli.charts.page import html_page
from parity_cli.charts.png import png_image
from parity_cli.charts.terminal import terminal_chart

__all__ = ["Curve", "Panel", "html_page", "panels_of", "png_image", "terminal_chart"]
