"""JSON-RPC as the adapter needs it: bounded in time, with errors in our words. On web3's asynchronous provider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import aiohttp
import anyio
from web3 import AsyncHTTPProvider
from web3.exceptions import Web3Exception
from web3.types import RPCEndpoint

from parity_contracts.chain.refusals import refusal
from parity_contracts.reverts import ErrorAbi, decode_revert
from parity_protocol.errors import ChainUnavailable, ConfigInvalid, Conflict, ParityError, Unprocessable

__all__ = ["Rpc", "quantity"]

_BATCH = 100  # calls of one request; nodes commonly take 100 to 1,000
_REVERTED = 3
_NONCE_USED = ("nonce too low", "replacement transaction underpriced", "nonce is too low")
_KNOWN = ("already known", "already imported", "known transaction")
_POOR = ("insufficient funds",)


class Rpc:
    """One RPC endpoint.

    Args:
        url: ``http://`` or ``https://``.
        timeout_s: For each request, connecting included.
        errors: Custom errors of the contracts that are called, by selector.
    """

    def __init__(self, url: str, *, timeout_s: float, errors: Mapping[bytes, ErrorAbi]) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigInvalid([f"BLOCKCHAIN_RPC: expected an http:// or https:// address, got {url[:80]!r}"])
        self._timeout_s = timeout_s
        self._errors = errors
        self._provider = AsyncHTTPProvider(
            url,
            request_kwargs={"timeout": aiohttp.ClientTimeout(total=timeout_s)},
            exception_retry_configuration=None,  # who may repeat what is decided by the caller
        )

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        await self._provider.disconnect()

    async def call(self, method: str, *params: Any) -> Any:
        """Return the result of one call.

        Raises:
            ChainUnavailable: No answer in time, or one that is not JSON-RPC.
            ParityError: The answer is an error; a revert carries the contract's error name.
        """
        answer = await self._exchange(self._provider.make_request(RPCEndpoint(method), list(params)))
        return self._result(answer, method)

    async def block(self, which: str) -> Mapping[str, Any]:
        """Return a block's header by its height (hex) or tag; raises as ``call`` does."""
        return header(await self.call("eth_getBlockByNumber", *[which, False]))

    async def batch(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        """Return the results of many calls, in their order. Raises as ``call`` does, for the first that failed."""
        out: list[Any] = []
        for start in range(0, len(calls), _BATCH):
            part = [(RPCEndpoint(method), list(params)) for method, params in calls[start : start + _BATCH]]
            answers = await self._exchange(self._provider.make_batch_request(part))
            if not isinstance(answers, list) or len(answers) != len(part):
                raise ChainUnavailable(f"expected {len(part)} answers to a batch from the chain")
            out += [self._result(answer, method) for answer, (method, _) in zip(answers, part, strict=True)]
        return out

    async def _exchange(self, request: Any) -> Any:
        try:
            with anyio.fail_after(self._timeout_s):
                return await request
        except TimeoutError as exc:
            raise ChainUnavailable(f"the chain did not answer within {self._timeout_s:g} s") from exc
        except (aiohttp.ClientError, OSError, Web3Exception, ValueError) as exc:
            raise ChainUnavailable(f"the chain does not answer: {type(exc).__name__}") from exc

    def _result(self, answer: Any, method: str) -> Any:
        if not isinstance(answer, dict) or ("result" not in answer and "error" not in answer):
            raise ChainUnavailable(f"the chain's answer to {method} is not JSON-RPC")
        error = answer.get("error")
        if error is None:
            return answer["result"]
        raise self._error(error, method)

    def _error(self, error: Any, method: str) -> ParityError:
        if not isinstance(error, dict):
            return ChainUnavailable(f"the chain refused {method}: {str(error)[:200]}")
        message = str(error.get("message", ""))[:500]
        data = _revert_data(error)
        if error.get("code") == _REVERTED or data is not None or "revert" in message.lower():
            return (
                refusal(decode_revert(data, self._errors))
                if data
                else Unprocessable(f"the contract refused: {message}")
            )
        lowered = message.lower()
        if any(word in lowered for word in _KNOWN):
            return _AlreadyKnown(message)
        if any(word in lowered for word in _NONCE_USED):
            return Conflict(f"the transaction's nonce is used: {message}")
        if any(word in lowered for word in _POOR):
            return Unprocessable(f"not enough ether for the transaction: {message}", hint="Fund the sending address.")
        return ChainUnavailable(f"the chain refused {method}: {message}")


class _AlreadyKnown(Conflict):
    """The chain has this transaction already. Stays inside the adapter."""


def is_already_known(error: ParityError) -> bool:
    """Whether sending failed only because the transaction had been sent before."""
    return isinstance(error, _AlreadyKnown)


def quantity(value: Any) -> int:
    """Read a quantity of an answer.

    Raises:
        ChainUnavailable: It is not one.
    """
    try:
        return int(cast("str", value), 16)
    except (TypeError, ValueError) as exc:
        raise ChainUnavailable(f"expected a quantity from the chain, got {str(value)[:60]!r}") from exc


def header(value: Any) -> Mapping[str, Any]:
    """Read a block of an answer, with the members that are used here.

    Raises:
        ChainUnavailable: There is no such block, or it is not one of a chain with EIP-1559 fees.
    """
    if not isinstance(value, dict) or any(
        not isinstance(value.get(name), str) for name in ("number", "hash", "timestamp", "baseFeePerGas")
    ):
        raise ChainUnavailable(f"expected a block of a chain with EIP-1559 fees, got {str(value)[:60]!r}")
    return value


def data(value: Any) -> bytes:
    """Read bytes of an answer.

    Raises:
        ChainUnavailable: It is not hex.
    """
    try:
        return bytes.fromhex(cast("str", value).removeprefix("0x"))
    except (AttributeError, ValueError) as exc:
        raise ChainUnavailable(f"expected data from the chain, got {str(value)[:60]!r}") from exc


def _revert_data(error: Mapping[str, Any]) -> bytes | None:
    """Return what the contract returned: nodes put it in ``data``, some one level deeper."""
    found = error.get("data")
    if isinstance(found, dict):
        found = found.get("data")
    if not isinstance(found, str) or not found.startswith("0x"):
        return None
    try:
        return bytes.fromhex(found[2:])
    except ValueError:
        return None
