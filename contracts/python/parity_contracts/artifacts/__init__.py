"""Compiled contracts, committed so that nobody who runs this needs a compiler."""

from parity_contracts.artifacts.reading import Artifact, EventAbi, FunctionAbi, load

__all__ = ["Artifact", "EventAbi", "FunctionAbi", "load"]
