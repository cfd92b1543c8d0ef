"""The process of ``round_worker``: one JSON job a line on standard input, one answer a line on standard output.

It imports the mathematics and nothing of the market beside: that would take as much memory as a large model.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from contextlib import suppress

from parity_market import round_jobs
from parity_market.federation_worker import MAX_MEMORY_BYTES, NICE

__all__ = ["main"]


def main() -> int:
    """Answer jobs until standard input ends; what libraries print goes to standard error."""
    answers = os.dup(1)
    os.dup2(2, 1)
    os.nice(NICE)
    with suppress(ValueError, OSError):  # not every system can bound the address space
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    with os.fdopen(answers, "wb") as out:
        for line in sys.stdin.buffer:
            out.write(json.dumps(round_jobs.execute(json.loads(line))).encode() + b"\n")
            out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
