"""Signing in: an EIP-4361 message by the wallet registers a key of this client, which then signs every request."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from urllib.parse import urlsplit

import anyio

from parity_client.config import Home
from parity_client.wallet import Wallet
from parity_contracts.files import read_private
from parity_protocol import strict_json
from parity_protocol.api.tasks import NonceReply, SignInReply, SignInRequest
from parity_protocol.clock import Clock
from parity_protocol.errors import ParityError, Unauthenticated, WrongAudience
from parity_protocol.ids import Address
from parity_protocol.join import TrustedMarket
from parity_protocol.signing.eip191 import sign_personal
from parity_protocol.signing.keys import Ed25519PrivateKey, EvmKey
from parity_protocol.signing.siwe import MAX_WINDOW, SiweMessage

__all__ = ["Session", "SessionFile", "Sessions", "sign_in_request"]

RENEW_BEFORE = timedelta(seconds=60)  # of its end
STATEMENT = "Sign in to the Parity compute market. This costs nothing and moves no money."
_MAX_FILE_BYTES = 4_096


@dataclass(frozen=True, slots=True)
class Session:
    """One sign-in: the market knows the key by ``id`` until ``expires_at`` (UTC)."""

    id: str
    account: Address
    key: Ed25519PrivateKey
    expires_at: datetime

    def is_fresh(self, now: datetime) -> bool:
        """Return whether it still lasts a while."""
        return now + RENEW_BEFORE < self.expires_at


def sign_in_request(
    key: EvmKey, nonce: NonceReply, market: TrustedMarket, session_key: Ed25519PrivateKey, *, now: datetime
) -> SignInRequest:
    """Return the signed message that opens a session.

    Nothing of the market's answer is signed that its pinned document does not say too: a market that hands on
    another market's nonce gets a message for itself.

    Raises:
        WrongAudience: The answer names another domain, address or chain than the market's signed document.
    """
    document = market.document
    said = (nonce.domain, urlsplit(nonce.uri).netloc, nonce.chain_id)
    if said != (document.authority, document.authority, document.chain.chain_id):
        raise WrongAudience(
            f"the market asks to sign in at {nonce.domain} on chain {nonce.chain_id}, "
            f"pinned is {document.authority} on chain {document.chain.chain_id}"
        )
    message = SiweMessage.build(
        domain=nonce.domain,
        address=key.address,
        uri=nonce.uri,
        chain_id=nonce.chain_id,
        nonce=nonce.nonce,
        now=now,
        ttl=MAX_WINDOW,
        statement=STATEMENT,
        session_key=session_key.public_key,
    ).text()
    return SignInRequest(message=message, signature="0x" + sign_personal(message, key).hex())


class SessionFile:
    """Keeps a session between programs, so that the passphrase is asked once an hour; a file of mode 0600.

    Args:
        market: Thumbprint of the market's identity.
    """

    def __init__(self, home: Home, market: str, account: Address) -> None:
        self._home = home
        self._account = account
        self._path = home.path / "sessions" / f"{sha256(f'{market} {account}'.encode()).hexdigest()[:32]}.json"

    def load(self) -> Session | None:
        """Return the kept session, or None; one that cannot be read counts as none."""
        try:
            data = read_private(self._path, max_bytes=_MAX_FILE_BYTES)
            if data is None:
                return None
            document = strict_json.loads(data)
            if not isinstance(document, dict) or document.get("account") != self._account:
                return None
            return Session(
                id=str(document["id"]),
                account=self._account,
                key=Ed25519PrivateKey(bytes.fromhex(str(document["seed"]))),
                expires_at=datetime.fromisoformat(str(document["expires_at"])),
            )
        except (ParityError, KeyError, ValueError):
            return None

    def store(self, session: Session) -> None:
        """Keep a session; raises as ``Home.write``."""
        document = {
            "id": session.id,
            "account": session.account,
            "seed": session.key.reveal_seed().hex(),
            "expires_at": session.expires_at.isoformat(),
        }
        self._home.write(self._path, json.dumps(document).encode() + b"\n")


class Sessions:
    """Has a fresh session ready; signs in when there is none, and again before it ends.

    Args:
        nonce: Asks the market for a nonce.
        sign_in: Sends the signed message.
        file: Where a session is kept between programs; None keeps it in memory.
    """

    def __init__(
        self,
        wallet: Wallet | None,
        *,
        clock: Clock,
        nonce: Callable[[], Awaitable[NonceReply]],
        sign_in: Callable[[SignInRequest], Awaitable[SignInReply]],
        market: TrustedMarket,
        file: SessionFile | None = None,
    ) -> None:
        self._wallet = wallet
        self._clock = clock
        self._nonce = nonce
        self._sign_in = sign_in
        self._market = market
        self._file = file
        self._lock = anyio.Lock()
        self._current: Session | None = None

    async def get(self) -> Session:
        """Return a session that still lasts a while.

        Raises:
            Unauthenticated: There is no wallet to sign in with, or its passphrase is wrong.
            ParityError: What the market raised.
        """
        async with self._lock:
            if self._current is None and self._file is not None:
                self._current = self._file.load()
            if self._current is None or not self._current.is_fresh(self._clock.now()):
                self._current = await self._open()
            return self._current

    async def replace(self, refused: Session) -> Session:
        """Return another session than the one that the market no longer knows."""
        async with self._lock:
            if self._current is refused or self._current is None:
                self._current = await self._open()
            return self._current

    async def _open(self) -> Session:
        wallet = self._wallet
        if wallet is None:
            raise Unauthenticated(
                "this needs a wallet to sign in with", hint="Make one with `parity wallet create`, or name one."
            )
        wallet_key, key = await wallet.unlocked(), Ed25519PrivateKey.generate()
        nonce = await self._nonce()
        request = sign_in_request(wallet_key, nonce, self._market, key, now=self._clock.now())
        reply = await self._sign_in(request)
        if reply.account != wallet.address:
            raise WrongAudience(f"the market signed in {reply.account}, expected {wallet.address}")
        session = Session(reply.session_id, wallet.address, key, reply.expires_at)
        if self._file is not None:
            self._file.store(session)
        return session
