"""A part's side of a secure sum: keys in memory, one answer to each phase, and refusals that protect it from the market.

Each phase is answered once; the same request again gets the same answer, another one is refused: two masked vectors, or
both secrets of one part, would tell a market what it must not know.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from parity_fl.privacy.fixed_point import Words
from parity_fl.privacy.secagg import (
    PHASES,
    Phase,
    SumSetup,
    add_mask,
    agreed,
    commitment,
    confirmation,
    mask_seed,
    public_key,
    roster_digest,
    sealing_key,
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
    table,
    words,
)
from parity_fl.privacy.shamir import SHARE_BYTES, split
from parity_protocol.errors import BadDocument, Conflict, InvalidInput

__all__ = ["SecureClient"]

_SECRET_BYTES: Final = 32
_NONCE: Final = bytes(12)  # each key seals one message


class SecureClient:
    """One part in one sum.

    Args:
        setup: The sum; made by the part itself from what it was told, never taken from the market as a whole.
        part: Which part.
        randomness: Gives so many secret random bytes.
    """

    def __init__(self, setup: SumSetup, part: int, randomness: Callable[[int], bytes]) -> None:
        if not 0 <= part < setup.parts:
            raise InvalidInput(f"there is no part {part} of {setup.parts}")
        self._setup, self._part, self._random = setup, part, randomness
        self._seal_key, self._mask_key, self._seed = (randomness(_SECRET_BYTES) for _ in range(3))
        self._answers: dict[Phase, tuple[bytes, bytes]] = {}  # digest of the request, and the answer
        self._roster: tuple[int, ...] = ()
        self._digest = b""
        self._seal_keys: dict[int, bytes] = {}  # public ones, by part
        self._mask_keys: dict[int, bytes] = {}
        self._held: dict[int, tuple[bytes, bytes]] = {}  # shares of (mask key, seed) by who dealt them
        self._in_sum: tuple[int, ...] = ()  # whoever's masks are in our vector
        self._survivors: Table = words(())

    @property
    def has_opened(self) -> bool:
        """Whether this part has answered ``unmask``."""
        return "unmask" in self._answers

    def keys(self) -> bytes:
        """Answer ``keys``."""
        promised = commitment(self._setup, b"seed", self._part, self._part, self._seed)
        mine = table([public_key(self._seal_key), public_key(self._mask_key), promised], KEYS)
        return self._once("keys", b"", lambda: encode_message(self._setup, "keys", {"keys": mine}))

    def shares(self, request: bytes) -> bytes:
        """Answer ``shares``: deal both secrets to everybody who sent keys.

        Raises:
            BadDocument: The list of keys is not one that this part is in, or has keys twice.
            Conflict: Another list was answered before.
        """
        return self._once("shares", request, lambda: self._deal(request))

    def masked(self, request: bytes, vector: Words) -> bytes:
        """Answer ``masked``: open what others dealt, and send the vector under masks.

        Args:
            request: Who dealt, and what.
            vector: Shape ``(size,)``; left as it is.

        Raises:
            BadDocument: Fewer shares than the threshold open: others were shown other keys, or it was changed.
        """
        return self._once("masked", request, lambda: self._mask(request, vector))

    def confirm(self, request: bytes) -> bytes:
        """Answer ``confirm``: tell the others whose vectors are in, as far as this part was told.

        Raises:
            BadDocument: They are fewer than the threshold, or this part is not among them.
        """
        return self._once("confirm", request, lambda: self._confirm(request))

    def unmask(self, request: bytes) -> bytes:
        """Answer ``unmask``: the seeds of those who are in, the mask keys of those who went.

        Raises:
            BadDocument: Fewer than the threshold were told the same as this part.
        """
        return self._once("unmask", request, lambda: self._reveal(request))

    def answer(self, phase: Phase, request: bytes, vector: Words | None = None) -> bytes:
        """Answer a phase by its name."""
        match phase:
            case "keys":
                return self.keys()
            case "shares":
                return self.shares(request)
            case "masked":
                if vector is None:
                    raise InvalidInput("there is no vector to mask")
                return self.masked(request, vector)
            case "confirm":
                return self.confirm(request)
            case "unmask":
                return self.unmask(request)

    def _once(self, phase: Phase, request: bytes, make: Callable[[], bytes]) -> bytes:
        digest = hashlib.sha256(request).digest()
        known = self._answers.get(phase)
        if known is not None:
            if known[0] != digest:
                raise Conflict(f"the phase {phase} was answered before, to another request")
            return known[1]
        if len(self._answers) != PHASES.index(phase):
            raise Conflict(f"the phase {phase} is not the next one")
        answer = make()
        self._answers[phase] = (digest, answer)
        if phase == "masked":
            self._mask_key = b""  # it lives on in the others' shares only
        return answer

    def _deal(self, request: bytes) -> bytes:
        setup, mine = self._setup, self._part
        found = decode_message(setup, request, "shares", {"parts": (-1,), "keys": (-1, KEYS)})
        roster = parts_of(found["parts"], range(setup.parts), least=setup.threshold)
        keys = found["keys"]
        if mine not in roster or len(keys) != len(roster):
            raise BadDocument(f"part {mine} is not on the list of keys")
        rows = [row.tobytes() for row in keys]
        if rows[roster.index(mine)][: 2 * _SECRET_BYTES] != public_key(self._seal_key) + public_key(self._mask_key):
            raise BadDocument("the list of keys has another key of this part")
        self._seal_keys = {part: row[:_SECRET_BYTES] for part, row in zip(roster, rows, strict=True)}
        self._mask_keys = {part: row[_SECRET_BYTES : 2 * _SECRET_BYTES] for part, row in zip(roster, rows, strict=True)}
        if len({*self._seal_keys.values(), *self._mask_keys.values()}) != 2 * len(roster):
            raise BadDocument("the list of keys has a key twice")
        self._roster, self._digest = roster, roster_digest(setup, found["parts"], keys)

        places = [part + 1 for part in roster]
        of_key = split(self._mask_key, places, setup.threshold, self._random)
        of_seed = split(self._seed, places, setup.threshold, self._random)
        sealed, promised = [], []
        for part in roster:
            pair = of_key[part + 1], of_seed[part + 1]
            promised.append(b"".join(self._promised(mine, part, pair)))
            if part == mine:
                self._held[mine] = pair
                continue
            cipher = ChaCha20Poly1305(sealing_key(self._shared(part), self._digest, mine, part))
            sealed.append(cipher.encrypt(_NONCE, pair[0] + pair[1], setup.context))
        tables = {"sealed": table(sealed, SEALED), "promised": table(promised, COMMITTED)}
        return encode_message(setup, "shares", tables)

    def _mask(self, request: bytes, vector: Words) -> bytes:
        setup, mine = self._setup, self._part
        if vector.shape != (setup.size,) or vector.dtype != setup.dtype:
            raise InvalidInput(f"the vector must be {setup.dtype} of shape ({setup.size},)")
        shapes = {"parts": (-1,), "sealed": (-1, SEALED), "promised": (-1, COMMITTED)}
        found = decode_message(setup, request, "masked", shapes)
        dealers = parts_of(found["parts"], self._roster, least=setup.threshold)
        others = len(dealers) - 1
        if mine not in dealers or any(len(found[name]) != others * len(dealers) for name in ("sealed", "promised")):
            raise BadDocument(f"part {mine} is not among those that dealt")
        first = dealers.index(mine) * others
        for row, dealer in enumerate((part for part in dealers if part != mine), start=first):
            pair = self._opened(dealer, found["sealed"][row].tobytes())
            if pair is not None and b"".join(self._promised(dealer, mine, pair)) == found["promised"][row].tobytes():
                self._held[dealer] = pair
        if len(self._held) < setup.threshold:
            raise BadDocument(
                f"{len(self._held)} of {len(dealers)} shares open, {setup.threshold} must: the parts were not shown the"
                " same keys, or shares were changed on their way"
            )
        masked = vector.copy()
        add_mask(masked, self._seed, 1)
        for other in dealers:
            if other != mine:
                shared = agreed(self._mask_key, self._mask_keys[other])
                add_mask(masked, mask_seed(shared, self._digest), sign_of(mine, other))
        self._in_sum = dealers
        return encode_message(setup, "masked", {"sum": masked.view("<u4")})

    def _confirm(self, request: bytes) -> bytes:
        setup, mine = self._setup, self._part
        found = decode_message(setup, request, "confirm", {"parts": (-1,)})
        survivors = parts_of(found["parts"], self._in_sum, least=setup.threshold)
        if mine not in survivors:
            raise BadDocument(f"the vector of part {mine} is not in the sum")
        self._survivors = found["parts"].copy()
        said = [
            bytes(_SECRET_BYTES)
            if part == mine
            else confirmation(self._shared(part), self._digest, mine, part, self._survivors)
            for part in survivors
        ]
        return encode_message(setup, "confirm", {"said": table(said, KEY)})

    def _reveal(self, request: bytes) -> bytes:
        setup, mine = self._setup, self._part
        found = decode_message(setup, request, "unmask", {"parts": (-1,), "said": (-1, KEY)})
        survivors = tuple(self._survivors.tolist())
        said_by = parts_of(found["parts"], survivors, least=setup.threshold)
        if len(found["said"]) != len(said_by) * len(survivors):
            raise BadDocument("the confirmations are not one for each two parts")
        column, agree = survivors.index(mine), 0
        for row, part in enumerate(said_by):
            given = found["said"][row * len(survivors) + column].tobytes()
            agree += part == mine or hmac.compare_digest(
                given, confirmation(self._shared(part), self._digest, part, mine, self._survivors)
            )
        if agree < setup.threshold:
            raise BadDocument(
                f"{agree} parts were told the same of whose vectors are in, {setup.threshold} must: nothing is opened"
            )
        stayed = [part for part in survivors if part in self._held]
        gone = [part for part in self._in_sum if part not in survivors and part in self._held]
        return encode_message(
            setup,
            "unmask",
            {
                "stayed": words(stayed),
                "seeds": table((self._held[part][1] for part in stayed), SHARE),
                "gone": words(gone),
                "keys": table((self._held[part][0] for part in gone), SHARE),
            },
        )

    def _opened(self, dealer: int, sealed: bytes) -> tuple[bytes, bytes] | None:
        key = sealing_key(self._shared(dealer), self._digest, dealer, self._part)
        try:
            pair = ChaCha20Poly1305(key).decrypt(_NONCE, sealed, self._setup.context)
        except InvalidTag:
            return None
        return pair[:SHARE_BYTES], pair[SHARE_BYTES:]

    def _promised(self, dealer: int, receiver: int, pair: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
        return (
            commitment(self._setup, b"key share", dealer, receiver, pair[0]),
            commitment(self._setup, b"seed share", dealer, receiver, pair[1]),
        )

    def _shared(self, part: int) -> bytes:
        return agreed(self._seal_key, self._seal_keys[part])
