"""What the doctor says of the engine Flower."""

from __future__ import annotations

from pathlib import Path

import pytest

from parity_fl.engines.flower import ENGINE_FILE, engine_folder
from parity_node.doctor import FindingResult, check_machine


def test_the_doctor_says_whether_flower_is_there_and_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PARITY_ENGINES", str(tmp_path))

    before = next(one for one in check_machine(wants_sandbox=False) if one.id == "flower")
    engine_folder().mkdir(parents=True)
    (engine_folder() / ENGINE_FILE).write_text("{}")
    after = next(one for one in check_machine(wants_sandbox=False) if one.id == "flower")

    assert (before.result, before.fix) == (FindingResult.NOT_APPLICABLE, "parity fl engine install flower")
    assert after.result is FindingResult.OK
