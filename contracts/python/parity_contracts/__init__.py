"""Typed access to the vault and token contracts, and the embedded chain.

Nothing is imported here, since web3 takes a second to load: take what you need from

- ``deployment``: ``Deployment``, what a market publishes and everybody pins
- ``deploy``: ``deploy``, ``faucet``
- ``chain.base``, ``chain.calls``: the port and what can be asked of it; ``chain.web3_chain``, ``chain.memory``: who
  implements it; ``chain.sending``: send and wait
- ``keystore``: encrypted keys on disk
- ``devnet``: the embedded chain's process; ``testing``: the same as a child of yours
"""

__all__: list[str] = []
