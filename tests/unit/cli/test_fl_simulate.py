"""``parity fl simulate`` and ``parity fl plot``."""

from __future__ import annotations

import json
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits

from parity_cli.charts import Curve, Panel, panels_of, png_image, terminal_chart
from parity_cli.tables import label_last
from parity_fl.data import parse_csv
from parity_protocol.errors import BadDocument, BadField

if TYPE_CHECKING:
    from .conftest import Parity
else:
    Parity = Any


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A table whose label is its first column."""
    found = load_digits()
    return _table(tmp_path / "digits.csv", "digit", found.target[:600], found.data[:600])


@pytest.fixture
def diabetes(tmp_path: Path) -> Path:
    features, target = load_diabetes(return_X_y=True)
    return _table(tmp_path / "diabetes.csv", "progress", target, features)


def _table(path: Path, label: str, target: np.ndarray, features: np.ndarray) -> Path:
    names = ",".join([label, *(f"f{place}" for place in range(features.shape[1]))])
    rows = "\n".join(",".join(f"{value:.17g}" for value in row) for row in np.c_[target, features])
    path.write_text(f"{names}\n{rows}\n")
    return path


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # the command sets them for its own process


def small(parity: Parity, data: Path, *more: str) -> Any:
    options = ("--nodes", "4", "--rounds", "3", "--hidden", "16", "--epochs", "2", "--seed", "9")
    return parity("fl", "simulate", "--data", str(data), "--label", "digit", *options, *more)


# -- simulate -------------------------------------------------------------------------------------------------------


def test_a_simulation_is_one_document_that_comes_out_the_same_again(parity: Parity, digits: Path) -> None:
    first, second = small(parity, digits, "--json"), small(parity, digits, "--json")

    assert first.code == 0
    assert first.out == second.out
    assert {"accuracy", "loss", "rounds", "assignment_hash", "model_hash"} <= set(first.json)
    assert [each["round"] for each in first.json["rounds"]] == [1, 2, 3]
    assert first.json["accuracy"] > 0.6
    assert first.json["settings"]["train_config"]["epochs"] == 2


def test_differential_privacy_tells_epsilon_of_every_round(parity: Parity, digits: Path) -> None:
    private = ("--dp-noise", "0.8", "--dp-clip", "0.5", "--dp-delta", "1e-3", "--holdout", "0.3")
    done, seen = small(parity, digits, *private, "--json"), small(parity, digits, *private)

    told = [each["metrics"]["epsilon"] for each in done.json["rounds"]]
    assert done.code == seen.code == 0
    assert told == sorted(told)
    assert told[0] > 1
    assert done.json["settings"]["privacy"] == {
        "differential_privacy": True, "noise_multiplier": 0.8, "l2_norm_clip": 0.5, "delta": 0.001
    }  # fmt: skip
    assert "epsilon spent\n" in seen.out
    assert f"epsilon {told[-1]:.3g} at delta 0.001 after 3 rounds, clip norm 0.5" in seen.out


def test_an_impossible_combination_with_privacy_is_refused_in_words(parity: Parity, digits: Path) -> None:
    done = small(parity, digits, "--dp-noise", "1", "--strategy", "FedMedian")

    assert done.code != 0
    assert "differential_privacy needs a rule that is a mean" in done.err


def test_people_see_charts_and_what_was_done(parity: Parity, digits: Path) -> None:
    done = small(parity, digits)

    assert done.code == 0
    assert "accuracy\n" in done.out
    assert "4 random, 120 rows" in done.out
    assert "3 rounds" in done.out


def test_another_seed_is_another_cut(parity: Parity, digits: Path) -> None:
    first, second = (small(parity, digits, "--seed", seed, "--json").json for seed in ("1", "2"))

    assert first["assignment_hash"] != second["assignment_hash"]


def test_sixty_four_hex_characters_are_the_seed_itself(parity: Parity, digits: Path) -> None:
    assert small(parity, digits, "--seed", "ab" * 32, "--json").json["seed"] == "ab" * 32


def test_every_section_can_be_set(parity: Parity, digits: Path) -> None:
    done = small(
        parity, digits, "--json", "--partition", "dirichlet", "--alpha", "0.5", "--strategy", "fedtrimmedavg",
        "--set", "strategy.trim_beta=0.25", "--set", "model.activation=tanh", "--set", "train.optimizer=momentum",
        "--set", "partition.balanced=true",
    )  # fmt: skip

    settings = done.json["settings"]
    assert settings["strategy_config"]["trim_beta"] == 0.25
    assert settings["model_config"]["activation"] == "tanh"
    assert settings["train_config"]["optimizer"] == "momentum"
    assert settings["partition_config"]["balanced"] is True
    assert settings["partition_config"]["strategy"] == "non_iid"
    assert done.json["strategy"] == "FedTrimmedAvg"


def test_a_strategys_own_rate_is_what_nodes_train_with(parity: Parity, digits: Path) -> None:
    done = small(parity, digits, "--json", "--strategy", "fedadam", "--set", "strategy.client_lr=0.05")

    assert done.json["settings"]["train_config"]["learning_rate"] == 0.05


def test_attackers_are_named_and_their_updates_counted(parity: Parity, digits: Path) -> None:
    done = small(parity, digits, "--attack", "nan:1")

    assert "malicious" in done.out
    assert "3 updates" in done.out


def test_contributions_come_with_every_round(parity: Parity, digits: Path) -> None:
    left_out = small(parity, digits, "--contributions", "--json")
    shared = small(parity, digits, "--contributions", "shapley", "--json")

    for done in (left_out, shared):
        assert all(len(each["contributions"]) == 4 for each in done.json["rounds"])
    assert shared.json["rounds"][0]["contributions"] != left_out.json["rounds"][0]["contributions"]


def test_a_bad_choice_is_warned_about(parity: Parity, digits: Path) -> None:
    done = small(parity, digits, "--strategy", "krum", "--partition", "label_skew")

    assert "warning: Krum" in done.err


@pytest.mark.parametrize("solver", ["sgd", "exact"])
def test_linear_regression_says_r2_and_takes_its_size_from_the_data(
    parity: Parity, diabetes: Path, solver: str
) -> None:
    done = parity(
        "fl", "simulate", "--data", str(diabetes), "--label", "progress", "--model", "linear_regression",
        "--set", f"model.solver={solver}", "--nodes", "3", "--json",
    )  # fmt: skip

    assert 0.2 < done.json["r2"] < 0.6
    assert len(done.json["rounds"]) == (20 if solver == "sgd" else 1)
    assert done.json["settings"]["model_config"]["input_size"] == 10


def test_a_forest_takes_one_round_and_no_strategy(parity: Parity, digits: Path) -> None:
    done = parity(
        "fl", "simulate", "--data", str(digits), "--label", "digit", "--model", "random_forest", "--nodes", "2",
        "--set", "model.num_trees=8", "--strategy", "krum", "--json",
    )  # fmt: skip

    assert done.json["accuracy"] > 0.7
    assert "the strategy is ignored" in done.err


@pytest.mark.parametrize("choice", [["--mode", "histogram"], ["--set", "model.mode=histogram"]])
def test_the_mode_of_a_forest_can_be_chosen(parity: Parity, digits: Path, choice: list[str]) -> None:
    done = parity(
        "fl", "simulate", "--data", str(digits), "--label", "digit", "--model", "random_forest", "--nodes", "2",
        "--set", "model.num_trees=4", "--set", "model.max_depth=4", "--json", *choice,
    )  # fmt: skip

    assert done.json["strategy"] == "histogram"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--label", "digits"], "no column 'digits'; did you mean 'digit'?"),
        (["--partition", "non_iid", "--alpha", "0"], "alpha parameter must be positive for non-IID partitioning"),
        (["--partition", "non_iid"], "alpha parameter is required"),
        (["--strategy", "bulyan", "--set", "strategy.num_malicious=1"], "Bulyan needs n >= 4f + 3 = 7"),
        (["--strategy", "fedmax"], "strategy must be one of"),
        (["--attack", "spam:1"], "attack must be one of"),
        (["--nodes", "600"], "min_samples"),
        (["--set", "colour.x=1"], "SECTION.NAME=VALUE"),
        (["--set", "model.colour=1"], "unknown field"),
        (["--plot", "x.gif"], "must end in .html or .png"),
    ],
)
def test_what_cannot_be_is_refused_in_words(parity: Parity, digits: Path, options: list[str], words: str) -> None:
    done = small(parity, digits, *options)

    assert done.code != 0
    assert words in done.err


def test_an_empty_file_is_called_empty(parity: Parity, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()

    done = parity(
        "fl", "simulate", "--data", str(tmp_path / "empty.csv"), "--label", "x", "--model", "neural_network", "--nodes", "2"
    )  # fmt: skip

    assert done.code != 0
    assert "the data are empty" in done.err


# -- the label's column ---------------------------------------------------------------------------------------------


def test_the_label_is_moved_to_the_end_and_cells_stay_what_they_were() -> None:
    table = b'name,"a, b",c\nx,1.50,2\n"y ""z""",3,4e-3\n'

    moved = label_last(table, "name")

    assert moved.decode().splitlines() == ['"a, b",c,name', "1.50,2,x", '3,4e-3,"y ""z"""']
    assert parse_csv(moved).labels.tolist() == ["x", 'y "z"']
    assert label_last(table, "c") is table
    assert label_last(table, "1") == moved


@pytest.mark.parametrize(
    ("table", "column"),
    [(b"a,b\n1,2\n", "c"), (b"a,a,b\n1,2,3\n", "a"), (b"", "a"), (b"\xff\xfe", "a"), (b"a,b\n", "3")],
)
def test_a_column_that_is_not_there_once_is_refused(table: bytes, column: str) -> None:
    with pytest.raises(BadField):
        label_last(table, column)


# -- plot -----------------------------------------------------------------------------------------------------------

RUN = {
    "strategy": "<FedAvg>",
    "rounds": [
        {"round": 1, "accuracy": 0.5, "loss": 1.5, "train_loss": 1.2, "contributions": {"0": 0.1, "1": -0.2}},
        {"round": 2, "accuracy": 0.75, "loss": 0.9, "train_loss": 0.4, "contributions": {"0": 0.2, "1": None}},
    ],
}


def test_a_run_has_panels_of_quality_loss_and_contributions() -> None:
    quality, loss, nodes = panels_of(RUN)

    assert [curve.name for curve in quality.curves] == ["accuracy"]
    assert quality.curves[0].points == ((1, 0.5), (2, 0.75))
    assert [curve.name for curve in loss.curves] == ["loss", "train_loss"]
    assert (loss.low, loss.high) == (0.0, 1.5)
    assert {curve.name: curve.points for curve in nodes.curves}["node 1"] == ((1, -0.2),)


def test_a_session_of_a_market_has_its_scores_one_level_deeper() -> None:
    updates = [{"part": 3, "metrics": {"contribution": 0.25, "loss": 2.0}}, {"part": 1, "metrics": {}}]
    document = {
        "rounds": [
            {"round": 2, "metrics": {"loss": 0.5}, "updates": updates},
            {"round": 1, "metrics": {"loss": 1}, "updates": []},
        ]
    }

    loss, nodes = panels_of(document)

    assert loss.curves[0].points == ((1, 1.0), (2, 0.5))
    assert nodes.curves == (Curve("node 3", ((2, 0.25),)),)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"rounds": []},
        {"rounds": [{"round": 1}]},
        {"rounds": [{"loss": 1.0}]},
        {"rounds": [{"round": 1, "loss": "low"}]},
        {"rounds": [{"round": True, "loss": 1.0}]},
        {"rounds": [3]},
        [],
    ],
)
def test_what_has_no_rounds_to_draw_is_refused(document: object) -> None:
    with pytest.raises(BadDocument):
        panels_of(document)


def test_a_terminal_chart_rises_where_the_values_do() -> None:
    panel = Panel("accuracy", (Curve("accuracy", ((1, 0.0), (2, 1.0))),), 0.0, 1.0)

    lines = terminal_chart(panel, width=40, height=6).splitlines()

    plot = [line[12:] for line in lines[1:7]]
    inked = [[place for place, dots in enumerate(row) if dots != "\u2800"] for row in plot]
    assert all(inked)
    assert min(inked[0]) > max(inked[-1])
    assert lines[0] == "accuracy"
    assert lines[1].split()[0] == "1"
    assert "accuracy 1.0000" in lines[-1]
    assert {len(line) for line in lines[1:8]} == {39}


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_a_flat_line_of_one_round_is_drawn_too(value: float) -> None:
    panels = panels_of({"rounds": [{"round": 1, "accuracy": value, "loss": value}]})

    assert all(panel.low < panel.high for panel in panels)
    assert all(terminal_chart(panel, width=60, height=5) for panel in panels)
    assert png_image(panels).startswith(b"\x89PNG")


def test_plot_writes_a_page_that_loads_nothing_and_a_valid_image(parity: Parity, tmp_path: Path) -> None:
    source, page, image = tmp_path / "run.json", tmp_path / "run.html", tmp_path / "run.png"
    source.write_text(json.dumps(RUN))

    done = parity("fl", "plot", str(source), "-o", str(page), "-o", str(image), "--json")

    assert done.code == 0
    assert done.json["files"] == [str(page), str(image)]
    tags = Tags()
    tags.feed(page.read_text())
    assert tags.count["svg"] == 3
    assert tags.count["polyline"] == 4
    assert "script" not in tags.count
    assert "fedavg" not in tags.count  # the document's words are text, not tags
    assert not tags.links
    width, height, pixels = read_png(image.read_bytes())
    assert (width, height) == (900, 3 * 340)
    assert len(set(pixels)) >= 5


def test_plot_draws_on_the_terminal(parity: Parity, tmp_path: Path) -> None:
    source = tmp_path / "run.json"
    source.write_text(json.dumps(RUN))

    done = parity("fl", "plot", str(source))

    assert [line for line in done.out.splitlines() if line in {"accuracy", "loss", "contribution"}] == [
        "accuracy",
        "loss",
        "contribution",
    ]


def test_a_simulation_draws_the_same_page(parity: Parity, digits: Path, tmp_path: Path) -> None:
    page, image = tmp_path / "a.html", tmp_path / "a.png"

    small(parity, digits, "--plot", str(page))
    small(parity, digits, "--plot", str(image))

    assert "neural_network, FedAvg, 4 nodes, random" in page.read_text()
    assert read_png(image.read_bytes())[:2] == (900, 2 * 340)


def test_plot_refuses_what_is_no_document(parity: Parity, tmp_path: Path) -> None:
    source = tmp_path / "run.json"
    source.write_text("[]")

    assert parity("fl", "plot", str(source)).code != 0
    assert parity("fl", "plot", str(tmp_path / "none.json")).code != 0


class Tags(HTMLParser):
    """Counts tags, and notes everything that would be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[str, int] = {}
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.links += [str(value) for name, value in attrs if name in {"src", "href"}]


def read_png(data: bytes) -> tuple[int, int, bytes]:
    """Return width, height and palette numbers; every checksum is compared."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, place = {}, 8
    while place < len(data):
        (size,) = struct.unpack(">I", data[place : place + 4])
        name, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + size]
        assert struct.unpack(">I", data[place + 8 + size : place + 12 + size]) == (zlib.crc32(name + body),)
        chunks[name] = body
        place += 12 + size
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    rows = zlib.decompress(chunks[b"IDAT"])
    assert len(rows) == height * (width + 1)
    assert max(rows) < len(chunks[b"PLTE"]) // 3
    return width, height, rows


def test_each_node_may_bring_its_own_file(parity: Parity, tmp_path: Path) -> None:
    for name, shift in (("north", 0), ("south", 1)):
        rows = [f"{(at + shift) % 7},{at % 3},{int(at % 7 > 3)}" for at in range(40)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["a,b,label", *rows]) + "\n")

    done = parity("fl", "simulate", "--shard", "north.csv", "--shard", "south.csv", "--rounds", "2", "--json")
    both = parity("fl", "simulate", "--shard", "north.csv", "--data", "south.csv")
    attacked = parity("fl", "simulate", "--shard", "north.csv", "--shard", "south.csv", "--attack", "nan:1")

    assert done.code == 0, done.err
    assert done.json["partition"]["total_parts"] == 2
    assert len(done.json["rounds"]) == 2
    assert (both.code, attacked.code) == (2, 2)
    assert "--attack does not go with --shard" in attacked.err


def test_of_a_rounds_phases_the_one_with_a_score_is_drawn() -> None:
    rounds = [
        {"round": 1, "phase": 0, "metrics": {"epsilon": 1.0}},
        {"round": 1, "phase": 1, "metrics": {"accuracy": 0.5, "loss": 1.0, "epsilon": 1.0}},
        {"round": 2, "phase": 0, "metrics": {}},
    ]

    quality, loss, spent = panels_of({"rounds": rounds})

    assert quality.curves == (Curve("accuracy", ((1, 0.5),)),)
    assert loss.curves == (Curve("loss", ((1, 1.0),)),)
    assert spent.curves == (Curve("epsilon", ((1, 1.0),)),)
