"""Federated-learning mathematics on NumPy: pure, deterministic, no I/O."""
