"""What the attempts to escape came to: read, judged, and said in words an operator can act on."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from parity_node.executors.sandbox.escape.main import ATTEMPTS, CONTROLS, MARK
from parity_protocol.isolation import IsolationTier

__all__ = ["Probe", "ProbeReport", "ProbeResult", "read_answer"]

_MAX_ANSWER_BYTES = 262_144
_FIXES: Final = {
    "file": "no folder of this machine may be bound into the sandbox; update {sandbox}",
    "proc": "the sandbox needs its own process namespace and a read-only /proc/sys; update {sandbox}",
    "device": "no device of this machine may be in the sandbox; update {sandbox}",
    "socket": "the system-call filter is not in force; update {sandbox}, and the kernel if it has no seccomp",
    "net": "the sandbox needs a network namespace with nothing but lo; update {sandbox}",
    "kernel": "the system-call filter is not in force; update {sandbox}, and the kernel if it has no seccomp",
    "identity": "the sandbox does not drop root, capabilities or the node's environment; update {sandbox}",
}
_SANDBOXES: Final = {
    IsolationTier.BWRAP: "bubblewrap (0.8 or later)",
    IsolationTier.DOCKER: "the Docker engine (20.10 or later)",
    IsolationTier.GVISOR: "gVisor (runsc)",
}


class ProbeResult(StrEnum):
    """What came of one attempt."""

    DENIED = "denied"
    ESCAPED = "escaped"
    NOT_APPLICABLE = "not_applicable"


@dataclass(frozen=True, slots=True)
class Probe:
    """One attempt to escape."""

    id: str
    what: str  # was tried
    result: ProbeResult
    cause: str  # such as the name of an errno; up to 160 characters of the sandbox's own words
    fix: str = ""  # one line, where it escaped
    is_tried: bool = True  # False: it could not be made, so that nothing is proven

    def to_json(self, sandbox: IsolationTier) -> dict[str, str]:
        """Return it as JSON values."""
        return {
            "id": self.id,
            "sandbox": sandbox.value,
            "what": self.what,
            "result": self.result.value,
            "cause": self.cause,
            "fix": self.fix,
        }


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What one sandbox proved."""

    sandbox: IsolationTier
    problem: str  # why it proves nothing; empty when it is proven
    probes: tuple[Probe, ...] = ()

    @property
    def tier(self) -> IsolationTier:
        """The tier that may be announced."""
        return IsolationTier.NONE if self.problem else self.sandbox

    @property
    def is_proven(self) -> bool:
        """Whether tasks may run in this sandbox."""
        return not self.problem

    def count(self, result: ProbeResult) -> int:
        """Return how many attempts came to this."""
        return sum(each.result is result for each in self.probes)


def read_answer(
    sandbox: IsolationTier,
    said: bytes,
    *,
    canaries: Collection[str],
    host_kernel: str,
    uid: int | None,
    own_kernel: bool = False,
) -> ProbeReport:
    """Read what the attempts printed and judge it.

    Args:
        said: Everything that was printed; the answer is the line that begins with ``MARK``.
        canaries: The host's secrets: none of them may appear.
        host_kernel: Release and version of this machine's kernel.
        uid: Who the task must be; None where that is the runner's to say, but never root.
        own_kernel: The sandbox brings a kernel of its own; a probe that meets the host's was not in it.
    """
    line = next((each for each in said.split(b"\n") if each.startswith(MARK.encode())), b"")
    try:
        answer = json.loads(line[len(MARK) : _MAX_ANSWER_BYTES]) if line else None
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or not _is_whole(answer):
        tail = said[-300:].decode(errors="replace").strip()
        return ProbeReport(sandbox, f"the probe did not run to its end: {tail}" if tail else "the probe did not run")
    probes = tuple(_probe(sandbox, name, answer["probes"][name]) for name in ATTEMPTS)
    broken = [f"{name}: {text}" for name, text in answer["controls"].items() if text]
    untried = next((each for each in probes if not each.is_tried), None)
    escaped = [each for each in probes if each.result is ProbeResult.ESCAPED]
    problem = ""
    if broken:
        problem = f"the probe proves nothing, because an ordinary task cannot work there: {'; '.join(broken)}"
    elif escaped:
        more = f" and {len(escaped) - 1} more" if len(escaped) > 1 else ""
        problem = f"the sandbox does not contain a task: {escaped[0].id}{more}: {escaped[0].cause}"
    elif any(canary.encode() in said for canary in canaries):
        problem = "the sandbox does not contain a task: a secret of the node was read"
    elif untried is not None:
        problem = f"the probe proves nothing, because {untried.id} could not be tried: {untried.cause}"
    elif answer["uid"] == 0 or (uid is not None and answer["uid"] != uid):
        problem = f"the sandbox does not contain a task: it runs as uid {answer['uid']}"
    elif own_kernel and answer["kernel"] == host_kernel:
        problem = "the sandbox has no kernel of its own: the probe met this machine's"
    return ProbeReport(sandbox, problem, probes)


def _is_whole(answer: dict[str, Any]) -> bool:
    """Return whether an answer has every attempt and every control, and nothing else."""
    return (
        isinstance(answer.get("uid"), int)
        and isinstance(answer.get("kernel"), str)
        and isinstance(answer.get("controls"), dict)
        and isinstance(answer.get("probes"), dict)
        and set(answer["controls"]) == set(CONTROLS)
        and set(answer["probes"]) == set(ATTEMPTS)
        and all(isinstance(each, list) and len(each) == 2 for each in answer["probes"].values())
    )


def _probe(sandbox: IsolationTier, name: str, found: list[Any]) -> Probe:
    result, cause = str(found[0]), "".join(each if each.isprintable() else "?" for each in str(found[1]))[:200]
    what = ATTEMPTS[name].what
    if result not in set(ProbeResult):
        return Probe(name, what, ProbeResult.NOT_APPLICABLE, f"could not be tried: {cause}", is_tried=False)
    is_escape = result == ProbeResult.ESCAPED
    fix = _FIXES[name.partition(".")[0]].format(sandbox=_SANDBOXES.get(sandbox, sandbox.value)) if is_escape else ""
    return Probe(name, what, ProbeResult(result), cause, fix)
