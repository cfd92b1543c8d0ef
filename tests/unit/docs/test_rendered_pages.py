"""Pages that are rendered from the code say what the code says, and pages that point somewhere point at something."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest


def test_protocol_page_is_up_to_date(repo_root: Path) -> None:
    script = runpy.run_path(str(repo_root / "scripts/render-protocol"))

    assert (repo_root / "docs/protocol.md").read_text() == script["render"](), "run scripts/render-protocol"


def test_each_message_names_its_golden_vector(repo_root: Path) -> None:
    _, *sections = (repo_root / "docs/protocol.md").read_text().split("\n### ")

    assert len(sections) > 80
    assert [one.partition("\n")[0] for one in sections if "Golden vector: " not in one] == []


@pytest.mark.parametrize(
    "page", ["docs/protocol.md", "docs/architecture.md", "docs/threat-model.md", "README.md", "CONTRIBUTING.md"]
)
def test_every_path_that_a_page_names_exists(repo_root: Path, page: str) -> None:
    text = (repo_root / page).read_text()
    roots = (
        "protocol/",
        "blobs/",
        "fl/",
        "contracts/",
        "node/parity_node/",
        "market/parity_market/",
        "client/",
        "cli/",
        "tests/",
        "scripts/",
        "docs/",
    )
    named = {
        word
        for word in re.findall(r"`([\w./-]+)`", text)
        if word.startswith(roots) and "NAME" not in word and "NNNN" not in word
    }
    linked = set(re.findall(r"\]\(([\w./-]+)\)", text))

    missing = [word for word in named if not (repo_root / word).exists()]
    missing += [target for target in linked if not ((repo_root / page).parent / target).exists()]

    assert not missing
