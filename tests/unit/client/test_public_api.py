"""What other people's programs may rely on."""

from __future__ import annotations

import inspect

import parity_client


def test_everything_public_is_named_there_and_documented() -> None:
    assert parity_client.__all__ == sorted(parity_client.__all__)
    for name in parity_client.__all__:
        found = getattr(parity_client, name)
        assert inspect.getdoc(found)
        if inspect.isclass(found) and found.__module__.startswith("parity_client"):
            own = [item for key, item in vars(found).items() if not key.startswith("_") and callable(item)]
            assert all(inspect.getdoc(item) for item in own), name
