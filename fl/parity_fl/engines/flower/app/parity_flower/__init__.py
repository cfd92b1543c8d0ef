"""A Parity session's rounds over Flower. Both sides only carry: models down, updates up.

The ServerApp asks the market, which owns rounds, rule, checkpoints and scores. The ClientApp asks the node's trainer,
which owns the part's rows. So neither of them holds data or decides anything.
"""

__all__: list[str] = []
