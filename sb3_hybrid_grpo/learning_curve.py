"""The learning-curve plot that ``train`` saves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sb3_hybrid_grpo.cli import replacing


def moving_mean(values: Sequence[float], window: int) -> npt.NDArray[np.float64]:
    """
    Average each value with those before it.

    :param values: The values.
    :param window: How many to average; the first ones have fewer.
    :return: As many means as values.
    """
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    means: npt.NDArray[np.float64] = (sums[ends] - sums[starts]) / (ends - starts)
    return means


def save_learning_curve(
    path: Path, steps: Sequence[int], rewards: Sequence[float], title: str, random_reward: float | None = None
) -> None:
    """
    Save a PNG of episode rewards against simulator steps: every episode faint, their moving mean on top.

    :param path: The PNG to write.
    :param steps: Simulator steps, siblings' included, at each episode's end.
    :param rewards: Undiscounted reward of each episode, as the env gave it.
    :param title: Title of the plot.
    :param random_reward: Mean reward of a random policy, drawn as a dotted line.
    """
    # The object interface, not pyplot: no global state, and no display is needed.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.3), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, rewards, ".", markersize=4, alpha=0.25, color="tab:blue", label="one episode")
    window = min(50, max(5, len(rewards) // 10))
    axes.plot(steps, moving_mean(rewards, window), color="tab:blue", linewidth=2, label=f"mean of the last {window}")
    if random_reward is not None:
        axes.axhline(random_reward, color="tab:gray", linestyle=":", label="random policy")
    axes.set(title=title, xlabel="simulator steps, siblings included", ylabel="episode reward while training")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
