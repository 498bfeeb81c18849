"""The `emlens` command."""

__all__: list[str] = []
