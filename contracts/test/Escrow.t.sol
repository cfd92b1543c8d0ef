// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {StakeVault} from "../src/StakeVault.sol";
import {Kit} from "./Kit.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

/// @dev Escrow, its delayed release, and vouchers.
contract EscrowTest is Kit {
    uint256 private constant OTHER_KEY = 0x0DD;

    function _release(uint256 amount) private returns (uint256 readyAt) {
        vm.prank(carol);
        vault.requestRelease(carolId, spender, amount);
        return block.timestamp + UNBONDING;
    }

    function _finish() private {
        vm.prank(carol);
        vault.finishRelease(carolId, spender);
    }

    /// @dev The one voucher is passed over for `reason`, and nothing is paid.
    function _skipped(StakeVault.Voucher memory voucher, bytes memory signature, StakeVault.Skip reason) private {
        uint256 before = vault.creditOf(NODE);
        vm.expectEmit(address(vault));
        emit StakeVault.RedeemSkipped(0, reason);
        _redeem(vault, voucher, signature);
        _eq(vault.creditOf(NODE), before, "solver's credit");
    }

    // ---- escrow ------------------------------------------------------------------------------------------------

    function test_allowed_credit_moves_into_escrow() public {
        _addFunds(carol, 10 ether, carolId, carol);

        vm.prank(carol);
        vault.allow(carolId, spender, 4 ether);

        _eq(vault.creditOf(carolId), 6 ether, "credit");
        _eq(vault.escrowOf(carolId, spender), 4 ether, "escrow");
        _eq(vault.getBalance(carolId), 6 ether, "escrow is no balance");
        _expect(StakeVault.Insufficient.selector, 6 ether);
        _withdraw(carol, carolId, 6 ether + 1);
    }

    function test_escrow_for_nobody_is_refused() public {
        _addFunds(carol, 10 ether, carolId, carol);
        _expect(StakeVault.BadAddress.selector, address(0));
        vm.prank(carol);
        vault.allow(carolId, address(0), 1);
    }

    function test_release_takes_the_unbonding_time() public {
        _escrowed(10 ether);
        uint256 readyAt = _release(4 ether);

        (uint256 amount, uint256 since) = vault.releaseOf(carolId, spender);
        _eq(amount, 4 ether, "releasing");
        _eq(since, readyAt, "readyAt");
        vm.warp(readyAt - 1);
        _expect(StakeVault.Locked.selector, readyAt);
        _finish();

        vm.warp(readyAt);
        _finish();
        _eq(vault.creditOf(carolId), 4 ether, "credit");
        _eq(vault.escrowOf(carolId, spender), 6 ether, "escrow");
        _expect(StakeVault.ZeroAmount.selector);
        _finish();
    }

    function test_money_being_released_still_pays_vouchers() public {
        _escrowed(10 ether);
        uint256 readyAt = _release(8 ether);

        _pay(5 ether);
        vm.warp(readyAt);
        _finish();

        _eq(vault.creditOf(NODE), 5 ether, "solver");
        _eq(vault.creditOf(carolId), 5 ether, "what was left of the release");
        _eq(vault.escrowOf(carolId, spender), 0, "escrow");
    }

    function test_vouchers_draw_on_what_is_not_being_released_first() public {
        _escrowed(10 ether);
        uint256 readyAt = _release(4 ether);

        _pay(6 ether);
        vm.warp(readyAt);
        _finish();

        _eq(vault.creditOf(carolId), 4 ether, "the whole release");
    }

    /// @dev An old request must not be a way to take new money back at once.
    function test_release_asked_for_money_since_paid_does_not_cover_new_money() public {
        _escrowed(10 ether);
        uint256 readyAt = _release(10 ether);
        _pay(10 ether);
        _addFunds(carol, 10 ether, carolId, carol);
        vm.prank(carol);
        vault.allow(carolId, spender, 10 ether);

        vm.warp(readyAt);

        _expect(StakeVault.ZeroAmount.selector);
        _finish();
        _eq(vault.escrowOf(carolId, spender), 10 ether, "escrow");
    }

    function test_new_release_request_restarts_the_clock() public {
        _escrowed(10 ether);
        _release(4 ether);
        vm.warp(block.timestamp + UNBONDING - 1);
        uint256 readyAt = _release(1 ether);

        vm.warp(block.timestamp + 1);

        _expect(StakeVault.Locked.selector, readyAt);
        _finish();
    }

    function test_no_more_is_released_than_escrow_holds() public {
        _escrowed(10 ether);
        _release(4 ether);

        _expect(StakeVault.Insufficient.selector, 6 ether);
        vm.prank(carol);
        vault.requestRelease(carolId, spender, 6 ether + 1);
        _expect(StakeVault.ZeroAmount.selector);
        vm.prank(carol);
        vault.requestRelease(carolId, spender, 0);
    }

    function test_cancelled_release_stays_in_escrow() public {
        _escrowed(10 ether);
        uint256 readyAt = _release(4 ether);

        vm.prank(carol);
        vault.cancelRelease(carolId, spender);

        vm.warp(readyAt);
        _expect(StakeVault.ZeroAmount.selector);
        _finish();
        _expect(StakeVault.ZeroAmount.selector);
        vm.prank(carol);
        vault.cancelRelease(carolId, spender);
        _eq(vault.escrowOf(carolId, spender), 10 ether, "escrow");
    }

    // ---- vouchers ----------------------------------------------------------------------------------------------

    function test_voucher_pays_the_solver_whoever_redeems_it() public {
        _escrowed(10 ether);
        StakeVault.Voucher[] memory vouchers = new StakeVault.Voucher[](1);
        bytes[] memory signatures = new bytes[](1);
        vouchers[0] = _voucher(carolId, spender, NODE, 3 ether);
        signatures[0] = _sign(SPENDER_KEY, vault, vouchers[0]);

        vm.expectEmit(address(vault));
        emit StakeVault.Redeemed(_key(carolId), spender, _key(NODE), 3 ether, 3 ether);
        vm.prank(mallory);
        vault.redeem(vouchers, signatures);

        _eq(vault.creditOf(NODE), 3 ether, "solver");
    }

    function test_voucher_is_cumulative() public {
        _escrowed(10 ether);

        _pay(3 ether);
        _pay(5 ether);
        _pay(4 ether);

        _eq(vault.creditOf(NODE), 5 ether, "solver");
        _eq(vault.paid(_key(carolId), spender, _key(NODE)), 5 ether, "paid");
        _eq(vault.escrowOf(carolId, spender), 5 ether, "escrow");
        _eq(vault.accounted(), 10 ether + 1, "accounted");
    }

    function test_replayed_voucher_pays_nothing() public {
        _escrowed(10 ether);
        StakeVault.Voucher memory voucher = _voucher(carolId, spender, NODE, 3 ether);
        bytes memory signature = _sign(SPENDER_KEY, vault, voucher);
        _redeem(vault, voucher, signature);

        _skipped(voucher, signature, StakeVault.Skip.NothingDue);
    }

    function test_short_escrow_pays_in_part_and_the_rest_stays_due() public {
        _escrowed(2 ether);

        _pay(5 ether);
        _eq(vault.creditOf(NODE), 2 ether, "first part");
        StakeVault.Voucher memory voucher = _voucher(carolId, spender, NODE, 5 ether);
        _skipped(voucher, _sign(SPENDER_KEY, vault, voucher), StakeVault.Skip.EscrowEmpty);

        _addFunds(carol, 10 ether, carolId, carol);
        vm.prank(carol);
        vault.allow(carolId, spender, 10 ether);
        _pay(5 ether);
        _eq(vault.creditOf(NODE), 5 ether, "the rest");
        _eq(vault.escrowOf(carolId, spender), 7 ether, "escrow");
    }

    function test_solver_nobody_has_opened_is_skipped() public {
        _escrowed(10 ether);
        StakeVault.Voucher memory voucher = _voucher(carolId, spender, OTHER_NODE, 3 ether);

        _skipped(voucher, _sign(SPENDER_KEY, vault, voucher), StakeVault.Skip.SolverNotOpen);

        _eq(vault.creditOf(OTHER_NODE), 0, "credit");
        _stake(bob, 1, OTHER_NODE, bob);
        _redeem(vault, voucher, _sign(SPENDER_KEY, vault, voucher));
        _eq(vault.creditOf(OTHER_NODE), 3 ether, "once it is open");
    }

    function test_signature_of_another_key_is_skipped() public {
        _escrowed(10 ether);
        StakeVault.Voucher memory voucher = _voucher(carolId, spender, NODE, 3 ether);

        _skipped(voucher, _sign(OTHER_KEY, vault, voucher), StakeVault.Skip.BadSignature);
    }

    function test_each_changed_field_breaks_the_signature() public {
        _escrowed(10 ether);
        StakeVault.Voucher memory signed = _voucher(carolId, spender, NODE, 3 ether);
        bytes memory signature = _sign(SPENDER_KEY, vault, signed);
        _stake(bob, 1, OTHER_NODE, bob);

        StakeVault.Voucher memory changed = _voucher(carolId, spender, NODE, 3 ether + 1);
        _skipped(changed, signature, StakeVault.Skip.BadSignature);
        changed = _voucher(carolId, spender, OTHER_NODE, 3 ether);
        _skipped(changed, signature, StakeVault.Skip.BadSignature);
        changed = _voucher(carolId, spender, NODE, 3 ether);
        changed.count = 2;
        _skipped(changed, signature, StakeVault.Skip.BadSignature);
        changed.count = 1;
        changed.receiptsHead = bytes32(uint256(8));
        _skipped(changed, signature, StakeVault.Skip.BadSignature);
    }

    function test_malleable_and_malformed_signatures_are_skipped() public {
        _escrowed(10 ether);
        StakeVault.Voucher memory voucher = _voucher(carolId, spender, NODE, 3 ether);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(SPENDER_KEY, vault.voucherDigest(voucher));
        bytes32 highS = bytes32(CURVE_ORDER - uint256(s));
        bytes[6] memory bad = [
            abi.encodePacked(r, highS, v == 27 ? uint8(28) : uint8(27)),
            abi.encodePacked(r, s, v - 27),
            abi.encodePacked(r, s),
            abi.encodePacked(r, s, v, uint8(0)),
            bytes(""),
            abi.encodePacked(bytes32(0), bytes32(0), uint8(27))
        ];
        for (uint256 i = 0; i < bad.length; ++i) {
            _skipped(voucher, bad[i], StakeVault.Skip.BadSignature);
        }
    }

    /// @dev ecrecover answers the zero address for rubbish; nobody may hold an escrow for it, and it never matches.
    function test_zero_spender_is_never_paid() public {
        _escrowed(10 ether);
        StakeVault.Voucher memory voucher = _voucher(carolId, address(0), NODE, 3 ether);

        _skipped(voucher, abi.encodePacked(bytes32(0), bytes32(0), uint8(27)), StakeVault.Skip.EscrowEmpty);
    }

    function test_voucher_for_another_vault_or_chain_is_skipped() public {
        _escrowed(10 ether);
        StakeVault other = new StakeVault(IERC20(address(token)), UNBONDING, admin);
        StakeVault.Voucher memory voucher = _voucher(carolId, spender, NODE, 3 ether);
        bytes memory signature = _sign(SPENDER_KEY, vault, voucher);

        _skipped(voucher, _sign(SPENDER_KEY, other, voucher), StakeVault.Skip.BadSignature);
        vm.chainId(31338);
        _skipped(voucher, signature, StakeVault.Skip.BadSignature);
    }

    function test_batch_pays_the_good_and_skips_the_bad() public {
        _escrowed(10 ether);
        _stake(bob, 1, OTHER_NODE, bob);
        StakeVault.Voucher[] memory vouchers = new StakeVault.Voucher[](4);
        bytes[] memory signatures = new bytes[](4);
        vouchers[0] = _voucher(carolId, spender, NODE, 3 ether);
        vouchers[1] = _voucher(carolId, spender, "nobody", 3 ether);
        vouchers[2] = _voucher(carolId, spender, OTHER_NODE, 20 ether);
        vouchers[3] = _voucher(carolId, spender, NODE, 4 ether);
        for (uint256 i = 0; i < 4; ++i) {
            signatures[i] = _sign(SPENDER_KEY, vault, vouchers[i]);
        }

        vm.expectEmit(address(vault));
        emit StakeVault.RedeemSkipped(1, StakeVault.Skip.SolverNotOpen);
        vm.expectEmit(address(vault));
        emit StakeVault.Redeemed(_key(carolId), spender, _key(OTHER_NODE), 7 ether, 7 ether);
        vm.expectEmit(address(vault));
        emit StakeVault.RedeemSkipped(3, StakeVault.Skip.EscrowEmpty);
        vault.redeem(vouchers, signatures);

        _eq(vault.creditOf(NODE), 3 ether, "first solver, in the order given");
        _eq(vault.creditOf(OTHER_NODE), 7 ether, "second solver got what was left");
    }

    function test_batch_needs_a_signature_for_each_voucher() public {
        vm.expectRevert(abi.encodeWithSelector(StakeVault.LengthMismatch.selector, 1, 0));
        vault.redeem(new StakeVault.Voucher[](1), new bytes[](0));
    }

    function test_voucher_hash_is_the_published_one() public view {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("Parity StakeVault"),
                keccak256("1"),
                block.chainid,
                address(vault)
            )
        );
        _true(vault.domainSeparator() == domain, "domain separator");
        StakeVault.Voucher memory v = _voucher(carolId, spender, NODE, 3 ether);
        bytes32 typeHash = keccak256(
            "Voucher(bytes32 creator,bytes32 solver,address spender,uint256 cumulative,uint64 count,bytes32 receiptsHead)"
        );
        bytes32 structHash =
            keccak256(abi.encode(typeHash, v.creator, v.solver, v.spender, v.cumulative, v.count, v.receiptsHead));
        _true(vault.voucherDigest(v) == keccak256(abi.encodePacked(hex"1901", domain, structHash)), "digest");
        (, string memory name, string memory version,, address verifying,,) = vault.eip712Domain();
        _true(_key(name) == _key("Parity StakeVault") && _key(version) == _key("1"), "name and version");
        _eq(verifying, address(vault), "verifying contract");
    }

    function testFuzz_any_order_of_vouchers_pays_the_largest_once(uint96[6] memory amounts, uint96 funded) public {
        uint256 escrow = _bound(funded, 1, 1000 ether);
        _escrowed(escrow);
        uint256 largest;
        for (uint256 i = 0; i < amounts.length; ++i) {
            uint256 amount = _bound(amounts[i], 0, 1500 ether);
            if (amount > largest) largest = amount;
            _pay(amount);
        }
        uint256 expected = largest < escrow ? largest : escrow;

        _eq(vault.creditOf(NODE), expected, "solver");
        _eq(vault.escrowOf(carolId, spender), escrow - expected, "escrow");
        _eq(vault.paid(_key(carolId), spender, _key(NODE)), expected, "paid");
    }

    function testFuzz_random_bytes_are_never_a_signature(bytes memory noise, uint256 cumulative) public {
        _escrowed(10 ether);
        StakeVault.Voucher memory voucher =
            _voucher(carolId, spender, NODE, _bound(cumulative, 1, type(uint256).max - 1));

        _skipped(voucher, noise, StakeVault.Skip.BadSignature);
    }
}
