"""Exceptions raised by this package beyond the built-in ones."""


class BranchingError(RuntimeError):
    """An env cannot be branched, or a sibling failed."""
