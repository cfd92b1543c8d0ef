"""The embedded chain: an EVM on loopback that survives ``kill -9``, for development, tests and the demo."""

from parity_contracts.devnet.server import ChainSettings, serve

__all__ = ["ChainSettings", "serve"]
