// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {StakeVault} from "../src/StakeVault.sol";
import {Kit} from "./Kit.sol";

/// @dev What an owner may do with bond, credit and keys, and that nobody else may.
contract OwnerTest is Kit {
    function setUp() public override {
        super.setUp();
        vm.prank(alice);
        vault.stake(10 ether, NODE, alice, operator);
        _addFunds(alice, 4 ether, NODE, alice);
    }

    function _request(uint256 amount) private {
        vm.prank(alice);
        vault.requestUnstake(NODE, amount);
    }

    function test_requested_bond_stops_counting_at_once() public {
        _request(6 ether);

        (uint256 amount, uint256 readyAt) = vault.unbondingOf(NODE);
        _eq(vault.bondOf(NODE), 4 ether, "bond");
        _eq(amount, 6 ether, "unbonding");
        _eq(readyAt, block.timestamp + UNBONDING, "readyAt");
        _eq(vault.getBalance(NODE), 8 ether, "balance");
    }

    function test_bond_cannot_be_withdrawn_without_unbonding() public {
        _expect(StakeVault.Insufficient.selector, 4 ether);
        _withdraw(alice, NODE, 4 ether + 1);
    }

    function test_unbonding_is_locked_until_the_last_second() public {
        _request(6 ether);
        uint256 readyAt = block.timestamp + UNBONDING;

        vm.warp(readyAt - 1);
        _expect(StakeVault.Locked.selector, readyAt);
        _withdraw(alice, NODE, 4 ether + 1);

        vm.warp(readyAt);
        _withdraw(alice, NODE, 10 ether);
        _eq(token.balanceOf(alice), 996 ether, "alice");
        _eq(vault.bondOf(NODE), 4 ether, "bond");
        _eq(vault.accounted(), 4 ether, "accounted");
    }

    function test_credit_is_withdrawn_first_and_at_once() public {
        _request(6 ether);

        _withdraw(alice, NODE, 3 ether);

        (uint256 amount,) = vault.unbondingOf(NODE);
        _eq(vault.creditOf(NODE), 1 ether, "credit");
        _eq(amount, 6 ether, "unbonding");
    }

    function test_new_request_restarts_the_clock_of_all_that_is_unbonding() public {
        _request(1 ether);
        vm.warp(block.timestamp + UNBONDING - 1);
        _request(1 ether);
        uint256 readyAt = block.timestamp + UNBONDING;

        vm.warp(block.timestamp + 1);

        _expect(StakeVault.Locked.selector, readyAt);
        _withdraw(alice, NODE, 4 ether + 1);
    }

    function test_cancelled_unstake_is_bond_again() public {
        _request(6 ether);

        vm.prank(alice);
        vault.cancelUnstake(NODE);

        (uint256 amount, uint256 readyAt) = vault.unbondingOf(NODE);
        _eq(vault.bondOf(NODE), 10 ether, "bond");
        _eq(amount, 0, "unbonding");
        _eq(readyAt, 0, "readyAt");
        _expect(StakeVault.ZeroAmount.selector);
        vm.prank(alice);
        vault.cancelUnstake(NODE);
    }

    function test_more_than_there_is_is_refused_with_what_there_is() public {
        _expect(StakeVault.Insufficient.selector, 10 ether);
        _request(10 ether + 1);
        _expect(StakeVault.Insufficient.selector, 4 ether);
        vm.prank(alice);
        vault.allow(NODE, spender, 4 ether + 1);
        _request(2 ether);
        _expect(StakeVault.Insufficient.selector, 6 ether);
        _withdraw(alice, NODE, 6 ether + 1);
    }

    function test_nothing_is_refused() public {
        _expect(StakeVault.ZeroAmount.selector);
        _request(0);
        _expect(StakeVault.ZeroAmount.selector);
        _withdraw(alice, NODE, 0);
        _expect(StakeVault.ZeroAmount.selector);
        vm.prank(alice);
        vault.allow(NODE, spender, 0);
    }

    function test_withdrawals_go_to_the_payout_address() public {
        vm.prank(alice);
        vault.updateWalletAddress(NODE, bob);

        vm.expectEmit(address(vault));
        emit StakeVault.FundsWithdrawn(NODE, bob, 3 ether);
        _withdraw(alice, NODE, 3 ether);

        _eq(token.balanceOf(bob), 1003 ether, "bob");
    }

    function test_payout_moves_no_money_itself() public {
        vm.prank(alice);
        vault.updateWalletAddress(NODE, bob);

        _expect(StakeVault.NotOwner.selector, alice);
        _withdraw(bob, NODE, 1);
    }

    function test_a_deposit_still_names_the_owner_when_payout_differs() public {
        vm.prank(alice);
        vault.updateWalletAddress(NODE, bob);

        _addFunds(carol, 1 ether, NODE, alice);
        _expect(StakeVault.WalletMismatch.selector, alice);
        _addFunds(carol, 1 ether, NODE, bob);
    }

    function test_payout_and_owner_cannot_be_nobody_or_the_vault() public {
        address[2] memory useless = [address(0), address(vault)];
        for (uint256 i = 0; i < useless.length; ++i) {
            _expect(StakeVault.BadAddress.selector, useless[i]);
            vm.prank(alice);
            vault.updateWalletAddress(NODE, useless[i]);
            _expect(StakeVault.BadAddress.selector, useless[i]);
            vm.prank(alice);
            vault.setOwner(NODE, useless[i]);
        }
    }

    function test_owner_replaces_and_removes_the_operator() public {
        vm.startPrank(alice);
        vault.setOperator(NODE, bob);
        _eq(vault.operatorOf(NODE), bob, "replaced");
        vault.setOperator(NODE, address(0));
        _eq(vault.operatorOf(NODE), address(0), "removed");
    }

    function test_new_owner_starts_with_its_own_keys() public {
        vm.startPrank(alice);
        vault.updateWalletAddress(NODE, carol);
        vault.setOwner(NODE, bob);
        vm.stopPrank();

        _eq(vault.ownerOf(NODE), bob, "owner");
        _eq(vault.payoutOf(NODE), bob, "payout");
        _eq(vault.operatorOf(NODE), address(0), "operator");
        _expect(StakeVault.NotOwner.selector, bob);
        _withdraw(alice, NODE, 1);
        _withdraw(bob, NODE, 4 ether);
        _eq(token.balanceOf(bob), 1004 ether, "bob");
    }

    /// @dev Every function of an owner, called by each other key and by a stranger.
    function test_only_the_owner_moves_money_and_keys() public {
        vm.prank(alice);
        vault.updateWalletAddress(NODE, bob);
        bytes[] memory calls = _ownerCalls(NODE);
        address[4] memory others = [operator, bob, mallory, admin];
        for (uint256 i = 0; i < calls.length; ++i) {
            for (uint256 j = 0; j < others.length; ++j) {
                vm.prank(others[j]);
                (bool ok, bytes memory data) = address(vault).call(calls[i]);
                _true(!ok, "a stranger's call succeeded");
                _true(
                    keccak256(data) == keccak256(abi.encodeWithSelector(StakeVault.NotOwner.selector, alice)),
                    "refused for being a stranger's"
                );
            }
        }
    }

    function test_an_account_that_is_not_open_can_do_nothing() public {
        bytes[] memory calls = _ownerCalls(OTHER_NODE);
        for (uint256 i = 0; i < calls.length; ++i) {
            (bool ok, bytes memory data) = address(vault).call(calls[i]);
            _true(!ok, "an unknown account acted");
            _true(
                keccak256(data)
                    == keccak256(abi.encodeWithSelector(StakeVault.UnknownAccount.selector, _key(OTHER_NODE))),
                "refused for being unknown"
            );
        }
    }

    function _ownerCalls(string memory id) private view returns (bytes[] memory calls) {
        calls = new bytes[](10);
        calls[0] = abi.encodeCall(vault.requestUnstake, (id, 1));
        calls[1] = abi.encodeCall(vault.cancelUnstake, (id));
        calls[2] = abi.encodeCall(vault.withdrawFunds, (id, 1));
        calls[3] = abi.encodeCall(vault.allow, (id, mallory, 1));
        calls[4] = abi.encodeCall(vault.requestRelease, (id, spender, 1));
        calls[5] = abi.encodeCall(vault.cancelRelease, (id, spender));
        calls[6] = abi.encodeCall(vault.finishRelease, (id, spender));
        calls[7] = abi.encodeCall(vault.updateWalletAddress, (id, mallory));
        calls[8] = abi.encodeCall(vault.setOperator, (id, mallory));
        calls[9] = abi.encodeCall(vault.setOwner, (id, mallory));
    }
}
