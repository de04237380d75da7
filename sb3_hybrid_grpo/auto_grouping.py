"""Decide by the measured variance of the policy gradient whether rollouts are grouped, and how long grouped ones are."""

import math
from dataclasses import dataclass

from sb3_hybrid_grpo.gradient_variance import GradientVariances

# docs/choosing.md has the measurements behind these numbers.
GROUPED_BELOW = 0.45  # in a probe, where steps draw random numbers
FOUND_BELOW = 0.6  # in two probes together, elsewhere
SINGLE_ABOVE = 0.9
FIRST_PROBE = 1
NEXT_PROBE = 4  # after groups have ended
FULL_ROLLOUT = 2048  # samples; a rollout with fewer counts less before a probe, for the critic has learned less from it
MEMORY = 0.9
OUTDATED = 100  # how many times smaller than its average a variance must be for the averages to start anew
ENOUGH_UNITS = 32  # with fewer, ρ is unreliable
ROUNDED_TO = 8
SHORTEST = 128
"""The fewest executed steps of a grouped rollout, unless ``n_steps`` asks for fewer."""


@dataclass
class AutoGrouping:
    """
    Averages ρ, and decides by it. ρ is the policy gradient's variance in a grouped rollout divided by its variance in as
    many independent steps. Numerator and denominator are two exponential moving averages over the grouped rollouts. They
    start anew with probes that make rollouts grouped, and when gradients have become so small that older ones would rule them.

    Rollouts begin grouped in an env whose first steps draw random numbers, else single. Grouped ones become single when ρ
    rises above 0.9, measured in at least 32 units. After 1, 2, 4, 8, ... single rollouts of at least 2048 samples, or more
    that are smaller, one is grouped as a probe: this finds noise that an env draws ahead, in a reset, or seldom. One rollout
    measures ρ from few units. So if its ρ is below 0.9, a second probe follows at once, and if ρ of both together is below
    0.6, rollouts become grouped. Where the first steps draw random numbers, a probe comes after every 4 single rollouts, and
    one below 0.45 is enough. The policy is trained on probes, too.

    :param noise_seen: Whether the first steps of an env draw random numbers; None if not yet known
    :param grouped: Whether rollouts are grouped, apart from probes
    :param numerator: Average variance of grouped gradients
    :param denominator: Average variance of gradients of independent steps
    :param weight: Total weight of the rollouts in both averages
    :param singles: Single rollouts since the last grouped one
    :param next_probe: Number of single rollouts of at least 2048 samples before the next probe
    :param first_probe: What the first of two probes has measured; None if the next one is not the second
    :param n_units: Units (see ``GradientVariances``) in the averages of grouped rollouts; below 32 these stay grouped
    """

    noise_seen: bool | None = None
    grouped: bool = False
    numerator: float = 0.0
    denominator: float = 0.0
    weight: float = 0.0
    singles: int = 0
    next_probe: int = FIRST_PROBE
    first_probe: GradientVariances | None = None
    n_units: int = 0

    @property
    def ratio(self) -> float | None:
        """ρ; None before the first measurement."""
        return self.numerator / self.denominator if self.denominator > 0 else None

    def see_noise(self, seen: bool | None) -> None:
        """
        Begin grouped if there is noise and ρ is not known.

        :param seen: Whether the first steps of an env draw random numbers; None if nobody has looked
        """
        self.noise_seen = seen
        if self.ratio is None:
            self.grouped = bool(seen)

    def next_is_grouped(self, n_samples: int) -> bool:
        """
        Decide about the next rollout.

        :param n_samples: The samples of a single rollout, over all envs
        :return: Whether it is grouped
        """
        if self.grouped or self.first_probe:
            return True
        if self.singles * min(1.0, n_samples / FULL_ROLLOUT) < self.next_probe:
            return False
        self.next_probe *= 1 if self.noise_seen else 2
        return True

    def observe(self, n_members: int, variances: GradientVariances | None) -> None:
        """
        Take a finished rollout into account.

        :param n_members: Number of members in the rollout
        :param variances: The variances of its gradient; None if they are not known
        """
        if n_members == 1:
            self.singles += 1
            return
        self.singles = 0
        if variances is None:
            self.first_probe = None
            return
        was_grouped = self.grouped
        self.grouped = was_grouped or self._is_low(variances)
        begins = self.grouped > was_grouped if self.noise_seen else self.first_probe is not None
        if begins or variances.independent < self.denominator / OUTDATED:
            self.weight = self.numerator = self.denominator = 0.0
            self.n_units = 0
        self.weight = MEMORY * self.weight + (1 - MEMORY)
        self.numerator += (1 - MEMORY) / self.weight * (variances.grouped - self.numerator)
        self.denominator += (1 - MEMORY) / self.weight * (variances.independent - self.denominator)
        if was_grouped:
            self.n_units += variances.n_units
            if self.n_units >= ENOUGH_UNITS and self.numerator > SINGLE_ABOVE * self.denominator:
                self.grouped, self.next_probe, self.n_units = False, NEXT_PROBE, 0

    def _is_low(self, probe: GradientVariances) -> bool:
        """Whether a probe makes rollouts grouped. Where no step draws, the first of two does not: it waits for the second."""
        if self.noise_seen:
            return probe.grouped < GROUPED_BELOW * probe.independent
        first, self.first_probe = self.first_probe, None
        if first is not None:
            return first.grouped + probe.grouped < FOUND_BELOW * (first.independent + probe.independent)
        if probe.grouped < SINGLE_ABOVE * probe.independent:
            self.first_probe = probe
        return False

    def length(self, longest: int, two_minibatches: int, adapt: bool | int) -> int:
        """
        Choose the length of the next grouped rollout so that its gradient is as good as a single rollout's.

        :param longest: Executed steps of a grouped rollout with as many samples as a single one
        :param two_minibatches: Executed steps with as many samples as two minibatches
        :param adapt: The argument ``adapt_rollouts``: whether it gets shorter; a number: the fewest executed steps (True: 128)
        :return: ρ times ``longest``, and at least the fewest executed steps and two minibatches
        """
        ratio = self.ratio
        if ratio is None or adapt is False:
            return longest
        wanted = math.ceil(min(1.0, ratio) * longest / ROUNDED_TO) * ROUNDED_TO
        return min(max(wanted, SHORTEST if adapt is True else adapt, two_minibatches), longest)
