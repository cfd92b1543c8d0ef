"""A market's whole HTTP side in this process: real store, real blobs, a chain in memory, no sockets."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from parity_contracts.chain.calls import AddFunds, Allow, Approve, Faucet, SetOperator, Stake
from parity_contracts.chain.memory import MemoryChain
from parity_market.app import create_app
from parity_market.federation import Offload
from parity_market.loops.chain_follower import refresh_account
from parity_market.operations import money
from parity_market.state import MarketState
from parity_market.testing.builders import capability
from parity_market.testing.rig import open_rig
from parity_protocol.api import paths
from parity_protocol.api.nodes import enrolment_statement
from parity_protocol.api.tasks import NonceReply
from parity_protocol.ids import Address
from parity_protocol.order import Order, spec_hash
from parity_protocol.signing.eip191 import sign_personal
from parity_protocol.signing.eip712 import OrderMessage, sign_order
from parity_protocol.signing.http_signatures import sign_request
from parity_protocol.signing.keys import Ed25519PrivateKey, EvmKey, node_id_of
from parity_protocol.signing.siwe import SiweMessage
from parity_protocol.testing.clock import FakeClock
from parity_protocol.testing.keys import deterministic_ed25519, deterministic_evm_key

__all__ = ["START", "TOKEN", "Served", "Signer", "serve_in_process"]

TOKEN = 10**18
START = datetime(2026, 6, 1, tzinfo=UTC)


@dataclass
class Signer:
    """A node's or session's key, by the name that the market knows it by."""

    keyid: str
    key: Ed25519PrivateKey


@dataclass
class Served:
    """The market under test and how to speak to it."""

    state: MarketState
    chain: MemoryChain
    clock: FakeClock
    client: httpx.AsyncClient

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        by: Signer | None = None,
        raw: bytes | None = None,
        now: datetime | None = None,
        change: dict[str, str] | None = None,
    ) -> httpx.Response:
        """Send a request, signed by ``by``; ``raw`` replaces the JSON body, ``change`` replaces headers."""
        content = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
        headers = {} if by is None else self.sign(method, path, content, by, now=now)
        return await self.client.request(method, path, content=content, headers={**headers, **(change or {})})

    def sign(
        self, method: str, path: str, content: bytes, by: Signer, *, now: datetime | None = None
    ) -> dict[str, str]:
        """Return the signature headers of a request."""
        where, _, query = path.partition("?")
        return sign_request(
            method,
            where,
            query,
            self.state.authenticator.authority,
            content,
            key=by.key,
            keyid=by.keyid,
            now=now or self.clock.now(),
            nonce=secrets.token_urlsafe(16),
        )

    async def stake(self, name: str, amount: int = 20 * TOKEN) -> None:
        """Bond ``amount`` for the node called ``name`` and let the market see it."""
        device, operator = deterministic_ed25519(name), deterministic_evm_key(name)
        owner = deterministic_evm_key(name + " owner")
        node_id = node_id_of(device.public_key)
        for step in (
            Faucet(to=owner.address, amount=amount),
            Approve(amount=amount),
            Stake(amount=amount, account=node_id, wallet=owner.address, operator=operator.address),
        ):
            await self.send(step, owner)

    async def set_operator(self, name: str, operator: Address) -> None:
        """Change the operator of the node called ``name`` on chain and let the market see it."""
        node_id = node_id_of(deterministic_ed25519(name).public_key)
        await self.send(SetOperator(account=node_id, operator=operator), deterministic_evm_key(name + " owner"))
        await refresh_account(self.state, node_id)

    async def fund(self, account: EvmKey, amount: int) -> None:
        """Deposit ``amount`` and set it aside for this market."""
        for step in (
            Faucet(to=account.address, amount=amount),
            Approve(amount=amount),
            AddFunds(amount=amount, account=account.address, wallet=account.address),
            Allow(account=account.address, spender=self.state.keys.spender.address, amount=amount),
        ):
            await self.send(step, account)

    async def send(self, step: Any, key: EvmKey) -> None:
        """Do one step on chain for ``key``."""
        prepared = await self.chain.prepare(step, key)
        await self.chain.broadcast(prepared.raw)

    def enrolment(self, name: str, *, signed_by: EvmKey | None = None, **fields: Any) -> tuple[dict[str, Any], Signer]:
        """Return a node's enrolment and its signer; ``fields`` replace some after signing."""
        device, operator = deterministic_ed25519(name), signed_by or deterministic_evm_key(name)
        node_id = node_id_of(device.public_key)
        chain = self.state.identity.document.chain
        issued = int(self.clock.now().timestamp())
        public = device.public_key.jwk()["x"]
        statement = enrolment_statement(
            node_id=node_id,
            device_key=public,
            operator=operator.address,
            market=self.state.identity.thumbprint,
            chain_id=chain.chain_id,
            vault=chain.vault,
            issued_at=issued,
        )
        body = {
            "node_id": node_id,
            "device_key": public,
            "operator": operator.address,
            "issued_at": issued,
            "operator_signature": "0x" + sign_personal(statement, operator).hex(),
            "instance": "ab" * 32,
            "hostname": f"{name}.test",
            "capability": capability().model_dump(mode="json"),
        }
        return {**body, **fields}, Signer(node_id, device)

    async def enrol(self, name: str, **fields: Any) -> Signer:
        """Stake and enrol a node."""
        await self.stake(name)
        body, signer = self.enrolment(name, **fields)
        reply = await self.call("POST", paths.ENROL, body, by=signer)
        assert reply.status_code == 201, reply.text
        return signer

    async def sign_in(self, account: EvmKey) -> Signer:
        """Open a session for ``account``."""
        key = Ed25519PrivateKey.generate()
        message = await self.siwe(account, key)
        reply = await self.call("POST", paths.SIWE, message)
        assert reply.status_code == 200, reply.text
        return Signer(reply.json()["session_id"], key)

    async def siwe(self, account: EvmKey, key: Ed25519PrivateKey, **fields: Any) -> dict[str, str]:
        """Return a signed sign-in; ``fields`` replace parts of the message before signing."""
        nonce = NonceReply.model_validate_json((await self.call("GET", paths.SIWE_NONCE)).content)
        parts: dict[str, Any] = {
            "domain": nonce.domain,
            "address": account.address,
            "uri": nonce.uri,
            "chain_id": nonce.chain_id,
            "nonce": nonce.nonce,
            "now": self.clock.now(),
            "ttl": timedelta(minutes=10),
            "session_key": key.public_key,
            **fields,
        }
        text = SiweMessage.build(**parts).text()
        return {"message": text, "signature": "0x" + sign_personal(text, account).hex()}

    def submission(
        self, account: EvmKey, spec: dict[str, Any] | str, reward: int = TOKEN, **order: Any
    ) -> dict[str, Any]:
        """Return a submission; ``order`` replaces fields of the order before it is signed."""
        text = spec if isinstance(spec, str) else json.dumps(spec)
        fields: dict[str, Any] = {
            "creator": account.address,
            "spec_hash": spec_hash(text),
            "max_reward": reward,
            "market": self.state.identity.market_bytes,
            "deadline": int(self.clock.now().timestamp()) + 3600,
            "nonce": secrets.token_bytes(32),
            **order,
        }
        message = OrderMessage(**fields)
        made = Order(
            creator=message.creator,
            spec_hash="0x" + message.spec_hash.hex(),
            max_reward=message.max_reward,
            market="0x" + message.market.hex(),
            deadline=message.deadline,
            nonce="0x" + message.nonce.hex(),
            signature="0x" + sign_order(self.state.domain, message, account).hex(),
        )
        return {"spec": text, "order": made.model_dump(mode="json"), "reward": str(reward)}


@asynccontextmanager
async def serve_in_process(folder: Path, *, offload: Offload | None = None) -> AsyncIterator[Served]:
    """Serve a market with a minimum bond of ten tokens; ``offload`` as of ``open_rig``."""
    clock = FakeClock(START)
    chain = MemoryChain(clock)
    async with open_rig(folder, chain, clock, settings={"market_min_bond": "10"}, offload=offload) as rig:
        state = rig.state
        await rig.store.write(lambda tx: money.record_head(tx, state.market.chain, 0, clock.now()))
        transport = httpx.ASGITransport(create_app(state), raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
            yield Served(state, chain, clock, client)
