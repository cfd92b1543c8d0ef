"""What comes with extras: kernels (``choice``, ``torch``) and carriers of rounds (``flower``). Importing this loads nothing."""

__all__: list[str] = []
