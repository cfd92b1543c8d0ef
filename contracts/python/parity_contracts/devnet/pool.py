"""Transactions that were accepted and are not in a block yet. Pure bookkeeping: no state access, no I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from eth.abc import SignedTransactionAPI

from parity_protocol.errors import Conflict, Overloaded, Unprocessable

__all__ = ["MAX_NONCE_GAP", "Pool"]

MAX_POOL = 4096  # transactions in all
MAX_PER_SENDER = 256
MAX_NONCE_GAP = 64  # how far ahead of the account's nonce a transaction may be queued
_BUMP_PERCENT = 10  # what a replacement must add to both fees


class Pool:
    """Pending transactions by sender and nonce, mined in the order in which they came."""

    def __init__(self) -> None:
        self._by_sender: dict[bytes, dict[int, SignedTransactionAPI]] = {}
        self._by_hash: dict[bytes, SignedTransactionAPI] = {}  # insertion order is arrival order

    def __len__(self) -> int:
        return len(self._by_hash)

    def __iter__(self) -> Iterator[SignedTransactionAPI]:
        return iter(list(self._by_hash.values()))

    def get(self, tx_hash: bytes) -> SignedTransactionAPI | None:
        """Return a pending transaction; None if there is none with this hash."""
        return self._by_hash.get(tx_hash)

    def check(self, tx: SignedTransactionAPI, *, nonce: int, balance: int) -> None:
        """Decide whether a transaction may be added.

        Args:
            nonce: The sender's next nonce in the newest block.
            balance: The sender's wei in the newest block.

        Raises:
            Conflict: The nonce is used, or a pending transaction with the same nonce pays nearly as much.
            Unprocessable: The nonce is too far ahead, or the sender cannot pay for this and what is pending before.
            Overloaded: The pool or the sender's share of it is full.
        """
        if tx.hash in self._by_hash:
            raise Conflict("already known")
        if tx.nonce < nonce:
            raise Conflict(f"nonce too low: next nonce {nonce}, tx nonce {tx.nonce}")
        if tx.nonce > nonce + MAX_NONCE_GAP + len(self._by_sender.get(tx.sender, ())):
            raise Unprocessable(f"nonce too high: next nonce {nonce}, tx nonce {tx.nonce}")
        mine = self._by_sender.get(tx.sender, {})
        old = mine.get(tx.nonce)
        if old is not None and not _outbids(tx, old):
            raise Conflict("replacement transaction underpriced")
        if old is None and len(mine) >= MAX_PER_SENDER:
            raise Overloaded(f"txpool is full: {MAX_PER_SENDER} transactions of this sender are pending")
        if old is None and len(self._by_hash) >= MAX_POOL:
            raise Overloaded("txpool is full")
        before = sum(_most_it_costs(other) for n, other in mine.items() if n < tx.nonce)
        if before + _most_it_costs(tx) > balance:
            raise Unprocessable(
                f"insufficient funds for gas * price + value: balance {balance}, "
                f"tx cost {_most_it_costs(tx)}, pending before it {before}"
            )

    def add(self, tx: SignedTransactionAPI) -> None:
        """Take a transaction that ``check`` let through; it replaces the one with its sender and nonce."""
        mine = self._by_sender.setdefault(tx.sender, {})
        old = mine.get(tx.nonce)
        if old is not None:
            del self._by_hash[old.hash]
        mine[tx.nonce] = tx
        self._by_hash[tx.hash] = tx

    def remove(self, tx: SignedTransactionAPI) -> None:
        """Forget a transaction, and one with the same sender and nonce that it has made impossible."""
        mine = self._by_sender.get(tx.sender, {})
        gone = mine.pop(tx.nonce, None)
        if gone is not None:
            self._by_hash.pop(gone.hash, None)
        if not mine:
            self._by_sender.pop(tx.sender, None)

    def next_nonce(self, sender: bytes, nonce: int) -> int:
        """Return the first nonce from ``nonce`` on that no pending transaction uses."""
        mine = self._by_sender.get(sender, {})
        while nonce in mine:
            nonce += 1
        return nonce

    def executable(self, nonce_of: Callable[[bytes], int], base_fee: int) -> list[SignedTransactionAPI]:
        """Return what can be mined now: per sender without a gap, otherwise as they came.

        Args:
            base_fee: Wei per gas of the next block; what offers less stays pending, and so does what follows it.
        """
        ready: dict[bytes, SignedTransactionAPI] = {}
        for sender, mine in self._by_sender.items():
            nonce = nonce_of(sender)
            while (tx := mine.get(nonce)) is not None and tx.max_fee_per_gas >= base_fee:
                ready[tx.hash] = tx
                nonce += 1
        arrival = {tx_hash: at for at, tx_hash in enumerate(self._by_hash)}
        # A sender's later nonce may have come first: it waits for the place of the one it needs.
        place: dict[bytes, int] = {}
        latest: dict[bytes, int] = {}
        for tx in ready.values():  # grouped by sender, in nonce order
            place[tx.hash] = latest[tx.sender] = max(arrival[tx.hash], latest.get(tx.sender, 0))
        return sorted(ready.values(), key=lambda tx: (place[tx.hash], tx.nonce))


def _most_it_costs(tx: SignedTransactionAPI) -> int:
    return tx.gas * tx.max_fee_per_gas + tx.value


def _outbids(new: SignedTransactionAPI, old: SignedTransactionAPI) -> bool:
    need = 100 + _BUMP_PERCENT
    return (
        new.max_fee_per_gas * 100 >= old.max_fee_per_gas * need
        and new.max_priority_fee_per_gas * 100 >= old.max_priority_fee_per_gas * need
    )
