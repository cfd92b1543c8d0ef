"""The figures that ``scripts/bench`` prints: each module measures one thing on real processes."""
