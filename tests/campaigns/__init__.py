"""Long campaigns against what runs strangers' code; each prints its figures (``scripts/chaos``)."""
