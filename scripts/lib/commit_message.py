"""Says whether a commit message is a Conventional Commit (1.0) as this project writes them.

Usage: python commit_message.py FILE
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

TYPES = ("feat", "fix", "chore", "docs", "style", "refactor", "perf", "test", "build", "ci", "revert")
MAX_HEADER_CHARS = 72
HEADER = re.compile(rf"(?P<type>{'|'.join(TYPES)})(?:\((?P<scope>[a-z0-9][a-z0-9._/-]*)\))?!?: (?P<subject>\S.*)")
WRITTEN_BY_GIT = ("Merge ", "Revert ", "fixup! ", "squash! ", "amend! ")


def complaints(message: str) -> list[str]:
    """Return what is wrong with a message, in words; empty if nothing is. Lines that git drops are not read."""
    lines = [line for line in message.partition("\n# ------------------------ >8")[0].splitlines() if line[:1] != "#"]
    while lines and not lines[0].strip():
        lines.pop(0)
    if not lines:
        return ["the message is empty"]
    header = lines[0].rstrip()
    if header.startswith(WRITTEN_BY_GIT):
        return []
    found = []
    match = HEADER.fullmatch(header)
    if match is None:
        found.append(f"expected `type(scope): subject` with type one of {' '.join(TYPES)}, got `{header}`")
    elif match["subject"].endswith("."):
        found.append("the subject ends with a full stop")
    if len(header) > MAX_HEADER_CHARS:
        found.append(f"the first line has {len(header)} characters, at most {MAX_HEADER_CHARS} are wanted")
    if len(lines) > 1 and lines[1].strip():
        found.append("the second line must be empty")
    return found


def main(path: str) -> int:
    """Print the complaints about the message in ``path``; 1 if there are any."""
    found = complaints(Path(path).read_text(encoding="utf-8"))
    for complaint in found:
        print(f"commit message: {complaint}", file=sys.stderr)
    if found:
        print("example: fix(node): refuse bundles older than the active one", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
