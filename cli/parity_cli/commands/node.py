"""``parity node``: run a node."""

from __future__ import annotations

import click

from parity_cli.lazy import LazyGroup

_SETUP, _MONEY, _AGENT, _POLICY = (f"parity_cli.commands.node_{each}" for each in ("setup", "money", "agent", "policy"))


@click.group(
    cls=LazyGroup,
    short_help="Run a node: keys, stake, agent, status.",
    lazy={
        "init": (f"{_SETUP}:init", "Set up a node; asks what it needs."),
        "auth": (f"{_SETUP}:auth", "Make or bring the node's keys."),
        "stake": (f"{_MONEY}:stake", "Bond tokens, so that the node gets work."),
        "unstake": (f"{_MONEY}:unstake", "Start taking the bond back."),
        "withdraw": (f"{_MONEY}:withdraw", "Pay earnings and finished unbonding out."),
        "balance": (f"{_MONEY}:balance", "Show bond, earnings and the owner's money."),
        "doctor": (
            "parity_cli.commands.node_doctor:doctor",
            "Check this machine, and which isolation it proves.",
        ),
        "run": (f"{_AGENT}:run", "Run the node."),
        "status": (f"{_AGENT}:status", "Show how the node is doing."),
        "logs": (f"{_AGENT}:logs", "Print what a running task prints."),
        "policy": (f"{_POLICY}:policy", "Show, try or write the node's policy."),
        "drain": (f"{_AGENT}:drain", "Finish what runs, take nothing new, stop."),
        "cache": ("parity_cli.commands.node_cache:cache", "What the node keeps: list it, free it, pin it."),
        "data": ("parity_cli.commands.node_data:data", "Data of your own that tasks may name."),
        "service": ("parity_cli.commands.node_service:service", "Run the node under systemd."),
    },
)
def node() -> None:
    """Run a node: it stakes tokens, takes signed work, runs it in a sandbox and is paid on chain.

    A node has three keys. The owner's is cold: an encrypted keystore that stakes and withdraws. The operator's is hot:
    the running node signs receipts with it, and it can move no money. The payout address receives.
    """
