"""What a part of a session reports at its end: the list of its updates that are in the model, and nothing else."""

from __future__ import annotations

from functools import partial

from parity_market.domain.rounds import SessionState
from parity_market.federation import Federation
from parity_market.operations import rounds
from parity_market.store.base import MarketStore
from parity_market.store.rows import TaskRow
from parity_protocol import strict_json
from parity_protocol.errors import InvalidInput, NotFound

__all__ = ["check_report"]

_UPDATE_BYTES = 512  # of one update in the list, and of what stands around all of them
_MAX_DEPTH = 4


async def check_report(store: MarketStore, federation: Federation, group_id: str, task: TaskRow) -> str:
    """Return why a part's final result is garbage, empty when it lists exactly the part's accepted updates."""
    found = await store.read(partial(rounds.open_row, group_id=group_id))
    if found is None or found[0].state != SessionState.DONE:
        # Else a node could take its part out of the session, and all others' work with it, and be paid for that.
        return "the session is not over: a part reports its result when it is"
    pairs = await store.read(partial(rounds.pairs_of, group_id=group_id, part=task.part, fence=task.fence))
    wanted = [{"round": number, "phase": phase, "sha256": digest} for number, phase, digest in pairs]
    most = _UPDATE_BYTES * (len(wanted) + 1)
    if (task.result_size or 0) > most:  # nothing of it is read: this runs on the event loop
        return f"the result has {task.result_size} bytes, a list of {len(wanted)} updates at most {most}"
    try:
        listed = strict_json.loads(await federation.result_of(task), max_bytes=most, max_depth=_MAX_DEPTH)
    except (NotFound, InvalidInput) as exc:
        return f"the result cannot be read: {exc.message}"
    if not isinstance(listed, dict) or listed.get("updates") != wanted:
        return f"the result must list the {len(wanted)} accepted updates of part {task.part}"
    return "" if wanted else f"no update of part {task.part} was accepted"
