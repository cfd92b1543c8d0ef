"""Submitters sign in with Ethereum (EIP-4361) and register a session key for an hour."""

from __future__ import annotations

from starlette.responses import Response

from parity_market.auth import Access
from parity_market.operations import sessions
from parity_market.operations.context import new_id
from parity_market.operations.sessions import NonceMaker
from parity_market.routing import Call, Endpoint
from parity_market.state import MarketState
from parity_market.store.rows import from_us
from parity_protocol.api import paths
from parity_protocol.api.tasks import NonceReply, SignInReply, SignInRequest
from parity_protocol.signing.jws import b64url_encode
from parity_protocol.signing.siwe import SiweMessage, verify_siwe

__all__ = ["ENDPOINTS"]

SESSION = f"{paths.API}/auth/session"


def _nonces(state: MarketState) -> NonceMaker:
    return NonceMaker(state.keys.manifest.reveal_seed())  # every process of a market has this key


async def nonce(call: Call) -> NonceReply:
    """Return a nonce for one sign-in within five minutes."""
    state = call.state
    value, expires = _nonces(state).make(state.clock.now())
    return NonceReply(
        nonce=value,
        domain=state.authenticator.authority,
        uri=state.public_url,
        chain_id=state.deployment.chain_id,
        expires_at=expires,
    )


async def sign_in(call: Call) -> SignInReply:
    """Open a session for the account that signed the message, with the key that the message names."""
    body: SignInRequest = call.body
    state, now = call.state, call.state.clock.now()
    message = SiweMessage.parse(body.message)
    nonce_expires = _nonces(state).check(message.nonce, now)
    account = verify_siwe(
        body.message,
        bytes.fromhex(body.signature[2:]),
        domain=state.authenticator.authority,
        uri=state.public_url,
        chain_id=state.deployment.chain_id,
        nonce=message.nonce,
        now=now,
    )
    key = b64url_encode(message.session_key().raw)
    session_id = new_id()
    row = await state.store.write(
        lambda tx: sessions.open_session(
            tx,
            nonce=message.nonce,
            nonce_expires=nonce_expires,
            session_id=session_id,
            account=account,
            key=key,
            now=now,
        )
    )
    return SignInReply(session_id=row.id, account=row.account, expires_at=from_us(row.expires_us))


async def sign_out(call: Call) -> Response:
    """End the session that signed this request."""
    assert call.signature is not None
    session_id = call.signature.keyid
    await call.state.store.write(lambda tx: sessions.close(tx, session_id))
    call.state.authenticator.forget(session_id)
    return Response(status_code=204)


ENDPOINTS = (
    Endpoint("GET", paths.SIWE_NONCE, nonce, Access.PUBLIC, "Start a sign-in", NonceReply),
    Endpoint("POST", paths.SIWE, sign_in, Access.PUBLIC, "Sign in with Ethereum", SignInReply, SignInRequest),
    Endpoint("DELETE", SESSION, sign_out, Access.SUBMITTER, "Sign out", status=204),
)
