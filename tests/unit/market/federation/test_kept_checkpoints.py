"""How many checkpoints of a session stay, and which ones whatever comes after them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from parity_blobs import Cid
from parity_contracts.chain.memory import MemoryChain
from parity_fl.checkpoint import CheckpointFolder
from parity_market.operations import blobs, groups, round_checkpoints
from parity_market.store.base import Tx
from parity_market.testing.playing import Play
from parity_market.testing.rig import DEPLOYMENT, Rig, inline, open_rig
from parity_protocol.errors import NotFound, Overloaded
from parity_protocol.testing.clock import FakeClock
from parity_protocol.testing.keys import deterministic_evm_key

CREATOR = deterministic_evm_key("creator").address
SETTINGS = {"quorum": 2, "update_format": "fp32", "checkpoint_interval": 1}


async def trained(rig: Rig, count: int, *, total: int = 9) -> tuple[Play, list[str]]:
    """Return a session after some rounds, and the CID of the checkpoint after each."""
    play = await Play.begin(rig, total_rounds=total, rounds_config=SETTINGS)
    return play, [await one_more(play) for _ in range(count)]


async def one_more(play: Play) -> str:
    await play.round(0, 1, 2)
    return (await play.rig.state.rounds.checkpoints.find(play.id, CREATOR)).cid


async def stored(rig: Rig, cids: list[str]) -> list[bool]:
    """Return which checkpoints the submitter has, after a look at the files: what somebody has is not evicted."""
    owned = {row.cid for row in await rig.store.read(partial(blobs.owned, owner=CREATOR, limit=100))}
    for cid in cids:
        stat = await rig.state.blobs.stat(Cid.parse(cid))
        assert stat is not None
        assert stat.is_pinned == (cid in owned)
    return [cid in owned for cid in cids]


async def used(rig: Rig) -> int:
    return await rig.store.read(partial(blobs.bytes_of_owner, owner=CREATOR))


async def test_the_newest_three_stay_and_the_submitters_quota_does_not_fill_up(rig: Rig, tmp_path: Path) -> None:
    play, cids = await trained(rig, 3)
    before = await used(rig)
    cids += [await one_more(play) for _ in range(3)]

    assert await stored(rig, cids) == [False] * 3 + [True] * 3
    assert await used(rig) == pytest.approx(before, rel=0.05)
    assert CheckpointFolder(tmp_path / "checkpoints" / play.id).rounds() == [4, 5, 6]
    told = [one.metrics.get("checkpoint_cid") for one in (await play.show()).rounds if one.state == "closed"]
    assert told == [None, None, None, *cids[3:]]
    with pytest.raises(NotFound, match="no checkpoint after round 2"):
        await rig.state.rounds.checkpoints.find(play.id, CREATOR, number=2)


async def test_the_operator_says_how_many_and_nothing_is_deleted_in_a_folder_that_was_named(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FL_CHECKPOINT_ENABLED", "YES")
    monkeypatch.setenv("FL_CHECKPOINT_PATH", str(tmp_path / "volume"))
    monkeypatch.setenv("FL_CHECKPOINT_KEEP", "1")
    async with open_rig(tmp_path, MemoryChain(clock, DEPLOYMENT), clock, offload=inline) as rig:
        await rig.bench.open("n1", "n2", "n3")
        play, cids = await trained(rig, 4)

        assert await stored(rig, cids) == [False, False, False, True]
        assert CheckpointFolder(tmp_path / "volume" / play.id).rounds() == [1, 2, 3, 4]
        again = await rig.state.rounds.checkpoints.find(play.id, CREATOR, number=1)  # by the file
        assert again.cid == cids[0]


async def test_the_folder_of_every_user_is_thinned_out_when_nobody_named_one(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FL_CHECKPOINT_ENABLED", "YES")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    async with open_rig(tmp_path, MemoryChain(clock, DEPLOYMENT), clock, offload=inline) as rig:
        await rig.bench.open("n1", "n2", "n3")
        play, _ = await trained(rig, 5)

    assert CheckpointFolder(tmp_path / "home" / ".parity" / "checkpoints" / play.id).rounds() == [3, 4, 5]


async def test_what_another_session_goes_on_from_stays_until_that_has_ended(rig: Rig, clock: FakeClock) -> None:
    play, cids = await trained(rig, 2)
    resumed = await Play.begin(rig, hold=(), total_rounds=9, rounds_config={**SETTINGS, "resume_from": cids[0]})
    cids += [await one_more(play) for _ in range(3)]
    meanwhile = await stored(rig, cids)
    now = clock.now()
    await rig.store.write(
        partial(groups.complete, market=rig.state.market, group_id=resumed.id, cid=cids[4], size=1, metrics={}, now=now)
    )

    cids.append(await one_more(play))

    assert meanwhile == [True, False, True, True, True]
    assert (await stored(rig, cids))[0] is False


async def test_what_its_submitter_has_pinned_stays(rig: Rig) -> None:
    play, cids = await trained(rig, 1)
    await rig.store.write(partial(blobs.pin, cid=cids[0], owner=CREATOR))

    cids += [await one_more(play) for _ in range(4)]

    assert await stored(rig, cids) == [True, False, True, True, True]


async def test_what_somebody_else_has_stored_too_is_not_let_go(rig: Rig, clock: FakeClock) -> None:
    play, cids = await trained(rig, 1)
    other, now = "0x" + "11" * 20, clock.now()
    await rig.store.write(lambda tx: blobs.add_ref(tx, cids[0], other, visibility="private", size=1, now=now))

    for _ in range(3):
        await one_more(play)

    stat = await rig.state.blobs.stat(Cid.parse(cids[0]))
    assert stat is not None
    assert stat.is_pinned
    assert cids[0] not in {row.cid for row in await rig.store.read(partial(blobs.owned, owner=CREATOR, limit=100))}


async def test_what_could_not_be_thinned_out_is_after_the_next_and_holds_up_no_round(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    play, cids = await trained(rig, 3)

    def too_busy(tx: Tx, group_id: str, keep: int) -> list[str]:
        raise Overloaded("the store is busy")

    with monkeypatch.context() as patched:
        patched.setattr(round_checkpoints, "thin_out", too_busy)
        cids += [await one_more(play) for _ in range(2)]
    before = await stored(rig, cids)
    cids.append(await one_more(play))

    assert before == [True] * 5
    assert await stored(rig, cids) == [False] * 3 + [True] * 3
