"""A chart as a PNG, drawn and packed here (PNG, 3rd edition, §5 and §11): eight-bit palette, one zlib stream."""

from __future__ import annotations

import struct
import zlib
from typing import Final

from parity_cli.charts.curves import Panel
from parity_cli.charts.page import COLOURS

__all__ = ["png_image"]

_WIDTH, _PANEL = 900, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 96, 24, 40, 44
_TICKS: Final = 5
_ZOOM: Final = 2  # pixels of a dot of a letter
_WHITE, _GREY, _DARK, _FIRST_CURVE = 0, 1, 2, 3
_PALETTE: Final = ("#ffffff", "#dddddd", "#555555", *COLOURS)

# Letters of 3 × 5 dots: five rows from the top, each an octal digit whose bits are the dots from the left.
_LETTERS: Final = {
    "0": "75557", "1": "26227", "2": "71747", "3": "71717", "4": "55711", "5": "74717", "6": "74757", "7": "71122",
    "8": "75757", "9": "75717", "a": "03757", "b": "44657", "c": "07447", "d": "11357", "e": "07647", "f": "34644",
    "g": "07571", "h": "44755", "i": "20222", "j": "10117", "k": "45665", "l": "62227", "m": "05775", "n": "06555",
    "o": "07557", "p": "07574", "q": "07571", "r": "07444", "s": "07217", "t": "27223", "u": "05557", "v": "05552",
    "w": "05777", "x": "05225", "y": "55717", "z": "07127", ".": "00002", "-": "00700", "+": "02720", "_": "00007",
}  # fmt: skip


def png_image(panels: tuple[Panel, ...]) -> bytes:
    """Return the panels, one under the other, as a PNG file."""
    canvas = _Canvas(_WIDTH, _PANEL * len(panels))
    for place, panel in enumerate(panels):
        _draw(canvas, panel, place * _PANEL)
    return canvas.packed()


class _Canvas:
    """Pixels as palette numbers."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._pixels = bytearray(width * height)

    def dot(self, x: int, y: int, colour: int, size: int = 1) -> None:
        for row in range(max(0, y), min(self.height, y + size)):
            for column in range(max(0, x), min(self.width, x + size)):
                self._pixels[row * self.width + column] = colour

    def line(self, start: tuple[int, int], end: tuple[int, int], colour: int, size: int = 1) -> None:
        steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
        for step in range(steps + 1):
            x = start[0] + round((end[0] - start[0]) * step / steps)
            self.dot(x, start[1] + round((end[1] - start[1]) * step / steps), colour, size)

    def text(self, x: int, y: int, text: str, colour: int) -> int:
        """Write from (x, y), the upper left; a letter without a picture is a gap. Return where it ends."""
        for letter in text.lower():
            for row, digit in enumerate(_LETTERS.get(letter, "00000")):
                for column in range(3):
                    if int(digit, 8) & (4 >> column):
                        self.dot(x + column * _ZOOM, y + row * _ZOOM, colour, _ZOOM)
            x += 4 * _ZOOM
        return x

    def packed(self) -> bytes:
        rows = b"".join(b"\x00" + self._pixels[row * self.width : (row + 1) * self.width] for row in range(self.height))
        header = struct.pack(">IIBBBBB", self.width, self.height, 8, 3, 0, 0, 0)
        palette = b"".join(bytes.fromhex(colour[1:]) for colour in _PALETTE)
        chunks = ((b"IHDR", header), (b"PLTE", palette), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks
        )


def _draw(canvas: _Canvas, panel: Panel, top: int) -> None:
    right, base = _WIDTH - _RIGHT, top + _PANEL - _BOTTOM
    height = _PANEL - _TOP - _BOTTOM

    def place(number: int, value: float) -> tuple[int, int]:
        across = (number - panel.first) / max(1, panel.last - panel.first)
        down = (panel.high - value) / (panel.high - panel.low)
        return _LEFT + round(across * (right - _LEFT)), top + _TOP + round(down * height)

    for tick in range(_TICKS):
        value = panel.low + (panel.high - panel.low) * tick / (_TICKS - 1)
        _, y = place(panel.first, value)
        canvas.line((_LEFT, y), (right, y), _GREY)
        label = f"{value:.4g}"
        canvas.text(_LEFT - 8 - 4 * _ZOOM * len(label), y - 5, label, _DARK)
    canvas.line((_LEFT, base), (right, base), _DARK)
    canvas.text(_LEFT, base + 14, f"round {panel.first}", _DARK)
    canvas.text(right - 4 * _ZOOM * len(str(panel.last)), base + 14, str(panel.last), _DARK)
    x = _LEFT
    for number, curve in enumerate(panel.curves):
        colour = _FIRST_CURVE + number % len(COLOURS)
        places = [place(*point) for point in curve.points]
        for here, there in zip(places, places[1:] or places, strict=False):
            canvas.line(here, there, colour, 2)
        canvas.line((x, top + 19), (x + 20, top + 19), colour, 3)
        x = canvas.text(x + 28, top + 15, f"{curve.name} {curve.points[-1][1]:.4f}", _DARK) + 24
