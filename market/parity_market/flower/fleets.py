"""Where each session's SuperLink will be: its folder with keys and certificates, its port, and what manifests say of it.

Made when the session is planned, because the manifest that a node gets is signed over it.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
from collections.abc import Collection
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path

import anyio.to_thread

from parity_contracts.files import write_file
from parity_fl.engines.flower import FLWR_VERSION, Fleet, bundle, bundle_digest, is_installed
from parity_market.flower.certificates import make_certificates
from parity_protocol.clock import Clock
from parity_protocol.errors import BadDocument, ConfigInvalid, Overloaded, StorageFull, Unprocessable
from parity_protocol.join import is_loopback

__all__ = ["Fleets"]

FLEET_FILE = "fleet.json"  # written last
BEGUN_FILE = "begun"
RETRY_S = 30.0
UNBEGUN_S = 600.0  # after its planning that a session has to begin
SECRET_BYTES = 32


class Fleets:
    """The folders of all sessions that Flower carries.

    Args:
        folder: Of all of them; mode 0700.
        address: ``host`` or ``host:first-last``, as ``MARKET_FLOWER_ADDRESS``.
        most: Sessions at once.

    Raises:
        ConfigInvalid: The range of ports is none.
    """

    def __init__(self, folder: Path, clock: Clock, *, address: str = "127.0.0.1", most: int = 8) -> None:
        self._folder = folder
        self._clock = clock
        self._most = most
        self.host, self._ports = _parse(address)

    def folder(self, session_id: str) -> Path:
        """Return a session's folder."""
        return self._folder / session_id

    @property
    def listen_host(self) -> str:
        """Where a SuperLink listens: on this machine alone if nodes reach it there."""
        if self.host.lower() == "localhost":
            return "127.0.0.1"
        if is_loopback(self.host):
            return self.host
        return "::" if ":" in self.host else "0.0.0.0"  # noqa: S104 - asked for by MARKET_FLOWER_ADDRESS

    async def prepare(self, session_id: str) -> Fleet:
        """Return a session's fleet; the first call makes its folder, every other one reads it.

        Raises:
            Unprocessable: Flower is not installed here, or no port is free.
            Overloaded: So many sessions as the market allows use Flower already.
            StorageFull: The folder cannot be written.
        """
        self.check_installed()
        make = partial(self._prepare, session_id, self._clock.now())
        try:
            return await anyio.to_thread.run_sync(make)
        except OSError as exc:
            raise StorageFull(f"the market cannot use its files of a session: {exc.strerror}") from exc

    def check_installed(self) -> None:
        """Refuse every session where there is no Flower; raises ``Unprocessable``."""
        if not is_installed():
            raise Unprocessable(
                "engine flower is not installed here: parity fl engine install flower", field="spec.engine"
            )

    def read(self, session_id: str) -> Fleet | None:
        """Return what ``prepare`` made; None if it did not, or not to its end."""
        try:
            return Fleet.from_dict(json.loads((self.folder(session_id) / FLEET_FILE).read_bytes()))
        except (OSError, ValueError, BadDocument):
            return None

    def begin(self, session_id: str) -> Fleet | None:
        """Return what ``prepare`` made, which stays from now on until ``remove``."""
        fleet = self.read(session_id)
        if fleet is not None:
            (self.folder(session_id) / BEGUN_FILE).touch()
        return fleet

    def _sessions(self) -> list[str]:
        return [path.name for path in self._folder.iterdir()] if self._folder.is_dir() else []

    async def tidy(self, keep: Collection[str]) -> None:
        """Remove the folders of all sessions but these."""
        for session_id in self._sessions():
            if session_id not in keep:
                await self.remove(session_id)

    async def remove(self, session_id: str) -> None:
        """Remove a session's folder; nothing if there is none."""
        await anyio.to_thread.run_sync(partial(shutil.rmtree, self.folder(session_id), ignore_errors=True))

    def _prepare(self, session_id: str, now: datetime) -> Fleet:
        known = self.read(session_id)
        if known is not None:
            return known
        self._forget_refused(now)
        count = len(self._sessions())
        if count >= self._most:
            raise Overloaded(
                f"{count} sessions use Flower here already, at most {self._most} may (MARKET_FLOWER_SESSIONS)",
                retry_after_s=RETRY_S,
            )
        folder = self.folder(session_id)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = make_certificates(self.host, session_id, now=now)
        files = {
            "root.pem": made.root,
            "server.pem": made.server,
            "server.key": made.server_key,
            "control.secret": secrets.token_hex(SECRET_BYTES),
            "superexec.secret": secrets.token_hex(SECRET_BYTES),
        }
        for name, text in files.items():
            write_file(folder / name, text.encode())
        write_file(folder / "bundle.fab", bundle())
        host = f"[{self.host}]" if ":" in self.host else self.host
        fleet = Fleet(FLWR_VERSION, f"{host}:{self._free_port()}", made.root, bundle_digest())
        write_file(folder / FLEET_FILE, json.dumps(fleet.to_dict()).encode())
        return fleet

    def _forget_refused(self, now: datetime) -> None:
        """Remove what was made for submissions that were refused afterwards: they would use up the ports."""
        for session_id in self._sessions():
            folder = self.folder(session_id)
            with suppress(OSError):
                if not (folder / BEGUN_FILE).exists() and now.timestamp() - folder.stat().st_mtime > UNBEGUN_S:
                    shutil.rmtree(folder)

    def _free_port(self) -> int:
        """Return a port that nobody listens on and no other session was promised."""
        taken = {fleet.port for fleet in map(self.read, self._sessions()) if fleet is not None}
        # From another end for each process, so that two markets with one range seldom want the same.
        start = os.getpid() % max(1, len(self._ports))
        for port in (*self._ports[start:], *self._ports[:start]) if self._ports else (0,) * 16:
            found = None if port in taken else _bindable(self.listen_host, port)
            if found is not None and found not in taken:
                return found
        raise Unprocessable("no port is free for this session's SuperLink (MARKET_FLOWER_ADDRESS)", field="spec.engine")


def _bindable(host: str, port: int) -> int | None:
    """Return the port if it can be listened on; of 0 one that can."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return None
        return int(probe.getsockname()[1])


def _parse(address: str) -> tuple[str, range]:
    host, found, ports = address.rpartition(":")
    if not found or address.endswith("]"):
        return address.strip("[]"), range(0)
    first, _, last = ports.partition("-")
    if not 0 < int(first) <= int(last) < 65_536:
        raise ConfigInvalid([f"MARKET_FLOWER_ADDRESS={address}: {ports} is no range of ports"])
    return host.strip("[]"), range(int(first), int(last) + 1)
