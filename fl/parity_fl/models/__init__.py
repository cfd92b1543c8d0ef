"""Models that train in rounds: one interface, one numpy kernel for each kind."""

from parity_fl.models.base import RoundModel, Scaling, Trained, Weights, round_model, scaling_of, weights_digest

__all__ = ["RoundModel", "Scaling", "Trained", "Weights", "round_model", "scaling_of", "weights_digest"]
