"""The market's side of a secure sum: it hands messages on, counts who is still there, and opens the sum and nothing else.

What it has to remember between two phases is a few tables, so that a market that was killed goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from parity_fl.privacy.fixed_point import Words
from parity_fl.privacy.secagg import (
    PHASES,
    Phase,
    SumSetup,
    add_mask,
    agreed,
    commitment,
    mask_seed,
    public_key,
    roster_digest,
    sign_of,
)
from parity_fl.privacy.secagg_messages import (
    COMMITTED,
    KEY,
    KEYS,
    SEALED,
    SHARE,
    Table,
    decode_message,
    encode_message,
    parts_of,
    words,
)
from parity_fl.privacy.shamir import Lagrange
from parity_protocol.errors import BadDocument, ParityError, TooFewUpdates

__all__ = ["PhaseClosed", "SecureServer"]

Answers = Mapping[int, Callable[[], bytes | memoryview]]

_KEY_BYTES: Final = 32
_PROBE: Final = bytes(range(1, 33))  # any secret: with a key of low order all give the same
_STATE: Final[dict[str, int]] = {"roster": 1, "keys": 2, "dealers": 1, "promised": 2, "survivors": 1, "sum": 1}


@dataclass(frozen=True, slots=True)
class PhaseClosed:
    """A closed phase.

    Attributes:
        accepted: Parts that are still in, ascending.
        rejected: Why others are not, by part.
    """

    accepted: tuple[int, ...]
    rejected: dict[int, str]


class SecureServer:
    """One sum, from its first phase; ``restore`` goes on in the middle of one.

    Attributes:
        phase: What the parts are asked now; None when the sum is there.
        request: What they are sent with it; empty for ``keys``, which needs nothing.
    """

    def __init__(self, setup: SumSetup) -> None:
        self._setup = setup
        self.phase: Phase | None = "keys"
        self.request = b""
        self._kept: dict[str, Table] = {}
        self._sum: Words | None = None

    def close(self, answers: Answers) -> PhaseClosed:
        """Close the open phase with the answers that came; nothing has changed when it raises.

        Args:
            answers: By part, what reads its answer; each is called once, one in memory at a time.

        Raises:
            TooFewUpdates: Fewer than the threshold are usable, or a mask cannot be taken off; nothing is revealed.
        """
        match self.phase:
            case "keys":
                return self._close_keys(answers)
            case "shares":
                return self._close_shares(answers)
            case "masked":
                return self._close_masked(answers)
            case "confirm":
                return self._close_confirm(answers)
            case "unmask":
                return self._close_unmask(answers)
            case _:
                raise BadDocument("the sum is there: nothing more is asked")

    def result(self) -> tuple[Words, tuple[int, ...]]:
        """Return the sum, shape ``(size,)``, and whose vectors are in it.

        Raises:
            BadDocument: It is not there yet.
        """
        if self._sum is None:
            raise BadDocument("the secure sum is not there yet")
        return self._sum, self._listed("survivors")

    def state(self) -> dict[str, Table]:
        """Return what the next phase depends on; ``restore`` reads it."""
        return {**self._kept}

    def restore(self, state: Mapping[str, Table], phase: Phase, request: bytes) -> None:
        """Go on with a phase that was open.

        Raises:
            BadDocument: The state does not belong to it.
        """
        shapes = {name: (state[name].ndim if name in state else 0) for name in _STATE}
        wanted = _needed_for(phase)
        if set(state) != wanted or any(shapes[name] != _STATE[name] for name in wanted):
            raise BadDocument(f"the state of a secure sum in the phase {phase} has {', '.join(sorted(wanted))}")
        if any(tensor.dtype != np.uint32 for tensor in state.values()):
            raise BadDocument("the state of a secure sum is U32")
        self.phase, self.request, self._kept = phase, request, dict(state)

    def _listed(self, name: str) -> tuple[int, ...]:
        return tuple(self._kept[name].tolist())

    def _read(
        self, answers: Answers, allowed: tuple[int, ...], shapes: Callable[[int], Mapping[str, tuple[int, ...]]]
    ) -> tuple[dict[int, dict[str, Table]], dict[int, str]]:
        found: dict[int, dict[str, Table]] = {}
        rejected: dict[int, str] = {}
        assert self.phase is not None
        for part in sorted(answers):
            try:
                if part not in allowed:
                    raise BadDocument(f"part {part} is not in this sum any more")
                found[part] = decode_message(self._setup, answers[part](), self.phase, shapes(part))
            except ParityError as exc:
                rejected[part] = exc.message
        return found, rejected

    def _enough(self, parts: tuple[int, ...], rejected: Mapping[int, str], asked: int) -> None:
        if len(parts) < self._setup.threshold:
            reasons = "; ".join(f"part {part}: {why}" for part, why in list(rejected.items())[:3])
            raise TooFewUpdates(
                f"{len(parts)} of {asked} parts are left in the secure sum's phase {self.phase}, {self._setup.threshold}"
                f" are needed; nothing was revealed{f' ({reasons})' if reasons else ''}",
                rejected=rejected,
            )

    def _move(self, tables: Mapping[str, Table], **kept: Table) -> None:
        assert self.phase is not None
        place = PHASES.index(self.phase) + 1
        following = PHASES[place] if place < len(PHASES) else None
        self.request = encode_message(self._setup, following, tables) if following else b""
        self._kept = {name: value for name, value in {**self._kept, **kept}.items() if name in _needed_for(following)}
        self.phase = following

    def _close_keys(self, answers: Answers) -> PhaseClosed:
        found, rejected = self._read(answers, tuple(range(self._setup.parts)), lambda _: {"keys": (1, KEYS)})
        seen: set[bytes] = set()
        keys: dict[int, bytes] = {}
        for part, said in found.items():
            row = said["keys"].tobytes()
            pair = row[:_KEY_BYTES], row[_KEY_BYTES : 2 * _KEY_BYTES]
            try:
                for one in pair:
                    agreed(_PROBE, one)
            except BadDocument as exc:
                rejected[part] = exc.message
                continue
            if pair[0] == pair[1] or not seen.isdisjoint(pair):
                rejected[part] = "a key that another part sent, or twice the same"
                continue
            seen.update(pair)
            keys[part] = row
        roster = tuple(keys)
        self._enough(roster, rejected, self._setup.parts)
        tables = {"parts": words(roster), "keys": np.frombuffer(b"".join(keys.values()), "<u4").reshape(-1, KEYS)}
        self._move(tables, roster=tables["parts"], keys=tables["keys"])
        return PhaseClosed(roster, rejected)

    def _close_shares(self, answers: Answers) -> PhaseClosed:
        roster = self._listed("roster")
        n = len(roster)
        found, rejected = self._read(answers, roster, lambda _: {"sealed": (n - 1, SEALED), "promised": (n, COMMITTED)})
        dealers = tuple(found)
        self._enough(dealers, rejected, n)
        sealed, promised = [], []
        for receiver in dealers:
            at = roster.index(receiver)
            for dealer in dealers:
                if dealer != receiver:
                    sealed.append(found[dealer]["sealed"][at - (roster.index(dealer) < at)])
                    promised.append(found[dealer]["promised"][at])
        tables = {"parts": words(dealers), "sealed": np.stack(sealed), "promised": np.stack(promised)}
        everything = np.concatenate([found[dealer]["promised"] for dealer in dealers])  # rows by dealer, then roster
        self._move(tables, dealers=tables["parts"], promised=everything)
        return PhaseClosed(dealers, rejected)

    def _close_masked(self, answers: Answers) -> PhaseClosed:
        dealers, setup = self._listed("dealers"), self._setup
        total = np.zeros(setup.row, dtype="<u4").view(setup.dtype)
        survivors: list[int] = []
        rejected: dict[int, str] = {}
        for part in sorted(answers):
            found, bad = self._read({part: answers[part]}, dealers, lambda _: {"sum": (setup.row,)})
            rejected |= bad
            if part in found:
                total += found[part]["sum"].view(setup.dtype)
                survivors.append(part)
        parts = tuple(survivors)
        self._enough(parts, rejected, len(dealers))
        self._move({"parts": words(parts)}, survivors=words(parts), sum=total.view("<u4"))
        return PhaseClosed(parts, rejected)

    def _close_confirm(self, answers: Answers) -> PhaseClosed:
        survivors = self._listed("survivors")
        found, rejected = self._read(answers, survivors, lambda _: {"said": (len(survivors), KEY)})
        parts = tuple(found)
        self._enough(parts, rejected, len(survivors))
        self._move({"parts": words(parts), "said": np.concatenate([found[part]["said"] for part in parts])})
        return PhaseClosed(parts, rejected)

    def _close_unmask(self, answers: Answers) -> PhaseClosed:
        survivors, dealers = self._listed("survivors"), self._listed("dealers")
        shapes = {"stayed": (-1,), "seeds": (-1, SHARE), "gone": (-1,), "keys": (-1, SHARE)}
        found, rejected = self._read(answers, survivors, lambda _: shapes)
        lost = tuple(part for part in dealers if part not in survivors)
        shares: dict[tuple[int, bytes], dict[int, bytes]] = {(part, b"seed share"): {} for part in survivors}
        shares |= {(part, b"key share"): {} for part in lost}
        for part, said in list(found.items()):
            try:
                opened = self._checked(part, said, survivors, lost)
            except BadDocument as exc:
                rejected[part] = exc.message
                del found[part]
                continue
            for dealer, purpose, share in opened:
                shares[dealer, purpose][part + 1] = share
        self._enough(tuple(found), rejected, len(survivors))

        secrets = {key: self._opened(*key, held, rejected) for key, held in shares.items()}
        setup = self._setup
        total = self._kept["sum"].copy().view(setup.dtype)
        public = dict(zip(self._listed("roster"), (row.tobytes() for row in self._kept["keys"]), strict=True))
        roster = roster_digest(setup, self._kept["roster"], self._kept["keys"])
        for (dealer, purpose), secret in secrets.items():
            if purpose == b"seed share":
                add_mask(total, secret, -1)
                continue
            for part in survivors:  # their masks with the one that went have no counterpart in the sum
                shared = agreed(secret, public[part][_KEY_BYTES : 2 * _KEY_BYTES])
                add_mask(total, mask_seed(shared, roster), -sign_of(part, dealer))
        self._sum = total
        self._move({})
        return PhaseClosed(tuple(sorted(found)), rejected)

    def _checked(
        self, part: int, said: Mapping[str, Table], survivors: tuple[int, ...], lost: tuple[int, ...]
    ) -> list[tuple[int, bytes, bytes]]:
        """Return (dealer, purpose, share) of an answer whose every share is one that was dealt."""
        roster, dealers = self._listed("roster"), self._listed("dealers")
        at, opened = roster.index(part), []
        kinds = (("stayed", "seeds", survivors, b"seed share"), ("gone", "keys", lost, b"key share"))
        for names, values, allowed, purpose in kinds:
            listed = parts_of(said[names], allowed, least=0)
            if len(said[values]) != len(listed):
                raise BadDocument("the answer has another number of shares than parts")
            for dealer, row in zip(listed, said[values], strict=True):
                share, place = row.tobytes(), KEY if purpose == b"seed share" else 0
                promised = self._kept["promised"][dealers.index(dealer) * len(roster) + at][place : place + KEY]
                if commitment(self._setup, purpose, dealer, part, share) != promised.tobytes():
                    raise BadDocument(f"its share of part {dealer} is not the one that was dealt")
                opened.append((dealer, purpose, share))
        return opened

    def _opened(self, dealer: int, purpose: bytes, held: Mapping[int, bytes], rejected: Mapping[int, str]) -> bytes:
        """Return the secret that ``dealer`` shared, checked against what it said before.

        Raises:
            TooFewUpdates: Too few shares of it came, or it dealt something else.
        """
        setup, threshold = self._setup, self._setup.threshold
        if len(held) < threshold:
            raise TooFewUpdates(
                f"{len(held)} shares of part {dealer} came, {threshold} are needed: the sum stays masked",
                rejected=rejected,
            )
        places = sorted(held)[:threshold]
        secret = Lagrange(places).secret(held)
        row = self._kept["keys"][self._listed("roster").index(dealer)].tobytes()
        if purpose == b"seed share":
            is_right = (
                secret is not None and commitment(setup, b"seed", dealer, dealer, secret) == row[2 * _KEY_BYTES :]
            )
        else:
            is_right = secret is not None and public_key(secret) == row[_KEY_BYTES : 2 * _KEY_BYTES]
        if secret is None or not is_right:
            raise TooFewUpdates(
                f"part {dealer} dealt shares of something else than its mask: the sum stays masked",
                rejected={**rejected, dealer: "it dealt shares of something else than its mask"},
            )
        return secret


def _needed_for(phase: Phase | None) -> frozenset[str]:
    match phase:
        case "keys":
            return frozenset()
        case "shares":
            return frozenset({"roster", "keys"})
        case "masked":
            return frozenset({"roster", "keys", "dealers", "promised"})
        case "confirm" | "unmask":
            return frozenset(_STATE)
        case None:
            return frozenset({"survivors"})
