"""The node's metrics, in a registry of their own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from parity_node.disk import Volume
from parity_protocol.policy import Denial

__all__ = ["NodeMetrics", "RefusalCount"]

MAX_RULES = 64  # that are counted apart; the market chooses the text of some


@dataclass(slots=True)
class RefusalCount:
    """How often one rule refused an offer."""

    rule: str
    message: str  # of the last time
    count: int
    last_task: str


class NodeMetrics:
    """Counters and gauges; ``render`` gives the text of ``/metrics``."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._executions = Counter(
            "parity_node_executions_total", "Executions that ended", ["kind", "outcome"], registry=self.registry
        )
        self._seconds = Histogram(
            "parity_node_execution_seconds",
            "Time from start to end",
            ["kind"],
            buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600),
            registry=self.registry,
        )
        self._offers_refused = Counter(
            "parity_node_offers_refused_total", "Offers that were not taken", ["rule"], registry=self.registry
        )
        self._egress_refused = Counter(
            "parity_node_egress_refused_total",
            "Connections of tasks that the node's proxy refused",
            ["rule"],
            registry=self.registry,
        )
        self._reports = Counter(
            "parity_node_reports_total", "Reports with the market's answer", ["answer"], registry=self.registry
        )
        self.refusals: OrderedDict[str, RefusalCount] = OrderedDict()

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Show what ``read`` returns as the gauge ``parity_node_<name>``."""
        Gauge(f"parity_node_{name}", text, registry=self.registry).set_function(read)

    def watch_volumes(self, read: Callable[[], Iterable[Volume]]) -> None:
        """Show each disk that ``read`` returns as the gauge ``parity_node_disk_free_<name>_bytes``.

        They are read at each look: an engine's disk is known only once the engine has answered.
        """
        self.registry.register(_Volumes(read))

    def execution_ended(self, kind: str, outcome: str, seconds: float) -> None:
        """Count an execution."""
        self._executions.labels(kind, outcome).inc()
        self._seconds.labels(kind).observe(seconds)

    def offer_refused(self, denial: Denial, task_id: str) -> None:
        """Count a rule that refused an offer."""
        rule = denial.rule if denial.rule in self.refusals or len(self.refusals) < MAX_RULES else "other"
        self._offers_refused.labels(rule).inc()
        known = self.refusals.get(rule)
        self.refusals[rule] = RefusalCount(rule, denial.message, (known.count if known else 0) + 1, task_id)

    def egress_refused(self, rule: str) -> None:
        """Count a connection that a task was refused; the rules are the proxy's own, and few."""
        self._egress_refused.labels(rule).inc()

    def report_answered(self, answer: str) -> None:
        """Count a report: accepted, or the refusal's code."""
        self._reports.labels(answer).inc()

    def render(self) -> bytes:
        """Return everything in the text format."""
        return generate_latest(self.registry)


class _Volumes(Collector):
    """The disks of the node's folders, as they are now."""

    def __init__(self, read: Callable[[], Iterable[Volume]]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Return nothing: which disks there are may change."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Return a gauge of each disk, named by the first folder on it."""
        for volume in self._read():
            text = f"Free bytes on the disk of {', '.join(volume.names)}"
            yield GaugeMetricFamily(
                f"parity_node_disk_free_{volume.names[0]}_bytes", text, value=float(volume.free_bytes)
            )
