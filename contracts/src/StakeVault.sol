// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

/// @title Bonds, credit and funded escrow of the nodes and submitters of a market
/// @notice Every token in the vault is in exactly one place of one account:
///
///   bond       what a node has at stake; leaves only through `unbonding`
///   unbonding  on its way out; the owner may withdraw it from `readyAt` on
///   credit     free money: earnings, deposits, finished releases
///   escrow     set aside for one spender; only vouchers signed by that spender draw on it, and taking it back
///              takes the unbonding time, during which vouchers are still paid
///
/// Three keys belong to an account. The owner moves its money and chooses the other two, the payout address receives
/// withdrawals, the operator is the hot key of a running node and moves nothing. **All three were always chosen by
/// the present owner**: the deposit that opens an account names its owner, nobody else's deposit sets a key, and
/// handing an account over resets the other two keys. Therefore a deposit has to name the owner and nothing more to be
/// safe: `wallet` is whom the depositor trusts with the money, and a deposit for anybody else is refused.
///
/// The code is immutable. `admin` (a timelock outside of dev chains) may pause deposits for a week at a time and take
/// out tokens that belong to nobody; it reaches no account, and nothing ever stops a withdrawal, a release or a voucher.
/// Accounts are keyed by keccak256(bytes(id)): a node's 64 hex digits, a submitter's lower-case address, or any other
/// id of up to 64 bytes.
contract StakeVault is EIP712, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;
    using SafeCast for uint256;

    /// @dev Packed: a deposit, a payment or an unstake request writes one slot.
    struct Account {
        address owner;
        uint96 credit;
        address payout;
        uint96 bond;
        address operator;
        uint96 unbonding;
        uint64 readyAt;
    }

    /// @dev `releasing` is the part of `amount` on its way back to credit; it never exceeds `amount`.
    struct Escrow {
        uint96 amount;
        uint96 releasing;
        uint64 readyAt;
    }

    /// @notice A spender's promise that `solver` has earned `cumulative` in all from the escrow of `creator`.
    struct Voucher {
        bytes32 creator;
        bytes32 solver;
        address spender;
        uint256 cumulative;
        uint64 count;
        bytes32 receiptsHead;
    }

    /// @notice Why `redeem` passed over a voucher.
    enum Skip {
        None,
        NothingDue,
        EscrowEmpty,
        SolverNotOpen,
        BadSignature
    }

    uint256 public constant MAX_ID_BYTES = 64;
    uint64 public constant MAX_UNBONDING = 365 days;
    uint64 public constant PAUSE_DURATION = 7 days;

    bytes32 private constant VOUCHER_TYPEHASH = keccak256(
        "Voucher(bytes32 creator,bytes32 solver,address spender,uint256 cumulative,uint64 count,bytes32 receiptsHead)"
    );

    IERC20 public immutable token;
    address public immutable admin;
    uint64 public immutable unbonding; // seconds between asking for bond or escrow back and having it

    uint96 public accounted; // what the vault owes: the sum of every bond, unbonding, credit and escrow
    uint64 public depositsPausedUntil; // unix seconds, unless the admin lifts the pause sooner

    mapping(bytes32 key => Account) private _accounts;
    mapping(bytes32 key => mapping(address spender => Escrow)) private _escrows;
    /// @notice What vouchers of `spender` have paid `solver` out of the escrow of `creator`. It never falls.
    mapping(bytes32 creator => mapping(address spender => mapping(bytes32 solver => uint256))) public paid;

    event AccountOpened(bytes32 indexed key, string id, address indexed owner);
    event KeysChanged(bytes32 indexed key, address owner, address payout, address operator);
    event Staked(bytes32 indexed key, address indexed from, uint256 amount, uint256 bond);
    event UnstakeRequested(bytes32 indexed key, uint256 unbonding, uint256 readyAt);
    event UnstakeCancelled(bytes32 indexed key, uint256 amount);
    event Allowed(bytes32 indexed key, address indexed spender, uint256 amount, uint256 escrow);
    event ReleaseRequested(bytes32 indexed key, address indexed spender, uint256 releasing, uint256 readyAt);
    event ReleaseCancelled(bytes32 indexed key, address indexed spender, uint256 amount);
    event Released(bytes32 indexed key, address indexed spender, uint256 amount);
    event Redeemed(
        bytes32 indexed creator, address indexed spender, bytes32 indexed solver, uint256 amount, uint256 paidTotal
    );
    event RedeemSkipped(uint256 indexed index, Skip reason);
    event DepositsPaused(uint256 until);
    event FundsAdded(string indexed deviceId, address indexed from, uint256 amount);
    event FundsWithdrawn(string indexed deviceId, address indexed to, uint256 amount); // these 3: Parity's signatures
    event TokenRecovered(address indexed token, uint256 amount);

    error ZeroAmount();
    error BadAddress(address given);
    error BadUnbonding(uint256 given, uint256 maximum);
    error BadIdLength(uint256 given, uint256 maximum);
    error IdNotLowerCase();
    error UnknownAccount(bytes32 key);
    error NotOwner(address owner);
    error NotAdmin(address admin);
    error WalletMismatch(address expected);
    error OperatorMismatch(address expected);
    error Insufficient(uint256 available);
    error Locked(uint256 until);
    error Paused(uint256 until);
    error WrongAmountReceived(uint256 received, uint256 expected);
    error LengthMismatch(uint256 vouchers, uint256 signatures);

    constructor(IERC20 token_, uint64 unbonding_, address admin_) EIP712("Parity StakeVault", "1") {
        if (address(token_).code.length == 0) revert BadAddress(address(token_));
        if (admin_ == address(0)) revert BadAddress(admin_);
        if (unbonding_ == 0 || unbonding_ > MAX_UNBONDING) revert BadUnbonding(unbonding_, MAX_UNBONDING);
        token = token_;
        unbonding = unbonding_;
        admin = admin_;
    }

    // ---- deposits -----------------------------------------------------------------------------------------------

    /// @notice Add to the bond of `id`, which belongs to `wallet`; opens the account if this is its first deposit.
    /// @param wallet The owner. If the account is open and somebody else's, the deposit is refused.
    /// @param operator Zero, the present operator, or (only when `wallet` itself calls and none is set) the first one.
    function stake(uint256 amount, string calldata id, address wallet, address operator) external nonReentrant {
        (bytes32 key, Account storage account) = _openFor(id, wallet);
        address current = account.operator;
        if (operator != address(0) && operator != current) {
            // A stranger who opens the account for its owner must not choose the key that speaks for the node.
            if (current != address(0) || msg.sender != wallet) revert OperatorMismatch(current);
            account.operator = operator;
            emit KeysChanged(key, wallet, account.payout, operator);
        }
        uint96 bond = account.bond + amount.toUint96();
        account.bond = bond;
        emit Staked(key, msg.sender, amount, bond);
        _pull(amount);
    }

    /// @notice Add to the credit of `id`, which belongs to `wallet`; opens the account if this is its first deposit.
    function addFunds(uint256 amount, string calldata id, address wallet) external nonReentrant {
        (, Account storage account) = _openFor(id, wallet);
        account.credit += amount.toUint96();
        emit FundsAdded(id, msg.sender, amount);
        _pull(amount);
    }

    // ---- the owner's money --------------------------------------------------------------------------------------

    /// @notice Start taking `amount` out of the bond. One clock for all that is unbonding: a new request restarts it.
    function requestUnstake(string calldata id, uint256 amount) external {
        (bytes32 key, Account storage account) = _owned(id);
        uint96 bond = account.bond;
        uint96 leaving = _within(amount, bond);
        uint64 readyAt = uint64(block.timestamp) + unbonding;
        uint96 total = account.unbonding + leaving;
        account.bond = bond - leaving;
        account.unbonding = total;
        account.readyAt = readyAt;
        emit UnstakeRequested(key, total, readyAt);
    }

    /// @notice Put everything that is unbonding back into the bond.
    function cancelUnstake(string calldata id) external {
        (bytes32 key, Account storage account) = _owned(id);
        uint96 amount = account.unbonding;
        if (amount == 0) revert ZeroAmount();
        account.unbonding = 0;
        account.readyAt = 0;
        account.bond += amount;
        emit UnstakeCancelled(key, amount);
    }

    /// @notice Pay `amount` to the payout address: credit first, then what has finished unbonding.
    function withdrawFunds(string calldata id, uint256 amount) external nonReentrant {
        (, Account storage account) = _owned(id);
        uint96 credit = account.credit;
        uint96 paying;
        if (amount <= credit) {
            paying = _within(amount, credit);
            account.credit = credit - paying;
        } else {
            uint96 leaving = account.unbonding;
            paying = _within(amount, credit + leaving);
            uint64 readyAt = account.readyAt;
            if (block.timestamp < readyAt) revert Locked(readyAt);
            account.credit = 0;
            account.unbonding = leaving - (paying - credit);
        }
        accounted -= paying;
        address payout = account.payout;
        emit FundsWithdrawn(id, payout, amount);
        token.safeTransfer(payout, amount);
    }

    /// @notice Move credit into the escrow from which the vouchers of `spender` are paid.
    function allow(string calldata id, address spender, uint256 amount) external {
        (bytes32 key, Account storage account) = _owned(id);
        if (spender == address(0)) revert BadAddress(spender);
        uint96 credit = account.credit;
        uint96 allowed = _within(amount, credit);
        Escrow storage escrow = _escrows[key][spender];
        uint96 total = escrow.amount + allowed;
        account.credit = credit - allowed;
        escrow.amount = total;
        emit Allowed(key, spender, amount, total);
    }

    /// @notice Start taking `amount` back from a spender. Until `finishRelease` its vouchers are still paid from it.
    function requestRelease(string calldata id, address spender, uint256 amount) external {
        (bytes32 key,) = _owned(id);
        Escrow storage escrow = _escrows[key][spender];
        uint96 releasing = escrow.releasing;
        releasing += _within(amount, escrow.amount - releasing);
        uint64 readyAt = uint64(block.timestamp) + unbonding;
        escrow.releasing = releasing;
        escrow.readyAt = readyAt;
        emit ReleaseRequested(key, spender, releasing, readyAt);
    }

    function cancelRelease(string calldata id, address spender) external {
        (bytes32 key,) = _owned(id);
        Escrow storage escrow = _escrows[key][spender];
        uint96 amount = escrow.releasing;
        if (amount == 0) revert ZeroAmount();
        escrow.releasing = 0;
        escrow.readyAt = 0;
        emit ReleaseCancelled(key, spender, amount);
    }

    /// @notice After the unbonding time, move what vouchers have left of a requested release back to credit.
    function finishRelease(string calldata id, address spender) external {
        (bytes32 key, Account storage account) = _owned(id);
        Escrow storage escrow = _escrows[key][spender];
        uint96 amount = escrow.releasing;
        if (amount == 0) revert ZeroAmount();
        uint64 readyAt = escrow.readyAt;
        if (block.timestamp < readyAt) revert Locked(readyAt);
        escrow.amount -= amount;
        escrow.releasing = 0;
        escrow.readyAt = 0;
        account.credit += amount;
        emit Released(key, spender, amount);
    }

    // ---- the owner's keys ---------------------------------------------------------------------------------------

    /// @notice Choose where withdrawals go. (The name is the older Parity network's.)
    function updateWalletAddress(string calldata id, address to) external {
        (bytes32 key, Account storage account) = _owned(id);
        _requireUsable(to);
        account.payout = to;
        emit KeysChanged(key, account.owner, to, account.operator);
    }

    /// @notice Choose the hot key of the running node; zero takes it away.
    function setOperator(string calldata id, address operator) external {
        (bytes32 key, Account storage account) = _owned(id);
        account.operator = operator;
        emit KeysChanged(key, account.owner, account.payout, operator);
    }

    /// @notice Hand the account over. Payout becomes the new owner and the operator is cleared.
    /// @dev Otherwise a squatter could open an id, point its payout at itself and hand the account to the victim, whose
    /// next deposit would name the right owner and be paid to the squatter.
    function setOwner(string calldata id, address newOwner) external {
        (bytes32 key, Account storage account) = _owned(id);
        _requireUsable(newOwner);
        account.owner = newOwner;
        account.payout = newOwner;
        account.operator = address(0);
        emit KeysChanged(key, newOwner, newOwner, address(0));
    }

    // ---- vouchers -----------------------------------------------------------------------------------------------

    /// @notice Pay solvers what vouchers promise beyond what was paid before. Anyone may call; the money goes to the
    /// solver's credit, so a relayer can settle for a node without gas.
    /// @dev No voucher can make the batch revert: each is paid, paid in part (as far as the escrow reaches; the rest
    /// stays due) or skipped with a reason. ECDSA only: asking a contract for a signature would let it burn the batch's gas.
    function redeem(Voucher[] calldata vouchers, bytes[] calldata signatures) external {
        if (vouchers.length != signatures.length) revert LengthMismatch(vouchers.length, signatures.length);
        for (uint256 i = 0; i < vouchers.length; ++i) {
            Skip reason = _redeem(vouchers[i], signatures[i]);
            if (reason != Skip.None) emit RedeemSkipped(i, reason);
        }
    }

    /// @notice The EIP-712 digest that a spender signs.
    function voucherDigest(Voucher calldata voucher) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(VOUCHER_TYPEHASH, voucher)));
    }

    function domainSeparator() external view returns (bytes32) {
        return _domainSeparatorV4();
    }

    // ---- admin --------------------------------------------------------------------------------------------------

    /// @notice Refuse deposits for the next `PAUSE_DURATION` seconds, or accept them again.
    function pauseDeposits(bool paused) external onlyAdmin {
        uint64 until = paused ? uint64(block.timestamp) + PAUSE_DURATION : 0;
        depositsPausedUntil = until;
        emit DepositsPaused(until);
    }

    /// @notice Send the admin tokens that reached the vault outside of a deposit; of the staked token only the surplus.
    function recoverTokens(IERC20 erc20, uint256 amount) external onlyAdmin nonReentrant {
        uint256 surplus = erc20.balanceOf(address(this));
        if (address(erc20) == address(token)) surplus = Math.saturatingSub(surplus, accounted);
        if (amount == 0) revert ZeroAmount();
        if (amount > surplus) revert Insufficient(surplus);
        emit TokenRecovered(address(erc20), amount);
        erc20.safeTransfer(admin, amount);
    }

    // ---- views --------------------------------------------------------------------------------------------------

    function depositsPaused() external view returns (bool) {
        return block.timestamp < depositsPausedUntil;
    }

    /// @notice What a stake gate reads: never credit, never what is unbonding.
    function bondOf(string calldata id) external view returns (uint256) {
        return _accounts[_keyOf(id)].bond;
    }

    function creditOf(string calldata id) external view returns (uint256) {
        return _accounts[_keyOf(id)].credit;
    }

    function unbondingOf(string calldata id) external view returns (uint256 amount, uint256 readyAt) {
        Account storage account = _accounts[_keyOf(id)];
        return (account.unbonding, account.readyAt);
    }

    function ownerOf(string calldata id) external view returns (address) {
        return _accounts[_keyOf(id)].owner;
    }

    function payoutOf(string calldata id) external view returns (address) {
        return _accounts[_keyOf(id)].payout;
    }

    function operatorOf(string calldata id) external view returns (address) {
        return _accounts[_keyOf(id)].operator;
    }

    /// @notice The whole account by its key, for readers that know only hashes; all zero if nobody has opened it.
    function accountOf(bytes32 key) external view returns (Account memory) {
        return _accounts[key];
    }

    /// @notice All that vouchers of `spender` can draw, including what is being released (see `releaseOf`).
    function escrowOf(string calldata id, address spender) external view returns (uint256) {
        return _escrows[_keyOf(id)][spender].amount;
    }

    /// @notice The part of the escrow that is on its way back to the owner. A market must not rely on it.
    function releaseOf(string calldata id, address spender) external view returns (uint256 amount, uint256 readyAt) {
        Escrow storage escrow = _escrows[_keyOf(id)][spender];
        return (escrow.releasing, escrow.readyAt);
    }

    /// @notice Bond plus credit, which is what programs of the older Parity network call the balance.
    function getBalance(string calldata id) external view returns (uint256) {
        Account storage account = _accounts[_keyOf(id)];
        return uint256(account.bond) + account.credit;
    }

    function getWalletInfo(string calldata id)
        external
        view
        returns (uint256 balance, string memory deviceId, address wallet, bool exists)
    {
        Account storage account = _accounts[_keyOf(id)];
        return (uint256(account.bond) + account.credit, id, account.payout, account.owner != address(0));
    }

    modifier onlyAdmin() {
        if (msg.sender != admin) revert NotAdmin(admin);
        _;
    }

    function _keyOf(string calldata id) private pure returns (bytes32) {
        return keccak256(bytes(id));
    }

    /// @dev `amount` as a ledger number, if there is that much.
    function _within(uint256 amount, uint96 available) private pure returns (uint96) {
        if (amount == 0) revert ZeroAmount();
        if (amount > available) revert Insufficient(available);
        // forge-lint: disable-next-line(unsafe-typecast)
        return uint96(amount); // at most `available`, which is a uint96
    }

    function _requireUsable(address given) private view {
        if (given == address(0) || given == address(this)) revert BadAddress(given);
    }

    function _owned(string calldata id) private view returns (bytes32 key, Account storage account) {
        key = _keyOf(id);
        account = _accounts[key];
        address owner = account.owner;
        if (owner == address(0)) revert UnknownAccount(key);
        if (msg.sender != owner) revert NotOwner(owner);
    }

    /// @dev The account that a deposit naming `wallet` goes to, opened if it is new.
    function _openFor(string calldata id, address wallet) private returns (bytes32 key, Account storage account) {
        key = _keyOf(id);
        account = _accounts[key];
        address owner = account.owner;
        if (owner == address(0)) {
            _requireUsable(wallet);
            _checkNewId(bytes(id), wallet);
            account.owner = wallet;
            account.payout = wallet;
            emit AccountOpened(key, id, wallet);
            emit KeysChanged(key, wallet, wallet, address(0));
        } else if (owner != wallet) {
            revert WalletMismatch(owner);
        }
    }

    /// @dev An id that reads as an address belongs to that address, and has one spelling.
    function _checkNewId(bytes calldata id, address wallet) private pure {
        uint256 length = id.length;
        if (length == 0 || length > MAX_ID_BYTES) revert BadIdLength(length, MAX_ID_BYTES);
        if (length != 42 || id[0] != "0" || (id[1] | 0x20) != "x") return;
        bool lowerCase = id[1] == "x";
        uint160 value = 0;
        for (uint256 i = 2; i < 42; ++i) {
            uint8 char = uint8(id[i]);
            uint8 folded = char | 0x20;
            if (char >= 0x30 && char <= 0x39) {
                value = (value << 4) | (char - 0x30);
            } else if (folded >= 0x61 && folded <= 0x66) {
                lowerCase = lowerCase && char == folded;
                value = (value << 4) | (folded - 0x57);
            } else {
                return;
            }
        }
        if (!lowerCase) revert IdNotLowerCase();
        if (address(value) != wallet) revert WalletMismatch(address(value));
    }

    /// @dev Last step of a deposit. A token that keeps a fee would leave accounts with more than the vault holds.
    function _pull(uint256 amount) private {
        if (amount == 0) revert ZeroAmount();
        uint64 until = depositsPausedUntil;
        if (block.timestamp < until) revert Paused(until);
        // Bounding the sum bounds every part of it, so crediting a solver can never overflow.
        accounted += amount.toUint96();
        uint256 before = token.balanceOf(address(this));
        token.safeTransferFrom(msg.sender, address(this), amount);
        uint256 received = token.balanceOf(address(this)) - before;
        if (received != amount) revert WrongAmountReceived(received, amount);
    }

    function _redeem(Voucher calldata voucher, bytes calldata signature) private returns (Skip) {
        mapping(bytes32 => uint256) storage ledger = paid[voucher.creator][voucher.spender];
        uint256 before = ledger[voucher.solver];
        if (voucher.cumulative <= before) return Skip.NothingDue;
        Escrow storage escrow = _escrows[voucher.creator][voucher.spender];
        uint96 available = escrow.amount;
        if (available == 0) return Skip.EscrowEmpty;
        Account storage solver = _accounts[voucher.solver];
        // Credit on an account that nobody has opened would belong to whoever opens it later.
        if (solver.owner == address(0)) return Skip.SolverNotOpen;
        (address signer, ECDSA.RecoverError failure,) = ECDSA.tryRecover(voucherDigest(voucher), signature);
        if (failure != ECDSA.RecoverError.NoError || signer != voucher.spender) return Skip.BadSignature;

        uint96 amount = uint96(Math.min(voucher.cumulative - before, available));
        available -= amount;
        escrow.amount = available;
        // Without this a release asked for money since paid out would later take newly allowed money without delay.
        if (escrow.releasing > available) escrow.releasing = available;
        ledger[voucher.solver] = before + amount;
        solver.credit += amount;
        emit Redeemed(voucher.creator, voucher.spender, voucher.solver, amount, before + amount);
        return Skip.None;
    }
}
