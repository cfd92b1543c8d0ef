"""Which vouchers are paid, which wait and why, and which nonce comes next."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_market.domain.settlement import (
    MAX_BATCH,
    Funding,
    SkipReason,
    batches,
    choose_nonce,
    describe_batch,
    key_of,
    keys_of_batch,
    select_payable,
    skip_text,
)
from parity_market.operations.vouchers import Paid
from parity_market.store.rows import VoucherRow
from parity_protocol.errors import BadDocument

SPENDER = "0x" + "5e" * 20
FUNDED = Funding(escrow=1, solver_is_open=True)


def voucher(name: int, cumulative: int) -> VoucherRow:
    return VoucherRow("chain", f"0x{name:040x}", SPENDER, f"{name:064x}", 1, cumulative, "0x" + "00" * 32, "0x00", 0)


AMOUNTS = st.integers(0, 2**96 - 1)


@given(
    st.lists(st.tuples(st.integers(1, 2**96 - 1), AMOUNTS, st.booleans(), st.booleans(), st.booleans()), max_size=20)
)
def test_each_voucher_with_something_due_is_either_paid_or_explained(
    cases: list[tuple[int, int, bool, bool, bool]],
) -> None:
    vouchers = [voucher(index, case[0]) for index, case in enumerate(cases)]
    keys = [key_of(row) for row in vouchers]
    paid = {key: case[1] for key, case in zip(keys, cases, strict=True)}
    funding = {k: Funding(int(case[2]), case[3]) for k, case in zip(keys, cases, strict=True)}
    refused = {k: case[0] for k, case in zip(keys, cases, strict=True) if case[4]}

    found = select_payable(vouchers, paid, funding, refused)

    for row, (cumulative, had, has_escrow, is_open, is_refused) in zip(vouchers, cases, strict=True):
        is_due = had < cumulative
        is_good = has_escrow and is_open and not is_refused
        assert (row in found.payable) == (is_due and is_good)
        assert (key_of(row) in found.unfunded) == (is_due and not is_good)


def test_accounts_that_were_never_seen_count_as_not_funded() -> None:
    row = voucher(1, 10)

    found = select_payable([row], {}, {}, {})

    assert found.payable == ()
    assert "EscrowEmpty" in found.unfunded[key_of(row)]


def test_a_voucher_that_the_vault_refused_is_tried_again_only_when_it_has_grown() -> None:
    before, after = voucher(1, 10), voucher(1, 11)
    key = key_of(before)

    first = select_payable([before], {}, {key: FUNDED}, {key: 10})
    second = select_payable([after], {}, {key: FUNDED}, {key: 10})

    assert "BadSignature" in first.unfunded[key]
    assert second.payable == (after,)


@given(st.lists(st.integers(), max_size=3 * MAX_BATCH))
def test_batches_keep_everything_in_order_and_none_is_too_large(items: list[int]) -> None:
    found = batches(items)

    assert [item for batch in found for item in batch] == items
    assert all(1 <= len(batch) <= MAX_BATCH for batch in found)


@given(st.none() | st.integers(0, 2**40), st.integers(0, 2**40))
def test_a_nonce_is_never_used_twice_and_never_leaves_a_gap(last: int | None, chain_next: int) -> None:
    found = choose_nonce(last, chain_next)

    assert last is None or found.nonce > last  # what the ledger has is never signed anew
    if found.resend_from is None:
        assert found.nonce == chain_next
    else:
        assert found.resend_from == chain_next <= (last or 0)
    assert found.is_foreign == (last is not None and chain_next > last + 1)


def test_what_a_batch_was_for_is_read_back() -> None:
    rows = [voucher(1, 10), voucher(2, 2**96 - 1)]

    found = keys_of_batch(describe_batch(rows))

    assert found == [(key_of(row), row.cumulative) for row in rows]


@pytest.mark.parametrize("doc", ["", "[1]", '["a b"]', '["a b c d"]', "{", "null"])
def test_a_text_that_is_not_a_batch_is_refused(doc: str) -> None:
    with pytest.raises(BadDocument):
        keys_of_batch(doc)


def test_every_reason_of_the_vault_has_words_and_paid_before_is_none() -> None:
    texts = [skip_text(reason) for reason in SkipReason]

    assert texts[0] is None
    assert all(texts[1:])
    assert "reason 9" in (skip_text(9) or "")
    assert Paid("a", "b", "c") == ("a", "b", "c")
