"""A node's side of a sharded session: it says what its shard is, and then trains and scores on rows that stay there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sized

import numpy as np
from numpy.typing import NDArray

from parity_fl.averaging import PartTrainer, TrainedRound
from parity_fl.bootstrap import split_trees
from parity_fl.data import load_dataset
from parity_fl.histogram import HistogramPart, PartRows
from parity_fl.histogram_phases import ClassesRequest, decode_request
from parity_fl.linear import FeatureScale
from parity_fl.models.base import Scaling, round_model, weights_digest
from parity_fl.models.linear_exact import linear_statistics, statistics_tensors
from parity_fl.models.moments import moments_of, moments_tensors
from parity_fl.privacy.secure_counts import counts_setup, counts_vector
from parity_fl.privacy.secure_line import line_point, line_setup, line_vector
from parity_fl.privacy.secure_part import SumPart, SumTerms, absent, update_part
from parity_fl.round_bodies import decode_delta
from parity_fl.rounds_config import UpdateFormat
from parity_fl.session import ShardTerms
from parity_fl.sharded.bodies import SECURE, Base, HoldoutScore, decode_base, raw_bytes
from parity_fl.sharded.scoring import evaluate
from parity_fl.shards import ShardAgreement, ShardCut, cut_shard, fingerprint_of, summarize
from parity_fl.spec import FlSpec, ForestConfig, LinearConfig
from parity_fl.table import check_part, contradiction, required_training
from parity_fl.tensors import encode_tensors
from parity_fl.trees import as_forest_features, forest_tensors
from parity_protocol.errors import BadDocument, Internal

__all__ = ["ShardedTrainer"]


class ShardedTrainer:
    """One part of one session; as ``RoundTrainer``.

    Args:
        spec: Resolved settings, as they were signed.
        terms: Number of parts and seed, from the market.
        shard: The part's data.
        part: Which part.
        salt: Secret of the part, from its sealed source.
        randomness: Gives so many secret random bytes; for secure aggregation.
        opened: What ``opened`` was when another trainer answered for this part before.

    Raises:
        ExecutionFailed: ``data_invalid``: the shard cannot be read; ``spec_invalid``: settings and part contradict.
    """

    def __init__(
        self,
        spec: FlSpec,
        terms: ShardTerms,
        shard: bytes,
        part: int,
        *,
        salt: bytes,
        randomness: Callable[[int], bytes] | None = None,
        opened: Iterable[str] = (),
    ) -> None:
        if spec.privacy.secure_aggregation and randomness is None:
            raise Internal("secure aggregation needs randomness that nobody knows")
        check_part(part, terms.total_parts)
        if spec.partition.total_parts != terms.total_parts:
            contradiction(f"the session has {spec.partition.total_parts} shards, the market plans {terms.total_parts}")
        self._spec, self._terms, self._part = spec, terms, part
        self._data = load_dataset(shard, spec.data_format)
        self._fingerprint = fingerprint_of(shard, salt)
        self._cut: tuple[ShardAgreement, ShardCut] | None = None
        self._trainer: PartTrainer | None = None
        self._forest: HistogramPart | None = None
        self._random = randomness
        self._secure: tuple[str, SumPart] | None = None  # with what names its sum
        self._summand = ""  # what this part adds to it
        self._opened = set(opened)  # summands of sums that this part has helped to open before

    @property
    def opened(self) -> frozenset[str]:
        """What this part has added to sums that it helped to open; it adds none of it to another sum."""
        if self._secure is not None and self._secure[1].has_opened:
            self._opened.add(self._summand)
        return frozenset(self._opened)

    def answer(
        self,
        asks: str,
        base: bytes | memoryview,
        *,
        number: int,
        proximal_mu: float = 0.0,
        update_format: UpdateFormat = "fp32",
    ) -> TrainedRound:
        """Answer one phase. The same phase again gives the same answer.

        Args:
            asks: What the market asks: ``summary``, ``moments``, ``train`` or ``score``.
            base: The file that the phase starts from.
            number: Of the round, from 0.

        Raises:
            BadDocument: ``base`` is not this session's.
            ExecutionFailed: The shard is not the one that was summarized, or cannot be used; ``spec_invalid``: the market
                agreed on something else than was signed; ``numerical_instability``: training diverges.
        """
        if asks == "summary":
            said = summarize(
                self._data,
                self._part,
                classification=self._spec.is_classification,
                fingerprint=self._fingerprint,
            )
            return TrainedRound(json.dumps(said.to_dict()).encode(), {"samples": float(said.n_rows)})
        found = decode_base(bytes(base))
        agreed, cut = self._cut_as(found)
        if asks == "moments":
            moments = moments_of(self._spec, self._data.features[cut.training], cut.truth[cut.training])
            return _said(encode_tensors(moments_tensors(moments), {}), cut.training)
        if found.scaling is None:
            raise BadDocument("the phase has no scaling")
        if asks == "score":
            return self._score(found, found.scaling, agreed, cut)
        if asks != "train":
            contradiction(f"this node cannot answer a phase {asks[:32]!a}")
        return self._train(
            found, found.scaling, agreed, cut, number=number, proximal_mu=proximal_mu, update_format=update_format
        )

    def _cut_as(self, found: Base) -> tuple[ShardAgreement, ShardCut]:
        agreed, spec = found.agreement, self._spec
        if agreed is None:
            raise BadDocument("the phase does not say what was agreed on")
        if self._cut is None or self._cut[0] != agreed:
            signed = (self._terms.total_parts, self._terms.seed, spec.partition.holdout_fraction)
            if (agreed.total_parts, agreed.seed, agreed.holdout_fraction) != signed:
                contradiction("the market agreed on other parts, another seed or hold-out than the session's")
            if agreed.n_features != self._data.features.shape[1] or bool(agreed.class_names) != spec.is_classification:
                contradiction("the market agreed on other columns or classes than this shard's")
            cut = cut_shard(agreed, self._data.labels, self._part, fingerprint=self._fingerprint)
            self._cut, self._trainer, self._forest = (agreed, cut), None, None
        return self._cut

    def _train(
        self,
        found: Base,
        scaling: Scaling,
        agreed: ShardAgreement,
        cut: ShardCut,
        *,
        number: int,
        proximal_mu: float,
        update_format: UpdateFormat,
    ) -> TrainedRound:
        spec, rows = self._spec, cut.training
        if SECURE in found.tensors:
            return self._later(found, rows)
        features, truth = self._data.features[rows], cut.truth[rows]
        if isinstance(spec.model, ForestConfig):
            if spec.privacy.secure_aggregation:
                return self._counted(spec.model, found, agreed, rows)
            return self._grow(spec.model, found, agreed, rows)
        if isinstance(spec.model, LinearConfig) and spec.model.solver == "exact":
            if spec.privacy.secure_aggregation:
                return self._summed_line(found, scaling, agreed, features, truth)
            sums = linear_statistics(features, truth, FeatureScale(scaling.mean, scaling.deviation))
            return _said(encode_tensors(statistics_tensors(sums), {}), rows)
        train = required_training(spec.train)
        if self._trainer is None:
            model = round_model(spec, n_features=agreed.n_features, n_classes=len(agreed.class_names), scaling=scaling)
            self._trainer = PartTrainer(model, train, features, truth, seed=agreed.seed, part=self._part)
        if spec.privacy.secure_aggregation:
            return self._summed(self._trainer, found, agreed, rows, number=number, proximal_mu=proximal_mu)
        weights = {name: np.asarray(value, dtype=np.float32) for name, value in found.tensors.items()}
        trained = self._trainer.train_from(weights, number=number, proximal_mu=proximal_mu, update_format=update_format)
        if not spec.privacy.is_on:
            return trained
        return _said(trained.update, rows)  # the loss on the part's rows would tell what is hidden

    def _summed(
        self,
        trainer: PartTrainer,
        found: Base,
        agreed: ShardAgreement,
        rows: NDArray[np.uint32],
        *,
        number: int,
        proximal_mu: float,
    ) -> TrainedRound:
        """Train, and begin the secure sum of the round's updates; nothing else ever leaves this part."""
        terms = _terms_of(found)
        assert self._random is not None
        weights = {name: np.asarray(value, dtype=np.float32) for name, value in found.tensors.items()}
        place = f"{number} {weights_digest(weights)} {terms}"
        if self._secure is None or self._secure[0] != place:
            if not self._may_sum(f"round {number}"):
                return _said(absent("this part has opened a sum of this round already"), rows)
            trained = trainer.train_from(weights, number=number, proximal_mu=proximal_mu)
            shapes = {name: tensor.shape for name, tensor in weights.items()}
            made = update_part(
                self._spec.privacy,
                terms,
                weights,
                decode_delta(trained.update, shapes),
                session_id=self._spec.session_id,
                parts=agreed.total_parts,
                part=self._part,
                rows=len(rows),
                randomness=self._random,
            )
            self._secure = (place, made)
        return _said(self._secure[1].keys(), rows)

    def _summed_line(
        self,
        found: Base,
        scaling: Scaling,
        agreed: ShardAgreement,
        features: NDArray[np.float64],
        truth: NDArray[np.float64],
    ) -> TrainedRound:
        """Begin the secure sum of an exact line's statistics."""
        terms, parts = _terms_of(found), agreed.total_parts
        assert self._random is not None
        setup = line_setup(self._spec.privacy, terms, scaling, session_id=self._spec.session_id, parts=parts)
        place = f"line {setup.context.hex()}"
        if self._secure is None or self._secure[0] != place:
            if not self._may_sum("line"):
                return _said(absent("this part has opened a sum of its rows already"), truth)
            vector = line_vector(features, truth, scaling, line_point(terms, parts=parts))
            self._secure = (place, SumPart(setup, self._part, vector, self._random))
        return _said(self._secure[1].keys(), truth)

    def _counted(
        self, config: ForestConfig, found: Base, agreed: ShardAgreement, rows: NDArray[np.uint32]
    ) -> TrainedRound:
        """Begin the secure sum of a forest's table; only the agreement on classes is answered openly."""
        if config.mode != "histogram":
            contradiction(f"a forest of mode {config.mode} hands over whole trees: they cannot be hidden in a sum")
        assert self._cut is not None
        assert self._random is not None
        if self._forest is None:
            features = as_forest_features(self._data.features[rows])
            truth = self._cut[1].truth[rows]
            self._forest = HistogramPart(PartRows(self._part, features, truth, agreed.class_names), config)
        request = raw_bytes(found.tensors, "request")
        if isinstance(decode_request(request, n_features=agreed.n_features), ClassesRequest):
            return _said(self._forest.answer(request), rows)
        terms, parts = _terms_of(found), agreed.total_parts
        table, cells = self._forest.table(request)
        setup = counts_setup(
            self._spec.privacy, terms, request, session_id=self._spec.session_id, parts=parts, cells=cells
        )
        asked = hashlib.sha256(request).hexdigest()
        place = f"counts {asked} {setup.context.hex()}"
        if self._secure is None or self._secure[0] != place:
            if not self._may_sum(f"counts {asked}"):
                return _said(absent("this part has opened a sum of these counts already"), rows)
            self._secure = (place, SumPart(setup, self._part, counts_vector(table, setup), self._random))
        return _said(self._secure[1].keys(), rows)

    def _may_sum(self, summand: str) -> bool:
        """Return whether a new sum of ``summand`` may begin; then that is what this part adds from here on.

        Two opened sums of the same over different parts would tell those that are in one of them alone, also when others
        were opened in between.
        """
        if summand in self.opened:
            return False
        self._summand = summand
        return True

    def _later(self, found: Base, rows: Sized) -> TrainedRound:
        """Answer a later phase of a secure sum."""
        if self._secure is None:
            return _said(absent("the part came to this node in the middle of the sum"), rows)
        return _said(self._secure[1].answer(raw_bytes(found.tensors, SECURE)), rows)

    def _grow(
        self, config: ForestConfig, found: Base, agreed: ShardAgreement, rows: NDArray[np.uint32]
    ) -> TrainedRound:
        """Answer a phase of a forest, or grow the part's own trees."""
        assert self._cut is not None
        truth = self._cut[1].truth[rows]
        if config.mode != "union":
            if self._forest is None:
                features = as_forest_features(self._data.features[rows])
                self._forest = HistogramPart(PartRows(self._part, features, truth, agreed.class_names), config)
            return _said(self._forest.answer(raw_bytes(found.tensors, "request")), rows)
        from parity_fl.forest import train_forest  # scikit-learn comes with it; only nodes train

        grown = train_forest(
            self._data.features[rows],
            truth,
            config,
            n_classes=len(agreed.class_names),
            part=self._part,
            n_trees=split_trees(config.num_trees, agreed.total_parts)[self._part],
        )
        return _said(encode_tensors(forest_tensors(grown.forest), {"oob_local": json.dumps(grown.oob_local)}), rows)

    def _score(self, found: Base, scaling: Scaling, agreed: ShardAgreement, cut: ShardCut) -> TrainedRound:
        held = cut.holdout
        truth = cut.truth[held]
        scores = evaluate(
            self._spec,
            found.tensors,
            scaling,
            self._data.features[held],
            truth,
            n_classes=len(agreed.class_names),
        )
        score = HoldoutScore.of(scores, truth, classification=self._spec.is_classification)
        return _said(score.encode(), held)


def _terms_of(found: Base) -> SumTerms:
    if found.terms is None:
        contradiction("the session has secure aggregation, and the market asks for an update without it")
    return found.terms


def _said(body: bytes, rows: Sized) -> TrainedRound:
    return TrainedRound(body, {"samples": float(len(rows))})
