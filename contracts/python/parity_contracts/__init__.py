"""Typed access to the vault and token contracts, and the embedded chain."""
