// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {DevToken} from "../src/DevToken.sol";
import {StakeVault} from "../src/StakeVault.sol";
import {Kit} from "./Kit.sol";
import {FeeToken, SilentToken} from "./Tokens.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

/// @dev Who may open an account, what an id may be, which deposits are refused.
contract DepositsTest is Kit {
    function test_first_stake_opens_the_account_for_the_named_wallet() public {
        vm.expectEmit(address(vault));
        emit StakeVault.AccountOpened(_key(NODE), NODE, alice);

        _stake(bob, 5 ether, NODE, alice);

        _eq(vault.ownerOf(NODE), alice, "owner");
        _eq(vault.payoutOf(NODE), alice, "payout");
        _eq(vault.operatorOf(NODE), address(0), "operator");
        _eq(vault.bondOf(NODE), 5 ether, "bond");
        _eq(vault.creditOf(NODE), 0, "credit");
        _eq(token.balanceOf(address(vault)), 5 ether, "tokens");
        _eq(vault.accounted(), 5 ether, "accounted");
    }

    function test_first_funds_open_the_account_and_are_credit() public {
        vm.expectEmit(address(vault));
        emit StakeVault.FundsAdded(carolId, carol, 3 ether);

        _addFunds(carol, 3 ether, carolId, carol);

        _eq(vault.ownerOf(carolId), carol, "owner");
        _eq(vault.creditOf(carolId), 3 ether, "credit");
        _eq(vault.bondOf(carolId), 0, "bond");
    }

    function test_wallet_info_reports_bond_plus_credit_as_old_programs_expect() public {
        _stake(alice, 5 ether, NODE, alice);
        _addFunds(bob, 2 ether, NODE, alice);
        vm.prank(alice);
        vault.updateWalletAddress(NODE, carol);

        (uint256 balance, string memory id, address wallet, bool exists) = vault.getWalletInfo(NODE);

        _eq(balance, 7 ether, "balance");
        _true(keccak256(bytes(id)) == _key(NODE), "the id is echoed");
        _eq(wallet, carol, "wallet is the payout address");
        _true(exists, "exists");
        _eq(vault.getBalance(NODE), 7 ether, "getBalance");
    }

    function test_unknown_account_reads_as_nothing() public view {
        (uint256 balance,, address wallet, bool exists) = vault.getWalletInfo(NODE);

        _eq(balance, 0, "balance");
        _eq(wallet, address(0), "wallet");
        _true(!exists, "does not exist");
    }

    function test_whole_account_is_read_by_key() public {
        vm.prank(alice);
        vault.stake(5 ether, NODE, alice, operator);
        _addFunds(alice, 2 ether, NODE, alice);
        vm.prank(alice);
        vault.requestUnstake(NODE, 1 ether);

        StakeVault.Account memory account = vault.accountOf(_key(NODE));

        _eq(account.owner, alice, "owner");
        _eq(account.payout, alice, "payout");
        _eq(account.operator, operator, "operator");
        _eq(account.bond, 4 ether, "bond");
        _eq(account.credit, 2 ether, "credit");
        _eq(account.unbonding, 1 ether, "unbonding");
        _eq(account.readyAt, block.timestamp + UNBONDING, "readyAt");
    }

    // ---- operator ----------------------------------------------------------------------------------------------

    function test_owner_names_the_operator_with_the_first_stake() public {
        vm.prank(alice);
        vault.stake(1, NODE, alice, operator);

        _eq(vault.operatorOf(NODE), operator, "operator");
    }

    function test_owner_names_the_operator_with_a_later_stake_if_none_is_set() public {
        _stake(bob, 1, NODE, alice);

        vm.prank(alice);
        vault.stake(1, NODE, alice, operator);

        _eq(vault.operatorOf(NODE), operator, "operator");
    }

    function test_stranger_cannot_name_the_operator_of_the_account_it_opens() public {
        _expect(StakeVault.OperatorMismatch.selector, address(0));
        vm.prank(mallory);
        vault.stake(1, NODE, alice, mallory);
    }

    function test_stake_never_replaces_an_operator() public {
        vm.prank(alice);
        vault.stake(1, NODE, alice, operator);

        _expect(StakeVault.OperatorMismatch.selector, operator);
        vm.prank(alice);
        vault.stake(1, NODE, alice, bob);
    }

    function test_stake_repeating_the_operator_is_accepted_from_anyone() public {
        vm.prank(alice);
        vault.stake(1, NODE, alice, operator);

        vm.prank(bob);
        vault.stake(1, NODE, alice, operator);

        _eq(vault.bondOf(NODE), 2, "bond");
    }

    // ---- ids ---------------------------------------------------------------------------------------------------

    function test_address_id_opens_only_for_that_address() public {
        _expect(StakeVault.WalletMismatch.selector, carol);
        vm.prank(mallory);
        vault.addFunds(1, carolId, mallory);
    }

    function test_address_id_with_letters_opens_for_its_address() public {
        address wallet = 0xABcdEFABcdEFabcdEfAbCdefabcdeFABcDEFabCD;

        _addFunds(bob, 1, "0xabcdefabcdefabcdefabcdefabcdefabcdefabcd", wallet);

        _eq(vault.ownerOf("0xabcdefabcdefabcdefabcdefabcdefabcdefabcd"), wallet, "owner");
    }

    function test_address_id_has_one_spelling() public {
        address wallet = 0xABcdEFABcdEFabcdEfAbCdefabcdeFABcDEFabCD;
        string[3] memory spellings = [
            "0xABcdEFABcdEFabcdEfAbCdefabcdeFABcDEFabCD",
            "0Xabcdefabcdefabcdefabcdefabcdefabcdefabcd",
            "0xabcdefabcdefabcdefabcdefabcdefabcdefabcD"
        ];
        for (uint256 i = 0; i < spellings.length; ++i) {
            _expect(StakeVault.IdNotLowerCase.selector);
            _addFunds(bob, 1, spellings[i], wallet);
        }
    }

    function test_ids_that_only_resemble_an_address_are_ordinary() public {
        string[4] memory ids = [
            "0xabcdefabcdefabcdefabcdefabcdefabcdefabcg",
            "0xABCDEFABCDEFABCDEFABCDEFABCDEFABCDEFABC",
            "1xABCDEFABCDEFABCDEFABCDEFABCDEFABCDEFABCD",
            "0yABCDEFABCDEFABCDEFABCDEFABCDEFABCDEFABCD"
        ];
        for (uint256 i = 0; i < ids.length; ++i) {
            _addFunds(bob, 1, ids[i], bob);
            _eq(vault.ownerOf(ids[i]), bob, ids[i]);
        }
    }

    function test_id_length_is_bounded() public {
        vm.expectRevert(abi.encodeWithSelector(StakeVault.BadIdLength.selector, 0, 64));
        _addFunds(bob, 1, "", bob);
        vm.expectRevert(abi.encodeWithSelector(StakeVault.BadIdLength.selector, 65, 64));
        _addFunds(bob, 1, string.concat(NODE, "0"), bob);

        _addFunds(bob, 1, NODE, bob);
        _addFunds(bob, 1, "d", bob);
    }

    // ---- refused deposits --------------------------------------------------------------------------------------

    function test_deposit_for_another_wallet_than_the_owner_is_refused() public {
        _stake(alice, 1, NODE, alice);

        _expect(StakeVault.WalletMismatch.selector, alice);
        _stake(bob, 1, NODE, bob);
        _expect(StakeVault.WalletMismatch.selector, alice);
        _addFunds(bob, 1, NODE, bob);
    }

    function test_deposit_of_nothing_is_refused() public {
        _expect(StakeVault.ZeroAmount.selector);
        _stake(alice, 0, NODE, alice);
        _expect(StakeVault.ZeroAmount.selector);
        _addFunds(alice, 0, NODE, alice);
    }

    function test_account_cannot_belong_to_nobody_or_to_the_vault() public {
        _expect(StakeVault.BadAddress.selector, address(0));
        _stake(alice, 1, NODE, address(0));
        _expect(StakeVault.BadAddress.selector, address(vault));
        _stake(alice, 1, NODE, address(vault));
    }

    function test_fee_on_transfer_token_is_refused_at_every_deposit() public {
        FeeToken fee = new FeeToken();
        StakeVault other = new StakeVault(IERC20(address(fee)), UNBONDING, admin);
        fee.mint(alice, 10 ether);
        vm.startPrank(alice);
        fee.approve(address(other), 10 ether);

        vm.expectRevert(abi.encodeWithSelector(StakeVault.WrongAmountReceived.selector, 5 ether - 1, 5 ether));
        other.stake(5 ether, NODE, alice, address(0));
        vm.expectRevert(abi.encodeWithSelector(StakeVault.WrongAmountReceived.selector, 5 ether - 1, 5 ether));
        other.addFunds(5 ether, NODE, alice);
    }

    function test_token_that_returns_nothing_works() public {
        SilentToken silent = new SilentToken();
        StakeVault other = new StakeVault(IERC20(address(silent)), UNBONDING, admin);
        silent.mint(alice, 10 ether);
        vm.startPrank(alice);
        silent.approve(address(other), 10 ether);

        other.addFunds(5 ether, NODE, alice);
        other.withdrawFunds(NODE, 2 ether);

        _eq(silent.balanceOf(alice), 7 ether, "balance");
    }

    function test_sum_beyond_the_ledger_width_is_refused() public {
        SilentToken silent = new SilentToken();
        StakeVault other = new StakeVault(IERC20(address(silent)), UNBONDING, admin);
        silent.mint(alice, type(uint128).max);
        vm.startPrank(alice);
        silent.approve(address(other), type(uint256).max);
        other.addFunds(type(uint96).max, NODE, alice);

        vm.expectRevert(abi.encodeWithSignature("Panic(uint256)", 0x11));
        other.addFunds(1, OTHER_NODE, alice);
        vm.expectRevert(
            abi.encodeWithSignature("SafeCastOverflowedUintDowncast(uint8,uint256)", 96, uint256(type(uint96).max) + 1)
        );
        other.addFunds(uint256(type(uint96).max) + 1, OTHER_NODE, alice);
    }

    // ---- pause -------------------------------------------------------------------------------------------------

    function test_pause_refuses_deposits_and_expires_by_itself() public {
        uint256 until = block.timestamp + 7 days;
        vm.prank(admin);
        vault.pauseDeposits(true);

        _true(vault.depositsPaused(), "paused");
        _expect(StakeVault.Paused.selector, until);
        _stake(alice, 1, NODE, alice);
        _expect(StakeVault.Paused.selector, until);
        _addFunds(alice, 1, NODE, alice);

        vm.warp(until);
        _true(!vault.depositsPaused(), "expired");
        _stake(alice, 1, NODE, alice);
    }

    function test_admin_lifts_the_pause() public {
        vm.startPrank(admin);
        vault.pauseDeposits(true);
        vault.pauseDeposits(false);
        vm.stopPrank();

        _stake(alice, 1, NODE, alice);
    }

    function test_pause_stops_no_exit() public {
        _escrowed(10 ether);
        vm.startPrank(carol);
        vault.requestRelease(carolId, spender, 5 ether);
        vm.stopPrank();
        vm.prank(alice);
        vault.requestUnstake(NODE, 1);
        vm.warp(block.timestamp + UNBONDING);
        vm.prank(admin);
        vault.pauseDeposits(true);

        _pay(2 ether);
        _withdraw(alice, NODE, 2 ether + 1);
        vm.prank(carol);
        vault.finishRelease(carolId, spender);
        _withdraw(carol, carolId, 5 ether);
        vm.prank(carol);
        vault.requestRelease(carolId, spender, 3 ether);

        _eq(token.balanceOf(alice), 1002 ether, "alice got bond and earnings");
        _eq(token.balanceOf(carol), 995 ether, "carol got the release");
    }

    // ---- construction and admin --------------------------------------------------------------------------------

    function test_constructor_refuses_what_cannot_work() public {
        _expect(StakeVault.BadAddress.selector, alice);
        new StakeVault(IERC20(alice), UNBONDING, admin);
        _expect(StakeVault.BadAddress.selector, address(0));
        new StakeVault(IERC20(address(token)), UNBONDING, address(0));
        vm.expectRevert(abi.encodeWithSelector(StakeVault.BadUnbonding.selector, 0, 365 days));
        new StakeVault(IERC20(address(token)), 0, admin);
        vm.expectRevert(abi.encodeWithSelector(StakeVault.BadUnbonding.selector, 365 days + 1, 365 days));
        new StakeVault(IERC20(address(token)), 365 days + 1, admin);
    }

    function test_only_the_admin_pauses_and_recovers() public {
        _expect(StakeVault.NotAdmin.selector, admin);
        vm.prank(mallory);
        vault.pauseDeposits(true);
        _expect(StakeVault.NotAdmin.selector, admin);
        vm.prank(mallory);
        vault.recoverTokens(IERC20(address(token)), 1);
    }

    function test_recovery_takes_the_surplus_only() public {
        _stake(alice, 5 ether, NODE, alice);
        vm.prank(bob);
        token.transfer(address(vault), 3 ether);

        _expect(StakeVault.Insufficient.selector, 3 ether);
        vm.prank(admin);
        vault.recoverTokens(IERC20(address(token)), 3 ether + 1);
        vm.prank(admin);
        vault.recoverTokens(IERC20(address(token)), 3 ether);

        _eq(token.balanceOf(admin), 3 ether, "surplus");
        _eq(token.balanceOf(address(vault)), 5 ether, "alice's money stays");
    }

    function test_recovery_of_a_foreign_token_takes_all_of_it() public {
        DevToken foreign = new DevToken();
        foreign.faucet(address(vault), 4 ether);

        vm.prank(admin);
        vault.recoverTokens(IERC20(address(foreign)), 4 ether);

        _eq(foreign.balanceOf(admin), 4 ether, "foreign tokens");
    }

    function test_faucet_is_capped_per_call() public {
        _expect(DevToken.AboveFaucetLimit.selector, 1_000_000 ether);
        token.faucet(alice, 1_000_000 ether + 1);
    }
}
