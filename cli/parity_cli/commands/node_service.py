"""``parity node service install | remove | status``: the node under systemd."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from parity_cli.commands.node_setup import config_option
from parity_cli.exit_codes import FAILED_CHECK
from parity_cli.lazy import Command, Group
from parity_cli.node_place import NODE_FILE
from parity_cli.output import Output, pass_output
from parity_protocol.errors import Forbidden, ParityError

if TYPE_CHECKING:
    from parity_node.service import Systemd
    from parity_node.settings import NodeSettings

__all__ = ["service"]

Scope = Literal["system", "user"]

scope_option = click.option(
    "--system/--user",
    "is_system",
    default=None,
    help="For the machine, under a user of its own; or for you alone. Default: the machine if you are root.",
)
home_option = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    help="PARITY_HOME of the service. Default: /var/lib/parity-node for the machine, else yours.",
)


@click.group(cls=Group, short_help="Run the node under systemd.")
def service() -> None:
    """Let systemd start the node with the machine, start it again when it fails, and confine it."""


@service.command(
    cls=Command,
    short_help="Install or renew the service.",
    example="""
    parity node service install --dry-run
    sudo parity node service install
    parity node service install --user
    """,
)
@scope_option
@home_option
@click.option(
    "--run-as", metavar="USER", help="Whom the machine's service runs as; made if missing. Default: parity-node."
)
@click.option("--docker", is_flag=True, help="Put the service into the group docker. That group can do what root can.")
@click.option("--start/--no-start", default=True, help="Whether to start it now, if the node is set up.")
@click.option("--dry-run", is_flag=True, help="Print the unit and change nothing.")
@config_option
@pass_output
def install(
    out: Output,
    is_system: bool | None,
    home: Path | None,
    run_as: str | None,
    docker: bool,
    start: bool,
    dry_run: bool,
    config_path: Path | None,
) -> None:
    """Write a hardened unit and enable it. It may be repeated: what is right stays, and a node that runs goes on."""
    from parity_node.service import SERVICE_USER, STOP_EXTRA_S, ServiceUnit, unit_path

    scope, systemd = _scope(is_system), _systemd(is_system)
    if run_as is not None and scope == "user":
        raise click.UsageError("a user's own service runs as that user: leave out --run-as")
    folder, file = _home(scope, home), config_path.expanduser().absolute() if config_path else None
    settings = _settings(folder, file)
    user = (run_as or SERVICE_USER) if scope == "system" else None
    state, exec_dir = _state_dir(settings, folder), settings.runner_exec_dir
    writable = (state, *([exec_dir.expanduser().absolute()] if exec_dir else []))
    unit = ServiceUnit(
        program=_program(),
        home=folder,
        writable=tuple(each for each in writable if not each.is_relative_to(folder)),
        config=file,
        user=user,
        grace_s=settings.runner_grace.total_seconds(),
        groups=("docker",) if docker else (),
        reads=(Path(sys.prefix), Path(sys.base_prefix).resolve()),
        systemd_version=systemd.version(),
    )
    path, text = unit_path(scope), unit.text()
    document = {"scope": scope, "unit": str(path), "home": str(folder), "user": user, "text": text}
    if dry_run:
        out.emit(document, text.rstrip())
        return
    systemd.require([*_program(), "node", "run"])
    if scope == "system" and os.geteuid() != 0:
        raise Forbidden("only root can install a service of the machine; --user installs one of your own")
    if user is not None:
        systemd.make_user(user, folder)
        systemd.require_program(_program(), user)
    systemd.require_folders(unit)
    is_ready = _is_file(file or folder / NODE_FILE)
    changed = systemd.install(path, text, start=start and is_ready)
    lines = [f"{'wrote' if changed else 'already right:'} {path}"]
    if not is_ready:
        who = f"sudo -u {user} " if user else ""
        lines.append(f"next: {who}env PARITY_HOME={folder} {' '.join(_program())} node init")
        lines.append(f"then: {_systemctl(scope)} start parity-node")
    if changed and is_ready:
        lines.append(
            f"a node that ran already goes on as it was; {_systemctl(scope)} restart parity-node takes the new unit"
        )
    if scope == "user":
        lines.append(f"it ends when you log out, unless root says once: loginctl enable-linger {_me()}")
    if docker:
        out.warn("whoever is in the group docker can become root on this machine")
    lines.append(f"it stops within {int(unit.grace_s) + STOP_EXTRA_S} s; what it prints: {_journal(scope)}")
    out.emit(document | {"changed": changed, "started": start and is_ready}, "\n".join(lines))


@service.command(
    cls=Command,
    short_help="Take the service away; data stay.",
    example="""
    sudo parity node service remove
    """,
)
@scope_option
@pass_output
def remove(out: Output, is_system: bool | None) -> None:
    """Stop and disable the service and remove its unit. Keys, journal and results stay where they are.

    It waits until the node has ended: what runs may go on for RUNNER_GRACE first.
    """
    from parity_node.service import unit_path

    scope, systemd = _scope(is_system), _systemd(is_system)
    systemd.require(["parity", "node", "drain"])
    path = unit_path(scope)
    removed = systemd.remove(path)
    told = f"removed {path}; what the node wrote is still there" if removed else f"there is no {path}"
    out.emit({"scope": scope, "unit": str(path), "removed": removed}, told)


@service.command(
    cls=Command,
    short_help="Show the service and its node.",
    example="""
    parity node service status --json
    """,
)
@scope_option
@home_option
@config_option
@pass_output
@click.pass_context
def status(
    ctx: click.Context, out: Output, is_system: bool | None, home: Path | None, config_path: Path | None
) -> None:
    """Show what systemd and the node itself say; status 1 unless both say that it works."""
    from parity_node.control import ask_agent
    from parity_node.service import unit_path

    scope, systemd = _scope(is_system), _systemd(is_system)
    systemd.require([*_program(), "node", "status"])
    folder = _home(scope, home)
    path = unit_path(scope)
    shown = dict(systemd.show())
    document: dict[str, Any] = {"scope": scope, "unit": str(path), "installed": path.is_file(), "systemd": shown}
    try:
        settings = _settings(folder, config_path.expanduser().absolute() if config_path else None)
        agent = ask_agent(_state_dir(settings, folder), {"command": "status"})
        document["agent"] = {key: agent.get(key) for key in ("state", "pid", "uptime_s", "version")}
    except ParityError as exc:
        document["agent"] = {"error": exc.message, "hint": exc.hint()}
    is_active = shown.get("ActiveState") == "active"
    told = document["agent"].get("state") or document["agent"].get("error")
    lines = [
        f"unit     {path}{'' if document['installed'] else ' (not installed)'}",
        f"systemd  {shown.get('ActiveState', '?')} ({shown.get('SubState', '?')}), {shown.get('UnitFileState') or 'not enabled'}, "
        f"started again {shown.get('NRestarts', '0')} times, last result {shown.get('Result', '?')}",
        f"node     {told}",
        f"log      {_journal(scope)}",
    ]
    out.emit(document, "\n".join(lines))
    if not is_active or "error" in document["agent"]:
        ctx.exit(FAILED_CHECK)


def _scope(is_system: bool | None) -> Scope:
    chosen = os.geteuid() == 0 if is_system is None else is_system
    return "system" if chosen else "user"


def _systemd(is_system: bool | None) -> Systemd:
    from parity_node.service import Systemd

    return Systemd(_scope(is_system))


def _home(scope: Scope, given: Path | None) -> Path:
    from parity_client import Home
    from parity_node.service import SYSTEM_HOME

    if given is not None:
        return given.expanduser().absolute()
    return SYSTEM_HOME if scope == "system" else Home().path.expanduser().absolute()


def _settings(home: Path, config: Path | None) -> NodeSettings:
    """Return the settings as the service will read them; this shell's own environment is not there then."""
    from parity_node.settings import NodeSettings, load_settings

    file = config or home / NODE_FILE
    if config is not None or _is_file(file):
        return load_settings(file)
    return NodeSettings(_env_file=None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except PermissionError as exc:
        raise Forbidden(f"only root and the service's own user may look at {path}") from exc


def _state_dir(settings: NodeSettings, home: Path) -> Path:
    return settings.state_dir() if "runner_state_dir" in settings.model_fields_set else home / "node"


def _program() -> tuple[str, ...]:
    """Return the command line of this very program."""
    beside = Path(sys.executable).with_name("parity")
    return (str(beside),) if beside.is_file() else (sys.executable, "-m", "parity_cli")


def _systemctl(scope: Scope) -> str:
    return "sudo systemctl" if scope == "system" else "systemctl --user"


def _journal(scope: Scope) -> str:
    return f"journalctl {'' if scope == 'system' else '--user '}-u parity-node -f"


def _me() -> str:
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name
