"""Requests, responses and paths of the market's HTTP API, shared by market, node and client."""

__all__: list[str] = []
