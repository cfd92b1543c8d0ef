"""``parity fl simulate``."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from parity_cli.lazy import Command
from parity_cli.output import Output, pass_output

if TYPE_CHECKING:
    from collections.abc import Callable

    from parity_fl.simulation_report import RoundRecord

__all__ = ["simulate"]

MODELS = ("neural_network", "linear_regression", "random_forest")
_SECTIONS = ("model", "train", "partition", "strategy", "privacy")
_ROUNDS = 20
_RATES = {"neural_network": 0.1, "linear_regression": 0.01}
_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


@click.command(
    cls=Command,
    short_help="Run a whole federation in this process, on a file.",
    example="""
    parity fl simulate --data digits.csv --label target --model neural_network --nodes 10 --rounds 20
    parity fl simulate --data digits.csv --partition non_iid --alpha 0.1 --strategy FedAdam --set strategy.server_lr=0.03
    parity fl simulate --data digits.csv --nodes 11 --strategy FedTrimmedAvg --set strategy.pre_aggregation=nnm \\
                       --set strategy.num_malicious=2 --attack sign_flip:2 --plot rounds.html
    parity fl simulate --data digits.csv --nodes 100 --fraction 0.2 --dp-noise 1.1 --dp-clip 0.5
    parity fl simulate --data digits.csv --strategy FedAdam --secure-aggregation
    parity fl simulate --shard north.csv --shard south.csv --shard west.csv --rounds 10
    parity fl simulate --data cancer.csv --model random_forest --mode histogram --partition label_skew --json
    """,
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="CSV (label in the last column, or see --label) or JSON with features and labels.",
)
@click.option(
    "--shard",
    "shards",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="In place of --data: the rows of one node; repeat for each. --nodes and the cut mean nothing then.",
)
@click.option("--label", metavar="COLUMN", help="Name of the label's column in a CSV file. Default: the last one.")
@click.option("--model", type=click.Choice(MODELS), default="neural_network", show_default=True)
@click.option("--strategy", metavar="NAME", help="How updates are combined: FedAvg (default), FedAdam, Krum, …")
@click.option("--partition", default="random", show_default=True, metavar="NAME", help="How the data are cut.")
@click.option("--alpha", type=float, help="Of non_iid: the smaller, the more unequal.")
@click.option("--nodes", type=click.IntRange(1, 1024), default=10, show_default=True, help="Nodes, one part each.")
@click.option("--rounds", type=click.IntRange(1, 10_000), help=f"Default: {_ROUNDS}; what has no rounds takes one.")
@click.option("--fraction", type=float, default=1.0, show_default=True, help="Share of the nodes asked in a round.")
@click.option("--seed", default="0", show_default=True, help="Any text, or 64 hex characters; it decides everything.")
@click.option("--min-samples", type=click.IntRange(1), default=1, show_default=True, help="Fewest rows of a part.")
@click.option("--overlap", type=float, default=0.0, show_default=True, help="Rows borrowed from the next part.")
@click.option("--holdout", type=float, default=0.2, show_default=True, help="Share of the rows that only scores.")
@click.option("--hidden", type=click.IntRange(1), multiple=True, help="Width of a hidden layer; repeat. Default: 64.")
@click.option("--task", type=click.Choice(["classification", "regression"]), default="classification")
@click.option("--mode", type=click.Choice(["union", "leaf_refit", "histogram"]), default="union", help="Of a forest.")
@click.option("--epochs", type=click.IntRange(1), default=5, show_default=True, help="Passes of a node in a round.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--learning-rate", type=float, help="Default: 0.1 for a network, 0.01 for a linear regression.")
@click.option("--attack", metavar="NAME:COUNT", help="What some nodes do: sign_flip, noise, label_flip, nan, scale, …")
@click.option("--update-format", type=click.Choice(["fp32", "fp16", "int8"]), default="fp32", show_default=True)
@click.option(
    "--contributions",
    type=click.Choice(["leave_one_out", "shapley"]),
    is_flag=False,
    flag_value="leave_one_out",
    help="Score every node by each round without it, or by its Shapley value.",
)
@click.option("--dp-noise", type=float, metavar="Z", help="Differential privacy: noise in units of the clip norm.")
@click.option("--dp-clip", type=float, metavar="C", help="Its clip norm. Without it the norm adapts to the updates.")
@click.option("--dp-delta", type=float, metavar="DELTA", help="Of which epsilon is told. Default: 0.00001.")
@click.option("--secure-aggregation", is_flag=True, help="Add up masked updates, so that nobody sees a single one.")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="SECTION.NAME=VALUE",
    help="model., train., partition., strategy., privacy.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw accuracy and loss to .html or .png."
)
@click.option(
    "--save",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep the model: .safetensors, or .json in the old Parity network's form. `parity fl score` reads both.",
)
@pass_output
def simulate(
    out: Output,
    data: Path | None,
    shards: tuple[Path, ...],
    plot: Path | None,
    save: Path | None,
    rounds: int | None,
    seed: str,
    **given: Any,
) -> None:
    """Run a whole federation in this process, on a file.

    The models, strategies, cuts and seeds are those of the market, so a session with these settings learns the same.
    Training parameters have defaults only here; a session on a market names them.
    """
    for name in _THREADS:  # before NumPy is loaded: sums over threads differ in their last bits
        os.environ.setdefault(name, "1")
    from parity_cli.charts import html_page, panels_of, png_image, terminal_chart
    from parity_cli.model_files import ModelFacts, form_of, save_model
    from parity_cli.session_spec import privacy_of, read_changes
    from parity_cli.tables import read_table
    from parity_fl.attacks import parse_attack
    from parity_fl.privacy import read_privacy
    from parity_fl.session import resolve_session
    from parity_fl.simulate import simulate as run
    from parity_fl.strategy import client_learning_rate, read_strategy

    files = _files(data, shards, given)
    tables = [read_table(file, given["label"]) for file in files]
    content, data_format = tables[0]
    if any(each != data_format for _, each in tables):
        raise click.UsageError("all shards have one form, CSV or JSON")
    given["nodes"] = len(shards) or given["nodes"]
    sections = read_changes(given["changes"], _SECTIONS)
    chosen = {"strategy": given["strategy"]} if given["strategy"] else {}
    strategy = read_strategy({**chosen, **sections["strategy"]}, place="strategy")
    privacy = read_privacy({**privacy_of(given), **sections["privacy"]})
    given["learning_rate"] = client_learning_rate(strategy, given["learning_rate"])
    spec = resolve_session(
        _settings(given, sections, content, data_format, len(shards)), session_id="simulation", round_id="simulation"
    )
    total = rounds if rounds is not None else _ROUNDS if spec.train is not None else 1
    if plot is not None:
        _suffix(plot)
    if save is not None:
        form_of(save)
    common: dict[str, Any] = {"seed": _seed(seed), "strategy": strategy, "rounds": total, "fraction": given["fraction"]}
    with _progress(out, total, given["nodes"]) as on_round:
        if shards:
            from parity_fl.simulate_shards import simulate_shards

            form = given["update_format"]
            parts = [each for each, _ in tables]
            report = simulate_shards(spec, parts, update_format=form, on_round=on_round, **common)
        else:
            report = run(
                spec,
                content,
                **common,
                attack=None if given["attack"] is None else parse_attack(given["attack"]),
                update_format=given["update_format"],
                contribution=given["contributions"],
                on_round=on_round,
                privacy=privacy,
                randomness=secrets.token_bytes,
            )
    if spec.train is None and (given["strategy"] or sections["strategy"]):
        out.warn(f"the strategy is ignored: a {spec.model_type} like this is not averaged in rounds")
    for warning in report.warnings:
        out.warn(warning)
    settings = spec.to_dict()
    kept = ("model_type", "model_config", "train_config", "partition_config")
    document = {
        **report.to_dict(),
        "settings": {name: settings[name] for name in kept if name in settings}
        | {"strategy_config": strategy.to_dict(), "total_rounds": total}
        | ({"privacy": privacy.to_dict()} if privacy.is_on else {}),
    }
    if save is not None:
        told = ModelFacts(report.scores, len(report.rounds), report.plan.total_parts, report.strategy)
        save_model(save, report.model, told)
    if plot is not None:
        panels = panels_of(document)
        if _suffix(plot) == ".png":
            plot.write_bytes(png_image(panels))
        else:
            plot.write_text(html_page(_title(document), panels, _facts(document)), encoding="utf-8")
    wide = out.console.width
    charts = (
        [] if total == 1 or out.json else [terminal_chart(each, width=wide, height=8) for each in panels_of(document)]
    )
    facts = "\n".join(f"{name:<16} {value}" for name, value in _facts(document).items())
    out.emit(document, "\n\n".join([*charts, facts]))


def _files(data: Path | None, shards: tuple[Path, ...], given: dict[str, Any]) -> tuple[Path, ...]:
    """Return the files to read: one data set, or each node's own."""
    if (data is None) != bool(shards):
        raise click.UsageError("give --data, or --shard for each node")
    if data is not None:
        return (data,)
    named = {"attack": "--attack", "alpha": "--alpha", "contributions": "--contributions", "dp_noise": "--dp-noise"}
    named |= {"secure_aggregation": "--secure-aggregation", "overlap": "--overlap"}
    wrong = next((option for name, option in named.items() if given[name]), None)
    if wrong is not None:
        raise click.UsageError(f"{wrong} does not go with --shard")
    return shards


def _settings(
    given: dict[str, Any], sections: dict[str, dict[str, Any]], data: bytes, data_format: str, shards: int
) -> dict[str, Any]:
    """Return the settings of a session, as a submitter would write them."""
    kind = given["model"]
    rate = given["learning_rate"] or _RATES.get(kind, 0.1)
    train: dict[str, Any] = {"epochs": given["epochs"], "batch_size": given["batch_size"], "learning_rate": rate}
    model: dict[str, Any] = {}
    if kind == "neural_network":
        model = {"hidden_layers": list(given["hidden"] or (64,)), "task": given["task"]}
        if "hidden_size" in sections["model"]:
            del model["hidden_layers"]
    elif kind == "random_forest":
        model = {"task": given["task"], "mode": given["mode"]}
    else:
        from parity_fl.data import load_dataset

        model = {"input_size": load_dataset(data, data_format).features.shape[1]}
    partition: dict[str, Any] = {
        "strategy": given["partition"],
        "total_parts": given["nodes"],
        "min_samples": given["min_samples"],
        "overlap_ratio": given["overlap"],
        "holdout_fraction": given["holdout"],
    }
    if given["alpha"] is not None:
        partition["alpha"] = given["alpha"]
    place: dict[str, Any] = {"dataset_cid": "sha256:" + hashlib.sha256(data).hexdigest()}
    if shards:
        place = {"data_mode": "sharded", "shards": ["0" * 64] * shards}
        partition = {name: partition[name] for name in ("min_samples", "holdout_fraction")}
    return {
        "model_type": kind,
        **place,
        "data_format": data_format,
        "model_config": {**model, **sections["model"]},
        "train_config": {**train, **sections["train"]},
        "partition_config": {**partition, **sections["partition"]},
    }


def _seed(text: str) -> str:
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return text
    return hashlib.sha256(b"parity-fl/seed/1\x00" + text.encode()).hexdigest()


@contextmanager
def _progress(out: Output, total: int, nodes: int) -> Iterator[Callable[[RoundRecord], None] | None]:
    if out.json or not out.console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out.console, transient=True) as progress:
        bar = progress.add_task(f"rounds of {nodes} nodes", total=total)

        def on_round(record: RoundRecord) -> None:
            score = next((f"{name} {value:.4f}" for name, value in record.scores.items() if name != "loss"), "")
            if "epsilon" in record.metrics:
                score += f"  epsilon {record.metrics['epsilon']:.3g}"
            progress.update(bar, completed=record.number, description=f"rounds of {nodes} nodes  {score}")

        yield on_round


def _suffix(path: Path) -> str:
    if path.suffix.lower() not in {".html", ".png"}:
        raise click.BadParameter(f"{path} must end in .html or .png", param_hint="--plot")
    return path.suffix.lower()


def _title(document: dict[str, Any]) -> str:
    partition = document["partition"]
    return (
        f"{document['model_type']}, {document['strategy']}, {partition['total_parts']} nodes, {partition['strategy']}"
    )


def _facts(document: dict[str, Any]) -> dict[str, str]:
    """Return what stands under the charts."""
    partition, rounds = document["partition"], document["rounds"]
    scores = ("accuracy", "r2", "mse", "loss", "oob_federated", "oob_local_mean")
    facts = {name: f"{document[name]:.4f}" for name in scores if isinstance(document.get(name), float)}
    sizes = partition["part_sizes"]
    if shares := document.get("feature_importance"):
        most = sorted(shares, key=shares.__getitem__, reverse=True)[:3]
        facts["importance"] = ", ".join(f"column {each} {shares[each]:.3f}" for each in most)
    facts["strategy"] = f"{document['strategy']}, {len(rounds)} round{'s' * (len(rounds) != 1)}"
    rows = f"{min(sizes)} rows" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)} rows"
    facts["parts"] = f"{partition['total_parts']} {partition['strategy']}, {rows}"
    if partition["redraws"] or partition["moved"]:
        facts["repaired"] = f"{partition['redraws']} redraws, {partition['moved']} rows moved"
    facts["hold-out"] = f"{partition['holdout_size']} rows"
    if document["malicious"]:
        facts["malicious"] = ", ".join(map(str, document["malicious"]))
    told = rounds[-1].get("metrics", {})
    if "epsilon" in told:
        facts["privacy"] = (
            f"epsilon {told['epsilon']:.3g} at delta {told['delta']:g} after {len(rounds)} rounds,"
            f" clip norm {told['clip_norm']:.3g}"
        )
    if "summed" in told:
        facts["secure sum"] = f"{told['summed']:.0f} masked updates in the last round"
    rejected = sum(len(record["rejected"]) for record in rounds)
    if rejected:
        facts["rejected"] = f"{rejected} updates"
    facts["assignment hash"] = document["assignment_hash"]
    facts["model hash"] = document["model_hash"]
    facts["seed"] = document["seed"]
    return facts
