"""Keys and passphrases from people and programs. Nothing here prints, logs or keeps a secret."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from parity_cli.output import Output, asking, is_interactive
from parity_protocol.errors import BadField, ConfigInvalid, Unauthenticated

if TYPE_CHECKING:
    from parity_protocol.signing.keys import EvmKey

__all__ = [
    "KeyChoice",
    "asks_again",
    "key_options",
    "new_passphrase",
    "passphrase_asker",
    "passphrase_option",
    "read_key",
]

F = TypeVar("F", bound=Callable[..., Any])

MAX_KEY_BYTES = 256
MIN_PASSPHRASE = 8  # characters; the keystore asks for the same

passphrase_option = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Read the passphrase from the first line of this file. Default: PARITY_PASSPHRASE_FILE, else a prompt.",
)


def key_options(function: F) -> F:
    """Add the ways to give a private key; at most one may be used."""
    for option in (
        click.option("--private-key", metavar="HEX", help="The key itself. Other users of this machine can see it."),
        click.option(
            "--key-file", metavar="FILE", help="Read the key (64 hex digits) from a file; - is standard input."
        ),
        click.option("--generate", is_flag=True, help="Make a new key."),
    ):
        function = option(function)
    return function


class KeyChoice:
    """What the options of ``key_options`` said."""

    def __init__(self, *, generate: bool, key_file: str | None, private_key: str | None) -> None:
        given = [
            name
            for name, value in (("--generate", generate), ("--key-file", key_file), ("--private-key", private_key))
            if value
        ]
        if len(given) > 1:
            raise click.UsageError(f"{' and '.join(given)} exclude each other")
        self.generate = generate
        self.key_file = key_file
        self.private_key = private_key


def read_key(out: Output, choice: KeyChoice, *, generate_by_default: bool = False) -> EvmKey:
    """Return the key from where the person chose; a hidden prompt if they chose nothing.

    Raises:
        BadField: It is not a private key. The message does not repeat it.
        ConfigInvalid: The file cannot be read.
    """
    from parity_protocol.signing.keys import EvmKey

    if choice.private_key:
        out.warn("--private-key was visible to every user of this machine; a prompt or --key-file is not")
        return EvmKey.from_hex(choice.private_key)
    if choice.key_file == "-":
        return EvmKey.from_hex(sys.stdin.read(MAX_KEY_BYTES))
    if choice.key_file:
        path = Path(choice.key_file).expanduser()
        try:
            with path.open("rb") as file:
                return EvmKey.from_hex(file.read(MAX_KEY_BYTES).decode("ascii"))
        except OSError as exc:
            raise ConfigInvalid([f"--key-file {path}: {exc.strerror}"]) from exc
        except UnicodeDecodeError as exc:
            raise BadField("the key file does not hold a private key of 64 hex digits", field="key") from exc
    if choice.generate or generate_by_default:
        return EvmKey.generate()
    if not is_interactive():
        raise click.UsageError("give a key with --key-file FILE (- is standard input), or make one with --generate")
    return EvmKey.from_hex(click.prompt("Private key (hidden; 64 hex digits)", hide_input=True, err=True))


def new_passphrase(file: Path | None) -> str:
    """Return the passphrase of a keystore that is about to be written, asked twice if it is asked for.

    Raises:
        Unauthenticated: Nobody can be asked and no file is named.
    """
    from parity_client.wallet import passphrase_from_file

    try:
        return passphrase_from_file(file)
    except Unauthenticated:
        if not is_interactive():
            raise
    while True:
        text: str = click.prompt("New passphrase", hide_input=True, confirmation_prompt=True, err=True)
        if len(text) >= MIN_PASSPHRASE:
            return text
        click.echo(f"a passphrase has at least {MIN_PASSPHRASE} characters", err=True)


def passphrase_asker(file: Path | None, what: str) -> Callable[[], str]:
    """Return a function that gets the passphrase of an existing keystore, when it is needed."""
    from parity_client.wallet import passphrase_from_file

    def ask() -> str:
        try:
            return passphrase_from_file(file)
        except Unauthenticated:
            if not is_interactive():
                raise
        with asking():
            answer: str = click.prompt(f"Passphrase of {what}", hide_input=True, err=True)
        return answer

    return ask


def asks_again(file: Path | None) -> Callable[[Unauthenticated], bool]:
    """Return a function that tells a person of a wrong passphrase; a file's would be wrong again."""
    from parity_client.wallet import FILE_VARIABLE

    def again(error: Unauthenticated) -> bool:
        if file is not None or os.environ.get(FILE_VARIABLE) or not is_interactive():
            return False
        click.echo(error.message, err=True)
        return True

    return again
