"""Writes rdp.json from Google's dp-accounting, which is no dependency of this project.

    python -m venv /tmp/rdp && /tmp/rdp/bin/pip install dp-accounting && /tmp/rdp/bin/python tests/vectors/fl/generate_rdp.py

Divergences are kept at whole orders only: at fractional ones dp-accounting sums a series that stops before it has
converged, and leaves out orders where it sees that. ``epsilon`` is from whole orders, ``epsilon_default`` from its own.
"""

import json
from importlib.metadata import version
from pathlib import Path

from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.rdp import RdpAccountant

WHOLE = [*range(2, 64), 128, 256, 512, 1024]
PAIRS = [(z, q) for z in (0.3, 0.5, 0.8, 1.0, 1.1, 2.0, 5.0, 20.0) for q in (1.0, 0.5, 0.2, 0.1, 0.01, 0.001)]
RUNS = [(1, 1e-5), (10, 1e-5), (100, 1e-6), (1000, 1e-5)]


def main() -> None:
    """Write the file beside this one."""
    cases = []
    for z, q in PAIRS:
        event = GaussianDpEvent(z) if q == 1 else PoissonSampledDpEvent(q, GaussianDpEvent(z))
        for rounds, delta in RUNS:
            made = RdpAccountant(orders=WHOLE).compose(SelfComposedDpEvent(event, rounds))
            own = RdpAccountant().compose(SelfComposedDpEvent(event, rounds))
            cases.append(
                {
                    "noise_multiplier": z,
                    "sampling_rate": q,
                    "rounds": rounds,
                    "delta": delta,
                    "epsilon": float(made.get_epsilon(delta)),
                    "epsilon_default": float(own.get_epsilon(delta)),
                }
            )
    document = {"source": f"dp-accounting {version('dp-accounting')}", "whole_orders": WHOLE, "cases": cases}
    lines = json.dumps(document, indent=None, separators=(",", ":")).replace("},{", "},\n{")
    Path(__file__).with_name("rdp.json").write_text(lines + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
