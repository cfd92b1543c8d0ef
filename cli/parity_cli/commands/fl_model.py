"""``parity fl model | score``: a session's model as a file, and what a file is worth on data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from parity_cli.lazy import Command
from parity_cli.model_files import FORMS, Form, ModelFacts, load_model, save_model
from parity_cli.output import Output, pass_output, printable
from parity_cli.place import with_client
from parity_cli.transfers import OnProgress, transferring
from parity_protocol.errors import InvalidInput

if TYPE_CHECKING:
    from parity_client import Client
    from parity_protocol.api.rounds import FlSessionReply

__all__ = ["model", "score"]


@click.command(
    cls=Command,
    short_help="Write a session's model to a file.",
    example="""
    parity fl model 3f0c… -o model.safetensors
    parity fl model 3f0c… -o newest.safetensors --force
    parity fl model 3f0c… -o model.json --format parity-json
    """,
)
@click.argument("session_id")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMS),
    default="safetensors",
    show_default=True,
    help="parity-json is the old Parity network's: `model_data` with lists of numbers.",
)
@click.option("--force", is_flag=True, help="Write over the file when it holds another model.")
@click.option(
    "--progress/--no-progress",
    default=None,
    help="Show bytes, rate and time left on standard error. Default: on a terminal.",
)
@with_client
async def model(
    out: Output, client: Client, session_id: str, output: Path, form: Form, force: bool, progress: bool | None
) -> None:
    """Write the finished model, or while the session runs the newest global one.

    A transfer that broke off is taken up again by the same command, and a file that holds the newest model is left.
    """
    from parity_protocol.quantities import format_bytes

    found = await client.sessions.show(session_id)
    document: dict[str, Any] = {"id": session_id, "path": str(output), "round": found.round - 1, "format": form}
    if found.result_cid is None and form != "safetensors":
        raise InvalidInput("a running session's model is safetensors only", field="format")
    with transferring(out, f"fetching {output.name}", shown=progress) as show:
        if found.result_cid is not None:
            is_new = not (form == "safetensors" and await _is(found.result_cid, output))
            if is_new:
                await _finished(client, found, found.result_cid, output, form, force=force, show=show)
            said = (
                f"{output}, verified against {found.result_cid}"
                if is_new
                else f"{output} is {found.result_cid} already"
            )
            out.emit({**document, "cid": found.result_cid, "is_new": is_new}, said)
            return
        got = await client.sessions.model(session_id, output, replace=force, on_progress=show)
    after = f"the global model after round {found.round - 1}"
    document |= {"sha256": got.sha256, "size": got.size, "is_new": got.is_new}
    out.emit(document, f"{output}  {format_bytes(got.size)}, {after}" if got.is_new else f"{output} is {after} already")


def _beside(output: Path) -> Path:
    """Return where a file lies until it takes the place of ``output``; nothing is there."""
    place = output.with_name(f".{output.name}.new")
    place.unlink(missing_ok=True)
    return place


async def _is(cid: str, output: Path) -> bool:
    """Return whether a file has this content already."""
    import anyio

    from parity_blobs.files import cid_of_path

    return await anyio.Path(output).is_file() and str((await cid_of_path(output, cid_version=1)).cid) == cid


async def _finished(
    client: Client, found: FlSessionReply, cid: str, output: Path, form: Form, *, force: bool, show: OnProgress
) -> None:
    """Write a finished model; with ``force`` over what is there, once it is here."""
    place = _beside(output) if force else output
    if form == "safetensors":
        await client.data.get(cid, place, progress=show)
    else:
        parts, rule = found.metrics.get("parts"), found.settings.get("strategy")
        strategy = rule.get("strategy") if isinstance(rule, dict) else None
        facts = ModelFacts(
            found.metrics, found.total_rounds, parts if isinstance(parts, int) else 0, str(strategy or "fedavg")
        )
        with TemporaryDirectory() as folder:
            fetched = Path(folder) / "model"
            await client.data.get(cid, fetched, progress=show)
            save_model(place, fetched.read_bytes(), facts, form)
    place.replace(output)


@click.command(
    cls=Command,
    short_help="Score a model's file on data.",
    example="""
    parity fl score model.safetensors --data digits.csv --label target
    parity fl score model.json --data rows.csv --json
    """,
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="CSV (label in the last column, or see --label) or JSON with features and labels.",
)
@click.option("--label", metavar="COLUMN", help="Name of the label's column in a CSV file. Default: the last one.")
@pass_output
def score(out: Output, file: Path, data: Path, label: str | None) -> None:
    """Say how well a model predicts data: accuracy, or r2 of a regression, and loss.

    The file is safetensors, or the old Parity network's JSON as `parity fl model --format parity-json`, `parity fl simulate
    --save` or that network's own client wrote it. A row whose label is no class of the model counts as wrong.
    """
    import numpy as np

    from parity_cli.tables import read_table
    from parity_fl.data import label_classes, load_dataset, targets
    from parity_fl.scoring import scores

    found = load_model(file)
    dataset = load_dataset(*read_table(data, label))
    guess = found.predict(dataset.features)
    if found.class_names:
        classes = label_classes(dataset.labels)
        number = {name: index for index, name in enumerate(found.class_names)}
        truth = np.array([number.get(classes.names[index], -1) for index in classes.index], dtype=np.float64)
    else:
        truth = targets(dataset.labels)
    told = scores(truth, guess, classification=bool(found.class_names))
    document = {"path": str(file), "rows": len(truth), "feature_count": found.n_features, **told}
    shown = ", ".join(f"{name} {value:.4f}" for name, value in told.items() if value is not None)
    out.emit(document, f"{len(truth)} rows: {shown or 'nothing can be computed'}")
    if found.class_names and (strange := int((truth < 0).sum())):
        out.say(
            f"{strange} of the rows have a label that is no class of the model, and count as wrong: "
            f"its classes are {_some(found.class_names)}; --label names the label's column"
        )


def _some(names: Sequence[object]) -> str:
    """Return the first names of a list, for a message."""
    shown = ", ".join(str(name)[:40] for name in names[:8])
    return printable(f"{shown}, …" if len(names) > 8 else shown)
