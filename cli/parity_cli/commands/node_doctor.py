"""``parity node doctor``: is this machine fit to run a node, and which isolation does it prove?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from parity_cli.bridge import run_async
from parity_cli.commands.node_setup import config_option
from parity_cli.exit_codes import FAILED_CHECK
from parity_cli.lazy import Command
from parity_cli.node_place import node_settings
from parity_cli.output import Output, pass_output
from parity_protocol.errors import ConfigInvalid

if TYPE_CHECKING:
    from parity_node.doctor import Finding, Sandboxes
    from parity_node.settings import NodeSettings

__all__ = ["doctor"]


@click.command(
    cls=Command,
    short_help="Check this machine, and which isolation it proves.",
    example="parity node doctor\nparity node doctor --offline --json",
)
@config_option
@click.option("--offline", is_flag=True, help="Ask neither the market nor the chain.")
@click.option("--probes", is_flag=True, help="Show every attempt to escape, not only those that succeeded.")
@pass_output
def doctor(out: Output, config_path: Path | None, offline: bool, probes: bool) -> int:
    """Check everything a node needs, make every attempt to escape in each sandbox, and say what to do about it.

    Works before `parity node init`, and beside a running node. Exit status 1 if a check failed.
    """
    from parity_cli.screens.doctor import doctor_screen

    settings, findings = _settings(config_path)
    findings, sandboxes = run_async(lambda: _examine(settings, findings, offline=offline))
    document = _document(settings, findings, sandboxes)
    out.emit(document, lambda: doctor_screen(document, with_probes=probes))
    return 0 if document["ok"] else FAILED_CHECK


async def _examine(
    settings: NodeSettings, findings: list[Finding], *, offline: bool
) -> tuple[list[Finding], Sandboxes]:
    import anyio

    from parity_cli.node_checks import check_market
    from parity_node.doctor import check_machine, check_place, examine_sandboxes

    findings = [*check_machine(wants_sandbox=settings.runner_shell_enabled), *findings, *check_place(settings)]
    found: dict[str, Any] = {"market": []}

    async def market() -> None:
        found["market"] = await check_market(settings)

    async def sandboxes() -> None:
        found["sandboxes"] = await examine_sandboxes(settings)

    async with anyio.create_task_group() as group:
        group.start_soon(sandboxes)
        if not offline:
            group.start_soon(market)
    return [*findings, *found["market"], *found["sandboxes"].findings], found["sandboxes"]


def _settings(config_path: Path | None) -> tuple[NodeSettings, list[Finding]]:
    """Return the settings, or the defaults and what is wrong with them."""
    from parity_node.doctor.finding import failed, fine
    from parity_node.settings import NodeSettings

    try:
        settings = node_settings(config_path)
    except ConfigInvalid as exc:
        return NodeSettings.model_construct(), [
            failed("settings", "; ".join(exc.problems), exc.hint() or "parity node init")
        ]
    return settings, [fine("settings", f"valid, state in {settings.state_dir()}")]


def _document(settings: NodeSettings, findings: list[Finding], sandboxes: Sandboxes) -> dict[str, Any]:
    from parity_node.doctor.finding import FindingResult

    return {
        "ok": not any(each.result is FindingResult.FAIL for each in findings),
        "proven": [tier.value for tier in sandboxes.proven],
        "kinds": [kind.value for kind in sandboxes.kinds(settings)],
        "checks": [each.to_json() for each in findings],
        "probes": [probe.to_json(report.sandbox) for report in sandboxes.reports for probe in report.probes],
    }
