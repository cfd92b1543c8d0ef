"""Public fakes and builders, for our tests and other people's."""

__all__: list[str] = []
