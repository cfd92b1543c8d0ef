"""The submitter's SDK: join a market, submit signed orders, follow tasks, fetch verified results, check receipts."""

from parity_client.client import Client
from parity_client.config import Config, Home
from parity_client.data import Data
from parity_client.http import Retry
from parity_client.proof import VerifiedReceipt, verify_proof
from parity_client.results import Result
from parity_client.submission import Submission
from parity_client.wallet import Wallet

__all__ = [
    "Client",
    "Config",
    "Data",
    "Home",
    "Result",
    "Retry",
    "Submission",
    "VerifiedReceipt",
    "Wallet",
    "verify_proof",
]
