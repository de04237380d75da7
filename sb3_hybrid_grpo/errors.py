"""Exceptions raised by this package beyond the built-in ones."""


class BranchingError(RuntimeError):
    """An env cannot be branched, or a sibling failed."""


class PPOArgumentError(ValueError, AssertionError):
    """An argument that PPO refuses too, by an assertion: whoever catches that one goes on catching it."""
