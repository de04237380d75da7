"""Decide by the measured variance of the policy gradient whether rollouts are grouped, and how long grouped ones are."""

import math
from dataclasses import dataclass
from typing import Any

from sb3_hybrid_grpo.gradient_variance import GradientVariances

# docs/studies.md has the measurements behind these numbers.
GROUPED_BELOW = 0.45  # in a probe, where steps draw random numbers
FOUND_BELOW = 0.6  # in probes elsewhere
PROBE_UNITS = 16  # in these together
SINGLE_ABOVE = 0.9
NEXT_PROBE = 4  # single rollouts; earlier probes disturb where PPO learns fastest
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
    start anew with probes, and when gradients have become so small that older ones would rule them.

    Rollouts begin grouped in an env whose first steps draw random numbers, else single. Grouped ones become single when ρ
    rises above 0.9, measured in at least 32 units. After 4, 8, 16, ... single rollouts of at least 2048 samples, or more
    that are smaller, one is grouped as a probe: this finds noise that an env draws ahead, in a reset, or seldom. While probes
    have fewer than 16 units together, and ρ below 0.9, another one follows. If ρ of all is below 0.6 then, rollouts become
    grouped. Where the first steps draw random numbers, a probe comes after every 4 single rollouts, and one below 0.45 is
    enough. The policy is trained on probes, too. With a number for ``branch_horizon`` all rollouts are grouped, and ρ is only
    averaged.

    :param noise_seen: Whether the first steps of an env draw random numbers; None if not yet known
    :param grouped: Whether rollouts are grouped, apart from probes
    :param numerator: Average variance of grouped gradients
    :param denominator: Average variance of gradients of independent steps
    :param weight: Total weight of the rollouts in both averages
    :param singles: Single rollouts since the last grouped one
    :param next_probe: Number of single rollouts of at least 2048 samples before the next probe
    :param probe: Sum of what probes have measured that are not yet enough to decide; None without such probes
    :param n_units: Units (see ``GradientVariances``) that were averaged since rollouts became grouped; below 32 they stay so
    :param shape: ``n_samples`` and ``branch_horizon`` of the rollouts
    """

    noise_seen: bool | None = None
    grouped: bool = False
    numerator: float = 0.0
    denominator: float = 0.0
    weight: float = 0.0
    singles: int = 0
    next_probe: int = NEXT_PROBE
    probe: GradientVariances | None = None
    n_units: int = 0
    shape: tuple[Any, ...] = (4, "auto")

    @property
    def looks_for_noise(self) -> bool:
        """Whether ρ has to tell noise from a poor critic, because no step was seen to draw random numbers."""
        return self.shape[1] == "auto" and not self.noise_seen

    @property
    def ratio(self) -> float | None:
        """ρ; None before the first measurement."""
        return self.numerator / self.denominator if self.denominator > 0 else None

    def see_noise(self, seen: bool | None) -> None:
        """
        Begin grouped if there is noise and ρ is not known.

        :param seen: Whether the first steps of an env draw random numbers; None if nobody has looked
        """
        self.noise_seen, self.probe = seen, None
        self.next_probe = NEXT_PROBE if seen else self.next_probe
        if self.ratio is None:
            self.grouped = bool(seen)

    def next_is_grouped(self, n_samples: int) -> bool:
        """
        Decide about the next rollout.

        :param n_samples: The samples of a single rollout, over all envs
        :return: Whether it is grouped
        """
        if self.grouped or self.probe is not None:
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
            self.probe = None
            return
        was_grouped, begins = self.grouped, False
        if not was_grouped and self.shape[1] == "auto":
            is_first = self.probe is None
            self.grouped = self._is_low(variances)
            begins = self.grouped if self.noise_seen else is_first
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
        """Whether rollouts become grouped after a probe."""
        if self.noise_seen:
            return probe.grouped < GROUPED_BELOW * probe.independent
        grouped, independent, n_units = self.probe or (0.0, 0.0, 0)
        both = GradientVariances(grouped + probe.grouped, independent + probe.independent, n_units + probe.n_units)
        decides = both.n_units >= PROBE_UNITS or both.grouped > SINGLE_ABOVE * both.independent
        self.probe = None if decides else both
        return decides and both.grouped < FOUND_BELOW * both.independent

    def length(self, longest: int, two_minibatches: int, adapt: bool | int) -> int:
        """
        Choose the length of the next grouped rollout so that its gradient is as good as a single rollout's.

        :param longest: Executed steps of a grouped rollout with as many samples as a single one
        :param two_minibatches: Executed steps with as many samples as two minibatches
        :param adapt: The argument ``adapt_rollouts``: whether it gets shorter; a number: the fewest executed steps (True: 128)
        :return: ρ times ``longest``, and at least the fewest executed steps and two minibatches; ``longest`` for a probe
        """
        ratio, is_probe = self.ratio, self.looks_for_noise and not self.grouped
        if ratio is None or adapt is False or is_probe:
            return longest
        wanted = math.ceil(min(1.0, ratio) * longest / ROUNDED_TO) * ROUNDED_TO
        return min(max(wanted, SHORTEST if adapt is True else adapt, two_minibatches), longest)
