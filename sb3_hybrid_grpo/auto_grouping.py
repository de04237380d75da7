"""``branch_horizon="auto"``: whether groups pay, decided from rollout to rollout."""

from dataclasses import dataclass

# docs/choosing.md has the numbers that these rest on.
GROUPED_ABOVE = 0.4
SINGLE_BELOW = 0.3
EXPECTED = 0.5
PROBE_INTERVAL = 4
MEMORY = 0.8


@dataclass
class AutoGrouping:
    """
    Rollouts are grouped while groups pay, and single while they do not. In an env that draws no random numbers while it steps
    they stay single: members have no noise to share. Noise that is drawn ahead, in a reset, is not seen.

    Else the signal is the share of the advantages' variance that the group baseline removed, averaged over the grouped
    rollouts, the last ones counting most. While rollouts are single, every few of them one is grouped, as a probe; it is
    trained on like any other. The decision changes only where the signal leaves a band, so that its noise does not move it
    to and fro.

    :param noise_seen: Whether an env has drawn random numbers in a step
    :param grouped: Whether rollouts are grouped once noise is seen, but for probes
    :param variance_removed: The signal, at most 1; what is expected before the first grouped rollout counts as one
    :param since_probe: Single rollouts since the last grouped one
    """

    noise_seen: bool = False
    grouped: bool = True
    variance_removed: float = EXPECTED
    since_probe: int = 0

    @property
    def next_is_grouped(self) -> bool:
        """Whether the next rollout is to be grouped."""
        return self.noise_seen and (self.grouped or self.since_probe >= PROBE_INTERVAL)

    def observe(self, variance_removed: float | None) -> None:
        """
        Learn from a rollout.

        :param variance_removed: The share of the advantages' variance that the group baseline removed; None of a single one
        """
        if variance_removed is None:
            self.since_probe += 1
            return
        self.variance_removed = MEMORY * self.variance_removed + (1 - MEMORY) * variance_removed
        self.grouped = self.variance_removed > (SINGLE_BELOW if self.grouped else GROUPED_ABOVE)
        self.since_probe = 0
