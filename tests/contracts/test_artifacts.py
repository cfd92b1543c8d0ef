"""The committed artifacts are what the committed sources compile to. Needs Node and npm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Build = Callable[..., str]


@pytest.mark.timeout(300)
def test_committed_artifacts_are_what_the_sources_compile_to(build_contracts: Build) -> None:
    build_contracts("--check")


@pytest.mark.parametrize("name", ["StakeVault", "DevToken"])
def test_artifact_deploys_without_compiler_or_linker(artifacts: Path, name: str) -> None:
    artifact = json.loads((artifacts / f"{name}.json").read_text(encoding="utf-8"))

    assert artifact.keys() == {"contractName", "compiler", "abi", "bytecode", "deployedBytecode"}
    assert artifact["contractName"] == name
    assert "0.8.37" in artifact["compiler"]
    assert "cancun" in artifact["compiler"]
    assert len(bytes.fromhex(artifact["bytecode"].removeprefix("0x"))) > 1000
    # EIP-170 and EIP-3860: above these no chain deploys it.
    assert len(bytes.fromhex(artifact["deployedBytecode"].removeprefix("0x"))) <= 24_576
    assert len(bytes.fromhex(artifact["bytecode"].removeprefix("0x"))) <= 49_152
