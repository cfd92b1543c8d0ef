"""``parity fl simulate --save`` and ``parity fl score``: a model in both forms is worth the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sklearn.datasets import load_diabetes, load_iris

if TYPE_CHECKING:
    from .conftest import Parity
else:
    Parity = Any

FORMS = (".safetensors", ".json")
FOREST = ("--model", "random_forest", "--set", "model.num_trees=9")
LINE = ("--model", "linear_regression", "--rounds", "4", "--learning-rate", "0.05")


def table(path: Path, features: Any, labels: Any) -> Path:
    path.write_text(
        "".join(",".join([*map(str, row), str(label)]) + "\n" for row, label in zip(features, labels, strict=True))
    )
    return path


@pytest.fixture
def iris(tmp_path: Path) -> Path:
    found = load_iris()
    return table(tmp_path / "iris.csv", found.data, [found.target_names[one] for one in found.target])


@pytest.fixture
def diabetes(tmp_path: Path) -> Path:
    return table(tmp_path / "diabetes.csv", *load_diabetes(return_X_y=True))


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # the command sets them for its own process


@pytest.mark.parametrize("options", [("--hidden", "8", "--rounds", "3"), FOREST], ids=["network", "forest"])
def test_a_classifier_is_worth_the_same_in_both_forms(
    parity: Parity, iris: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    found = {}
    for form in FORMS:
        path = tmp_path / f"model{form}"
        made = parity("fl", "simulate", "--data", str(iris), "--nodes", "3", "--save", str(path), *options)
        assert made.code == 0, made.err
        found[form] = parity("fl", "score", str(path), "--data", str(iris), "--json").json

    assert found[".safetensors"]["rows"] == found[".json"]["rows"] == 150
    assert found[".safetensors"]["accuracy"] > 0.6
    assert found[".json"]["accuracy"] == pytest.approx(found[".safetensors"]["accuracy"], abs=0.02)


def test_a_line_is_worth_the_same_in_both_forms(parity: Parity, diabetes: Path, tmp_path: Path) -> None:
    found = {}
    for form in FORMS:
        path = tmp_path / f"model{form}"
        made = parity("fl", "simulate", "--data", str(diabetes), "--nodes", "3", "--save", str(path), *LINE)
        assert made.code == 0, made.err
        found[form] = parity("fl", "score", str(path), "--data", str(diabetes), "--json").json

    assert found[".safetensors"]["r2"] > 0.3
    assert found[".json"]["r2"] == pytest.approx(found[".safetensors"]["r2"], abs=1e-9)


def test_the_old_form_has_the_old_networks_members(parity: Parity, diabetes: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    parity("fl", "simulate", "--data", str(diabetes), "--nodes", "3", "--save", str(path), *LINE)

    document = json.loads(path.read_text())

    assert document["model_type"] == "linear_regression"
    data = document["model_data"]
    assert len(data["weights"]["layer_weights"]) == 11
    assert data["weights"] == data["aggregated_model"] == data["gradients"]
    assert (data["method"], data["participant_count"]) == ("fedavg", 3)
    assert data["global_metrics"]["r2"] == pytest.approx(data["global_metrics"]["r2"])


def test_a_label_that_the_model_does_not_know_is_wrong(parity: Parity, iris: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    parity("fl", "simulate", "--data", str(iris), "--nodes", "2", "--save", str(path), *FOREST)
    strange = tmp_path / "strange.csv"
    strange.write_text(iris.read_text().replace("setosa", "rose"))

    known = parity("fl", "score", str(path), "--data", str(iris), "--json").json["accuracy"]
    unknown = parity("fl", "score", str(path), "--data", str(strange), "--json").json["accuracy"]

    assert unknown == pytest.approx(known - 1 / 3, abs=0.02)
    said = parity("fl", "score", str(path), "--data", str(strange)).err
    assert "50 of the rows have a label that is no class of the model" in said
    assert parity("fl", "score", str(path), "--data", str(iris)).err == ""


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("model.json", '{"model_type": "linear_regression"}', "model_data is required"),
        ("model.json", '{"model_data": NaN}', "not JSON"),
        ("model.safetensors", "nonsense", "not a tensor document"),
        ("missing.json", None, "No such file"),
    ],
)
def test_what_is_no_model_is_refused(
    parity: Parity, iris: Path, tmp_path: Path, name: str, text: str | None, words: str
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)

    done = parity("fl", "score", str(path), "--data", str(iris))

    assert done.code != 0
    assert words in done.err


def test_a_model_is_saved_under_a_name_that_says_its_form_and_never_over_a_file(
    parity: Parity, iris: Path, tmp_path: Path
) -> None:
    taken = tmp_path / "taken.json"
    taken.write_text("mine")
    options = ("fl", "simulate", "--data", str(iris), "--nodes", "2", *FOREST)

    no_form, exists = parity(*options, "--save", str(tmp_path / "model")), parity(*options, "--save", str(taken))

    assert "must end in .safetensors or .json" in no_form.err
    assert "exists already" in exists.err
    assert taken.read_text() == "mine"
