"""The committed contracts on py-evm, called directly: no blocks, no transactions, so that thousands of calls take seconds."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from eth.constants import BLANK_ROOT_HASH, ZERO_HASH32
from eth.db.atomic import AtomicDB
from eth.vm.execution_context import ExecutionContext
from eth.vm.forks.cancun.state import CancunState
from eth.vm.message import Message
from eth_abi import decode, encode
from eth_utils.abi import collapse_if_tuple

from parity_protocol.signing.keccak import keccak256

REPO_ROOT = Path(__file__).parents[2]
ARTIFACTS = REPO_ROOT / "contracts" / "python" / "parity_contracts" / "artifacts"
CHAIN_ID = 31337
START = 1_800_000_000
CALL_GAS = 20_000_000
BUILD_TIMEOUT_S = 500.0
TOOL_MISSING = 3
"""Exit status of scripts/build-contracts when Node, npm, forge or a pinned package cannot be had."""


class Reverted(Exception):
    """A call that the contract refused; ``args`` are the custom error's name and a tuple of its arguments."""


@dataclass(frozen=True)
class Artifact:
    """One committed contract."""

    abi: list[dict[str, Any]]
    bytecode: bytes

    @classmethod
    def load(cls, name: str) -> Artifact:
        raw = json.loads((ARTIFACTS / f"{name}.json").read_text(encoding="utf-8"))
        return cls(abi=raw["abi"], bytecode=bytes.fromhex(raw["bytecode"].removeprefix("0x")))

    @cached_property
    def functions(self) -> dict[str, dict[str, Any]]:
        return {entry["name"]: entry for entry in self.abi if entry["type"] == "function"}

    @cached_property
    def errors(self) -> dict[bytes, dict[str, Any]]:
        return {_selector(entry): entry for entry in self.abi if entry["type"] == "error"}

    @cached_property
    def constructor_types(self) -> list[str]:
        return next((_types(e["inputs"]) for e in self.abi if e["type"] == "constructor"), [])


def _types(entries: Sequence[dict[str, Any]]) -> list[str]:
    return [collapse_if_tuple(entry) for entry in entries]


def _selector(entry: dict[str, Any]) -> bytes:
    return keccak256(f"{entry['name']}({','.join(_types(entry['inputs']))})".encode())[:4]


class _Clock(ExecutionContext):
    """A block whose time the test sets."""

    def __init__(self) -> None:
        super().__init__(
            coinbase=bytes(20),
            timestamp=START,
            block_number=1,
            difficulty=0,
            mix_hash=ZERO_HASH32,
            gas_limit=30_000_000,
            prev_hashes=[],
            chain_id=CHAIN_ID,
            base_fee_per_gas=0,
            excess_blob_gas=0,
        )

    def set(self, timestamp: int) -> None:
        self._timestamp = timestamp


class Evm:
    """A state, a clock, and calls from any address."""

    def __init__(self) -> None:
        self._clock = _Clock()
        self._state = CancunState(AtomicDB(), self._clock, BLANK_ROOT_HASH)
        self._deployed = 0

    @property
    def now(self) -> int:
        """Unix seconds of the present block."""
        return self._clock.timestamp

    def warp(self, timestamp: int) -> None:
        self._clock.set(timestamp)

    def snapshot(self) -> Any:
        return self._state.snapshot()

    def revert(self, snapshot: Any) -> None:
        """Go back to a snapshot, which is used up; the clock goes back to its start."""
        self._state.revert(snapshot)
        self._clock.set(START)

    def deploy(self, name: str, *args: Any) -> Contract:
        artifact = Artifact.load(name)
        self._deployed += 1
        address = keccak256(f"contract {self._deployed}".encode())[-20:]
        code = artifact.bytecode + encode(artifact.constructor_types, args)
        message = Message(
            gas=CALL_GAS, to=b"", sender=bytes(19) + b"\1", value=0, data=b"", code=code, create_address=address
        )
        result = self._state.computation_class.apply_create_message(self._state, message, self._context())
        if result.is_error:
            raise result.error
        return Contract(self, artifact, address)

    def call(self, to: bytes, data: bytes, sender: bytes) -> tuple[bool, bytes]:
        """Return whether the call succeeded, and what it returned or reverted with."""
        message = Message(gas=CALL_GAS, to=to, sender=sender, value=0, data=data, code=self._state.get_code(to))
        result = self._state.computation_class.apply_message(self._state, message, self._context())
        self._state.clear_transient_storage()
        return result.is_success, result.output

    def _context(self) -> Any:
        return self._state.transaction_context_class(gas_price=0, origin=bytes(19) + b"\1")


class Contract:
    """A deployed contract whose functions are called by name."""

    def __init__(self, evm: Evm, artifact: Artifact, address: bytes) -> None:
        self._evm = evm
        self._artifact = artifact
        self.raw_address = address
        self.address = "0x" + address.hex()

    @property
    def abi(self) -> list[dict[str, Any]]:
        return self._artifact.abi

    @property
    def functions(self) -> dict[str, dict[str, Any]]:
        return self._artifact.functions

    def __call__(self, function: str, *args: Any, sender: str | None = None) -> Any:
        """Call a function and return its one result, or the tuple of them.

        Raises:
            Reverted: The contract refused.
        """
        entry = self._artifact.functions[function]
        data = _selector(entry) + encode(_types(entry["inputs"]), args)
        origin = bytes.fromhex(sender.removeprefix("0x")) if sender else bytes(19) + b"\1"
        ok, output = self._evm.call(self.raw_address, data, origin)
        if not ok:
            error = self._artifact.errors.get(output[:4])
            if error is None:
                raise Reverted(output.hex(), ())
            raise Reverted(error["name"], decode(_types(error["inputs"]), output[4:]))
        values = decode(_types(entry["outputs"]), output)
        return values[0] if len(values) == 1 else values


@pytest.fixture
def evm() -> Evm:
    """Return a fresh state at ``START``."""
    return Evm()


@pytest.fixture
def reverted() -> type[Reverted]:
    """Return what a refused call raises."""
    return Reverted


@pytest.fixture
def artifacts() -> Path:
    """Return the folder of the committed artifacts."""
    return ARTIFACTS


@pytest.fixture(scope="session")
def build_contracts() -> Callable[..., str]:
    """Return a function that runs scripts/build-contracts and returns its output; it skips where that cannot work."""

    def build(*args: str) -> str:
        for tool in ("node", "npm"):
            if shutil.which(tool) is None:
                pytest.skip(f"{tool} is not on PATH: the contracts were not rebuilt")
        run = subprocess.run(
            [str(REPO_ROOT / "scripts" / "build-contracts"), *args],
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT_S,
            check=False,
        )
        if run.returncode == TOOL_MISSING:
            pytest.skip(run.stderr.strip())
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    return build
