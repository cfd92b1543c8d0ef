"""`parity fl run --shard …` against a market in memory, as a person sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from parity_client import Client, remote
from parity_client.testing import FakeMarket
from parity_protocol.api import paths
from parity_protocol.errors import BadField, Unreachable
from parity_protocol.needs import CidInput, HttpsInput, ShardInput
from parity_protocol.shards import open_shards

if TYPE_CHECKING:
    from .conftest import Done, Parity
else:
    Done = Parity = Any

OPTIONS = ("--model", "neural_network", "--hidden", "4", "--epochs", "1", "--batch-size", "4", "--learning-rate", "0.1")
CID = "bafkreicysg23kiwv34eg2d7qweipxwosdo2py4ldv42nbauguluen5v6am"
DIGEST = "ab" * 32


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    for name, labels in (("north", "0,1,1,0"), ("south", "1,2,2,1,1")):
        rows = [f"{at},{at + 1},{label}" for at, label in enumerate(labels.split(","))]
        (tmp_path / f"{name}.csv").write_text("\n".join(["a,b,label", *rows]) + "\n")
    return ["north.csv", "south.csv"]


def run(
    parity: Parity, *shards: str, options: tuple[str, ...] = OPTIONS, more: tuple[str, ...] = ("--no-wait",)
) -> Done:
    given = [word for shard in shards for word in ("--shard", shard)]
    return parity("fl", "run", *given, *options, "--reward", "1", *more)


def sent(market: FakeMarket) -> Any:
    [session] = market.training.sessions.values()
    return session.spec


def test_each_file_is_stored_for_its_own_part_and_the_spec_names_none(
    parity: Parity, joined: FakeMarket, shards: list[str]
) -> None:
    done = run(parity, *shards, options=(*OPTIONS, "--min-samples", "2"))

    assert done.code == 0, done.err
    spec = sent(joined)
    sources = [shard.source for shard in open_shards(joined.sealed, spec["shards"])]
    stored = list(joined.storage.visibility)
    assert [source.cid for source in sources if isinstance(source, CidInput)] == stored
    assert set(joined.storage.visibility.values()) == {"private"}
    assert not any(cid in json.dumps(spec) for cid in stored)
    assert spec["data_mode"] == "sharded"
    assert "dataset_cid" not in spec
    assert spec["partition_config"] == {"min_samples": 2}
    assert "shard 1  south.csv stored as baf" in done.err


def test_every_form_of_a_source_is_signed(parity: Parity, joined: FakeMarket, tmp_path: Path) -> None:
    url = f"https://example.org/part.csv#sha256={DIGEST}&size=77"

    done = run(parity, f"cid:{CID}", "local:hospital-a", url)

    assert done.code == 0, done.err
    found = [shard.source for shard in open_shards(joined.sealed, sent(joined)["shards"])]
    assert found == [
        CidInput(cid=CID, max_bytes=128 << 20),
        ShardInput(shard="hospital-a"),
        HttpsInput(url="https://example.org/part.csv", sha256=DIGEST, size=77),
    ]


def test_a_dry_run_says_what_each_part_has_and_sends_nothing(
    parity: Parity, joined: FakeMarket, shards: list[str]
) -> None:
    options = (*OPTIONS, "--min-samples", "2")
    done = run(parity, *shards, "local:hospital-a", options=options, more=("--dry-run", "--json"))

    assert done.code == 0, done.err
    assert [row["source"] for row in done.json["shards"]] == ["north.csv", "south.csv", "local:hospital-a"]
    assert done.json["shards"][1]["classes"] == {"1": 3, "2": 2}
    assert joined.training.sessions == {}
    assert joined.storage.visibility == {}
    shown = run(parity, *shards, options=options, more=("--dry-run",))
    assert "south.csv" in shown.out
    assert "1:3, 2:2" in shown.out


@pytest.mark.parametrize(
    ("shard", "words"),
    [
        ("nowhere.csv", "shard 1 ('nowhere.csv'): there is no such file"),
        ("cid:rubbish", "shard 1 ('cid:rubbish')"),
        ("local:/etc/passwd", "shard 1 ('local:/etc/passwd')"),
        ("http://example.org/a", "only https"),
        ("https://example.org/a", "needs the digest"),
        ("https://example.org/a#sha256=12", "shard 1 ('https://example.org/a#sha256=12')"),
        ("empty.csv", "has 0 bytes"),
        ("broken.csv", "shard 1 (broken.csv): "),
        ("wide.csv", "part 1 has 3 features, part 0 has 2"),
    ],
)
def test_a_shard_that_cannot_be_used_is_named_before_anything_is_sent(
    parity: Parity, joined: FakeMarket, shards: list[str], tmp_path: Path, shard: str, words: str
) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "broken.csv").write_text("a,b,label\n1,x,0\n")
    (tmp_path / "wide.csv").write_text("a,b,c,label\n1,2,3,0\n1,2,3,1\n")

    done = run(parity, "north.csv", shard, options=(*OPTIONS, "--min-samples", "1"))

    assert done.code != 0
    assert words in done.err
    assert joined.storage.visibility == {}
    assert joined.training.sessions == {}


def test_too_few_rows_are_seen_before_anything_is_sent(parity: Parity, joined: FakeMarket, shards: list[str]) -> None:
    done = run(parity, *shards, options=(*OPTIONS, "--min-samples", "9"))

    assert done.code != 0
    assert "part 0 would have" in done.err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--dataset", CID), "one of --data, --dataset and --shard"),
        (("--alpha", "0.5"), "--alpha cuts one data set"),
    ],
)
def test_options_of_one_data_set_do_not_go_with_shards(
    parity: Parity, joined: FakeMarket, shards: list[str], more: tuple[str, ...], words: str
) -> None:
    done = run(parity, *shards, more=(*more, "--no-wait"))

    assert done.code == 2
    assert words in done.err


def test_evaluation_data_are_stored_and_signed(parity: Parity, joined: FakeMarket, shards: list[str]) -> None:
    done = run(parity, "local:a", "local:b", more=("--eval", "north.csv", "--no-wait"))

    assert done.code == 0, done.err
    assert sent(joined)["eval_cid"] in joined.storage.visibility
    alone = parity("fl", "run", "--dataset", CID, *OPTIONS, "--reward", "1", "--eval", CID)
    assert alone.code == 2
    assert "--eval belongs to --shard" in alone.err


def test_a_spec_file_is_given_its_shards(parity: Parity, joined: FakeMarket, tmp_path: Path) -> None:
    spec = {
        "model_type": "linear_regression",
        "data_format": "csv",
        "model_config": {"input_size": 2, "solver": "exact"},
    }
    (tmp_path / "session.json").write_text(json.dumps(spec))

    done = parity("fl", "run", "session.json", "--shard", "local:a", "--shard", "local:b", "--reward", "1", "--no-wait")

    assert done.code == 0, done.err
    assert sent(joined)["model_config"] == spec["model_config"]
    assert len(sent(joined)["shards"]) == 2


async def test_a_url_is_asked_for_its_size_over_https_alone() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        match request.url.path:
            case "/moved":
                return httpx.Response(302, headers={"location": "/data"})
            case "/down":
                return httpx.Response(302, headers={"location": "http://example.org/data"})
            case "/data":
                return httpx.Response(200, headers={"content-length": "77"})
            case "/gone":
                return httpx.Response(404, headers={"content-length": "9"})
            case _:
                raise httpx.ConnectError("no route")

    transport = httpx.MockTransport(answer)

    found = [
        await remote.content_length(f"https://example.org{path}", transport=transport)
        for path in ("/data", "/moved", "/down", "/gone")
    ]

    assert found == [77, 77, None, None]
    with pytest.raises(Unreachable, match=r"example\.org"):
        await remote.content_length("https://example.org/none", transport=transport)


def test_privacy_switches_are_in_the_signed_spec(parity: Parity, joined: FakeMarket, shards: list[str]) -> None:
    options = (*OPTIONS, "--min-samples", "2", "--dp-noise", "1.1", "--dp-clip", "0.5", "--secure-aggregation")

    done = run(parity, *shards, options=options)

    assert done.code == 0, done.err
    assert sent(joined)["privacy"] == {
        "differential_privacy": True,
        "noise_multiplier": 1.1,
        "l2_norm_clip": 0.5,
        "secure_aggregation": True,
    }


def test_what_the_market_would_refuse_is_not_stored(parity: Parity, joined: FakeMarket, shards: list[str]) -> None:
    refusal = BadField("secure_aggregation needs 3 to 200 parts, got 2", field="spec.privacy.secure_aggregation")
    options = (*OPTIONS, "--min-samples", "2")
    for more in ("--no-wait", "--dry-run"):
        joined.fail_next(refusal, path=paths.TASK_CHECK)

        done = run(parity, *shards, options=options, more=("--secure-aggregation", more))

        assert done.code != 0
        assert "needs 3 to 200 parts, got 2" in done.err
    assert joined.storage.visibility == {}
    assert joined.training.sessions == {}


def test_a_file_that_changes_under_the_submission_is_not_signed_for(
    parity: Parity, joined: FakeMarket, shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = Client.check

    async def and_meanwhile(*arguments: Any, **named: Any) -> Any:
        with (tmp_path / "north.csv").open("a") as file:
            file.write("9,9,1\n")
        return await check(*arguments, **named)

    monkeypatch.setattr(Client, "check", and_meanwhile)

    done = run(parity, *shards, options=(*OPTIONS, "--min-samples", "2"))

    assert "north.csv changed while the session was made" in done.err
    assert joined.training.sessions == {}
