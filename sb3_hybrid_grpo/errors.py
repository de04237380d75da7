"""Exceptions and messages of this package."""


class BranchingError(RuntimeError):
    """An env cannot be branched, or a sibling failed."""


class FleetError(RuntimeError):
    """A worker of a RayVecEnv cannot be started again, or an env in it raised."""


DIVERGED = (
    "The policy gives NaN: its parameters have diverged, or an observation is NaN or infinite. Lower the learning rate, "
    "normalise observations and rewards (VecNormalize), and look for NaN with VecCheckNan."
)
