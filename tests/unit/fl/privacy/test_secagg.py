"""Secure sums: the sum comes out for every set of drop-outs that leaves enough, and nothing else ever does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity_fl.privacy.config import default_threshold, fewest_shares
from parity_fl.privacy.secagg import PHASES, Phase, SumSetup, add_mask, agreed, mask_seed, sign_of
from parity_fl.privacy.secagg_client import SecureClient
from parity_fl.privacy.secagg_messages import absent, decode_message, encode_message, words
from parity_fl.privacy.secagg_server import SecureServer
from parity_fl.tensors import decode_tensors, encode_tensors
from parity_protocol.errors import BadDocument, Conflict, InvalidInput, ParityError, TooFewUpdates

SIZE = 50
Gone = Mapping[Phase, Collection[int]]


def make_setup(parts: int = 6, threshold: int | None = None, context: bytes = b"c" * 32, bits: int = 32) -> SumSetup:
    chosen = default_threshold(parts) if threshold is None else threshold
    return SumSetup(context, parts, chosen, SIZE, 64 if bits == 64 else 32)


class Sum:
    """A whole secure sum in one process. ``gone``: who does not answer a phase, nor any later one."""

    def __init__(self, setup: SumSetup, seed: int = 1) -> None:
        rng = np.random.default_rng(seed)
        top = 2**32 if setup.bits == 32 else 2**64 - 1
        self.setup, self.server = setup, SecureServer(setup)
        self.vectors = [rng.integers(0, top, SIZE, dtype=setup.dtype) for _ in range(setup.parts)]
        self.clients = [SecureClient(setup, part, rng.bytes) for part in range(setup.parts)]
        self.sent: dict[tuple[Phase, int], bytes] = {}
        self.asked = set(range(setup.parts))

    def answers(self, gone: Collection[int] = ()) -> dict[int, Callable[[], bytes]]:
        phase, request = self.server.phase, self.server.request
        assert phase is not None
        self.asked -= set(gone)
        for part in sorted(self.asked):
            self.sent[phase, part] = self.clients[part].answer(phase, request, self.vectors[part])
        return {part: self.sent[phase, part].__bytes__ for part in self.asked}

    def until(self, phase: Phase, gone: Gone | None = None) -> None:
        while self.server.phase != phase:
            self.step(gone)

    def step(self, gone: Gone | None = None) -> None:
        assert self.server.phase is not None
        closed = self.server.close(self.answers((gone or {}).get(self.server.phase, ())))
        self.asked &= set(closed.accepted)

    def run(self, gone: Gone | None = None) -> tuple[np.ndarray, tuple[int, ...]]:
        while self.server.phase is not None:
            self.step(gone)
        return self.server.result()

    def plain(self, parts: Collection[int]) -> np.ndarray:
        return np.sum([self.vectors[part] for part in parts], axis=0, dtype=self.setup.dtype)


@st.composite
def drop_outs(draw: st.DrawFn) -> tuple[SumSetup, dict[Phase, set[int]]]:
    parts = draw(st.integers(3, 7))
    setup = make_setup(parts, draw(st.integers(fewest_shares(parts), parts)))
    lost = draw(st.lists(st.integers(0, parts - 1), unique=True, max_size=parts - setup.threshold))
    gone: dict[Phase, set[int]] = {phase: set() for phase in PHASES}
    for part in lost:
        gone[draw(st.sampled_from(PHASES))].add(part)
    return setup, gone


@settings(max_examples=25, deadline=None)
@given(drop_outs(), st.sampled_from([32, 64]))
def test_the_sum_of_masked_vectors_is_the_plain_sum_of_those_that_are_in(
    case: tuple[SumSetup, dict[Phase, set[int]]], bits: int
) -> None:
    setup, gone = case
    run = Sum(make_setup(setup.parts, setup.threshold, bits=bits))

    total, parts = run.run(gone)

    left_before = gone["keys"] | gone["shares"] | gone["masked"]
    assert set(parts) == set(range(setup.parts)) - left_before
    assert (total == run.plain(parts)).all()


@settings(max_examples=12, deadline=None)
@given(st.integers(3, 7), st.sampled_from(PHASES), st.data())
def test_below_the_threshold_it_fails_with_a_reason_and_there_is_no_sum(
    parts: int, phase: Phase, data: st.DataObject
) -> None:
    setup = make_setup(parts, data.draw(st.integers(fewest_shares(parts), parts)))
    lost = data.draw(st.permutations(range(parts)))[: parts - setup.threshold + 1]
    run = Sum(setup)

    with pytest.raises(TooFewUpdates, match=f"{setup.threshold - 1} of .* left in the secure sum's phase {phase}"):
        run.run({phase: lost})

    assert run.server.phase == phase
    with pytest.raises(BadDocument):
        run.server.result()


def test_what_the_market_sees_of_one_part_is_not_its_vector_and_differs_from_run_to_run() -> None:
    seen = []
    for seed in (1, 2):
        run = Sum(make_setup(), seed)
        run.vectors = [np.zeros(SIZE, dtype=np.uint32) for _ in run.vectors]
        run.until("confirm")
        tensors, _ = decode_tensors(run.sent["masked", 0], max_bytes=1 << 20)
        seen.append(tensors["sum"])

    assert np.count_nonzero(seen[0]) > SIZE - 3
    assert (seen[0] != seen[1]).all()


def test_a_vector_that_comes_after_its_mask_key_was_opened_is_still_masked() -> None:
    # Why there are two masks: part 0 counts as gone, its mask key is opened, and its vector arrives after all.
    run = Sum(make_setup())
    run.until("masked")
    key, roster = run.clients[0]._mask_key, run.clients[0]._digest
    late = decode_message(run.setup, run.answers()[0](), "masked", {"sum": (SIZE,)})["sum"].copy()
    for other, public in run.clients[1]._mask_keys.items():
        if other != 0:
            add_mask(late, mask_seed(agreed(key, public), roster), -sign_of(0, other))

    without_pairs = late.copy()
    add_mask(late, run.clients[0]._seed, -1)

    assert (late == run.vectors[0]).all()  # nothing else was on it
    assert (without_pairs != run.vectors[0]).all()


@pytest.mark.parametrize("phase", PHASES)
def test_a_market_that_was_killed_goes_on_in_every_phase(phase: Phase) -> None:
    run = Sum(make_setup())
    run.until(phase)
    kept, request = run.server.state(), run.server.request

    again = SecureServer(run.setup)
    if phase != "keys":
        again.restore(kept, phase, request)
    run.server = again

    total, parts = run.run({"unmask": [1]})
    assert (total == run.plain(parts)).all()


@pytest.mark.parametrize("phase", PHASES)
def test_a_state_of_another_phase_is_refused(phase: Phase) -> None:
    run = Sum(make_setup())
    run.until(phase)

    with pytest.raises(BadDocument):
        SecureServer(run.setup).restore({"sum": words([1])}, phase, b"")
    with pytest.raises(BadDocument):
        SecureServer(run.setup).restore({**run.server.state(), "more": words([1])}, phase, b"")


# -- hostile nodes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("how", ["nothing", "cut", "bits", "json", "other sum", "other phase", "huge"])
def test_a_malformed_answer_is_out_by_name_and_the_others_go_on(phase: Phase, how: str) -> None:
    run = Sum(make_setup())
    run.until(phase)
    answers = run.answers()
    good = answers[2]()
    bad = {
        "nothing": b"",
        "cut": good[:-5],
        "bits": good[:20] + b"\xff" * 8 + good[28:],
        "json": b'{"sum": [1, 2, 3]}',
        "other sum": good.replace(run.setup.context.hex().encode(), b"0" * 64),
        "other phase": encode_message(run.setup, "nonsense", {}),
        "huge": good + bytes(1 << 20),
    }[how]
    answers[2] = bad.__bytes__

    closed = run.server.close(answers)
    run.asked &= set(closed.accepted)

    assert 2 in closed.rejected
    assert closed.accepted == (0, 1, 3, 4, 5)
    total, parts = run.run()
    assert (total == run.plain(parts)).all()
    assert (2 in parts) == (phase in {"confirm", "unmask"})


@pytest.mark.parametrize("kind", ["seeds", "keys"])
def test_a_lying_share_is_found_and_the_sum_still_comes_out(kind: str) -> None:
    run = Sum(make_setup(threshold=4))
    run.until("unmask", {"masked": [5]})
    answers = run.answers()
    tensors, said = decode_tensors(answers[1](), max_bytes=1 << 20)
    lie = {name: tensor.copy() for name, tensor in tensors.items()}
    lie[kind][0, 0] ^= 1
    answers[1] = encode_tensors(lie, said).__bytes__

    closed = run.server.close(answers)

    dealer = 0 if kind == "seeds" else 5
    assert closed.rejected == {1: f"its share of part {dealer} is not the one that was dealt"}
    total, parts = run.server.result()
    assert parts == (0, 1, 2, 3, 4)
    assert (total == run.plain(parts)).all()


def test_a_part_that_dealt_something_else_than_its_mask_is_named() -> None:
    run = Sum(make_setup())
    run.until("shares")
    run.clients[3]._seed = bytes(32)  # it committed to another one
    run.until("unmask")

    with pytest.raises(TooFewUpdates, match="part 3 dealt shares of something else than its mask") as caught:
        run.step()

    assert set(caught.value.rejected) == {3}


def test_shares_that_do_not_open_are_missed_only_while_enough_others_do() -> None:
    run = Sum(make_setup())
    run.until("shares")
    answers = run.answers()
    tensors, said = decode_tensors(answers[3](), max_bytes=1 << 20)
    changed = {name: tensor.copy() for name, tensor in tensors.items()}
    changed["sealed"][0] ^= 7  # what part 0 gets of part 3
    answers[3] = encode_tensors(changed, said).__bytes__
    run.asked &= set(run.server.close(answers).accepted)

    total, parts = run.run()

    assert parts == (0, 1, 2, 3, 4, 5)
    assert (total == run.plain(parts)).all()


def test_an_old_answer_of_another_round_is_refused() -> None:
    old, new = Sum(make_setup(context=b"1" * 32)), Sum(make_setup(context=b"2" * 32))
    old.until("confirm")
    new.until("masked")
    answers = new.answers()
    answers[4] = old.sent["masked", 4].__bytes__

    closed = new.server.close(answers)

    assert "what was sent before must not be sent again" in closed.rejected[4]


@pytest.mark.parametrize("low", [bytes(32), b"\x01" + bytes(31)])
def test_a_key_of_low_order_is_refused(low: bytes) -> None:
    run = Sum(make_setup())
    answers = run.answers()
    tensors, said = decode_tensors(answers[2](), max_bytes=1 << 20)
    keys = tensors["keys"].copy()
    keys[0, 8:16] = np.frombuffer(low, "<u4")
    answers[2] = encode_tensors({"keys": keys}, said).__bytes__

    assert "low order" in run.server.close(answers).rejected[2]


def test_the_same_key_twice_is_refused() -> None:
    run = Sum(make_setup())
    answers = run.answers()
    answers[2] = answers[1]

    assert run.server.close(answers).rejected == {2: "a key that another part sent, or twice the same"}


def test_who_cannot_go_on_says_so_and_is_not_waited_for() -> None:
    run = Sum(make_setup())
    run.until("masked")
    answers = run.answers()
    answers[2] = absent("its keys are gone").__bytes__

    closed = run.server.close(answers)

    assert closed.rejected[2].endswith("absent: its keys are gone")
    run.asked &= set(closed.accepted)
    total, parts = run.run()
    assert (total == run.plain(parts)).all()
    assert 2 not in parts


# -- a hostile market ------------------------------------------------------------------------------------------------


def test_a_market_that_shows_parts_other_keys_opens_nothing() -> None:
    run, market = Sum(make_setup()), SecureClient(make_setup(), 0, np.random.default_rng(9).bytes)
    run.step()
    real = run.server.request
    tensors, said = decode_tensors(real, max_bytes=1 << 20)
    keys = tensors["keys"].copy()
    keys[0] = decode_message(run.setup, market.keys(), "keys", {"keys": (1, 24)})["keys"][0]
    forged = encode_tensors({"parts": tensors["parts"], "keys": keys}, said)

    answers = {part: run.clients[part].shares(forged if part == 5 else real) for part in range(6)}
    run.server.close({part: answer.__bytes__ for part, answer in answers.items()})

    with pytest.raises(BadDocument, match="1 of 6 shares open, 5 must: the parts were not shown the same keys"):
        run.clients[5].masked(run.server.request, run.vectors[5])


def test_a_market_that_tells_parts_different_survivors_opens_nothing() -> None:
    run = Sum(make_setup())
    run.until("confirm")
    everybody = run.server.request
    fewer = encode_message(run.setup, "confirm", {"parts": words([1, 2, 3, 4, 5])})
    said = {part: run.clients[part].confirm(fewer if part >= 3 else everybody) for part in range(6)}
    run.server.close({part: answer.__bytes__ for part, answer in said.items() if part < 3} | _padded(said, run))

    for part in range(3):
        with pytest.raises(BadDocument, match="were told the same of whose vectors are in"):
            run.clients[part].unmask(run.server.request)


def _padded(said: dict[int, bytes], run: Sum) -> dict[int, Callable[[], bytes]]:
    """Make confirmations of five look like confirmations of six, as the market would."""
    found = {}
    for part in (3, 4, 5):
        rows = decode_message(run.setup, said[part], "confirm", {"said": (5, 8)})["said"]
        found[part] = encode_message(
            run.setup, "confirm", {"said": np.concatenate([np.zeros((1, 8), np.uint32), rows])}
        ).__bytes__
    return found


@pytest.mark.parametrize(
    ("phase", "parts"), [("confirm", [0, 1]), ("confirm", [1, 2, 3, 4, 5]), ("confirm", [0, 0, 1])]
)
def test_a_part_refuses_a_sum_of_too_few_or_without_itself(phase: Phase, parts: list[int]) -> None:
    run = Sum(make_setup())
    run.until(phase)

    with pytest.raises(BadDocument):
        run.clients[0].confirm(encode_message(run.setup, phase, {"parts": words(parts)}))


def test_a_phase_is_answered_once_and_the_same_request_gets_the_same_answer() -> None:
    run = Sum(make_setup())
    run.until("confirm")
    client, request = run.clients[0], run.server.request
    first = client.confirm(request)

    assert client.confirm(request) == first
    with pytest.raises(Conflict, match="answered before, to another request"):
        client.confirm(encode_message(run.setup, "confirm", {"parts": words([0, 1, 2, 3, 4])}))
    with pytest.raises(Conflict, match="answered before"):
        client.masked(encode_message(run.setup, "masked", {}), run.vectors[0])


def test_phases_cannot_be_skipped() -> None:
    client = SecureClient(make_setup(), 0, np.random.default_rng(0).bytes)

    with pytest.raises(Conflict, match="is not the next one"):
        client.confirm(b"")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PHASES[1:]), st.binary(max_size=300), st.integers(0, 400))
def test_no_request_makes_a_part_do_anything_but_refuse(phase: Phase, noise: bytes, at: int) -> None:
    run = FROM_PHASE[phase]
    good = run.server.request
    request = good[:at] + noise + good[at + len(noise) :]
    client = _copied(run, 0)

    if request == good:
        return
    try:
        client.answer(phase, request, run.vectors[0])
    except ParityError:
        return
    tensors, _ = decode_tensors(request, max_bytes=1 << 20)
    assert set(tensors) == set(
        decode_tensors(good, max_bytes=1 << 20)[0]
    )  # a change that it cannot see means nothing yet


def _copied(run: Sum, part: int) -> SecureClient:
    old = run.clients[part]
    new = SecureClient(run.setup, part, np.random.default_rng(3).bytes)
    for name, value in vars(old).items():
        setattr(new, name, dict(value) if isinstance(value, dict) else value)
    return new


def _reached(phase: Phase) -> Sum:
    run = Sum(make_setup())
    run.until(phase)
    return run


FROM_PHASE = {phase: _reached(phase) for phase in PHASES[1:]}


@pytest.mark.parametrize(("parts", "threshold"), [(2, 2), (6, 3), (6, 7), (257, 200), (4, 2)])
def test_a_setup_that_protects_nothing_cannot_be_made(parts: int, threshold: int) -> None:
    with pytest.raises(InvalidInput):
        SumSetup(b"c" * 32, parts, threshold, SIZE)
