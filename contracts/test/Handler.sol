// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {DevToken} from "../src/DevToken.sol";
import {StakeVault} from "../src/StakeVault.sol";
import {Books} from "./Books.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

/// @dev Plays owners, sponsors, markets, an admin and thieves against one vault, and keeps its own books by rules simple
/// enough to be seen to be right. Every action counts its successes: a campaign in which one never happened proves
/// nothing about it.
contract Handler is Books {
    uint64 public constant UNBONDING = 1 days;
    uint256 private constant WALLETS = 4;

    DevToken public immutable token;
    StakeVault public immutable vault;
    address public immutable admin = address(0xAD);
    address public immutable thief = address(0xBAD);

    string[] public ids;
    address[] public wallets;
    uint256[] private _keys;
    address[] private _spenders;
    /// @dev creator, spender and solver of every payment, so that a replay finds one.
    uint256[3][] private _payments;

    mapping(bytes4 => uint256) public successes;
    /// @dev What each wallet was named for in deposits or earned, less what it took: it can never take more.
    mapping(address => int256) public entitled;
    uint256 public donated;

    constructor() {
        vm.warp(1_800_000_000);
        token = new DevToken();
        vault = new StakeVault(IERC20(address(token)), UNBONDING, admin);
        for (uint160 i = 0; i < WALLETS; ++i) {
            address wallet = address(0xF00D0000 + i);
            wallets.push(wallet);
            _fund(wallet);
        }
        _fund(thief);
        ids.push(_idOf(wallets[0]));
        ids.push("1111111111111111111111111111111111111111111111111111111111111111");
        ids.push("2222222222222222222222222222222222222222222222222222222222222222");
        ids.push("an-older-parity-device");
        ids.push("never-opened");
        for (uint256 i = 0; i < SPENDERS; ++i) {
            _keys.push(0x5EED + i);
            _spenders.push(vm.addr(0x5EED + i));
        }
    }

    function spenderAt(uint256 index) public view returns (address) {
        return _spenders[index];
    }

    // ---- deposits ----------------------------------------------------------------------------------------------

    function stake(uint256 account, uint256 from, uint256 amount) external {
        (account, amount) = (account % CLOSED, _bound(amount, 1 ether, 100 ether));
        address sender = wallets[from % WALLETS];
        address wallet = _named(account, from);
        bool first = _books[account].owner == address(0) && sender == wallet;
        address operator = first ? address(uint160(0x0908 + from % 3)) : _books[account].operator;
        if (!_deposit(sender, abi.encodeCall(vault.stake, (amount, ids[account], wallet, operator)))) return;
        _opened(account, wallet);
        _books[account].operator = operator;
        _books[account].bond += amount;
        entitled[wallet] += int256(amount);
        ++successes[this.stake.selector];
    }

    function addFunds(uint256 account, uint256 from, uint256 amount) external {
        (account, amount) = (account % CLOSED, _bound(amount, 1 ether, 100 ether));
        address wallet = _named(account, from);
        if (!_deposit(wallets[from % WALLETS], abi.encodeCall(vault.addFunds, (amount, ids[account], wallet)))) return;
        _opened(account, wallet);
        _books[account].credit += amount;
        entitled[wallet] += int256(amount);
        ++successes[this.addFunds.selector];
    }

    /// @dev A deposit that names somebody other than the owner: payout, operator, another wallet, nobody.
    function misdirect(uint256 account, uint256 from, uint256 other) external {
        account %= CLOSED;
        Book storage b = _books[account];
        if (b.owner == address(0)) return;
        address[4] memory named = [b.payout, b.operator, wallets[other % WALLETS], address(0)];
        address wallet = named[from % 4];
        if (wallet == b.owner) wallet = thief;
        _refused(wallets[from % WALLETS], abi.encodeCall(vault.addFunds, (1, ids[account], wallet)));
        _refused(wallets[from % WALLETS], abi.encodeCall(vault.stake, (1, ids[account], wallet, address(0))));
        ++successes[this.misdirect.selector];
    }

    function pause(uint256 seed) external {
        vm.prank(admin);
        vault.pauseDeposits(true);
        _refused(wallets[0], abi.encodeCall(vault.addFunds, (1, ids[0], wallets[0])));
        if (seed % 8 != 0) {
            vm.prank(admin);
            vault.pauseDeposits(false);
        }
        ++successes[this.pause.selector];
    }

    // ---- bond and credit ---------------------------------------------------------------------------------------

    function requestUnstake(uint256 account, uint256 amount) external {
        account = _find(account, _isBonded);
        Book storage b = _books[account];
        if (b.bond == 0) return;
        amount = _bound(amount, 1, b.bond);
        vm.prank(b.owner);
        vault.requestUnstake(ids[account], amount);
        b.bond -= amount;
        b.unbonding += amount;
        b.readyAt = block.timestamp + UNBONDING;
        ++successes[this.requestUnstake.selector];
    }

    function cancelUnstake(uint256 account) external {
        if (account % 3 == 0) return;
        account = _find(account, _isUnbonding);
        Book storage b = _books[account];
        if (b.unbonding == 0) return;
        vm.prank(b.owner);
        vault.cancelUnstake(ids[account]);
        (b.bond, b.unbonding, b.readyAt) = (b.bond + b.unbonding, 0, 0);
        ++successes[this.cancelUnstake.selector];
    }

    function withdrawCredit(uint256 account, uint256 amount) external {
        account = _find(account, _hasCredit);
        Book storage b = _books[account];
        if (b.credit == 0) return;
        amount = _bound(amount, 1, (b.credit + 3) / 4);
        _withdraw(account, amount);
        b.credit -= amount;
        ++successes[this.withdrawCredit.selector];
    }

    /// @dev Takes unbonded bond too; while it is locked, checks that it is.
    function withdrawBond(uint256 account, uint256 amount, uint256 seed) external {
        account = _find(account, _isUnbonding);
        Book storage b = _books[account];
        if (b.unbonding == 0) return;
        amount = b.credit + _bound(amount, 1, b.unbonding);
        if (block.timestamp < b.readyAt) {
            _refused(b.owner, abi.encodeCall(vault.withdrawFunds, (ids[account], amount)));
            if (seed % 3 == 0) return;
            vm.warp(b.readyAt);
        }
        _refused(b.owner, abi.encodeCall(vault.withdrawFunds, (ids[account], b.credit + b.unbonding + 1)));
        _withdraw(account, amount);
        (b.credit, b.unbonding) = (0, b.unbonding - (amount - b.credit));
        ++successes[this.withdrawBond.selector];
    }

    // ---- escrow and vouchers -----------------------------------------------------------------------------------

    function allow(uint256 account, uint256 spender, uint256 amount) external {
        (account, spender) = (_find(account, _hasCredit), spender % SPENDERS);
        Book storage b = _books[account];
        if (b.credit == 0) return;
        amount = _bound(amount, (b.credit + 1) / 2, b.credit);
        vm.prank(b.owner);
        vault.allow(ids[account], spenderAt(spender), amount);
        b.credit -= amount;
        _pots[account][spender].amount += amount;
        ++successes[this.allow.selector];
    }

    function requestRelease(uint256 account, uint256 spender, uint256 amount) external {
        (account, spender) = _findPot(account, spender, _isFree);
        Pot storage p = _pots[account][spender];
        if (p.amount == p.releasing) return;
        amount = _bound(amount, 1, p.amount - p.releasing);
        vm.prank(_books[account].owner);
        vault.requestRelease(ids[account], spenderAt(spender), amount);
        p.releasing += amount;
        p.readyAt = block.timestamp + UNBONDING;
        ++successes[this.requestRelease.selector];
    }

    function cancelRelease(uint256 account, uint256 spender) external {
        if (spender % 3 == 0) return;
        (account, spender) = _findPot(account, spender, _isReleasing);
        Pot storage p = _pots[account][spender];
        if (p.releasing == 0) return;
        vm.prank(_books[account].owner);
        vault.cancelRelease(ids[account], spenderAt(spender));
        (p.releasing, p.readyAt) = (0, 0);
        ++successes[this.cancelRelease.selector];
    }

    function finishRelease(uint256 account, uint256 spender, uint256 seed) external {
        (account, spender) = _findPot(account, spender, _isReleasing);
        Pot storage p = _pots[account][spender];
        if (p.releasing == 0) return;
        bytes memory data = abi.encodeCall(vault.finishRelease, (ids[account], spenderAt(spender)));
        if (block.timestamp < p.readyAt) {
            _refused(_books[account].owner, data);
            if (seed % 3 == 0) return;
            vm.warp(p.readyAt);
        }
        _accepted(_books[account].owner, data);
        _books[account].credit += p.releasing;
        (p.amount, p.releasing, p.readyAt) = (p.amount - p.releasing, 0, 0);
        ++successes[this.finishRelease.selector];
    }

    /// @dev A market promises `more` to a solver and anyone redeems, as far as the escrow reaches.
    function redeem(uint256 creator, uint256 spender, uint256 solver, uint256 more) external {
        (creator, spender) = _findPot(creator, spender, _isFunded);
        solver = _find(solver, _isOpen);
        if (_books[solver].owner == address(0) || _pots[creator][spender].amount == 0) return;
        promised[creator][spender][solver] += _bound(more, 1, 3 ether);
        if (_redeemed(creator, spender, solver, promised[creator][spender][solver], _keys[spender]) > 0) {
            ++successes[this.redeem.selector];
        }
    }

    /// @dev The newest voucher and an older one again, right after being redeemed.
    function replay(uint256 seed, uint256 older) external {
        if (_payments.length == 0) return;
        uint256[3] memory payment = _payments[seed % _payments.length];
        (uint256 creator, uint256 spender, uint256 solver) = (payment[0], payment[1], payment[2]);
        uint256 cumulative = promised[creator][spender][solver];
        _redeemed(creator, spender, solver, cumulative, _keys[spender]);
        _eq(_redeemed(creator, spender, solver, cumulative, _keys[spender]), 0, "a voucher paid twice");
        older = _bound(older, 0, paid[creator][spender][solver]);
        _eq(_redeemed(creator, spender, solver, older, _keys[spender]), 0, "an older voucher paid");
        ++successes[this.replay.selector];
    }

    function redeemForClosed(uint256 creator, uint256 spender, uint256 amount) external {
        (creator, spender) = _findPot(creator, spender, _isFunded);
        if (_pots[creator][spender].amount == 0) return;
        _eq(
            _redeemed(creator, spender, CLOSED, _bound(amount, 1, 30 ether), _keys[spender]),
            0,
            "a closed account earned"
        );
        ++successes[this.redeemForClosed.selector];
    }

    /// @dev Vouchers signed by a thief, or by the other market.
    function forge(uint256 creator, uint256 spender, uint256 solver, bool otherMarket) external {
        (creator, spender) = _findPot(creator, spender, _isFunded);
        solver %= CLOSED;
        if (_pots[creator][spender].amount == 0) return;
        uint256 key = otherMarket ? _keys[(spender + 1) % SPENDERS] : 0xBAD;
        uint256 cumulative = paid[creator][spender][solver] + 1 ether;
        _eq(_redeemed(creator, spender, solver, cumulative, key), 0, "a forged voucher paid");
        ++successes[this.forge.selector];
    }

    // ---- keys and thieves --------------------------------------------------------------------------------------

    function updateWalletAddress(uint256 account, uint256 to) external {
        account %= CLOSED;
        Book storage b = _books[account];
        if (b.owner == address(0)) return;
        b.payout = wallets[to % WALLETS];
        vm.prank(b.owner);
        vault.updateWalletAddress(ids[account], b.payout);
        ++successes[this.updateWalletAddress.selector];
    }

    function setOperator(uint256 account, uint256 to) external {
        account %= CLOSED;
        Book storage b = _books[account];
        if (b.owner == address(0)) return;
        b.operator = to % 4 == 0 ? address(0) : address(uint160(0x0908 + to % 4));
        vm.prank(b.owner);
        vault.setOperator(ids[account], b.operator);
        ++successes[this.setOperator.selector];
    }

    /// @dev The money goes with the account, so the wallets' entitlements move by what the account holds.
    function setOwner(uint256 account, uint256 to) external {
        account %= CLOSED;
        Book storage b = _books[account];
        address next = wallets[to % WALLETS];
        if (b.owner == address(0) || b.owner == next) return;
        vm.prank(b.owner);
        vault.setOwner(ids[account], next);
        int256 held = int256(holdings(account));
        entitled[b.owner] -= held;
        entitled[next] += held;
        (b.owner, b.payout, b.operator) = (next, next, address(0));
        ++successes[this.setOwner.selector];
    }

    /// @dev Everything that only an owner may do, by each of the others.
    function steal(uint256 account, uint256 who, uint256 spender) external {
        account %= CLOSED;
        Book storage b = _books[account];
        if (b.owner == address(0)) return;
        address[5] memory others = [thief, admin, b.operator, b.payout, wallets[who % WALLETS]];
        address sender = others[who % 5];
        if (sender == b.owner) sender = thief;
        string memory id = ids[account];
        address market = spenderAt(spender % SPENDERS);
        _refused(sender, abi.encodeCall(vault.withdrawFunds, (id, 1)));
        _refused(sender, abi.encodeCall(vault.requestUnstake, (id, 1)));
        _refused(sender, abi.encodeCall(vault.cancelUnstake, (id)));
        _refused(sender, abi.encodeCall(vault.allow, (id, thief, 1)));
        _refused(sender, abi.encodeCall(vault.requestRelease, (id, market, 1)));
        _refused(sender, abi.encodeCall(vault.cancelRelease, (id, market)));
        _refused(sender, abi.encodeCall(vault.finishRelease, (id, market)));
        _refused(sender, abi.encodeCall(vault.updateWalletAddress, (id, sender)));
        _refused(sender, abi.encodeCall(vault.setOperator, (id, sender)));
        _refused(sender, abi.encodeCall(vault.setOwner, (id, sender)));
        ++successes[this.steal.selector];
    }

    function donateAndRecover(uint256 amount, bool recover) external {
        amount = _bound(amount, 1, 5 ether);
        vm.prank(thief);
        token.transfer(address(vault), amount);
        donated += amount;
        _refused(admin, abi.encodeCall(vault.recoverTokens, (IERC20(address(token)), donated + 1)));
        if (!recover) return;
        vm.prank(admin);
        vault.recoverTokens(IERC20(address(token)), donated);
        donated = 0;
        ++successes[this.donateAndRecover.selector];
    }

    // ---- private -----------------------------------------------------------------------------------------------

    function _fund(address wallet) private {
        for (uint256 i = 0; i < 10; ++i) {
            token.faucet(wallet, 1_000_000 ether);
        }
        vm.prank(wallet);
        token.approve(address(vault), type(uint256).max);
    }

    /// @dev Whom an honest deposit names: the owner, or for a new account whoever the sender chooses.
    function _named(uint256 account, uint256 from) private view returns (address) {
        address owner = _books[account].owner;
        if (owner != address(0)) return owner;
        return account == 0 ? wallets[0] : wallets[(from / WALLETS) % WALLETS];
    }

    function _opened(uint256 account, address wallet) private {
        Book storage b = _books[account];
        if (b.owner == address(0)) (b.owner, b.payout) = (wallet, wallet);
    }

    function _deposit(address sender, bytes memory data) private returns (bool) {
        if (vault.depositsPaused()) {
            _refused(sender, data);
            return false;
        }
        _accepted(sender, data);
        return true;
    }

    function _withdraw(uint256 account, uint256 amount) private {
        Book storage b = _books[account];
        uint256 before = token.balanceOf(b.payout);
        vm.prank(b.owner);
        vault.withdrawFunds(ids[account], amount);
        _eq(token.balanceOf(b.payout), before + amount, "payout received");
        entitled[b.owner] -= int256(amount);
    }

    function _redeemed(uint256 creator, uint256 spender, uint256 solver, uint256 cumulative, uint256 key)
        private
        returns (uint256 amount)
    {
        StakeVault.Voucher memory voucher = _voucher(ids[creator], spenderAt(spender), ids[solver], cumulative);
        Pot storage p = _pots[creator][spender];
        uint256 expected;
        bool open = _books[solver].owner != address(0);
        if (key == _keys[spender] && open && cumulative > paid[creator][spender][solver]) {
            expected = cumulative - paid[creator][spender][solver];
            if (expected > p.amount) expected = p.amount;
        }
        uint256 before = vault.paid(voucher.creator, voucher.spender, voucher.solver);
        vm.prank(thief);
        _redeem(vault, voucher, _sign(key, vault, voucher));
        amount = vault.paid(voucher.creator, voucher.spender, voucher.solver) - before;
        _eq(amount, expected, "voucher paid");
        p.amount -= amount;
        p.paid += amount;
        if (p.releasing > p.amount) p.releasing = p.amount;
        paid[creator][spender][solver] += amount;
        _books[solver].credit += amount;
        entitled[_books[solver].owner] += int256(amount);
        entitled[_books[creator].owner] -= int256(amount);
        if (amount > 0) _payments.push([creator, spender, solver]);
    }

    function _accepted(address sender, bytes memory data) private {
        vm.prank(sender);
        (bool ok, bytes memory reply) = address(vault).call(data);
        if (!ok) {
            assembly ("memory-safe") {
                revert(add(reply, 32), mload(reply))
            }
        }
    }

    function _refused(address sender, bytes memory data) private {
        vm.prank(sender);
        (bool ok,) = address(vault).call(data);
        _true(!ok, "a call that must be refused was accepted");
    }
}
