"""The files of a session: named by CID before they are stored, so that a session that is refused has stored nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from parity_cli.output import Output
from parity_protocol.errors import InvalidInput, ParityError

if TYPE_CHECKING:
    from parity_client import Client

__all__ = ["SessionFiles"]


@dataclass(slots=True)
class SessionFiles:
    """Files that a spec names and that are not at the market yet."""

    _named: dict[Path, tuple[str, list[str]]] = field(default_factory=dict)  # the CID, and what each is to the session

    async def name(self, path: Path, *, role: str = "") -> str:
        """Return the CID of a file that ``store`` will bring; it is read once, and nothing is sent.

        Args:
            role: What people call it, such as ``shard 1``; without one they are told nothing of it.

        Raises:
            NotFound: There is no such file.
            InvalidInput: It is not a plain file.
            Unavailable: It cannot be read.
        """
        import anyio.to_thread

        from parity_client.upload import measure

        if path not in self._named:
            measured = await anyio.to_thread.run_sync(measure, path, abandon_on_cancel=True)
            self._named[path] = (str(measured.cid), [])
        cid, roles = self._named[path]
        roles.extend([role] if role else [])
        return cid

    async def store(self, out: Output, client: Client) -> None:
        """Store every file that was named, private, in the order of their names.

        Raises:
            ParityError: One could not be stored; which is said before.
            InvalidInput: One is another than it was when it was named.
        """
        for path, (cid, roles) in self._named.items():
            try:
                stored = (await client.data.add(path)).cid
            except ParityError:
                out.warn(f"{' and '.join(roles) or 'the file'} ({path}) could not be stored")
                raise
            if stored != cid:
                raise InvalidInput(f"{path} changed while the session was made", hint="Submit it again.", field="path")
            for role in roles:
                out.say(f"{role}  {path.name} stored as {cid}")
