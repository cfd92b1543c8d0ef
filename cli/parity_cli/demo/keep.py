"""What ``--keep`` leaves for whoever pokes at the demo: a PARITY_HOME with its market joined and its submitter's wallet."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from parity_client import Config, Home
from parity_client.config import MarketEntry
from parity_client.wallet import FILE_VARIABLE
from parity_contracts import keystore
from parity_contracts.files import write_file

if TYPE_CHECKING:
    from parity_cli.demo.story import Demo

__all__ = ["write_home"]


def write_home(demo: Demo) -> Path:
    """Write the home and ``env``, a file for the shell that makes ``parity`` use it; return the file."""
    folder = demo.stack.folder
    home, passphrase = Home(folder / "home"), secrets.token_urlsafe(18)
    entry = MarketEntry(join=str(demo.stack.join), rpc=demo.stack.rpc_url)
    home.save(Config(current="demo", markets={"demo": entry}))
    keystore.create(home.wallet_file("default"), demo.submitter, passphrase, scrypt_n=keystore.MIN_SCRYPT_N)
    secret = home.path / "passphrase"
    write_file(secret, passphrase.encode() + b"\n")
    lines = {
        "PARITY_HOME": str(home.path),
        FILE_VARIABLE: str(secret),
        "PATH": f"{Path(sys.executable).parent}:$PATH",
    }
    text = "".join(f'export {name}="{value}"\n' for name, value in lines.items())
    write_file(folder / "env", text.encode(), mode=0o600)
    return folder / "env"
