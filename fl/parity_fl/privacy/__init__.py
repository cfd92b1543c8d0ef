"""Privacy of a session: differential privacy (``dp``, ``accountant``), secure aggregation, and what excludes what."""

from parity_fl.privacy.config import PrivacyConfig, read_privacy

__all__ = ["PrivacyConfig", "read_privacy"]
