// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {StakeVault} from "../src/StakeVault.sol";
import {Kit} from "./Kit.sol";
import {HookToken, Hooked} from "./Tokens.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

/// @dev Each theft that worked against an earlier design of this vault, or against the older Parity wallet, replayed.
/// Where a theft is a race, mallory always wins it.
contract TheftsTest is Kit {
    uint256 private constant MALLORY_KEY = 0xBAD5EED;
    uint256 private constant OTHER_MARKET_KEY = 0xCAFE;

    function _malloryHas() private view returns (uint256) {
        return token.balanceOf(mallory);
    }

    // ---- theft 1: opening a victim's id ahead of its first deposit ----------------------------------------------

    function test_front_run_opening_with_own_wallet_gets_no_deposit_of_the_victim() public {
        _stake(mallory, 1, NODE, mallory);

        _expect(StakeVault.WalletMismatch.selector, mallory);
        _stake(alice, 100 ether, NODE, alice);
        _expect(StakeVault.WalletMismatch.selector, mallory);
        _addFunds(alice, 100 ether, NODE, alice);

        _eq(token.balanceOf(alice), 1000 ether, "alice keeps her money");
    }

    function test_front_run_opening_in_the_victims_name_gives_mallory_no_key() public {
        _stake(mallory, 1, NODE, alice);
        _stake(alice, 100 ether, NODE, alice);

        _expect(StakeVault.NotOwner.selector, alice);
        vm.prank(mallory);
        vault.updateWalletAddress(NODE, mallory);
        _expect(StakeVault.NotOwner.selector, alice);
        vm.prank(mallory);
        vault.requestUnstake(NODE, 1);
        _eq(vault.operatorOf(NODE), address(0), "operator");
        _eq(vault.payoutOf(NODE), alice, "payout");
    }

    /// @dev The variant that beat a check against the payout address alone: open as owner with the victim as payout,
    /// wait for the deposit, change the payout.
    function test_payout_set_to_the_victim_does_not_attract_its_deposit() public {
        _addFunds(mallory, 1, NODE, mallory);
        vm.prank(mallory);
        vault.updateWalletAddress(NODE, alice);

        _expect(StakeVault.WalletMismatch.selector, mallory);
        _addFunds(alice, 100 ether, NODE, alice);
    }

    /// @dev The variant that beats a check against the owner alone, if payout survived a change of owner.
    function test_account_handed_to_the_victim_keeps_no_key_of_mallory() public {
        vm.startPrank(mallory);
        vault.stake(1, NODE, mallory, mallory);
        vault.updateWalletAddress(NODE, mallory);
        vault.requestUnstake(NODE, 1);
        vault.setOwner(NODE, alice);
        vm.stopPrank();
        uint256 before = _malloryHas();

        _addFunds(alice, 100 ether, NODE, alice);
        _withdraw(alice, NODE, 100 ether);

        _eq(_malloryHas(), before, "mallory gains nothing");
        _eq(token.balanceOf(alice), 1000 ether, "alice has her money");
        _eq(vault.operatorOf(NODE), address(0), "operator");
    }

    /// @dev Escrow that mallory left behind for itself is mallory's money only; later deposits never flow into it.
    function test_escrow_left_behind_draws_nothing_from_the_victim() public {
        _addFunds(mallory, 5, NODE, mallory);
        _addFunds(mallory, 1, _idOf(mallory), mallory);
        address malloryKey = vm.addr(MALLORY_KEY);
        vm.startPrank(mallory);
        vault.allow(NODE, malloryKey, 5);
        vault.setOwner(NODE, alice);
        vm.stopPrank();
        _addFunds(alice, 100 ether, NODE, alice);

        StakeVault.Voucher memory voucher = _voucher(NODE, malloryKey, _idOf(mallory), 100 ether);
        _redeem(vault, voucher, _sign(MALLORY_KEY, vault, voucher));

        _eq(vault.creditOf(_idOf(mallory)), 6, "only what it had put there");
        _eq(vault.creditOf(NODE), 100 ether, "alice's credit");
    }

    function test_earnings_cannot_wait_on_an_id_that_mallory_opens() public {
        _escrowed(10 ether);
        StakeVault.Voucher memory voucher = _voucher(carolId, spender, OTHER_NODE, 3 ether);
        _redeem(vault, voucher, _sign(SPENDER_KEY, vault, voucher));

        _stake(mallory, 1, OTHER_NODE, mallory);

        _eq(vault.creditOf(OTHER_NODE), 0, "nothing was waiting");
    }

    function test_submitter_id_cannot_be_opened_by_a_stranger_in_any_spelling() public {
        _expect(StakeVault.WalletMismatch.selector, carol);
        _addFunds(mallory, 1, carolId, mallory);
        _expect(StakeVault.IdNotLowerCase.selector);
        _addFunds(mallory, 1, "0xABCDEFABCDEFABCDEFABCDEFABCDEFABCDEFABCD", mallory);
    }

    // ---- theft 2: a balance that a market counts on is spent elsewhere ------------------------------------------

    function test_money_promised_to_one_spender_cannot_be_spent_or_withdrawn_meanwhile() public {
        _escrowed(10 ether);

        _expect(StakeVault.Insufficient.selector, 0);
        _withdraw(carol, carolId, 1);
        _expect(StakeVault.Insufficient.selector, 0);
        vm.prank(carol);
        vault.allow(carolId, vm.addr(OTHER_MARKET_KEY), 1);
        StakeVault.Voucher memory voucher = _voucher(carolId, vm.addr(OTHER_MARKET_KEY), NODE, 10 ether);
        _redeem(vault, voucher, _sign(OTHER_MARKET_KEY, vault, voucher));

        _pay(10 ether);
        _eq(vault.creditOf(NODE), 10 ether, "the node is paid in full");
    }

    function test_creator_cannot_run_off_between_the_work_and_the_payment() public {
        _escrowed(10 ether);
        vm.startPrank(carol);
        vault.requestRelease(carolId, spender, 10 ether);
        vm.warp(block.timestamp + UNBONDING - 1);
        _expect(StakeVault.Locked.selector, block.timestamp + 1);
        vault.finishRelease(carolId, spender);
        vm.stopPrank();

        _pay(10 ether);

        _eq(vault.creditOf(NODE), 10 ether, "the node is paid in full");
    }

    // ---- theft 3: one ledger of payments for two spenders --------------------------------------------------------

    function test_payment_through_one_market_does_not_count_against_another() public {
        _escrowed(10 ether);
        address other = vm.addr(OTHER_MARKET_KEY);
        _addFunds(carol, 10 ether, carolId, carol);
        vm.prank(carol);
        vault.allow(carolId, other, 10 ether);

        _pay(6 ether);
        StakeVault.Voucher memory voucher = _voucher(carolId, other, NODE, 6 ether);
        _redeem(vault, voucher, _sign(OTHER_MARKET_KEY, vault, voucher));

        _eq(vault.creditOf(NODE), 12 ether, "both markets paid");
        _eq(vault.paid(_key(carolId), spender, _key(NODE)), 6 ether, "first ledger");
        _eq(vault.paid(_key(carolId), other, _key(NODE)), 6 ether, "second ledger");
    }

    function test_spender_cannot_draw_on_the_escrow_of_another() public {
        _escrowed(10 ether);
        _addFunds(mallory, 1, _idOf(mallory), mallory);
        StakeVault.Voucher memory voucher = _voucher(carolId, spender, _idOf(mallory), 10 ether);

        _redeem(vault, voucher, _sign(MALLORY_KEY, vault, voucher));
        voucher.spender = vm.addr(MALLORY_KEY);
        _redeem(vault, voucher, _sign(MALLORY_KEY, vault, voucher));

        _eq(vault.creditOf(_idOf(mallory)), 1, "mallory");
        _eq(vault.escrowOf(carolId, spender), 10 ether, "escrow");
    }

    // ---- what worked against the older Parity wallet -------------------------------------------------------------

    function test_parity_redirect_and_withdraw() public {
        _stake(alice, 201 ether, NODE, alice);

        _expect(StakeVault.NotOwner.selector, alice);
        vm.prank(mallory);
        vault.updateWalletAddress(NODE, mallory);
        _expect(StakeVault.NotOwner.selector, alice);
        _withdraw(mallory, NODE, 201 ether);
    }

    function test_parity_transfer_payment_does_not_exist() public {
        _addFunds(alice, 201 ether, NODE, alice);

        vm.prank(mallory);
        (bool ok,) = address(vault)
            .call(abi.encodeWithSignature("transferPayment(string,string,uint256)", NODE, "mallory", 201 ether));

        _true(!ok, "transferPayment answered");
        _eq(vault.creditOf(NODE), 201 ether, "credit");
    }

    function test_parity_one_wei_deposit_resets_no_payout() public {
        _stake(alice, 201 ether, NODE, alice);

        _expect(StakeVault.WalletMismatch.selector, alice);
        _addFunds(mallory, 1, NODE, mallory);
        _addFunds(mallory, 1, NODE, alice);

        _eq(vault.payoutOf(NODE), alice, "payout");
        _eq(vault.ownerOf(NODE), alice, "owner");
    }

    function test_parity_withdrawal_by_a_stranger_even_to_the_owner() public {
        _addFunds(alice, 201 ether, NODE, alice);

        _expect(StakeVault.NotOwner.selector, alice);
        _withdraw(mallory, NODE, 1);
    }

    function test_parity_recovery_of_staked_tokens() public {
        _stake(alice, 201 ether, NODE, alice);

        _expect(StakeVault.Insufficient.selector, 0);
        vm.prank(admin);
        vault.recoverTokens(IERC20(address(token)), 1);
    }

    function test_parity_owner_cannot_replace_the_code() public {
        bytes[3] memory calls = [
            abi.encodeWithSignature("upgradeToAndCall(address,bytes)", mallory, ""),
            abi.encodeWithSignature("upgradeTo(address)", mallory),
            abi.encodeWithSignature("initialize(address)", mallory)
        ];
        for (uint256 i = 0; i < calls.length; ++i) {
            vm.prank(admin);
            (bool ok,) = address(vault).call(calls[i]);
            _true(!ok, "an upgrade function answered");
        }
    }

    function test_parity_stake_is_no_spendable_balance() public {
        _stake(alice, 201 ether, NODE, alice);

        _expect(StakeVault.Insufficient.selector, 0);
        _withdraw(alice, NODE, 1);
        _expect(StakeVault.Insufficient.selector, 0);
        vm.prank(alice);
        vault.allow(NODE, spender, 1);
    }

    function test_parity_reentered_withdrawal() public {
        HookToken hook = new HookToken();
        StakeVault other = new StakeVault(IERC20(address(hook)), UNBONDING, admin);
        hook.mint(alice, 50 ether);
        vm.startPrank(alice);
        hook.approve(address(other), 50 ether);
        other.addFunds(50 ether, NODE, alice);
        vm.stopPrank();
        Reenterer thief = new Reenterer(other, hook);
        hook.mint(address(thief), 10 ether);

        for (uint8 target = 0; target < 4; ++target) {
            thief.run(target);
            _true(thief.attempts() == target + 1, "the hook ran");
            _eq(uint256(uint32(thief.refusal())), uint256(uint32(REENTERED)), "and was refused for re-entering");
        }

        _eq(hook.balanceOf(address(other)), other.accounted(), "balance is what is owed");
        _eq(hook.balanceOf(address(thief)) + other.creditOf("thief"), 10 ether, "the thief has its own money");
    }

    bytes4 private constant REENTERED = bytes4(keccak256("ReentrancyGuardReentrantCall()"));
}

/// @dev Deposits and withdraws, and calls the vault again from the token's hook.
contract Reenterer is Hooked {
    StakeVault private immutable vault;
    HookToken private immutable token;
    uint8 private target;
    bool private armed;
    uint256 public attempts;
    bytes4 public refusal;

    constructor(StakeVault vault_, HookToken token_) {
        vault = vault_;
        token = token_;
        token_.hook();
    }

    function run(uint8 target_) external {
        target = target_;
        refusal = 0;
        token.approve(address(vault), type(uint256).max);
        armed = target_ >= 2; // the later two re-enter from the deposit, the first two from the withdrawal
        vault.addFunds(2 ether, "thief", address(this));
        armed = target_ < 2;
        vault.withdrawFunds("thief", 1 ether);
        armed = false;
    }

    function onTransfer() external {
        if (!armed) return;
        armed = false;
        ++attempts;
        bytes memory data = target % 2 == 0
            ? abi.encodeCall(vault.withdrawFunds, ("thief", 1 ether))
            : abi.encodeCall(vault.addFunds, (1 ether, "thief", address(this)));
        (bool ok, bytes memory reply) = address(vault).call(data);
        if (!ok) refusal = bytes4(reply);
    }
}
