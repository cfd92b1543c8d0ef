"""What travels in a round: the model that nodes start from, and the update that a node sends. ``codec`` says how."""

from parity_fl.codec import decode_delta, decode_weights, encode_delta, encode_weights, mapped_delta

__all__ = ["decode_delta", "decode_weights", "encode_delta", "encode_weights", "mapped_delta"]
