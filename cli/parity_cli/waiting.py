"""What is said while a command waits for work that no node takes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn

from parity_protocol.errors import ParityError

if TYPE_CHECKING:
    from parity_cli.output import Output
    from parity_client import Client

__all__ = ["tell_why"]

WHY_AFTER_S = 5.0
WHY_EVERY_S = 15.0


async def tell_why(out: Output, client: Client, root_id: str) -> NoReturn:
    """Say why no node takes the work, a moment after that is so, and again when the reason changes."""
    import anyio

    from parity_cli.screens.task import waiting_line
    from parity_protocol.api.tasks import GroupReply

    told = ""
    await anyio.sleep(WHY_AFTER_S)
    while True:
        try:
            found = await client.find(root_id)
            members = found.tasks if isinstance(found, GroupReply) else (found,)
            waiting = [each.id for each in members if each.state == "pending"]
            reason = (await client.why(waiting[0])).summary if waiting else ""
        except ParityError:
            reason = ""  # it is only a courtesy: `wait` tells what is wrong with the market
        if reason and reason != told:
            out.show(waiting_line(waiting[0], reason, now=datetime.now(UTC)))
            told = reason
        await anyio.sleep(WHY_EVERY_S)
