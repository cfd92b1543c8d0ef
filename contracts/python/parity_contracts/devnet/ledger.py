"""The chain itself: py-evm behind the few verbs the node needs. Not thread-safe: one thread at a time calls it.

py-evm is used directly rather than through eth-tester's backend, which draws a random ``mix_hash`` for every block
(so that no journal could replay to the same hashes) and finds transactions by scanning the chain.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import coincurve  # noqa: F401  (eth-keys picks it up when it is there; without it a signature costs 25 ms, not 1 ms)
import rlp  # type: ignore[import-untyped]  # ships no types
from eth._utils.address import generate_contract_address
from eth.abc import BlockHeaderAPI, ComputationAPI, ReceiptAPI, SignedTransactionAPI, TransactionBuilderAPI
from eth.chains.base import Chain
from eth.consensus.applier import ConsensusApplier
from eth.consensus.noproof import NoProofConsensus
from eth.db.atomic import AtomicDB
from eth.db.backends.memory import MemoryDB
from eth.exceptions import VMError
from eth.vm.chain_context import ChainContext
from eth.vm.forks.cancun import CancunVM
from eth.vm.spoof import SpoofTransaction
from eth_keys.main import KeyAPI
from eth_typing import Address, Hash32
from eth_utils.crypto import keccak
from eth_utils.exceptions import ValidationError
from rlp.exceptions import RLPException  # type: ignore[import-untyped]  # rlp ships no types

from parity_protocol.errors import BadDocument, BadField, Internal, NotFound

__all__ = [
    "BLOCK_GAS_LIMIT",
    "CallRequest",
    "Execution",
    "Genesis",
    "Ledger",
    "Sealed",
    "address_of_key",
    "block_size",
    "created_address",
]

BLOCK_GAS_LIMIT = 30_000_000
FAUCET_BALANCE = 10**27  # wei
MAX_TX_BYTES = 128 * 1024  # as go-ethereum's pool has it
_INITIAL_BASE_FEE = 10**9  # wei per gas
_ESTIMATE_STEPS = 24  # halvings of the search; 2**24 is near the block's gas limit


@dataclass(frozen=True, slots=True)
class Genesis:
    """What decides block 0, so that two chains never share a genesis hash.

    Attributes:
        timestamp: Unix seconds.
        salt: 32 random bytes in ``extraData``.
        faucet: The only account with money in it; also where fees go.
    """

    chain_id: int
    timestamp: int
    salt: bytes
    faucet: bytes


@dataclass(frozen=True, slots=True)
class Sealed:
    """One block of the canonical chain; ``receipts`` and ``gas_used`` line up with ``transactions``."""

    header: BlockHeaderAPI
    transactions: tuple[SignedTransactionAPI, ...]
    receipts: tuple[ReceiptAPI, ...]
    gas_used: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CallRequest:
    """A call that no transaction stands behind. ``to`` empty means contract creation."""

    sender: bytes
    to: bytes
    data: bytes
    value: int
    gas: int


@dataclass(frozen=True, slots=True)
class Execution:
    """How a call ended. ``gas_needed`` counts refunds as spent, since they come only at the end."""

    output: bytes
    gas_needed: int
    error: str | None  # None when it succeeded
    is_revert: bool


class Ledger:
    """Blocks, state and execution. Everything here is CPU work; call it from the worker thread.

    Raises:
        Internal: eth-keys does not use coincurve, so the chain would be 20 times too slow.
    """

    def __init__(self, genesis: Genesis) -> None:
        backend = type(KeyAPI().backend).__name__
        if "CoinCurve" not in backend:
            raise Internal(f"the chain needs the coincurve signature backend, eth-keys uses {backend}")
        self._genesis = genesis
        vms = ConsensusApplier(NoProofConsensus).amend_vm_configuration(((0, CancunVM),))
        chain_class = type("EmbeddedChain", (Chain,), {"chain_id": genesis.chain_id, "vm_configuration": vms})
        self._chain: Chain = chain_class.from_genesis(AtomicDB(MemoryDB()), *_genesis_block(genesis))  # type: ignore[attr-defined]  # made two lines up
        header = self._chain.get_canonical_head()
        self._blocks: list[Sealed] = [Sealed(header, (), (), ())]
        self._numbers: dict[bytes, int] = {header.hash: 0}
        self._tx_index: dict[bytes, tuple[int, int]] = {}
        self._log_blocks: list[int] = []  # heights, ascending

    # -- reading -------------------------------------------------------------------------------------------------

    @property
    def chain_id(self) -> int:
        """The chain id that transactions are signed for."""
        return self._genesis.chain_id

    @property
    def genesis_hash(self) -> bytes:
        """Hash of block 0."""
        return self._blocks[0].header.hash

    @property
    def head(self) -> BlockHeaderAPI:
        """Header of the newest block."""
        return self._blocks[-1].header

    def block(self, number: int) -> Sealed:
        """Return the block at a height.

        Raises:
            NotFound: The chain is not that long.
        """
        if not 0 <= number < len(self._blocks):
            raise NotFound(f"there is no block {number}; the newest is {len(self._blocks) - 1}")
        return self._blocks[number]

    def number_of(self, block_hash: bytes) -> int | None:
        """Return the height of a block hash; None if it is not on this chain."""
        return self._numbers.get(block_hash)

    def locate(self, tx_hash: bytes) -> tuple[Sealed, int] | None:
        """Return the block and the index of a mined transaction; None if it is not mined."""
        at = self._tx_index.get(tx_hash)
        return None if at is None else (self._blocks[at[0]], at[1])

    def state(self, number: int) -> Any:
        """Return the state after a block, as py-evm's state object. What is done to it is thrown away.

        Raises:
            NotFound: The chain is not that long.
        """
        return self._chain.get_vm(self.block(number).header).state

    def next_base_fee(self) -> int:
        """Return the base fee of the next block, wei per gas."""
        header: Any = self._chain.create_header_from_parent(self.head)
        return int(header.base_fee_per_gas)

    def blocks_with_logs(self, first: int, last: int) -> list[Sealed]:
        """Return the blocks from ``first`` to ``last`` (both included) that have any log, in order."""
        at = self._log_blocks
        return [self._blocks[n] for n in at[bisect_left(at, first) : bisect_right(at, last)]]

    # -- transactions --------------------------------------------------------------------------------------------

    def decode(self, raw: bytes) -> SignedTransactionAPI:
        """Read a signed transaction and check what does not depend on the state.

        Raises:
            BadDocument: It is not a transaction of a kind this chain takes.
            BadField: Its chain id, signature, gas or fees are wrong; ``field`` says which.
        """
        if not raw or len(raw) > MAX_TX_BYTES:
            raise BadDocument(f"oversized data: a transaction has 1 to {MAX_TX_BYTES} bytes, got {len(raw)}")
        if raw[0] == 3:
            raise BadDocument("transaction type not supported: blob transactions are not taken here")
        try:
            tx = CancunVM.get_transaction_builder().decode(raw)
            tx.validate()
        except (RLPException, ValidationError, ValueError, TypeError, IndexError, AttributeError) as exc:
            raise BadDocument(f"not a signed transaction: {exc}") from exc
        if tx.chain_id is None:
            raise BadField("only replay-protected (EIP-155) transactions allowed over RPC", field="chainId")
        if tx.chain_id != self.chain_id:
            raise BadField(f"invalid chain id: expected {self.chain_id}, got {tx.chain_id}", field="chainId")
        try:
            tx.check_signature_validity()
            _ = tx.sender
        except Exception as exc:  # eth-keys and coincurve raise their own families here
            raise BadField(f"invalid sender: {exc}", field="signature") from exc
        if tx.intrinsic_gas > tx.gas:
            raise BadField(f"intrinsic gas too low: gas {tx.gas}, minimum needed {tx.intrinsic_gas}", field="gas")
        if tx.gas > BLOCK_GAS_LIMIT:
            raise BadField(f"exceeds block gas limit: {tx.gas} > {BLOCK_GAS_LIMIT}", field="gas")
        if tx.max_priority_fee_per_gas > tx.max_fee_per_gas:
            raise BadField("max priority fee per gas higher than max fee per gas", field="maxPriorityFeePerGas")
        return tx

    @staticmethod
    def transaction_builder() -> type[TransactionBuilderAPI]:
        """Return py-evm's maker of transactions for the fork that the chain runs."""
        return CancunVM.get_transaction_builder()

    # -- building ------------------------------------------------------------------------------------------------

    def seal(
        self,
        transactions: Sequence[SignedTransactionAPI],
        timestamp: int,
        *,
        full: Callable[[], bool] = lambda: False,
    ) -> tuple[Sealed, list[tuple[SignedTransactionAPI, str]]]:
        """Build the next block; the chain moves only in ``adopt``, after the caller has journalled it.

        The same parent, transactions and timestamp always give the same block hash.

        Args:
            timestamp: Unix seconds, after the parent's.
            full: Asked before each transaction after the first; True closes the block early.

        Returns:
            The block, and the transactions that cannot be in it with the reason (they were not executed).
        """
        parent = self.head
        header = self._chain.create_header_from_parent(
            parent,
            timestamp=timestamp,
            coinbase=Address(self._genesis.faucet),
            gas_limit=parent.gas_limit,
        )
        mix_hash = Hash32(keccak(parent.hash))
        if not transactions:
            return Sealed(header.copy(mix_hash=mix_hash), (), (), ()), []
        vm = self._chain.get_vm(header.copy(mix_hash=mix_hash))
        header = vm.get_block().header
        done: list[SignedTransactionAPI] = []
        receipts: list[ReceiptAPI] = []
        gas_used: list[int] = []
        refused: list[tuple[SignedTransactionAPI, str]] = []
        waiting: set[bytes] = set()  # senders whose next nonce is not in this block
        for tx in transactions:
            if done and full():
                break
            if tx.sender in waiting:
                continue
            if header.gas_used + tx.gas > header.gas_limit:
                waiting.add(tx.sender)
                continue
            try:
                receipt, _ = vm.apply_transaction(header, tx)
            except ValidationError as exc:  # raised before anything was executed: the state is as it was
                refused.append((tx, str(exc)))
                waiting.add(tx.sender)
                continue
            gas_used.append(receipt.gas_used - header.gas_used)
            header = vm.add_receipt_to_header(header, receipt)
            done.append(tx)
            receipts.append(receipt)
        if not done:
            return self.seal((), timestamp)[0], refused
        filled = vm.set_block_transactions_and_withdrawals(vm.get_block(), header, tuple(done), tuple(receipts))
        block = vm.mine_block(filled, mix_hash=mix_hash).block
        return Sealed(block.header, tuple(done), tuple(receipts), tuple(gas_used)), refused

    def adopt(self, sealed: Sealed) -> None:
        """Make a block that ``seal`` built the new head."""
        header = sealed.header
        block_class = CancunVM.get_block_class()
        self._chain.chaindb.persist_block(block_class(header, sealed.transactions, (), ()))
        number = header.block_number
        self._blocks.append(sealed)
        self._numbers[header.hash] = number
        for index, tx in enumerate(sealed.transactions):
            self._tx_index[tx.hash] = (number, index)
        if any(receipt.logs for receipt in sealed.receipts):
            self._log_blocks.append(number)

    # -- calling -------------------------------------------------------------------------------------------------

    def call(self, request: CallRequest, number: int) -> Execution:
        """Run a call on the state after a block, without fees, nonce or balance checks, and forget its effects."""
        header = self.block(number).header
        vm = self._chain.get_vm(header)
        # Base fee 0, as go-ethereum does it: a caller without money (the zero address) can still ask.
        state = vm.build_state(
            self._chain.chaindb.db,
            header.copy(base_fee_per_gas=0),
            ChainContext(self.chain_id),
            (self._blocks[n].header.hash for n in range(number - 1, max(-1, number - 257), -1)),
        )
        builder: Any = vm.get_transaction_builder()
        unsigned = builder.new_unsigned_dynamic_fee_transaction(
            chain_id=self.chain_id,
            nonce=state.get_nonce(Address(request.sender)),
            max_priority_fee_per_gas=0,
            max_fee_per_gas=0,
            gas=request.gas,
            to=Address(request.to),
            value=request.value,
            data=request.data,
            access_list=(),
        )
        tx: Any = SpoofTransaction(unsigned, from_=Address(request.sender))
        if tx.intrinsic_gas > request.gas:
            return Execution(b"", tx.intrinsic_gas, "intrinsic gas too low", is_revert=False)
        executor: Any = state.get_transaction_executor()
        try:
            computation: ComputationAPI = executor.build_computation(executor.build_evm_message(tx), tx)
        except VMError as exc:  # the value is more than the caller has
            return Execution(b"", 0, f"insufficient funds for transfer: {exc}", is_revert=False)
        used = request.gas - computation.get_gas_remaining()
        error = computation.error if computation.is_error else None
        reverted = error is not None and type(error).__name__ == "Revert"
        words = None if error is None else "execution reverted" if reverted else f"{type(error).__name__}: {error}"
        return Execution(bytes(computation.output), used, words, is_revert=reverted)

    def estimate(self, request: CallRequest, number: int) -> tuple[int, Execution]:
        """Return the least gas found that lets the call succeed, and its execution.

        The execution carries the error, and the gas is 0, when not even ``request.gas`` is enough.
        """
        top = self.call(request, number)
        if top.error is not None:
            return 0, top
        low, high = top.gas_needed, request.gas
        # Nested calls get at most 63/64 of what is left, so that what was used may not be enough to start with.
        guess = low
        for _ in range(_ESTIMATE_STEPS):
            if self.call(_with_gas(request, guess), number).error is None:
                high = guess
            else:
                low = guess + 1
            if high - low <= high // 100:
                break
            guess = min(high - 1, low + low // 32) if high == request.gas else (low + high) // 2
        return high, top


def created_address(sender: bytes, nonce: int) -> bytes:
    """Return the address of the contract that a transaction creates."""
    return bytes(generate_contract_address(Address(sender), nonce))


def block_size(sealed: Sealed) -> int:
    """Return the length of a block's RLP, bytes."""
    block = CancunVM.get_block_class()(sealed.header, sealed.transactions, (), ())
    return len(rlp.encode(block))


def address_of_key(key: bytes) -> bytes:
    """Return the 20-byte address of a private key."""
    return bytes(KeyAPI().PrivateKey(key).public_key.to_canonical_address())


def _with_gas(request: CallRequest, gas: int) -> CallRequest:
    return CallRequest(request.sender, request.to, request.data, request.value, gas)


def _genesis_block(genesis: Genesis) -> tuple[dict[str, Any], dict[Address, Any]]:
    header = {
        "coinbase": Address(genesis.faucet),
        "difficulty": 0,
        "extra_data": genesis.salt,
        "gas_limit": BLOCK_GAS_LIMIT,
        "mix_hash": bytes(32),
        "nonce": bytes(8),
        "timestamp": genesis.timestamp,
        "base_fee_per_gas": _INITIAL_BASE_FEE,
    }
    account = {"balance": FAUCET_BALANCE, "nonce": 0, "code": b"", "storage": {}}
    return header, {Address(genesis.faucet): account}
