// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";

/// @title Play money for development chains
/// @notice Anyone mints, so it is worth nothing. Real networks bring their own ERC-20.
contract DevToken is ERC20, ERC20Permit {
    /// @notice Base units that one call of `faucet` may hand out: a million tokens of 18 decimals.
    uint256 public constant FAUCET_LIMIT = 1_000_000 ether;

    error AboveFaucetLimit(uint256 limit);

    constructor() ERC20("Parity Dev Token", "PDEV") ERC20Permit("Parity Dev Token") {}

    /// @notice Mint `amount` base units to `to`.
    function faucet(address to, uint256 amount) external {
        if (amount > FAUCET_LIMIT) revert AboveFaucetLimit(FAUCET_LIMIT);
        _mint(to, amount);
    }
}
