"""The measure of the demo's models: the same hold-out rows, a model trained centrally, and the merge done again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_cli.demo.plan import DEPTH, TREES
from parity_fl.model import decode_model
from parity_fl.runner import finish
from parity_fl.scoring import r_squared
from parity_fl.session import SessionPlan, resolve_session
from parity_fl.table import Table

__all__ = ["Session", "central_forest", "central_linear", "judge"]


@dataclass(frozen=True, slots=True)
class Session:
    """A finished session, as it came from the market.

    Attributes:
        settings: The submitted spec's session members.
        plan: What the market published.
        data: The data set.
        updates: The parts' results, in order.
        model: The merged model.
    """

    settings: dict[str, Any]
    plan: SessionPlan
    data: bytes
    updates: tuple[bytes, ...]
    model: bytes


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was found out here about a session."""

    score: float  # accuracy or R² of the market's model on the hold-out, computed here
    metrics: dict[str, Any]  # of the merge that was done again here
    is_same_model: bool  # the merge done again gives the market's model, byte for byte
    table: Table


def judge(session: Session) -> Judgement:
    """Score the market's model on the hold-out rows, and merge the parts once more.

    Raises:
        ParityError: The model, an update or the plan is not what it should be.
    """
    plan = session.plan
    spec = resolve_session(session.settings, session_id=plan.session_id, round_id=plan.round_id, settings=plan.settings)
    table = Table.load(spec, plan.cut, session.data)
    held = table.assignment.holdout
    guess = decode_model(session.model).predict(table.dataset.features[held])
    again = finish(spec, plan.cut, session.data, session.updates)
    if spec.is_classification:
        score = float(np.mean(guess == table.truth[held]))
    else:
        score = _number(r_squared(table.truth[held], guess))
    return Judgement(score, dict(again.metrics), again.model_bytes == session.model, table)


def central_forest(table: Table) -> float:
    """Return the hold-out accuracy of one forest of the same size, trained on all the parts' rows together."""
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(n_estimators=TREES, max_depth=DEPTH, random_state=42)
    return _central(table, model)


def central_linear(table: Table) -> float:
    """Return the hold-out R² of least squares on all training rows: the best that a linear model can be fitted to them."""
    from sklearn.linear_model import LinearRegression

    return _central(table, LinearRegression())


def _central(table: Table, model: Any) -> float:
    rows: Sequence[int] | NDArray[Any] = table.training_rows()
    model.fit(table.dataset.features[rows], table.truth[rows])
    held = table.assignment.holdout
    return float(model.score(table.dataset.features[held], table.truth[held]))


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
