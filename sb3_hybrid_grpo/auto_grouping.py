"""What the measured variance of the gradient decides: whether rollouts are grouped, and how long grouped ones are."""

import math
from dataclasses import dataclass

from sb3_hybrid_grpo.gradient_variance import GradientVariances

# docs/choosing.md has the numbers that these rest on.
GROUPED_BELOW = 0.45
SINGLE_ABOVE = 0.6
FIRST_PROBE = 4
MEMORY = 0.9
ENOUGH_UNITS = 32  # of few, ρ is anything
ROUNDED_TO = 8
SHORTEST = 256
"""Executed steps that a grouped rollout has at least, unless ``n_steps`` asks for fewer."""


@dataclass
class AutoGrouping:
    """
    Measures ρ, the variance of the policy gradient of grouped rollouts over that of as many independent steps, and decides by
    it. Numerator and denominator are averaged over the grouped rollouts separately, the last ones counting most.

    In an env that draws random numbers in its steps rollouts are grouped as soon as that is seen; in others they begin single.
    They become single when ρ rises above 0.6. While they are single, one is grouped as a probe after 4, 8, 16, ... of them, so
    that noise which an env draws ahead, in a reset, is found too. Two probes in turn below 0.45 make them grouped: early in a
    training a first one is low everywhere. A probe is trained on like any other rollout.

    :param noise_seen: Whether an env has drawn random numbers in a step
    :param grouped: Whether rollouts are grouped, but for probes
    :param numerator: Average variance of grouped gradients
    :param denominator: Average variance of gradients of independent steps
    :param weight: Weight of the rollouts in both averages
    :param singles: Single rollouts since the last grouped one
    :param next_probe: After how many single rollouts the next probe comes
    :param low_probes: Probes in turn whose ρ was low
    :param n_units: Units of time measured since rollouts became grouped; below 32 they stay so
    """

    noise_seen: bool = False
    grouped: bool = False
    numerator: float = 0.0
    denominator: float = 0.0
    weight: float = 0.0
    singles: int = 0
    next_probe: int = FIRST_PROBE
    low_probes: int = 0
    n_units: int = 0

    @property
    def ratio(self) -> float | None:
        """ρ; None before it was measured."""
        return self.numerator / self.denominator if self.denominator > 0 else None

    def see_noise(self) -> None:
        """Learn that an env has drawn random numbers in a step."""
        self.noise_seen = self.grouped = True

    def next_is_grouped(self) -> bool:
        """
        Decide about the next rollout.

        :return: Whether it is grouped
        """
        if self.grouped or self.singles < self.next_probe:
            return self.grouped
        self.next_probe *= 2
        return True

    def observe(self, n_members: int, variances: GradientVariances | None) -> None:
        """
        Learn from a rollout.

        :param n_members: Its members
        :param variances: The variances of its gradient; None if they are not known
        """
        if n_members == 1:
            self.singles += 1
            return
        self.singles = 0
        if variances is None:
            return
        self.weight = MEMORY * self.weight + (1 - MEMORY)
        self.numerator += (1 - MEMORY) / self.weight * (variances.grouped - self.numerator)
        self.denominator += (1 - MEMORY) / self.weight * (variances.independent - self.denominator)
        if self.grouped:
            self.n_units += variances.n_units
            if self.n_units >= ENOUGH_UNITS and self.numerator > SINGLE_ABOVE * self.denominator:
                self.grouped, self.next_probe, self.low_probes, self.n_units = False, FIRST_PROBE, 0, 0
        else:
            is_low = variances.grouped < GROUPED_BELOW * variances.independent
            self.low_probes = self.low_probes + 1 if is_low else 0
            self.grouped = self.low_probes == 2

    def length(self, longest: int, shortest: int) -> int:
        """
        Choose how long the next grouped rollout is: as long as it takes for a gradient as good as that of a single rollout.

        :param longest: Executed steps of a rollout with as many samples as a single one
        :param shortest: The least
        :return: ρ times the longest, at least the shortest
        """
        ratio = self.ratio
        if ratio is None:
            return longest
        wanted = math.ceil(min(1.0, ratio) * longest / ROUNDED_TO) * ROUNDED_TO
        return min(max(wanted, shortest), longest)
