"""``Client``: everything a submitter does at one market."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path
from random import random
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.to_thread
import httpx

from parity_blobs.tls import context_for
from parity_client import following
from parity_client.config import Home
from parity_client.data import Content, Data
from parity_client.federated import FlSessions
from parity_client.http import MarketHttp, Retry, parse_reply, retrying
from parity_client.orders import (
    DEFAULT_VALIDITY,
    Source,
    amount_of,
    make_submission,
    market_domain,
    spec_and_shards,
)
from parity_client.proof import VerifiedReceipt, verify_proof
from parity_client.results import MAX_RESULT_BYTES, Result, raise_unless_completed, result_of_group, result_of_task
from parity_client.session import Session, SessionFile, Sessions
from parity_client.submission import Submission
from parity_client.wallet import Wallet, passphrase_from_file
from parity_protocol.api import paths
from parity_protocol.api.market import MarketDocument, MarketStatus
from parity_protocol.api.nodes import NodeReply, WhyNoWorkReply
from parity_protocol.api.tasks import (
    AccountReply,
    CancelReply,
    CheckReply,
    CheckRequest,
    EventsReply,
    GroupReply,
    GroupsReply,
    LogsReply,
    NonceReply,
    ProofReply,
    ResultReply,
    RewardReply,
    SignInReply,
    SignInRequest,
    SubmitReply,
    TaskReply,
    TasksReply,
    TaskStatusReply,
    WhyPendingReply,
)
from parity_protocol.clock import Clock, SystemClock
from parity_protocol.errors import Conflict, DigestMismatch, NotFound, Unauthenticated
from parity_protocol.ids import Address
from parity_protocol.join import JoinString, TrustedMarket, parse_join, verify_market
from parity_protocol.quantities import TokenAmount
from parity_protocol.signing.keys import EvmKey

__all__ = ["Client"]


class Client:
    """A submitter's connection to one market.

    Use it as ``async with Client.from_config() as market``. Entering it fetches the market's document and checks it
    against the pins of the join string; signing in happens with the first request that needs it. Every method raises
    errors of ``parity_protocol.errors``; what the market refuses arrives as the class that it raised.

    Args:
        join: The market's join string.
        wallet: Who pays. Without one only public things can be asked.
        home: Where sign-ins are kept between programs; None keeps them in memory.
        retry: For requests that may succeed later. Every request here may be repeated without harm.
        transport: Replaces the network; for tests.
    """

    def __init__(
        self,
        join: JoinString | str,
        wallet: Wallet | EvmKey | None = None,
        *,
        home: Home | None = None,
        clock: Clock | None = None,
        retry: Retry = Retry(),  # noqa: B008 - frozen
        transport: httpx.AsyncBaseTransport | None = None,
        jitter: Callable[[], float] = random,
    ) -> None:
        self.join = parse_join(join) if isinstance(join, str) else join
        self.wallet = Wallet.of_key(wallet) if isinstance(wallet, EvmKey) else wallet
        self._home = home
        self._clock = clock or SystemClock()
        self._retry = retry
        self._transport = transport
        self._jitter = jitter
        self._stack = AsyncExitStack()
        self._http: MarketHttp | None = None
        self._market: TrustedMarket | None = None
        self._sessions: Sessions | None = None
        self._data: Data | None = None

    @classmethod
    def from_config(
        cls,
        market: str | None = None,
        *,
        wallet: str | None = None,
        home: Path | None = None,
        passphrase: Callable[[], str] = passphrase_from_file,
    ) -> Client:
        """Return a client of a market that ``parity config use`` joined, with a wallet of ``parity wallet create``.

        Args:
            market: Its name; None is the one in use.
            wallet: Its name; None is the one in use.
            home: None takes ``PARITY_HOME``, else ``~/.parity``.
            passphrase: Asked when the wallet must sign; by default the file that ``PARITY_PASSPHRASE_FILE`` names.

        Raises:
            ConfigInvalid: No market was joined, or the settings cannot be read.
            NotFound: There is no such wallet.
        """
        place = Home(home)
        config = place.load()
        _, entry = config.market(market)
        keystore = place.existing_wallet(wallet or config.wallet)
        return cls(entry.parsed(), Wallet.of_keystore(keystore, passphrase), home=place)

    async def __aenter__(self) -> Self:
        verify = None
        if self._transport is None:
            join = self.join
            verify = await anyio.to_thread.run_sync(context_for, join.url, join.certificate, abandon_on_cancel=True)
        http = MarketHttp(self.join.url, clock=self._clock, verify=verify, transport=self._transport)
        self._stack.push_async_callback(http.aclose)
        try:
            body = await self._repeat(lambda: http.send("GET", paths.JWKS))
            self._market = verify_market(body, self.join.market, now=self._clock.now())
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._stack.aclose()
            raise
        http.authority = self._market.document.authority
        self._http = http
        file = None
        if self._home is not None and self.wallet is not None:
            file = SessionFile(self._home, self._market.thumbprint, self.wallet.address)
        self._sessions = Sessions(
            self.wallet, clock=self._clock, nonce=self._nonce, sign_in=self._sign_in, market=self._market, file=file
        )
        self._data = Data(
            http, self._sessions, self._signed_call, clock=self._clock, verify=verify, transport=self._transport
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self._stack.aclose()
        self._http = None

    # -- the market ----------------------------------------------------------------------------------------------

    @property
    def trusted(self) -> TrustedMarket:
        """The market's document, as the pinned identity signed it."""
        if self._market is None:
            raise Conflict("the client is not open: use it as `async with Client(...) as market`")
        return self._market

    @property
    def document(self) -> MarketDocument:
        """The market's keys, chain and terms."""
        return self.trusted.document

    @property
    def address(self) -> Address:
        """The submitter's address.

        Raises:
            Unauthenticated: This client has no wallet.
        """
        if self.wallet is None:
            raise Unauthenticated("this client has no wallet", hint="Make one with `parity wallet create`.")
        return self.wallet.address

    @property
    def data(self) -> Data:
        """Data at the market: ``add``, ``info``, ``get``, ``read``."""
        if self._data is None:
            raise Conflict("the client is not open: use it as `async with Client(...) as market`")
        return self._data

    @property
    def sessions(self) -> FlSessions:
        """Federated sessions that train in rounds: ``list``, ``show``, ``follow``, ``pause``, ``resume``, ``stop``."""
        return FlSessions(self._open_http, self._signed_call)

    async def status(self) -> MarketStatus:
        """Return the market's counts."""
        return parse_reply(MarketStatus, await self._public("/api/status"))

    async def node(self, node_id: str) -> NodeReply:
        """Return what the market knows of a node."""
        return parse_reply(NodeReply, await self._public(paths.node_path(_segment(node_id))))

    async def why_no_work(self, node_id: str) -> WhyNoWorkReply:
        """Return the constraints that kept work from a node."""
        return parse_reply(WhyNoWorkReply, await self._public(paths.node_path(_segment(node_id), "why-no-work")))

    async def account(self) -> AccountReply:
        """Return what is set aside at this market, bound, owed and free."""
        return parse_reply(AccountReply, await self._get(paths.account_path(self.address)))

    # -- submitting ----------------------------------------------------------------------------------------------

    async def check(
        self, spec: Mapping[str, Any] | str, reward: str | TokenAmount = 0, *, shards: Sequence[Source] = ()
    ) -> CheckReply:
        """Ask whether the market would take a submission, before its data are stored; nothing is signed or bound.

        Args:
            reward: 0 asks for no money; for the others see ``submit``, which raises the same.
        """
        (text, _), amount = spec_and_shards(spec, shards), amount_of(reward, decimals=self.document.token_decimals)
        http, body = self._open_http(), CheckRequest(spec=text, reward=amount)
        return parse_reply(
            CheckReply,
            await self._signed_call(lambda session: http.send("POST", paths.TASK_CHECK, body=body, session=session)),
        )

    async def submit(
        self,
        spec: Mapping[str, Any] | str,
        reward: str | TokenAmount,
        *,
        max_reward: str | TokenAmount | None = None,
        valid_for: timedelta = DEFAULT_VALIDITY,
        shards: Sequence[Source] = (),
    ) -> Submission:
        """Sign an order for ``spec`` and submit it. A lost answer is asked for again: it never makes a second task.

        Args:
            spec: As ``TaskSpec`` describes it, such as ``{"type": "command", "command": ["echo", "hello"]}``.
            reward: For everything that the spec becomes: a text counts whole tokens (``"0.5"``), an int base units.
            max_reward: What the order allows at most; None allows exactly ``reward``.
            valid_for: Time in which a lease may start.
            shards: Where the data of each part of a federated session lie, when nobody has them together; a node is told
                its own part's alone.

        Raises:
            InvalidInput: The spec or an amount is not acceptable; ``field`` names what.
            EscrowTooLow: The money set aside for this market does not cover the reward.
        """
        (text, sealed), decimals = spec_and_shards(spec, shards), self.document.token_decimals
        amount = amount_of(reward, decimals=decimals)
        most = None if max_reward is None else amount_of(max_reward, decimals=decimals)
        if self.wallet is None:
            raise Unauthenticated("an order needs a wallet that signs it", hint="Make one with `parity wallet create`.")
        key = self.wallet.opened
        if key is None:  # opening a keystore takes a second
            key = await self.wallet.unlocked()
        request = make_submission(
            key,
            text,
            amount,
            market=self.trusted,
            now=self._clock.now(),
            max_reward=most,
            valid_for=valid_for,
            shards=sealed,
        )
        http = self._open_http()
        body = await self._signed_call(lambda session: http.send("POST", paths.TASKS, body=request, session=session))
        return Submission(self, parse_reply(SubmitReply, body))

    # -- following -----------------------------------------------------------------------------------------------

    async def task(self, task_id: str) -> TaskReply:
        """Return a task; ``NotFound`` when it is not yours."""
        return parse_reply(TaskReply, await self._get(paths.task_path(_segment(task_id))))

    async def group(self, group_id: str, *, wait_s: float = 0.0) -> GroupReply:
        """Return a group with its tasks; with ``wait_s``, once it has ended or the wait is over."""
        return parse_reply(GroupReply, await self._get(paths.group_path(_segment(group_id)), wait_s=wait_s))

    async def find(self, root_id: str) -> TaskReply | GroupReply:
        """Return the task or the group with this id; ``NotFound`` when it is neither."""
        try:
            return await self.task(root_id)
        except NotFound:
            pass
        try:
            return await self.group(root_id)
        except NotFound as exc:
            raise NotFound(
                f"there is no task and no group {root_id[:80]} of yours here", hint="`parity task list` shows yours."
            ) from exc

    async def tasks(self, *, limit: int = 50, cursor: str | None = None) -> TasksReply:
        """Return your tasks, newest first, and the cursor of the next page."""
        query = {"limit": str(limit)} | ({"cursor": cursor} if cursor else {})
        return parse_reply(TasksReply, await self._get(paths.TASKS, query))

    async def groups(self, *, limit: int = 50, cursor: str | None = None) -> GroupsReply:
        """Return your groups without their tasks, newest first, and the cursor of the next page."""
        query = {"limit": str(limit)} | ({"cursor": cursor} if cursor else {})
        return parse_reply(GroupsReply, await self._get(paths.GROUPS, query))

    async def events(self, task_id: str, *, after_seq: int = 0) -> EventsReply:
        """Return what happened to a task, oldest first."""
        path = paths.task_path(_segment(task_id), "events")
        return parse_reply(EventsReply, await self._get(path, {"after_seq": str(after_seq)}))

    async def task_status(self, task_id: str, *, after_seq: int = 0, wait_s: float = 0.0) -> TaskStatusReply:
        """Return where a task is; with ``wait_s``, once something newer than ``after_seq`` happened."""
        path = paths.task_path(_segment(task_id), "status")
        return parse_reply(TaskStatusReply, await self._get(path, {"after_seq": str(after_seq)}, wait_s=wait_s))

    async def wait(
        self, root_id: str, *, timeout: float | None = None, on_event: following.OnEvent | None = None
    ) -> TaskReply | GroupReply:
        """Return a task or a group once it has ended, however it did.

        Args:
            timeout: Seconds; None waits for ever.
            on_event: Called with each event of each task once, in order.

        Raises:
            NotFinished: The time was over first. Nothing is lost: ask again.
        """
        deadline = following.Deadline(self._clock, timeout)
        found = await self.find(root_id)
        if isinstance(found, TaskReply):
            await self._follow(root_id, deadline=deadline, on_event=on_event)
            return await self.task(root_id)
        return await self._ended_group(found, deadline=deadline, on_event=on_event)

    async def _ended_group(
        self, group: GroupReply, *, deadline: following.Deadline, on_event: following.OnEvent | None
    ) -> GroupReply:
        one = partial(self._follow, deadline=deadline, on_event=on_event) if on_event is not None else None

        async def refresh(group_id: str, wait_s: float) -> GroupReply:
            return await self.group(group_id, wait_s=wait_s)

        return await following.follow_group(group, refresh, one, deadline=deadline)

    async def _follow(
        self, task_id: str, *, deadline: following.Deadline, on_event: following.OnEvent | None
    ) -> TaskStatusReply:
        async def status(task_id: str, after_seq: int, wait_s: float) -> TaskStatusReply:
            return await self.task_status(task_id, after_seq=after_seq, wait_s=wait_s)

        async def events(task_id: str, after_seq: int) -> EventsReply:
            return await self.events(task_id, after_seq=after_seq)

        return await following.follow_task(task_id, status, events, deadline=deadline, on_event=on_event)

    async def result(self, root_id: str, *, wait: float | None = 0.0, max_bytes: int = MAX_RESULT_BYTES) -> Result:
        """Return the result of a completed task or group, its content verified against its CID.

        Args:
            wait: Seconds to wait for the end; None waits for ever.
            max_bytes: Larger content is left at the market: ``data.get`` writes it to a file.

        Raises:
            NotFinished: It has not ended yet.
            ExecutionFailed: It failed, or its result did not verify; ``reason`` says why.
            TaskCancelled: It was cancelled.
        """
        deadline = following.Deadline(self._clock, wait)
        while True:
            wait_s = 0.0 if wait == 0 else deadline.next_wait(root_id)
            try:
                # One request for the common case: a task's result, as soon as there is one.
                body = await self._get(paths.task_path(_segment(root_id), "result"), wait_s=wait_s)
            except NotFound:
                found = await self.find(root_id)
            else:
                return await result_of_task(parse_reply(ResultReply, body), self._fetch, max_bytes=max_bytes)
            if isinstance(found, GroupReply):
                ended = found if wait == 0 else await self._ended_group(found, deadline=deadline, on_event=None)
                return await result_of_group(ended, self._fetch, max_bytes=max_bytes)
            if wait == 0:
                raise_unless_completed(root_id, found.state, found.failure, found.message)

    async def _fetch(self, cid: str, max_bytes: int) -> Content:
        return await self.data.load(cid, max_bytes=max_bytes)

    def logs(self, task_id: str, *, follow: bool = False, offset: int = 0) -> AsyncIterator[str]:
        """Yield what a task's newest attempt prints; with ``follow`` until it has ended."""

        async def read(task_id: str, offset: int, wait_s: float) -> LogsReply:
            path = paths.task_path(_segment(task_id), "logs")
            return parse_reply(LogsReply, await self._get(path, {"offset": str(offset)}, wait_s=wait_s))

        return following.follow_logs(task_id, read, follow=follow, offset=offset)

    async def reward(self, task_id: str) -> RewardReply:
        """Return a task's reward and where the money is."""
        return parse_reply(RewardReply, await self._get(paths.task_path(_segment(task_id), "reward")))

    async def why(self, task_id: str) -> WhyPendingReply:
        """Return, for each node that did not get a task, the constraint that failed."""
        return parse_reply(WhyPendingReply, await self._get(paths.task_path(_segment(task_id), "why-pending")))

    async def cancel(self, root_id: str) -> CancelReply:
        """Cancel a task or a whole group; what has ended stays as it is."""
        http, path = self._open_http(), paths.task_path(_segment(root_id), "cancel")
        return parse_reply(
            CancelReply, await self._signed_call(lambda session: http.send("POST", path, session=session))
        )

    async def proof(self, task_id: str) -> ProofReply:
        """Return everything that checks a completed task's receipt; ``NotFound`` before it has completed."""
        found = parse_reply(ProofReply, await self._get(paths.task_path(_segment(task_id), "receipt")))
        if found.task_id != task_id:
            raise DigestMismatch(f"asked for the proof of {task_id}, the market sent that of {found.task_id}")
        return found

    def verify(self, proof: ProofReply, *, operator: Address | None = None) -> VerifiedReceipt:
        """Check a proof against the pinned market, without asking anybody; see ``proof.verify_proof``."""
        domain = market_domain(self.trusted)
        return verify_proof(proof, domain=domain, market=self.trusted.thumbprint, operator=operator)

    # -- requests ------------------------------------------------------------------------------------------------

    def _open_http(self) -> MarketHttp:
        if self._http is None:
            raise Conflict("the client is not open: use it as `async with Client(...) as market`")
        return self._http

    async def _repeat(self, attempt: Callable[[], Awaitable[bytes]]) -> bytes:
        return await retrying(attempt, clock=self._clock, policy=self._retry, jitter=self._jitter)

    async def _public(self, path: str) -> bytes:
        http = self._open_http()
        return await self._repeat(lambda: http.send("GET", path))

    async def _get(self, path: str, query: Mapping[str, str] | None = None, *, wait_s: float = 0.0) -> bytes:
        http = self._open_http()
        asked = dict(query or {}) | ({"wait_s": f"{wait_s:.3f}"} if wait_s else {})
        return await self._signed_call(
            lambda session: http.send("GET", path, query=asked, session=session, wait_s=wait_s)
        )

    async def _signed_call(self, send: Callable[[Session], Awaitable[bytes]]) -> bytes:
        """Send a signed request; a session that the market forgot is replaced once."""
        sessions = self._sessions
        if sessions is None:
            raise Conflict("the client is not open: use it as `async with Client(...) as market`")

        async def attempt() -> bytes:
            session = await sessions.get()
            try:
                return await send(session)
            except Unauthenticated:
                return await send(await sessions.replace(session))

        return await self._repeat(attempt)

    async def _nonce(self) -> NonceReply:
        return parse_reply(NonceReply, await self._open_http().send("GET", paths.SIWE_NONCE))

    async def _sign_in(self, request: SignInRequest) -> SignInReply:
        return parse_reply(SignInReply, await self._open_http().send("POST", paths.SIWE, body=request))


def _segment(text: str) -> str:
    """Return an id for use in a path; anything else would be another path.

    Raises:
        NotFound: It cannot be an id.
    """
    if not text or len(text) > 80 or not all(char.isascii() and (char.isalnum() or char in "-_") for char in text):
        raise NotFound(f"{text[:80]!r} is not an id", hint="`parity task list` shows yours.")
    return text
