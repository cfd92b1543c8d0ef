"""The one bridge from click's plain functions to async code."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

__all__ = ["run_async"]

T = TypeVar("T")


def run_async(function: Callable[[], Awaitable[T]]) -> T:
    """Run ``function`` to its end; Ctrl-C cancels it and raises ``KeyboardInterrupt``."""
    import asyncio

    async def wait() -> T:
        return await function()

    try:
        return asyncio.run(wait())
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from group
