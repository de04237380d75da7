"""The commands ``train`` and ``check``, and helpers for all commands."""
