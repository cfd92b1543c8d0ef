"""What the rounds' worker does for the old network's runners: models as lists, updates out of JSON.

Runs in the process of ``round_child``, for what strangers sent is parsed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from parity_market.round_files import start_file, sync_folder, update_file, write_synced
from parity_protocol.errors import Conflict

__all__ = ["OLD_JOBS", "execute_old"]

OLD_JOBS: Final = frozenset({"old_base", "old_update"})


def execute_old(job: Mapping[str, Any]) -> dict[str, Any]:
    """Do one of ``OLD_JOBS`` and return its answer.

    Raises:
        InvalidInput: What came is no update of this round.
        Conflict: The round's model is not here (any more).
    """
    from parity_fl.old_rounds import old_base, old_update  # NumPy: only the process that computes loads it

    folder = Path(job["folder"])
    number, phase = job["round"], job["phase"]
    try:
        model = start_file(folder, number, phase).read_bytes()
    except FileNotFoundError as exc:
        raise Conflict(f"round {number} is not open") from exc
    if job["do"] == "old_base":
        return {"layers": old_base(model)}
    found = old_update(model, Path(job["update"]).read_bytes())
    digest = sha256(found.body).hexdigest()
    path = update_file(folder, number, phase, job["part"], digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{job['name']}")
    write_synced(temporary, found.body)
    temporary.replace(path)
    sync_folder(path.parent)
    return {
        "sha256": digest,
        "size": len(found.body),
        "names": [found.session_id, found.round_id, found.runner_id],
        "numbers": found.numbers,
    }
