"""Finding a request's handler by its path's segments: one dictionary look-up instead of a pattern for every route."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

__all__ = ["RouteTable", "Run"]

Run = Callable[[Request], Awaitable[Response]]


class RouteTable:
    """Routes by method and path. A path's ``{name}`` matches one whole segment that is not empty.

    A last segment ``{name:path}`` matches all that is left, slashes included. A path without parameters goes before
    one with them, and both before one that takes the rest.
    """

    def __init__(self) -> None:
        self._exact: dict[tuple[str, str], Run] = {}
        self._by_length: dict[tuple[str, int], list[tuple[tuple[str, ...], Run]]] = {}
        self._taking_rest: list[tuple[str, tuple[str, ...], str, Run]] = []

    def add(self, method: str, path: str, run: Run) -> None:
        """Add a route; the first of equal ones counts."""
        if "{" not in path:
            self._exact.setdefault((method, path), run)
            return
        parts = tuple(path.split("/"))
        if parts[-1].endswith(":path}"):
            self._taking_rest.append((method, parts[:-1], parts[-1][1:-6], run))
        else:
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
            params = _match(pattern, parts)
            if params is not None:
                return run, params
        for wanted, pattern, name, run in self._taking_rest:
            params = _match(pattern, parts[: len(pattern)]) if wanted == method else None
            rest = "/".join(parts[len(pattern) :])
            if params is not None and rest:
                return run, {**params, name: rest}
        return None


def _match(pattern: tuple[str, ...], parts: list[str]) -> dict[str, str] | None:
    """Return the parameters, or None when the segments are others."""
    if len(pattern) != len(parts):
        return None
    params: dict[str, str] = {}
    for wanted, part in zip(pattern, parts, strict=True):
        if wanted[:1] == "{":
            if not part:
                return None
            params[wanted[1:-1]] = part
        elif wanted != part:
            return None
    return params
