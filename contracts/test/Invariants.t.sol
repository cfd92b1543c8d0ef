// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {StakeVault} from "../src/StakeVault.sol";
import {Handler} from "./Handler.sol";
import {Checks} from "./Kit.sol";

/// @dev The promises of the vault, each checked after every action of the handler.
contract InvariantsTest is Checks {
    Handler private handler;
    StakeVault private vault;
    uint256 private accounts;
    uint256 private spenders;

    function setUp() public {
        handler = new Handler();
        vault = handler.vault();
        accounts = handler.IDS();
        spenders = handler.SPENDERS();
    }

    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }

    function invariant_token_balance_is_the_sum_of_all_ledgers() public view {
        uint256 sum;
        for (uint256 a = 0; a < accounts; ++a) {
            StakeVault.Account memory account = vault.accountOf(_key(handler.ids(a)));
            sum += uint256(account.bond) + account.unbonding + account.credit;
            for (uint256 s = 0; s < spenders; ++s) {
                sum += vault.escrowOf(handler.ids(a), handler.spenderAt(s));
            }
        }
        _eq(vault.accounted(), sum, "accounted");
        _eq(handler.token().balanceOf(address(vault)), sum + handler.donated(), "balance");
    }

    /// @dev The books move an entitlement only by deposits that name the wallet, vouchers, the wallet's own withdrawals
    /// and its own handing over; here they must cover, to the unit, what the wallet's accounts hold in the vault.
    function invariant_deposits_are_withdrawable_only_by_the_wallet_they_named() public view {
        for (uint256 w = 0; w < 4; ++w) {
            address wallet = handler.wallets(w);
            uint256 held;
            for (uint256 a = 0; a < accounts; ++a) {
                if (vault.ownerOf(handler.ids(a)) != wallet) continue;
                StakeVault.Account memory account = vault.accountOf(_key(handler.ids(a)));
                held += uint256(account.bond) + account.unbonding + account.credit;
                for (uint256 s = 0; s < spenders; ++s) {
                    held += vault.escrowOf(handler.ids(a), handler.spenderAt(s));
                }
            }
            _true(handler.entitled(wallet) == int256(held), "a wallet holds what it is entitled to");
        }
    }

    function invariant_voucher_never_pays_twice() public view {
        for (uint256 c = 0; c < accounts; ++c) {
            for (uint256 s = 0; s < spenders; ++s) {
                for (uint256 t = 0; t < accounts; ++t) {
                    uint256 paid = vault.paid(_key(handler.ids(c)), handler.spenderAt(s), _key(handler.ids(t)));
                    _eq(paid, handler.paid(c, s, t), "paid");
                    _true(paid <= handler.promised(c, s, t), "more was paid than promised");
                }
            }
        }
    }

    function invariant_escrow_shrinks_only_by_its_vouchers_and_its_release() public view {
        for (uint256 a = 0; a < accounts; ++a) {
            for (uint256 s = 0; s < spenders; ++s) {
                Handler.Pot memory pot = handler.pot(a, s);
                string memory id = handler.ids(a);
                (uint256 releasing, uint256 readyAt) = vault.releaseOf(id, handler.spenderAt(s));
                _eq(vault.escrowOf(id, handler.spenderAt(s)), pot.amount, "escrow");
                _eq(releasing, pot.releasing, "releasing");
                _true(releasing <= pot.amount, "more is being released than is there");
                if (releasing > 0) _eq(readyAt, pot.readyAt, "release readyAt");
                uint256 drawn;
                for (uint256 t = 0; t < accounts; ++t) {
                    drawn += vault.paid(_key(id), handler.spenderAt(s), _key(handler.ids(t)));
                }
                _eq(drawn, pot.paid, "drawn by vouchers");
            }
        }
    }

    function invariant_bond_leaves_only_by_unbonding() public view {
        for (uint256 a = 0; a < accounts; ++a) {
            Handler.Book memory book = handler.book(a);
            (uint256 unbonding, uint256 readyAt) = vault.unbondingOf(handler.ids(a));
            _eq(vault.bondOf(handler.ids(a)), book.bond, "bond");
            _eq(unbonding, book.unbonding, "unbonding");
            if (unbonding > 0) _eq(readyAt, book.readyAt, "unbonding readyAt");
        }
    }

    function invariant_keys_change_only_by_the_owner() public view {
        for (uint256 a = 0; a < accounts; ++a) {
            Handler.Book memory book = handler.book(a);
            string memory id = handler.ids(a);
            _eq(vault.ownerOf(id), book.owner, "owner");
            _eq(vault.payoutOf(id), book.payout, "payout");
            _eq(vault.operatorOf(id), book.operator, "operator");
        }
    }

    function invariant_credit_never_lands_on_an_account_nobody_opened() public view {
        for (uint256 a = 0; a < accounts; ++a) {
            string memory id = handler.ids(a);
            _eq(vault.creditOf(id), handler.book(a).credit, "credit");
            if (vault.ownerOf(id) != address(0)) continue;
            StakeVault.Account memory account = vault.accountOf(_key(id));
            _eq(uint256(account.credit) + account.bond + account.unbonding, 0, "a closed account holds money");
        }
        _eq(vault.ownerOf(handler.ids(handler.CLOSED())), address(0), "the closed account");
    }

    /// @dev Runs after each sequence of calls: a sequence in which an action never worked proves nothing about it.
    function afterInvariant() public view {
        bytes4[21] memory actions = [
            handler.stake.selector,
            handler.addFunds.selector,
            handler.misdirect.selector,
            handler.pause.selector,
            handler.requestUnstake.selector,
            handler.cancelUnstake.selector,
            handler.withdrawCredit.selector,
            handler.withdrawBond.selector,
            handler.allow.selector,
            handler.requestRelease.selector,
            handler.cancelRelease.selector,
            handler.finishRelease.selector,
            handler.redeem.selector,
            handler.replay.selector,
            handler.redeemForClosed.selector,
            handler.forge.selector,
            handler.updateWalletAddress.selector,
            handler.setOperator.selector,
            handler.setOwner.selector,
            handler.steal.selector,
            handler.donateAndRecover.selector
        ];
        for (uint256 i = 0; i < actions.length; ++i) {
            if (handler.successes(actions[i]) == 0) revert NeverSucceeded(i, actions[i]);
        }
    }

    error NeverSucceeded(uint256 index, bytes4 action);
}
