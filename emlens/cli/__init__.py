"""The `emlens` command."""
