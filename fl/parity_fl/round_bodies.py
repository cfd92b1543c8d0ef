"""What travels in a round: the model that nodes start from, and the update that a node sends. ``codec`` says how."""

from parity_fl.codec import (
    as_sent,
    decode_delta,
    decode_weights,
    encode_delta,
    encode_weights,
    mapped_delta,
    sent_weights,
)

__all__ = [
    "as_sent",
    "decode_delta",
    "decode_weights",
    "encode_delta",
    "encode_weights",
    "mapped_delta",
    "sent_weights",
]
