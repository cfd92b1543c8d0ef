// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Checks} from "./Kit.sol";

/// @dev What the vault should hold, kept by the handler, and ways to find an account that an action can work on.
abstract contract Books is Checks {
    /// @dev What the books say about one account.
    struct Book {
        address owner;
        address payout;
        address operator;
        uint256 bond;
        uint256 unbonding;
        uint256 readyAt;
        uint256 credit;
    }

    /// @dev What the books say about one escrow. `paid` sums what its vouchers drew.
    struct Pot {
        uint256 amount;
        uint256 releasing;
        uint256 readyAt;
        uint256 paid;
    }

    uint256 public constant IDS = 5;
    /// @dev The last id stays closed, as a solver that nobody has opened.
    uint256 public constant CLOSED = IDS - 1;
    uint256 public constant SPENDERS = 2;

    mapping(uint256 => Book) internal _books;
    mapping(uint256 => mapping(uint256 => Pot)) internal _pots;
    mapping(uint256 creator => mapping(uint256 spender => mapping(uint256 solver => uint256))) public paid;
    mapping(uint256 creator => mapping(uint256 spender => mapping(uint256 solver => uint256))) public promised;

    function book(uint256 account) external view returns (Book memory) {
        return _books[account];
    }

    function pot(uint256 account, uint256 spender) external view returns (Pot memory) {
        return _pots[account][spender];
    }

    /// @dev bond + unbonding + credit + escrows, as the books have it.
    function holdings(uint256 account) public view returns (uint256 sum) {
        Book storage b = _books[account];
        sum = b.bond + b.unbonding + b.credit;
        for (uint256 s = 0; s < SPENDERS; ++s) {
            sum += _pots[account][s].amount;
        }
    }

    // Actions look onward from the account they were given for one that they can act on.

    function _find(uint256 from, function(Book storage) view returns (bool) fits) internal view returns (uint256) {
        for (uint256 i = 0; i < CLOSED; ++i) {
            uint256 account = (from % CLOSED + i) % CLOSED;
            if (fits(_books[account])) return account;
        }
        return from % CLOSED;
    }

    function _findPot(uint256 from, uint256 spender, function(Pot storage) view returns (bool) fits)
        internal
        view
        returns (uint256, uint256)
    {
        for (uint256 i = 0; i < CLOSED * SPENDERS; ++i) {
            uint256 account = (from % CLOSED + i) % CLOSED;
            uint256 market = (spender % SPENDERS + i / CLOSED) % SPENDERS;
            if (fits(_pots[account][market])) return (account, market);
        }
        return (from % CLOSED, spender % SPENDERS);
    }

    function _isOpen(Book storage b) internal view returns (bool) {
        return b.owner != address(0);
    }

    function _isBonded(Book storage b) internal view returns (bool) {
        return b.bond > 0;
    }

    function _isUnbonding(Book storage b) internal view returns (bool) {
        return b.unbonding > 0;
    }

    function _hasCredit(Book storage b) internal view returns (bool) {
        return b.credit > 0;
    }

    function _isFunded(Pot storage p) internal view returns (bool) {
        return p.amount > 0;
    }

    function _isFree(Pot storage p) internal view returns (bool) {
        return p.amount > p.releasing;
    }

    function _isReleasing(Pot storage p) internal view returns (bool) {
        return p.releasing > 0;
    }
}
