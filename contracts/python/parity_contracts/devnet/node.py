"""A chain that survives: ledger, pool and journal kept in step. Synchronous; the worker thread calls it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from eth.abc import SignedTransactionAPI
from eth_keys.main import KeyAPI
from eth_typing import Address

from parity_contracts.devnet.datadir import DataDir
from parity_contracts.devnet.journal import BlockRecord, Journal, TxRecord
from parity_contracts.devnet.ledger import Ledger, Sealed
from parity_contracts.devnet.pool import Pool
from parity_protocol.errors import ConfigInvalid

__all__ = ["FAUCET_GRANT", "PRIORITY_FEE", "Accepted", "ChainNode"]

log = structlog.get_logger(__name__)

FAUCET_GRANT = 100 * 10**18  # wei a faucet call gives
PRIORITY_FEE = 10**9  # wei per gas that the chain suggests as a tip
_SEAL_BUDGET_S = 0.6  # a block stops taking transactions after this long, so that readers do not wait for more


@dataclass(frozen=True, slots=True)
class Accepted:
    """A transaction the chain took; acknowledge it only when the journal is durable up to ``position``."""

    tx_hash: bytes
    position: int


class ChainNode:
    """The embedded chain without its network.

    Args:
        data: The locked folder; the caller closes it.
        monotonic: Seconds that never go back; bounds the time that one block may take.

    Raises:
        ConfigInvalid: The journal does not replay to the blocks it names.
    """

    def __init__(self, data: DataDir, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._data = data
        self._monotonic = monotonic
        self.ledger = Ledger(data.genesis)
        self.pool = Pool()
        data.remember(self.ledger.genesis_hash)
        self.journal = Journal(data.path / "journal", self.ledger.genesis_hash)
        try:
            self._replay()
        except BaseException:
            self.journal.close()
            raise

    def submit(self, raw: bytes) -> Accepted:
        """Check a signed transaction, journal it and make it pending.

        Raises:
            ParityError: It cannot be accepted; the message is go-ethereum's where there is one, since clients match
                on it.
        """
        tx = self.ledger.decode(raw)
        state = self.ledger.state(self.ledger.head.block_number)
        sender = Address(tx.sender)
        self.pool.check(tx, nonce=state.get_nonce(sender), balance=state.get_balance(sender))
        position = self.journal.append_tx(raw)
        self.pool.add(tx)
        return Accepted(tx.hash, position)

    def mine(self, now: int) -> Sealed:
        """Seal what is pending (or nothing) into the next block, durably, and make it the head.

        Args:
            now: Wall-clock Unix seconds. A clock that was set back does not stop the chain: blocks then go on one
                second apart until the clock has caught up.
        """
        state = self.ledger.state(self.ledger.head.block_number)
        ready = self.pool.executable(lambda sender: int(state.get_nonce(Address(sender))), self.ledger.next_base_fee())
        give_up_at = self._monotonic() + _SEAL_BUDGET_S
        timestamp = max(now, self.ledger.head.timestamp + 1)
        sealed, refused = self.ledger.seal(ready, timestamp, full=lambda: self._monotonic() > give_up_at)
        for tx, reason in refused:
            log.warning("chain_tx_dropped", tx_hash="0x" + tx.hash.hex(), reason=reason)
            self.pool.remove(tx)
        hashes = tuple(bytes(tx.hash) for tx in sealed.transactions)
        # The block becomes visible only after this: an answered receipt never disappears.
        self.journal.sync(self.journal.append_block(BlockRecord(timestamp, sealed.header.hash, hashes)))
        self._adopt(sealed)
        return sealed

    def grant(self, to: bytes) -> Accepted:
        """Send ``FAUCET_GRANT`` wei from the faucet."""
        ledger = self.ledger
        faucet = Address(self._data.genesis.faucet)
        state = ledger.state(ledger.head.block_number)
        builder: Any = ledger.transaction_builder()
        unsigned = builder.new_unsigned_dynamic_fee_transaction(
            chain_id=ledger.chain_id,
            nonce=self.pool.next_nonce(faucet, state.get_nonce(faucet)),
            max_priority_fee_per_gas=PRIORITY_FEE,
            max_fee_per_gas=2 * ledger.next_base_fee() + PRIORITY_FEE,
            gas=21_000,
            to=Address(to),
            value=FAUCET_GRANT,
            data=b"",
            access_list=(),
        )
        signed: SignedTransactionAPI = unsigned.as_signed_transaction(KeyAPI().PrivateKey(self._data.faucet_key))
        return self.submit(signed.encode())

    def close(self) -> None:
        """Make the journal durable and close it."""
        self.journal.close()

    def _replay(self) -> None:
        started = self._monotonic()
        blocks = 0
        for record in self.journal.replay():
            if isinstance(record, TxRecord):
                self.pool.add(self.ledger.decode(record.raw))
                continue
            transactions = [self._known(tx_hash) for tx_hash in record.transactions]
            sealed, refused = self.ledger.seal(transactions, record.timestamp)
            if refused or sealed.header.hash != record.block_hash:
                raise ConfigInvalid(
                    [
                        f"the journal's block {sealed.header.block_number} is 0x{record.block_hash.hex()}, "
                        f"replaying it gives 0x{sealed.header.hash.hex()}"
                    ]
                )
            self._adopt(sealed)
            blocks += 1
        if blocks:
            log.info("chain_replayed", blocks=blocks, pending=len(self.pool), took_s=self._monotonic() - started)

    def _known(self, tx_hash: bytes) -> SignedTransactionAPI:
        tx = self.pool.get(tx_hash)
        if tx is None:
            raise ConfigInvalid([f"the journal has a block with 0x{tx_hash.hex()}, but not that transaction before it"])
        return tx

    def _adopt(self, sealed: Sealed) -> None:
        self.ledger.adopt(sealed)
        for tx in sealed.transactions:
            self.pool.remove(tx)
