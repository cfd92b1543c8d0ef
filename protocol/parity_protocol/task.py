"""What a task is, what it may ask for, and the one state machine that it lives in (design §6).

::

    PENDING   ─claim→ LEASED ─start→ RUNNING ─report→ VERIFYING ─accept→ COMPLETED
    LEASED    ─report→ VERIFYING                  (start lost or late)
    PENDING   ─report→ VERIFYING                  (the fence is still current: nobody claimed it again)
    LEASED, RUNNING ─lease_lost | release | node_fault→ PENDING
    LEASED, RUNNING ─task_fault→ FAILED           ─unconfirmed_fault→ PENDING (ADR 0003: another node must agree)
    PENDING   ─attempts_exhausted | deadline→ FAILED
    VERIFYING ─reject→ PENDING                    ─reject_final→ NOT_VERIFIED
    VERIFYING ─verify_timeout→ VERIFYING          ─verify_abandoned→ FAILED
    PENDING, LEASED, RUNNING ─cancel→ CANCELLED
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    JsonValue,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from parity_protocol import strict_json
from parity_protocol.errors import BadDocument, BadField, InvalidTransition
from parity_protocol.ids import WireSha256
from parity_protocol.isolation import IsolationTier
from parity_protocol.needs import (
    Argument,
    Budgets,
    CidInput,
    Egress,
    EnvName,
    HttpsInput,
    ImageReference,
    ImageTar,
    InputSpec,
    Name,
    OutputFolder,
    Requirements,
    Resources,
    ShardInput,
    Workdir,
    no_nul,
)
from parity_protocol.wire import JsonObject, Request, explain

__all__ = [
    "FINAL_STATES",
    "MAX_DATASET_BYTES",
    "MAX_PARTS",
    "MAX_SPEC_BYTES",
    "TRANSITIONS",
    "Budgets",
    "CidInput",
    "CommandSpec",
    "DockerSpec",
    "Egress",
    "FederatedLearningSpec",
    "GroupPolicy",
    "GroupState",
    "HttpsInput",
    "InputSpec",
    "IsolationTier",
    "LlmSpec",
    "OutputFolder",
    "Requirements",
    "Resources",
    "ShardInput",
    "TaskEvent",
    "TaskGroup",
    "TaskKind",
    "TaskSpec",
    "TaskState",
    "advance",
    "input_bytes",
    "parse_spec",
    "parts_of",
    "public_state",
    "share_of",
]

MAX_SPEC_BYTES = 65_536  # bytes of a submitted spec's JSON text
MAX_PARTS = 1_000  # tasks that one submission may become
MAX_DATASET_BYTES = (
    128 << 20
)  # bytes of a session's data set, unless the spec lists it among its inputs with a lower cap


class TaskKind(StrEnum):
    """What runs a task."""

    DOCKER = "docker"
    COMMAND = "command"
    LLM = "llm"
    FEDERATED_LEARNING = "federated_learning"


# -- the state machine -------------------------------------------------------------------------------------------


class TaskState(StrEnum):
    """Where a task is."""

    PENDING = "pending"
    LEASED = "leased"
    RUNNING = "running"
    VERIFYING = "verifying"
    COMPLETED = "completed"
    FAILED = "failed"
    NOT_VERIFIED = "not_verified"
    CANCELLED = "cancelled"


class TaskEvent(StrEnum):
    """What moves a task."""

    CLAIM = "claim"
    START = "start"
    REPORT = "report"
    LEASE_LOST = "lease_lost"
    RELEASE = "release"
    NODE_FAULT = "node_fault"
    TASK_FAULT = "task_fault"
    UNCONFIRMED_FAULT = "unconfirmed_fault"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    DEADLINE = "deadline"
    ACCEPT = "accept"
    REJECT = "reject"
    REJECT_FINAL = "reject_final"
    VERIFY_TIMEOUT = "verify_timeout"
    VERIFY_ABANDONED = "verify_abandoned"
    CANCEL = "cancel"


FINAL_STATES = frozenset({TaskState.COMPLETED, TaskState.FAILED, TaskState.NOT_VERIFIED, TaskState.CANCELLED})

_S, _E = TaskState, TaskEvent
TRANSITIONS = MappingProxyType(
    {
        (_S.PENDING, _E.CLAIM): _S.LEASED,
        (_S.PENDING, _E.REPORT): _S.VERIFYING,
        (_S.PENDING, _E.ATTEMPTS_EXHAUSTED): _S.FAILED,
        (_S.PENDING, _E.DEADLINE): _S.FAILED,
        (_S.PENDING, _E.CANCEL): _S.CANCELLED,
        (_S.LEASED, _E.START): _S.RUNNING,
        (_S.LEASED, _E.REPORT): _S.VERIFYING,
        (_S.LEASED, _E.LEASE_LOST): _S.PENDING,
        (_S.LEASED, _E.RELEASE): _S.PENDING,
        (_S.LEASED, _E.NODE_FAULT): _S.PENDING,
        (_S.LEASED, _E.TASK_FAULT): _S.FAILED,
        (_S.LEASED, _E.UNCONFIRMED_FAULT): _S.PENDING,
        (_S.LEASED, _E.CANCEL): _S.CANCELLED,
        (_S.RUNNING, _E.REPORT): _S.VERIFYING,
        (_S.RUNNING, _E.LEASE_LOST): _S.PENDING,
        (_S.RUNNING, _E.RELEASE): _S.PENDING,
        (_S.RUNNING, _E.NODE_FAULT): _S.PENDING,
        (_S.RUNNING, _E.TASK_FAULT): _S.FAILED,
        (_S.RUNNING, _E.UNCONFIRMED_FAULT): _S.PENDING,
        (_S.RUNNING, _E.CANCEL): _S.CANCELLED,
        (_S.VERIFYING, _E.ACCEPT): _S.COMPLETED,
        (_S.VERIFYING, _E.REJECT): _S.PENDING,
        (_S.VERIFYING, _E.REJECT_FINAL): _S.NOT_VERIFIED,
        (_S.VERIFYING, _E.VERIFY_TIMEOUT): _S.VERIFYING,
        (_S.VERIFYING, _E.VERIFY_ABANDONED): _S.FAILED,
    }
)

_PUBLIC = {TaskState.LEASED: "pending", TaskState.VERIFYING: "running"}


def advance(state: TaskState, event: TaskEvent) -> TaskState:
    """Return the state that ``event`` leads to.

    Raises:
        InvalidTransition: The event does not apply in ``state``; a final state takes none.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise InvalidTransition(f"a {state} task cannot take the event {event}") from None


def public_state(state: TaskState) -> str:
    """Return the word of the Parity network for a state: LEASED shows as pending, VERIFYING as running."""
    return _PUBLIC.get(state, state.value)


# -- what a task is ----------------------------------------------------------------------------------------------


class _Spec(Request):
    title: Annotated[str, StringConstraints(max_length=255), AfterValidator(no_nul)] = ""
    description: Annotated[str, StringConstraints(max_length=4096), AfterValidator(no_nul)] = ""
    inputs: Annotated[tuple[InputSpec, ...], Field(max_length=32)] = ()
    budgets: Budgets = Budgets()
    resources: Resources = Resources()
    requires: Requirements = Requirements()
    tenant_id: Name | None = None
    max_attempts: Annotated[int, Field(ge=1, le=10)] = 3

    @model_validator(mode="after")
    def _input_names_differ(self) -> _Spec:
        names = [item.name for item in self.inputs]
        if len(set(names)) != len(names):
            raise ValueError("inputs: each input needs a name of its own")
        return self


def _words(value: object, info: ValidationInfo) -> object:
    """Return a text as its words, or whole when a shell is to read it; a list as a tuple."""
    if isinstance(value, str):
        return (value,) if info.data.get("shell") else tuple(value.split())
    return tuple(value) if isinstance(value, list) else value


class CommandSpec(_Spec):
    """A program and its arguments.

    ``command`` is an argument list. A string is split at white space, without quoting and without a shell, as the
    Parity runner does; only with ``shell`` does ``/bin/sh -c`` read it. After validation it is always a list.
    """

    type: Literal["command"] = "command"
    shell: bool = False  # before ``command``, whose reading it decides
    command: Annotated[tuple[Argument, ...], BeforeValidator(_words), Field(min_length=1, max_length=1024)]
    env: Annotated[dict[EnvName, Argument], Field(max_length=256)] = {}
    workdir: Workdir | None = None  # None is the task's own folder
    egress: Egress | None = None
    output: OutputFolder | None = None
    max_output_bytes: Annotated[int, Field(gt=0, le=16 << 20)] = 1 << 20  # of what it prints

    @model_validator(mode="after")
    def _shell_reads_one_text(self) -> CommandSpec:
        if self.shell and len(self.command) != 1:
            raise ValueError("command: with shell it must be one text, the script")
        return self

    @property
    def argv(self) -> tuple[str, ...]:
        """What is executed, the shell included when the spec asks for one."""
        return ("/bin/sh", "-c", *self.command) if self.shell else self.command


class DockerSpec(_Spec):
    """A container image and what to run in it."""

    type: Literal["docker"] = "docker"
    image: ImageReference
    image_tar: ImageTar | None = None  # a `docker save` archive that holds ``image``; None pulls from its registry
    entrypoint: Annotated[tuple[Argument, ...], Field(max_length=64)] | None = None  # None is the image's own
    command: Annotated[tuple[Argument, ...], Field(max_length=1024)] = ()  # empty is the image's own
    env: Annotated[dict[EnvName, Argument], Field(max_length=256)] = {}
    workdir: Workdir = "/"
    egress: Egress | None = None
    output: OutputFolder | None = None
    max_output_bytes: Annotated[int, Field(gt=0, le=16 << 20)] = 1 << 20  # of what it prints

    @model_validator(mode="after")
    def _gvisor_reaches_no_host(self) -> DockerSpec:
        if self.egress is not None and self.requires.isolation.rank > IsolationTier.DOCKER.rank:
            raise ValueError("egress: hosts cannot be granted in gVisor or above, whose network no proxy can join")
        return self


class LlmSpec(_Spec):
    """A prompt for a language model."""

    type: Literal["llm"] = "llm"
    model: Annotated[str, StringConstraints(min_length=1, max_length=255)]
    prompt: Annotated[str, StringConstraints(max_length=48_000), AfterValidator(no_nul)]
    options: Annotated[dict[Name, JsonValue], Field(max_length=32)] = {}


class FederatedLearningSpec(_Spec):
    """A federated-learning session; each part of its partition becomes one task.

    The dictionaries keep the Parity network's field names; ``parity_fl.spec.resolve_fl_spec`` checks every one.

    In data mode ``partitioned`` every node cuts its part out of one data set. In ``sharded`` each part has a source of its
    own, which only the node that trains it is told: see ``parity_protocol.shards``.

    What a neural network leaves open of ``total_rounds``, ``strategy_config`` and ``rounds_config`` the market fills in
    (``FL_NUM_ROUNDS``, else 3, …); other models that name no rounds train once.
    """

    type: Literal["federated_learning"] = "federated_learning"
    model_type: Annotated[str, StringConstraints(max_length=64)] = ""
    data_mode: Literal["partitioned", "sharded"] = "partitioned"
    dataset_cid: Annotated[str, StringConstraints(max_length=128)] = ""
    shards: Annotated[tuple[WireSha256, ...], Field(max_length=MAX_PARTS)] = ()  # of each part's sealed source
    eval_cid: Annotated[str, StringConstraints(max_length=128)] = (
        ""  # of a sharded session: what the market scores with
    )
    data_format: Annotated[str, StringConstraints(max_length=16)] = ""
    model_settings: Annotated[dict[str, JsonValue], Field(max_length=64, alias="model_config")] = {}
    train_config: Annotated[dict[str, JsonValue], Field(max_length=64)] = {}
    partition_config: Annotated[dict[str, JsonValue], Field(max_length=64)] = {}
    holdout_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    total_rounds: Annotated[int, Field(ge=1, le=10_000)] = 1
    engine: Literal["parity", "flower"] = "parity"  # what carries the rounds
    rounds_config: Annotated[dict[str, JsonValue], Field(max_length=32)] = {}
    strategy_config: Annotated[dict[str, JsonValue], Field(max_length=32)] = {}
    # Submitters of the Parity network write `privacy_config`.
    privacy: Annotated[
        dict[str, JsonValue], Field(max_length=32, validation_alias=AliasChoices("privacy", "privacy_config"))
    ] = {}

    @model_validator(mode="after")
    def _data_mode_names_its_data(self) -> FederatedLearningSpec:
        if self.data_mode == "partitioned":
            if self.shards or self.eval_cid:
                raise ValueError("data_mode: shards and eval_cid belong to the data mode sharded")
            return self
        if not self.shards:
            raise ValueError("shards: a sharded session names the source of each part")
        if self.dataset_cid or self.inputs:
            raise ValueError("dataset_cid: a sharded session has no data but its shards")
        if self.partition_config.get("total_parts", len(self.shards)) != len(self.shards):
            raise ValueError(f"partition_config: total_parts must be the number of shards, {len(self.shards)}")
        return self

    def session(self) -> JsonObject:
        """Return the session's own fields under their wire names, as ``resolve_fl_spec`` takes them.

        ``total_rounds`` is among them only where the submitter named it.
        """
        fields = {
            "model_type",
            "data_mode",
            "dataset_cid",
            "shards",
            "eval_cid",
            "data_format",
            "model_settings",
            "train_config",
            "partition_config",
            "holdout_fraction",
            "seed",
            "total_rounds",
            "engine",
            "rounds_config",
            "strategy_config",
            "privacy",
        }
        if "total_rounds" not in self.model_fields_set:
            fields.remove("total_rounds")
        return self.model_dump(mode="json", by_alias=True, include=fields)


TaskSpec = Annotated[CommandSpec | DockerSpec | LlmSpec | FederatedLearningSpec, Field(discriminator="type")]
_NAMED = re.compile(r"Value error, (?P<field>[a-z_]+): (?P<text>.+)", re.DOTALL)
_SPEC: TypeAdapter[CommandSpec | DockerSpec | LlmSpec | FederatedLearningSpec] = TypeAdapter(TaskSpec)


def parse_spec(text: str) -> CommandSpec | DockerSpec | LlmSpec | FederatedLearningSpec:
    """Read a submitted spec from its exact JSON text, whose sha256 the order signs.

    Market and node both call this on the same text, so neither has to believe the other's reading.

    Raises:
        BadDocument: Not JSON that is accepted here; ``field`` is the place in it as a JSON pointer, after ``/spec``.
        TooLarge: Over ``MAX_SPEC_BYTES``.
        BadField: A field is missing, unknown, or wrong; ``field`` names it.
    """
    data = text.encode("utf-8", errors="surrogatepass")
    try:
        strict_json.loads(data, max_bytes=MAX_SPEC_BYTES)
    except BadDocument as exc:
        raise BadDocument(f"the spec: {exc}", field=f"/spec{exc.field}") from exc
    try:
        return _SPEC.validate_json(data)
    except ValidationError as exc:
        problems = explain(exc)
        field, message = problems[0]
        # pydantic puts the union's tag in front of the path; the submitter never wrote it.
        head, _, rest = field.partition(".")
        shown = rest if rest and head in set(TaskKind) else field.replace("body", "type")
        named = _NAMED.match(message)
        if named is not None and not rest:  # of the whole document: the check itself names the field
            shown, message = named["field"], named["text"]
        raise BadField(f"spec.{shown}: {message}", field=f"spec.{shown}") from exc


def parts_of(spec: CommandSpec | DockerSpec | LlmSpec | FederatedLearningSpec) -> int:
    """Return how many tasks this spec becomes.

    Raises:
        BadField: ``partition_config.total_parts`` is not a whole number from 1 to ``MAX_PARTS``.
    """
    if not isinstance(spec, FederatedLearningSpec):
        return 1
    if spec.data_mode == "sharded":
        return len(spec.shards)
    parts: Any = spec.partition_config.get("total_parts", 1)
    if isinstance(parts, bool) or not isinstance(parts, int) or not 1 <= parts <= MAX_PARTS:
        raise BadField(
            f"partition_config.total_parts must be a whole number from 1 to {MAX_PARTS}",
            field="spec.partition_config.total_parts",
        )
    return parts


def input_bytes(spec: CommandSpec | DockerSpec | LlmSpec | FederatedLearningSpec) -> int:
    """Return how many bytes of input one task may bring at most, a session's data set included."""
    listed = sum(_size_of(item) for item in spec.inputs)
    if isinstance(spec, DockerSpec) and spec.image_tar is not None:
        return listed + _size_of(spec.image_tar)
    if not isinstance(spec, FederatedLearningSpec) or not spec.dataset_cid:
        return listed
    is_listed = any(isinstance(item, CidInput) and item.cid == spec.dataset_cid for item in spec.inputs)
    return listed if is_listed else listed + MAX_DATASET_BYTES


def _size_of(item: CidInput | HttpsInput | ShardInput) -> int:
    if isinstance(item, CidInput):
        return item.max_bytes
    return item.size if isinstance(item, HttpsInput) else 0  # a shard is on the node already


# -- several tasks that belong together ---------------------------------------------------------------------------


class GroupState(StrEnum):
    """Where a group is. It leaves RUNNING once."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class GroupPolicy:
    """When a group's tasks are enough to make its result from."""

    parts: int  # tasks that it has
    needed: int  # of them that must complete

    def __post_init__(self) -> None:
        if not 1 <= self.needed <= self.parts:
            raise BadField(f"a group of {self.parts} parts cannot need {self.needed}", field="needed")


@dataclass(frozen=True, slots=True)
class TaskGroup:
    """What several tasks belong to: a federated session, replicas of one task, an array.

    Each task keeps a lease of its own and names ``group_id``, ``part`` and ``parts``; the group makes one result of
    theirs and shares out the reward.
    """

    id: str
    kind: TaskKind
    spec: CommandSpec | DockerSpec | LlmSpec | FederatedLearningSpec
    policy: GroupPolicy
    state: GroupState = GroupState.RUNNING
    result: str | None = None  # CID, once completed

    def due(self, members: Sequence[TaskState]) -> GroupState:
        """Return the state that the members' states lead to: FAILED as soon as too few are left that can complete."""
        if self.state is not GroupState.RUNNING:
            return self.state
        lost = sum(state in FINAL_STATES and state is not TaskState.COMPLETED for state in members)
        if self.policy.parts - lost < self.policy.needed:
            return GroupState.FAILED
        open_ = self.policy.parts - lost - sum(state is TaskState.COMPLETED for state in members)
        return GroupState.COMPLETED if open_ == 0 else GroupState.RUNNING


def share_of(reward: int, part: int, parts: int) -> int:
    """Return the base units of ``reward`` that belong to ``part``; the shares sum to the reward exactly."""
    return reward // parts + (1 if part < reward % parts else 0)
