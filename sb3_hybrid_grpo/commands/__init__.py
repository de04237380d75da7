"""The commands ``train`` and ``check``, and what all commands share."""
