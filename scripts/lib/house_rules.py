"""Rules of this project that no linter knows: size of files, words that do not belong in a commit, addresses in locks.

Usage: python house_rules.py FILE…
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_LINES = 500
CODE = {".py", ".sol", ".sh"}
ANY_LENGTH = re.compile(r"(?:^|/)(?:tests?|migrations|artifacts|requirements)/")  # a suite is as long as its cases

LEFT_OVER = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b(?!\(#\d+\):)")
UNFINISHED = re.compile(r"\braise NotImplementedError\b")
MACHINE_PATH = re.compile(r"(?<![\w.~$}])/(?:work|root|Users|farm)/[\w.]")
CONFLICT = re.compile(r"^(?:<{7} |>{7} |={7}$)")


def complaints(name: str, text: str) -> Iterator[str]:
    """Yield what breaks a rule in one file, as ``file:line: reason``."""
    lines = text.splitlines()
    is_code = Path(name).suffix in CODE or name.startswith(("scripts/", ".ci/", ".githooks/"))
    if is_code and not ANY_LENGTH.search(name) and len(lines) > MAX_LINES:
        yield f"{name}: {len(lines)} lines, at most {MAX_LINES}: split it by noun"
    # This file and its tests must spell what they look for.
    if name.endswith("house_rules.py"):
        return
    for number, line in enumerate(lines, 1):
        if is_code and LEFT_OVER.search(line):
            yield f"{name}:{number}: a left-over needs an issue: TODO(#123): …"
        if is_code and UNFINISHED.search(line):
            yield f"{name}:{number}: unfinished code"
        if MACHINE_PATH.search(line):
            yield f"{name}:{number}: a path of one machine"
        if CONFLICT.match(line):
            yield f"{name}:{number}: a merge conflict"
        if (name.endswith("package-lock.json") and '"resolved":' in line) or (name.endswith(".lock") and "://" in line):
            yield f"{name}:{number}: an address in a lock file"


def main(names: list[str]) -> int:
    """Print every complaint; 1 if there are any. Binary files and files that are gone are passed over."""
    found = 0
    for name in names:
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue
        for complaint in complaints(name, text):
            print(complaint, file=sys.stderr)
            found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
