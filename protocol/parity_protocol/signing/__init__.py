"""Everything that is signed or checked: JWS, request signatures, sign-in, and EIP-712 documents.

Import the module you need: each brings in only the library that it uses, and a command line starts faster without
the others.
"""

__all__: list[str] = []
