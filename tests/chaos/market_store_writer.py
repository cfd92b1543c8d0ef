"""Writes as fast as it can and says on stdout what was acknowledged; its test kills it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from parity_market.store import Tx, open_sqlite, sql


async def main(path: Path) -> None:
    store = await open_sqlite(path)

    async def writer(name: int) -> None:
        for number in range(1_000_000):
            key = f"{os.getpid()}-{name}-{number}"

            def op(tx: Tx, key: str = key) -> None:
                tx.insert(sql.META_PUT, (key, "acknowledged"))

            await store.write(op)
            os.write(1, f"{key}\n".encode())  # unbuffered: what was said has left the process

    await asyncio.gather(*(writer(name) for name in range(16)))


asyncio.run(main(Path(sys.argv[1])))
