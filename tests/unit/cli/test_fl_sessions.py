"""`parity fl run|sessions|show|watch|model|pause|resume|stop|plot` against a market in memory, as a person sees them."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from parity_client.testing import FakeMarket
from parity_protocol.testing.keys import deterministic_evm_key

from .fl_sessions import SPEC, begun, close_rounds, only

if TYPE_CHECKING:
    from .conftest import Done, Parity
else:
    Done = Parity = Any


# -- run -------------------------------------------------------------------------------------------------------------


def test_a_session_is_followed_round_by_round_and_its_model_kept(
    parity: Parity, joined: FakeMarket, spec: Path, tmp_path: Path
) -> None:
    done = parity("fl", "run", str(spec), "--reward", "1", "-o", "model.safetensors")

    assert done.code == 0
    said = done.err.splitlines()
    assert said[0] == "submitted session group-1 (2 parts)"
    assert said[1:4] == [
        "round 1/3  accuracy 0.5000  loss 1.0000  2 of 2 updates",
        "round 2/3  accuracy 0.7500  loss 0.5000  2 of 2 updates",
        "round 3/3  accuracy 0.8333  loss 0.3333  2 of 2 updates",
    ]
    assert said[4].startswith("model  model.safetensors, verified against baf")
    assert "state    completed, round 3/3" in done.out
    assert (tmp_path / "model.safetensors").read_bytes() == b"the finished model"


def test_with_json_there_is_one_document_and_it_names_the_file(parity: Parity, joined: FakeMarket, spec: Path) -> None:
    done = parity("fl", "run", str(spec), "--reward", "1", "-o", "m.bin", "--json")

    assert done.code == 0
    assert {name: done.json[name] for name in ("id", "state", "round", "total_rounds", "path")} == {
        "id": "group-1",
        "state": "completed",
        "round": 4,
        "total_rounds": 3,
        "path": "m.bin",
    }
    assert [one["round"] for one in done.json["rounds"]] == [1, 2, 3]
    assert done.json["result_cid"].startswith("baf")


def test_a_session_whose_parts_are_merged_at_once_is_followed_shown_and_kept_like_every_other(
    parity: Parity, joined: FakeMarket, tmp_path: Path
) -> None:
    forest = {name: SPEC[name] for name in ("dataset_cid", "data_format", "partition_config")}
    (tmp_path / "forest.json").write_text(json.dumps({**forest, "model_type": "random_forest"}))

    done = parity("fl", "run", "forest.json", "--reward", "1", "-o", "forest.safetensors")
    shown, listed = parity("fl", "show", "group-1"), parity("fl", "sessions", "--json")
    watched = parity("fl", "watch", "group-1")

    assert done.code == 0, done.err
    assert done.out == shown.out == watched.out
    assert done.out.splitlines()[1] == "state    completed, round 1/1"
    assert done.out.splitlines()[-2:] == ["accuracy 0.9", "oob_federated 0.8"]
    assert (tmp_path / "forest.safetensors").read_bytes() == b"the merged model"
    assert [one["id"] for one in listed.json["sessions"]] == ["group-1"]


def test_data_that_no_node_could_read_are_not_stored(parity: Parity, joined: FakeMarket, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("a,label\n1,2\nx,3\n")

    done = parity("fl", "run", "--data", "d.csv", "--model", "random_forest", "--reward", "1")

    assert done.code != 0
    assert "d.csv: " in done.err
    assert joined.storage.visibility == {}


def test_a_forest_is_asked_for_by_options_and_has_nothing_of_rounds(
    parity: Parity, joined: FakeMarket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d.csv").write_text("a,label\n1,2\n")
    monkeypatch.setenv("FL_NUM_ROUNDS", "7")
    monkeypatch.setenv("FL_STRATEGY", "FedAdam")
    forest = ("fl", "run", "--data", "d.csv", "--model", "random_forest", "--mode", "histogram", "--reward", "1")

    done = parity(*forest, "--set", "model.num_trees=20", "--set", "model.criterion=entropy", "--no-wait")
    wrong = parity(*forest, "--epochs", "3")

    assert done.code == 0, done.err
    sent = only(joined).spec
    assert sent["model_config"] == {"mode": "histogram", "num_trees": 20, "criterion": "entropy"}
    assert not {"train_config", "strategy_config", "rounds_config", "total_rounds"} & set(sent)
    assert wrong.code == 2
    assert "--epochs means nothing to a random_forest" in wrong.err


@pytest.mark.parametrize("how", [("--solver", "exact"), ("--set", "model.solver=exact")])
def test_the_exact_solver_is_not_asked_for_rounds(
    parity: Parity, joined: FakeMarket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: tuple[str, str]
) -> None:
    (tmp_path / "d.csv").write_text("a,b,label\n1,2,3\n")
    monkeypatch.setenv("FL_NUM_ROUNDS", "7")

    done = parity("fl", "run", "--data", "d.csv", "--model", "linear_regression", *how, "--reward", "1", "--no-wait")

    assert done.code == 0, done.err
    assert only(joined).spec["model_config"] == {"input_size": 2, "solver": "exact"}
    assert not {"total_rounds", "rounds_config"} & set(only(joined).spec)


def test_settings_without_an_option_go_over_those_of_the_spec(parity: Parity, joined: FakeMarket, spec: Path) -> None:
    changes = ("strategy.strategy=Krum", "rounds.quorum=2", "partition.min_samples=5")
    asked = [word for each in changes for word in ("--set", each)]

    done = parity("fl", "run", str(spec), "--reward", "1", "--no-wait", *asked)
    sent = only(joined).spec
    wrong = parity("fl", "run", str(spec), "--reward", "1", "--no-wait", "--set", "quorum=2")

    assert done.code == 0, done.err
    assert (sent["strategy_config"], sent["rounds_config"]) == ({"strategy": "Krum"}, {"quorum": 2})
    assert sent["partition_config"] == {**SPEC["partition_config"], "min_samples": 5}
    assert sent["model_config"] == SPEC["model_config"]
    assert wrong.code == 2
    assert "is not SECTION.NAME=VALUE with one of model, train, partition, strategy, rounds, privacy" in wrong.err
    assert len(joined.training.sessions) == 1


def test_what_shards_agreed_on_is_listed_from_round_0(parity: Parity, joined: FakeMarket, spec: Path) -> None:
    session = begun(parity, joined, spec)
    close_rounds(joined, session, 1)
    session.rounds.insert(0, {**session.rounds[0], "round": 0, "asks": "summary"})

    assert "0 summary" in parity("fl", "show", session.id, "--from-round", "0").out
    assert "0 summary" not in parity("fl", "show", session.id).out


def test_epsilon_and_clip_norm_are_shown_by_round(parity: Parity, joined: FakeMarket, spec: Path) -> None:
    session = begun(parity, joined, spec)
    close_rounds(joined, session, 1)
    plain = parity("fl", "show", session.id).out
    session.rounds[0]["metrics"] |= {"epsilon": 12.3456, "clip_norm": 0.25}

    shown, watched = parity("fl", "show", session.id).out, parity("fl", "watch", session.id).err

    assert "EPSILON" not in plain
    assert "EPSILON" in shown
    assert "12.35" in shown
    assert "epsilon 12.35  clip_norm 0.25" in watched


def test_a_session_that_fails_ends_with_status_70_and_says_why(parity: Parity, joined: FakeMarket, spec: Path) -> None:
    session = begun(parity, joined, spec)
    session.state, session.message = "failed", "round 1: only 1 of 2 needed updates can come: lost parts 1"

    done = parity("fl", "watch", session.id)

    assert done.code == 70
    assert "lost parts 1" in done.err


def test_a_session_is_watched_to_its_end_by_who_comes_later(parity: Parity, joined: FakeMarket, spec: Path) -> None:
    session = begun(parity, joined, spec)
    close_rounds(joined, session, 1)

    done = parity("fl", "watch", session.id)
    again = parity("fl", "watch", session.id, "--json")

    assert done.code == again.code == 0
    assert [line.split()[:2] for line in done.err.splitlines()] == [["round", f"{number}/3"] for number in (1, 2, 3)]
    assert (again.json["state"], len(again.json["rounds"])) == ("completed", 3)


def test_what_no_option_says_is_left_to_the_market(parity: Parity, joined: FakeMarket, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("a,label\n1,2\n")

    done = parity(
        *("fl", "run", "--data", "d.csv", "--model", "neural_network", "--hidden", "8", "--hidden", "4"),
        *("--epochs", "2", "--batch-size", "4", "--learning-rate", "0.05", "--reward", "1", "--no-wait"),
    )

    assert done.code == 0
    sent = only(joined).spec
    assert sent["strategy_config"] == {}
    assert sent["rounds_config"] == {}
    assert "total_rounds" not in sent
    assert sent["model_config"] == {"hidden_layers": [8, 4]}
    assert sent["train_config"] == {"epochs": 2, "batch_size": 4, "learning_rate": 0.05}


def test_this_shells_variables_and_options_are_in_what_is_signed(
    parity: Parity, joined: FakeMarket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d.csv").write_text("a,label\n1,2\n")
    for name, value in {
        "FL_STRATEGY": "FedAdam",
        "FL_SERVER_LR": "0.03",
        "FL_CLIENT_LR": "0.2",
        "FL_TRIM_BETA": "0.3",
        "FL_NUM_ROUNDS": "7",
        "FL_MIN_AVAILABLE_CLIENTS": "5",
    }.items():
        monkeypatch.setenv(name, value)
    options = ("fl", "run", "--data", "d.csv", "--model", "neural_network", "--hidden", "8", "--parts", "3")
    rest = ("--epochs", "2", "--batch-size", "4", "--reward", "1", "--no-wait")

    assert parity(*options, *rest).code == 0
    by_variables = joined.training.sessions["group-1"].spec
    assert parity(*options, *rest, "--learning-rate", "0.1", "--strategy", "FedAvg", "--rounds", "2").code == 0
    by_options = joined.training.sessions["group-2"].spec

    assert by_variables["strategy_config"]["strategy"] == "fedadam"
    assert (by_variables["strategy_config"]["server_lr"], by_variables["strategy_config"]["client_lr"]) == (0.03, 0.2)
    assert "learning_rate" not in by_variables["train_config"]
    assert by_variables["total_rounds"] == 7
    assert by_variables["rounds_config"] == {"min_available_clients": 3}
    assert by_options["strategy_config"] == {"strategy": "fedavg"}
    assert by_options["train_config"]["learning_rate"] == 0.1
    assert by_options["total_rounds"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give a SPEC file, or --model"),
        (("--model", "neural_network", "--dataset", "bafy"), "needs --hidden, --epochs, --batch-size, --learning-rate"),
        (
            ("--model", "neural_network", "--dataset", "b", "--set", "model.hidden_size=4"),
            "needs --epochs, --batch-size",
        ),
        (("--model", "linear_regression", "--dataset", "b", "--epochs", "1"), "needs --batch-size, --learning-rate"),
        (("--model", "neural_network", "--hidden", "4", "--data", "s", "--dataset", "b"), "does not exist"),
    ],
)
def test_a_session_that_is_not_said_is_asked_for(
    parity: Parity, joined: FakeMarket, arguments: tuple[str, ...], words: str
) -> None:
    done = parity("fl", "run", "--reward", "1", *arguments)

    assert done.code == 2
    assert words in done.err
    assert joined.tasks == {}


def test_nothing_is_trained_for_a_file_that_is_there_already(
    parity: Parity, joined: FakeMarket, spec: Path, tmp_path: Path
) -> None:
    (tmp_path / "m.bin").write_bytes(b"precious")

    done = parity("fl", "run", str(spec), "--reward", "1", "-o", "m.bin")

    assert done.code == 20
    assert "m.bin exists already" in done.err
    assert joined.tasks == {}


# -- looking ---------------------------------------------------------------------------------------------------------


def test_sessions_are_listed_newest_first(parity: Parity, joined: FakeMarket, spec: Path) -> None:
    assert "no sessions yet: parity fl run --help" in parity("fl", "sessions").out
    first, second = begun(parity, joined, spec), begun(parity, joined, spec)
    close_rounds(joined, first, 3)

    lines = parity("fl", "sessions").out.splitlines()
    document = parity("fl", "sessions", "--limit", "1", "--json").json

    assert lines[0].split() == ["ID", "STATE", "ROUND", "BEGAN"]
    assert [line.split()[:3] for line in lines[1:]] == [
        [second.id, "running", "1/3"],
        [first.id, "completed", "3/3"],
    ]
    assert [one["id"] for one in document["sessions"]] == [second.id]


def test_a_session_is_shown_with_its_rounds_its_parts_and_where_its_settings_come_from(
    parity: Parity, joined: FakeMarket, spec: Path
) -> None:
    session = begun(parity, joined, spec)
    close_rounds(joined, session, 2)
    session.settings["sources"] = {"FL_STRATEGY": ["FedProx", "market"], "FL_NUM_ROUNDS": [3, "session"]}
    session.settings["resumed_from"] = {"cid": "bafy", "round": 0, "session_id": "old"}
    session.rounds[1]["updates"][1] |= {"state": "rejected", "reason": "not finite", "metrics": {"contribution": -0.5}}

    done = parity("fl", "show", session.id)

    assert done.code == 0
    assert "state    running, round 3/3" in done.out
    assert "settings FL_STRATEGY FedProx (market), FL_NUM_ROUNDS 3 (session)" in done.out
    assert "resumed  after round 0 of old, bafy" in done.out
    rows = [line.split() for line in done.out.splitlines()]
    assert ["2", "closed", "0.7500", "0.5000", "1/2", "2.0", "MiB"] in rows
    assert ["1", joined.node_id[:8], "1", "1", "-0.5000"] in rows
    assert parity("fl", "show", session.id, "--from-round", "2", "--json").json["rounds"][0]["round"] == 2


def test_a_session_that_is_not_there_or_somebody_elses_is_not_found(
    parity: Parity, joined: FakeMarket, spec: Path
) -> None:
    session = begun(parity, joined, spec)
    session.creator = deterministic_evm_key("another").address

    for command in ("show", "pause", "stop", "resume", "model"):
        for name in (session.id, "nothing"):
            done = parity("fl", command, name, *(("-o", "m.bin") if command == "model" else ()))
            assert done.code == 22, (command, done.err)
            assert f"no session {name}" in done.err
    assert parity("fl", "watch", "nothing").code == 22


def test_a_shown_session_is_what_plot_draws(parity: Parity, joined: FakeMarket, spec: Path, tmp_path: Path) -> None:
    session = begun(parity, joined, spec)
    close_rounds(joined, session, 3)
    (tmp_path / "run.json").write_text(parity("fl", "show", session.id, "--json").out)

    chart = parity("fl", "plot", "run.json")
    page = parity("fl", "plot", "run.json", "-o", "run.html", "-o", "run.png")

    assert chart.code == page.code == 0
    assert "accuracy" in chart.out
    assert "loss" in chart.out
    assert "<svg" in (tmp_path / "run.html").read_text()
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_plot_draws_a_session_by_its_name_and_says_which_file_is_not_there(
    parity: Parity, joined: FakeMarket, spec: Path, tmp_path: Path
) -> None:
    session = begun(parity, joined, spec)
    close_rounds(joined, session, 3)
    (tmp_path / "run.json").write_text(parity("fl", "show", session.id, "--json").out)

    chart, saved = parity("fl", "plot", session.id), parity("fl", "plot", "run.json")
    missing, unknown = parity("fl", "plot", "other.json"), parity("fl", "plot", "group-9")

    assert chart.code == 0
    assert chart.out == saved.out
    assert (missing.code, unknown.code) == (2, 22)
    assert "there is no file other.json" in missing.err
    assert "no session group-9" in unknown.err


def test_a_long_session_says_where_its_next_rounds_are(parity: Parity, joined: FakeMarket, spec: Path) -> None:
    session = begun(parity, joined, spec)
    session.total_rounds = 300
    close_rounds(joined, session, 210)

    first, next_ = parity("fl", "show", session.id), parity("fl", "show", session.id, "--from-round", "200")

    assert f"more: parity fl show {session.id} --from-round 200" in first.err
    assert "more" not in next_.err
    assert [line.split()[0] for line in next_.out.splitlines() if "closed" in line] == [str(n) for n in range(200, 211)]
    assert len(parity("fl", "plot", session.id, "--json").json["panels"][0]["curves"]["accuracy"]) == 210


def test_who_leaves_a_session_while_it_is_told_why_nobody_takes_it_reads_that_it_goes_on(
    parity: Parity, joined: FakeMarket, spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []

    async def interrupt(_out: object, _client: object, root_id: str) -> None:
        told.append(root_id)
        signal.raise_signal(signal.SIGINT)
        await anyio.sleep_forever()

    monkeypatch.setattr("parity_cli.commands.fl_sessions.tell_why", interrupt)
    joined.training.closes_rounds = False

    done = parity("fl", "run", str(spec), "--reward", "1")

    assert (done.code, told) == (130, ["group-1"])
    assert "`parity fl watch group-1` follows it, `parity fl stop group-1` ends it" in done.err


def test_a_file_that_is_no_specification_is_named(parity: Parity, joined: FakeMarket, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x08\xff")

    done = parity("fl", "run", "model.safetensors", "--reward", "1")

    assert "model.safetensors is no specification of a session" in done.err


def test_contributions_are_summed_over_the_rounds_with_the_share_that_follows_them(
    parity: Parity, joined: FakeMarket, spec: Path
) -> None:
    session = begun(parity, joined, spec)
    close_rounds(joined, session, 2)
    session.settings["rounds"] = {"contribution": "shapley", "base_share": 0.25}
    for at, scores in enumerate(((0.25, 0.5), (0.25, -0.25))):
        for part, score in enumerate(scores):
            session.rounds[at]["updates"][part]["metrics"] = {"contribution": score}

    done = parity("fl", "contributions", session.id)
    document = parity("fl", "contributions", session.id, "--json").json

    assert done.code == 0
    assert "scored   shapley, 75% of the reward follows it" in done.out
    rows = [line.split() for line in done.out.splitlines()]
    assert ["0", joined.node_id[:8], "2", "+0.5000", "100%"] in rows
    assert ["1", joined.node_id[:8], "2", "+0.2500", "50%"] in rows
    assert [part["share"] for part in document["parts"]] == [1.0, 0.5]
    assert document["parts"][1]["rounds"] == [
        {"round": 1, "contribution": 0.5},
        {"round": 2, "contribution": -0.25},
    ]


def test_a_session_whose_parts_are_not_scored_says_how_to_ask_for_it(
    parity: Parity, joined: FakeMarket, spec: Path
) -> None:
    session = begun(parity, joined, spec)

    done = parity("fl", "contributions", session.id)

    assert done.code == 22
    assert "are not scored" in done.err
    assert '"contribution": "shapley"' in done.err
