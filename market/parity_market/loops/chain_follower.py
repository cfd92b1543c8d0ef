"""Following the chain: bonds, escrows and payments as of the newest block that counts as final.

The chain is read by height, never by adding up events: an event only says whose account to read again. So a missed or
repeated one does no harm, and after a reorganisation or an outage everything is read once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import TypeVar

import anyio
import structlog

from parity_contracts.chain.base import AccountState, Chain, PaidKey, VaultEvent
from parity_contracts.chain.web3_chain import Web3Chain
from parity_market.operations import following, money
from parity_market.operations.following import SeenCreator, SeenNode, SeenPaid
from parity_market.state import MarketState
from parity_market.store import sql
from parity_market.store.rows import from_us
from parity_protocol.errors import ChainUnavailable, Unprocessable
from parity_protocol.signing.eip712 import account_key

__all__ = ["Follower", "check_chain", "refresh_account", "run"]

log = structlog.get_logger(__name__)

T = TypeVar("T")
R = TypeVar("R")

POLL_S = 0.5  # between looks at the chain's head
MAX_POLL_S = 5.0  # while it does not answer
RECORD_S = 5.0  # the head is noted at least so often, also while no block comes
REFRESH_S = 600.0  # everything is read again at least so often
MAX_EVENT_BLOCKS = 5_000  # after a longer gap everything is read instead of the events
PARALLEL = 8  # accounts read at once
REFRESH_TIMEOUT_S = 3.0  # that a request waits for a fresh look
FRESH_FOR = timedelta(seconds=1)  # an escrow read so recently is not read again


async def run(state: MarketState) -> None:
    """Follow the chain for as long as the market runs.

    Raises:
        ConfigInvalid: The endpoint answers for another chain than the one that this market's money is on.
    """
    follower = Follower(state)
    failures = 0
    while True:
        if await follower.step():
            failures = 0
            await state.clock.sleep(POLL_S)
        else:
            failures += 1
            await state.clock.sleep(min(POLL_S * 2 ** min(failures, 8), MAX_POLL_S))


async def check_chain(state: MarketState) -> None:
    """Make sure that the endpoint still is the chain that this market's money is on.

    Raises:
        ConfigInvalid: It is another chain, or the vault is not there.
        ChainUnavailable: It does not answer.
    """
    if isinstance(state.chain, Web3Chain):  # a chain in memory cannot be exchanged
        async with await Web3Chain.connect(state.settings.blockchain_rpc, state.deployment):
            pass


class Follower:
    """Reads what changed since the last step and stores it.

    Args:
        check: Called before the first reading and after each outage: the endpoint may have another chain by then.
    """

    def __init__(self, state: MarketState, *, check: Callable[[MarketState], Awaitable[None]] = check_chain) -> None:
        self._state = state
        self._check = check
        self._names: dict[str, str] = {}  # vault key → account id, of everybody who is followed
        self._nodes: set[str] = set()
        self._creators: set[str] = set()
        self._counts = (-1, -1)
        self._is_checked = False
        self._read_up_to: int | None = None  # block; None: everything must be read
        self._head = (-1, "")
        self._recorded_at = -RECORD_S
        self._refreshed_at = 0.0

    async def step(self) -> bool:
        """Take in the chain's newest state; returns False when it did not answer.

        Raises:
            ConfigInvalid: It is another chain now.
        """
        health = self._state.chain_health
        try:
            if not self._is_checked:
                await self._check(self._state)
                self._is_checked = True
            await self._follow()
        except (ChainUnavailable, Unprocessable) as exc:  # the latter: it no longer has the block, for instance
            if health.problem != exc.message:
                log.warning("chain_unavailable", problem=exc.message)
            health.problem = exc.message
            self._is_checked = False
            self._read_up_to = None
            return False
        if health.problem:
            log.info("chain_followed", block=health.head)
        health.problem = ""
        return True

    async def _follow(self) -> None:
        state, clock = self._state, self._state.clock
        head = await state.chain.head()
        final = final_block(head.number, state.settings.market_confirmations)
        learned_nodes, learned_creators = await self._learn()
        is_back = head.number < self._head[0] or (head.number == self._head[0] and head.block_hash != self._head[1])
        everything = (
            self._read_up_to is None
            or is_back
            or final - self._read_up_to > MAX_EVENT_BLOCKS
            or clock.monotonic() - self._refreshed_at >= REFRESH_S
        )
        stored = await state.store.read(partial(money.chain_head, chain=state.market.chain))
        if everything and stored is not None and self._read_up_to is None:
            self._read_up_to = stored.block  # its events still tell which transactions paid
        first = final if self._read_up_to is None else self._read_up_to + 1
        events: list[VaultEvent] = []
        if 0 <= final - first <= MAX_EVENT_BLOCKS:
            events = await state.chain.events(first, final)
        touched = {self._names[key] for event in events for key in _keys_of(event) if key in self._names}
        nodes = self._nodes if everything else (touched & self._nodes) | learned_nodes
        creators = self._creators if everything else (touched & self._creators) | learned_creators
        is_new = (head.number, head.block_hash) != self._head
        if nodes or creators or (is_new and final != self._read_up_to) or self._is_record_due():
            payments = _payments(events, state.market.spender)
            await self._record(sorted(nodes), sorted(creators), payments, final, force=is_back or everything)
        if everything:
            self._refreshed_at = clock.monotonic()
        self._head, self._read_up_to = (head.number, head.block_hash), final
        state.chain_health.head, state.chain_health.seen_at = head.number, clock.now()

    def _is_record_due(self) -> bool:
        return self._state.clock.monotonic() - self._recorded_at >= RECORD_S

    async def _learn(self) -> tuple[set[str], set[str]]:
        """Return the nodes and creators that are followed from now on."""
        store, market = self._state.store, self._state.market
        creators_now = await store.read(partial(following.creators_count, chain=market.chain, spender=market.spender))
        counts = (len(self._state.scheduler.presence), creators_now)
        if counts == self._counts:
            return set(), set()
        nodes = set(await store.read(following.followed_nodes)) - self._nodes
        creators = set(
            await store.read(partial(following.followed_creators, chain=market.chain, spender=market.spender))
        )
        creators -= self._creators
        for name in nodes | creators:
            self._names["0x" + account_key(name).hex()] = name
        self._nodes |= nodes
        self._creators |= creators
        self._counts = counts
        return nodes, creators

    async def _record(
        self,
        nodes: Sequence[str],
        creators: Sequence[str],
        payments: Mapping[tuple[str, str], VaultEvent],
        block: int,
        *,
        force: bool,
    ) -> None:
        state = self._state
        seen_nodes = await _map(partial(_read_node, state.chain, block=block), nodes)
        seen_creators = await _map(partial(_read_creator, state, payments=payments, block=block), creators)
        await state.store.write(
            lambda tx: following.record_seen_chain(
                tx,
                state.market.chain,
                state.market.spender,
                nodes=seen_nodes,
                creators=seen_creators,
                block=block,
                head=True,
                now=state.clock.now(),
                force=force,
            )
        )
        self._recorded_at = state.clock.monotonic()
        for node in seen_nodes:
            state.scheduler.node_changed(node.node_id, bond=node.bond)


def final_block(head: int, confirmations: int) -> int:
    """Return the newest block that has ``confirmations``, its own included."""
    return max(head - confirmations + 1, 0)


async def refresh_account(state: MarketState, account_id: str) -> AccountState | None:
    """Read one account now, so that a stake or an allowance of a moment ago counts at once.

    Args:
        account_id: A node's id, or a submitter's address.

    Returns:
        A node's vault account; None for a submitter, and when the chain did not answer within three seconds: then
        what was seen last goes on counting.
    """
    is_creator = account_id.startswith("0x")
    try:
        with anyio.fail_after(REFRESH_TIMEOUT_S):
            if is_creator:
                await _refresh_creator(state, account_id)
                return None
            return await _refresh_node(state, account_id)
    except (ChainUnavailable, Unprocessable, TimeoutError) as exc:
        log.warning("account_not_refreshed", account=account_id, problem=str(exc) or "timed out")
        return None


async def _refresh_node(state: MarketState, node_id: str) -> AccountState:
    block = final_block((await state.chain.head()).number, state.settings.market_confirmations)
    account = await state.chain.account(node_id, at=block)
    await _store_one(state, block, nodes=[_seen_node(node_id, account)])
    state.scheduler.node_changed(node_id, bond=account.bond)
    return account


async def _refresh_creator(state: MarketState, creator: str) -> None:
    known = await state.store.read(
        lambda tx: tx.one(sql.CHAIN_ESCROW, chain=state.market.chain, creator=creator, spender=state.market.spender)
    )
    if known is not None and state.clock.now() - from_us(known.seen_us) < FRESH_FOR:
        return
    block = final_block((await state.chain.head()).number, state.settings.market_confirmations)
    await _store_one(state, block, creators=[await _read_creator(state, creator, payments={}, block=block)])


async def _store_one(
    state: MarketState, block: int, *, nodes: Sequence[SeenNode] = (), creators: Sequence[SeenCreator] = ()
) -> None:
    await state.store.write(
        lambda tx: following.record_seen_chain(
            tx,
            state.market.chain,
            state.market.spender,
            nodes=nodes,
            creators=creators,
            block=block,
            head=False,
            now=state.clock.now(),
        )
    )


# -- reading ----------------------------------------------------------------------------------------------------------


async def _read_node(chain: Chain, node_id: str, *, block: int) -> SeenNode:
    return _seen_node(node_id, await chain.account(node_id, at=block))


def _seen_node(node_id: str, account: AccountState) -> SeenNode:
    return SeenNode(node_id, account.bond, account.operator or "", account.exists)


async def _read_creator(
    state: MarketState, creator: str, *, payments: Mapping[tuple[str, str], VaultEvent], block: int
) -> SeenCreator:
    market, chain = state.market, state.chain
    solvers = await state.store.read(
        partial(following.solvers_of, chain=market.chain, creator=creator, spender=market.spender)
    )
    escrow = await chain.escrow(creator, market.spender, at=block)
    paid: Sequence[int] = ()
    if solvers:
        paid = (await chain.paid([PaidKey(creator, market.spender, solver) for solver in solvers], at=block)).amounts
    seen = []
    creator_key = "0x" + account_key(creator).hex()
    for solver, amount in zip(solvers, paid, strict=True):
        event = payments.get((creator_key, "0x" + account_key(solver).hex()))
        seen.append(
            SeenPaid(solver, amount, None, None)
            if event is None
            else SeenPaid(solver, amount, event.tx_hash, event.block)
        )
    return SeenCreator(creator, escrow.amount, escrow.releasing, tuple(seen))


def _keys_of(event: VaultEvent) -> Iterable[str]:
    """Yield the vault keys that an event is about."""
    for name in ("key", "deviceId", "creator", "solver"):
        value = event.arguments.get(name)
        if isinstance(value, str):
            yield value


def _payments(events: Sequence[VaultEvent], spender: str) -> dict[tuple[str, str], VaultEvent]:
    """Return the newest payment of each (creator key, solver key) on ``spender``'s vouchers."""
    return {
        (str(event.arguments["creator"]), str(event.arguments["solver"])): event
        for event in events
        if event.name == "Redeemed" and str(event.arguments["spender"]).lower() == spender
    }


async def _map(function: Callable[[T], Awaitable[R]], items: Sequence[T]) -> list[R]:
    """Call ``function`` for each item, a few at once; the first failure ends it."""
    results: dict[int, R] = {}
    turn = iter(enumerate(items))

    async def take() -> None:
        for index, item in turn:
            results[index] = await function(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(PARALLEL, len(items))):
                group.create_task(take())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    return [results[index] for index in range(len(items))]
