// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {DevToken} from "../src/DevToken.sol";
import {StakeVault} from "../src/StakeVault.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {Strings} from "@openzeppelin/contracts/utils/Strings.sol";

/// @dev The few cheat codes of forge that these tests use.
interface Vm {
    function prank(address sender) external;
    function startPrank(address sender) external;
    function stopPrank() external;
    function warp(uint256 timestamp) external;
    function chainId(uint256 id) external;
    function expectRevert(bytes calldata data) external;
    function expectEmit(address emitter) external;
    function sign(uint256 key, bytes32 digest) external pure returns (uint8 v, bytes32 r, bytes32 s);
    function addr(uint256 key) external pure returns (address);
}

/// @dev Checks that say what they expected, and what is common to signing vouchers.
abstract contract Checks {
    Vm internal constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

    uint256 internal constant CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;

    error NotEqual(string what, uint256 got, uint256 expected);
    error NotTrue(string what);

    function _eq(uint256 got, uint256 expected, string memory what) internal pure {
        if (got != expected) revert NotEqual(what, got, expected);
    }

    function _eq(address got, address expected, string memory what) internal pure {
        if (got != expected) revert NotEqual(what, uint160(got), uint160(expected));
    }

    function _true(bool claim, string memory what) internal pure {
        if (!claim) revert NotTrue(what);
    }

    function _key(string memory id) internal pure returns (bytes32) {
        return keccak256(bytes(id));
    }

    /// @dev The id of a submitter: its lower-case address.
    function _idOf(address account) internal pure returns (string memory) {
        return Strings.toHexString(account);
    }

    function _bound(uint256 x, uint256 low, uint256 high) internal pure returns (uint256) {
        return low + x % (high - low + 1);
    }

    function _voucher(string memory creator, address spender, string memory solver, uint256 cumulative)
        internal
        pure
        returns (StakeVault.Voucher memory)
    {
        return StakeVault.Voucher(_key(creator), _key(solver), spender, cumulative, 1, bytes32(uint256(7)));
    }

    function _sign(uint256 key, StakeVault vault, StakeVault.Voucher memory voucher)
        internal
        view
        returns (bytes memory)
    {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, vault.voucherDigest(voucher));
        return abi.encodePacked(r, s, v);
    }

    function _redeem(StakeVault vault, StakeVault.Voucher memory voucher, bytes memory signature) internal {
        StakeVault.Voucher[] memory vouchers = new StakeVault.Voucher[](1);
        bytes[] memory signatures = new bytes[](1);
        vouchers[0] = voucher;
        signatures[0] = signature;
        vault.redeem(vouchers, signatures);
    }
}

/// @dev A vault with money around it: alice is a node's owner, carol a submitter, mallory wants what is theirs.
abstract contract Kit is Checks {
    uint64 internal constant UNBONDING = 7 days;
    uint256 internal constant SPENDER_KEY = 0xA11CE;
    string internal constant NODE = "6e2f5b6d4f0e6a3b1c9d8e7f60718293a4b5c6d7e8f90123456789abcdef0123";
    string internal constant OTHER_NODE = "0000000000000000000000000000000000000000000000000000000000000002";

    DevToken internal token;
    StakeVault internal vault;

    address internal admin = address(0xAD);
    address internal alice = address(0xA1);
    address internal bob = address(0xB0);
    address internal carol = address(0xCA801);
    address internal mallory = address(0xBAD);
    address internal operator = address(0x09);
    address internal spender;

    string internal carolId;

    function setUp() public virtual {
        vm.warp(1_800_000_000);
        token = new DevToken();
        vault = new StakeVault(IERC20(address(token)), UNBONDING, admin);
        spender = vm.addr(SPENDER_KEY);
        carolId = _idOf(carol);
        address[4] memory rich = [alice, bob, carol, mallory];
        for (uint256 i = 0; i < rich.length; ++i) {
            token.faucet(rich[i], 1000 ether);
            vm.prank(rich[i]);
            token.approve(address(vault), type(uint256).max);
        }
    }

    function _stake(address from, uint256 amount, string memory id, address wallet) internal {
        vm.prank(from);
        vault.stake(amount, id, wallet, address(0));
    }

    function _addFunds(address from, uint256 amount, string memory id, address wallet) internal {
        vm.prank(from);
        vault.addFunds(amount, id, wallet);
    }

    function _withdraw(address from, string memory id, uint256 amount) internal {
        vm.prank(from);
        vault.withdrawFunds(id, amount);
    }

    /// @dev carol's credit of `amount`, all of it in escrow for `spender`; alice's node is open to be paid.
    function _escrowed(uint256 amount) internal {
        _stake(alice, 1, NODE, alice);
        _addFunds(carol, amount, carolId, carol);
        vm.prank(carol);
        vault.allow(carolId, spender, amount);
    }

    function _pay(uint256 cumulative) internal {
        StakeVault.Voucher memory voucher = _voucher(carolId, spender, NODE, cumulative);
        _redeem(vault, voucher, _sign(SPENDER_KEY, vault, voucher));
    }

    function _expect(bytes4 selector) internal {
        vm.expectRevert(abi.encodePacked(selector));
    }

    function _expect(bytes4 selector, uint256 value) internal {
        vm.expectRevert(abi.encodeWithSelector(selector, value));
    }

    function _expect(bytes4 selector, address value) internal {
        vm.expectRevert(abi.encodeWithSelector(selector, value));
    }
}
