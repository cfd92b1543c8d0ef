"""Finding a request's handler by its path's segments: one dictionary look-up instead of a pattern for every route."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

__all__ = ["RouteTable", "Run"]

Run = Callable[[Request], Awaitable[Response]]


class RouteTable:
    """Routes by method and path. A path's ``{name}`` matches one whole segment that is not empty.

    A path without parameters goes before one with them.
    """

    def __init__(self) -> None:
        self._exact: dict[tuple[str, str], Run] = {}
        self._by_length: dict[tuple[str, int], list[tuple[tuple[str, ...], Run]]] = {}

    def add(self, method: str, path: str, run: Run) -> None:
        """Add a route; the first of equal ones counts."""
        if "{" not in path:
            self._exact.setdefault((method, path), run)
        else:
            parts = tuple(path.split("/"))
            self._by_length.setdefault((method, len(parts)), []).append((parts, run))

    def find(self, method: str, path: str) -> tuple[Run, dict[str, str]] | None:
        """Return the handler and the path's parameters; None when there is no such route.

        Args:
            path: Percent-decoded, as ASGI gives it.
        """
        exact = self._exact.get((method, path))
        if exact is not None:
            return exact, {}
        parts = path.split("/")
        for pattern, run in self._by_length.get((method, len(parts)), ()):
            params: dict[str, str] = {}
            for wanted, part in zip(pattern, parts, strict=True):
                if wanted[:1] == "{":
                    if not part:
                        break
                    params[wanted[1:-1]] = part
                elif wanted != part:
                    break
            else:
                return run, params
        return None
