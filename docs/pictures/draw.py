"""Draws the three pictures of docs/how_it_works.md beside this file: ``make pictures``. Numbers are played in Inventory-v0."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

import sb3_hybrid_grpo.envs  # noqa: F401  registers Inventory-v0
from sb3_hybrid_grpo.branching import fork_env

FOLDER = Path(__file__).parent
ENV_ID = "hybrid_grpo/Inventory-v0"
# the palette of Okabe and Ito, which colour-blind readers can tell apart
BLACK, BLUE, ORANGE, GREEN, GREY = "#000000", "#0072B2", "#E69F00", "#009E73", "#999999"
N_MEMBERS = 4

plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 200})


def order(obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Order up to a level, give or take: a policy that explores."""
    in_stock_and_on_the_way = 20 * obs[0] + 10 * obs[1:3].sum()
    return np.array([(30 - in_stock_and_on_the_way - 5) / 5 + rng.normal(0, 0.8)], dtype=np.float32).clip(-1, 3)


def save(figure: Any, name: str) -> None:
    """Write a picture of 1,200 pixels, shown at 600."""
    figure.savefig(FOLDER / name, metadata={"Software": None})
    plt.close(figure)


def draw_group(n_steps: int = 36, horizon: int = 12) -> None:
    """A group at its forks: the stock of four shops under one demand."""
    rng = np.random.default_rng(1)
    env = gym.make(ENV_ID)
    obs, _ = env.reset(seed=3)
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(6, 3.6), sharex=True, height_ratios=[3, 1], layout="constrained")
    executed, demands, lines, siblings = [20 * obs[0]], [], [], []
    for step in range(n_steps):
        if step % horizon == 0:
            siblings = [(copy, obs) for copy in fork_env(env, N_MEMBERS - 1)]
            lines += [(step, [executed[-1]]) for _ in siblings]
            top.axvline(step, color=GREY, linewidth=0.8, linestyle=":")
        for place, (copy, its_obs) in enumerate(siblings):
            siblings[place] = copy, copy.step(order(its_obs, rng))[0]
            lines[place - len(siblings)][1].append(20 * siblings[place][1][0])
        obs, _, _, _, info = env.step(order(obs, rng))
        executed.append(20 * obs[0])
        demands.append(info["demand"])
    for start, stock in lines:
        top.plot(range(start, start + len(stock)), stock, color=ORANGE, linewidth=1)
    top.plot(executed, color=BLUE, linewidth=2.4, label="member 0: your env")
    top.plot([], [], color=ORANGE, linewidth=1, label="its 3 siblings: live copies")
    top.plot([], [], color=GREY, linewidth=0.8, linestyle=":", label="fork")
    top.set_ylabel("stock")
    top.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    bottom.bar(np.arange(n_steps) + 0.5, demands, width=0.7, color=BLACK)
    bottom.set_ylabel("demand,\none for all")
    bottom.set_xlabel("executed steps")
    save(figure, "group.png")


def play_groups(n_groups: int = 300, n_steps: int = 32) -> np.ndarray:
    """
    Sums of rewards after a fork, ``(groups, members)``. Each group has a demand of its own. All begin in one state; its value
    is the mean.
    """
    rng = np.random.default_rng(0)
    env = gym.make(ENV_ID)
    returns_GN = np.zeros((n_groups, N_MEMBERS))
    for group in range(n_groups):
        start, _ = env.reset(seed=group)
        for member, copy in enumerate(fork_env(env, N_MEMBERS)):
            obs = start
            for _ in range(n_steps):
                obs, reward, *_ = copy.step(order(obs, rng))
                returns_GN[group, member] += reward
    return returns_GN


def draw_noise() -> None:
    """Where the noise goes: what all members of a group had in common is subtracted."""
    returns_GN = play_groups()
    centred_GN = returns_GN - returns_GN.mean()
    others_GN = (centred_GN.sum(axis=1, keepdims=True) - centred_GN) / (N_MEMBERS - 1)
    beta = np.clip((centred_GN * others_GN).mean() / (others_GN**2).mean(), 0, 1)
    after_GN = centred_GN - beta * others_GN
    figure, (left, right) = plt.subplots(1, 2, figsize=(6, 2.9), layout="constrained")
    left.scatter(others_GN, centred_GN, s=4, color=BLUE, alpha=0.5, linewidths=0)
    ends = np.array([others_GN.min(), others_GN.max()])
    left.plot(ends, beta * ends, color=ORANGE, linewidth=2)
    left.annotate(f"β = {beta:.2f}", (ends[0], beta * ends[0]), xytext=(10, -2), textcoords="offset points", color=BLACK)
    left.set_xlabel("mean of the other members' returns,\nminus the critic's value")
    left.set_ylabel("a member's return,\nminus the critic's value")
    edges = np.arange(-400, 200, 12)
    before = f"minus the critic's value: standard deviation {centred_GN.std():.0f}"
    right.hist(centred_GN.ravel(), edges, color=BLUE, alpha=0.6, label=before)
    after = f"and minus β · the others: standard deviation {after_GN.std():.0f}"
    right.hist(after_GN.ravel(), edges, color=ORANGE, histtype="step", linewidth=1.6, label=after)
    right.set_xlabel("a member's advantage")
    right.set_yticks([])
    right.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(-0.2, 1))
    save(figure, "noise.png")


def draw_rollouts() -> None:
    """Three ways to spend 32 simulator steps, cell by cell."""
    kinds = [
        ("single: PPO", 1, [16, 16], "2 updates"),
        ("grouped, N = 4", 4, [4, 4], "2 updates"),
        ("grouped, ρ = 0.5", 4, [2, 2, 2, 2], "4 updates"),
    ]
    figure, axes = plt.subplots(figsize=(6, 3.3), layout="constrained")
    bottom = 0.0
    for title, n_members, lengths, result in kinds:
        bottom -= n_members + 2.2
        left = 0.0
        axes.text(0, bottom + n_members + 0.3, title, weight="bold")
        for length in lengths:
            for member in range(n_members):
                for step in range(length):
                    place = (left + step, bottom + n_members - 1 - member)
                    color = BLUE if member == 0 else ORANGE
                    axes.add_patch(Rectangle(place, 0.9, 0.9, facecolor=color, edgecolor="none"))
            left += length + 0.2
            axes.plot([left, left], [bottom - 0.2, bottom + n_members + 0.1], color=BLACK, linewidth=2)
            left += 0.4
        axes.text(left + 0.4, bottom + n_members / 2 - 0.05, f"32 samples, {result}", verticalalignment="center")
    for index, (color, name) in enumerate([(BLUE, "step of member 0"), (ORANGE, "step of a sibling")]):
        axes.add_patch(Rectangle((22 + 9.5 * index - 10, 0), 0.9, 0.9, facecolor=color, edgecolor="none"))
        axes.text(22 + 9.5 * index - 8.7, 0, name, fontsize=8)
    axes.plot([32, 32], [-0.1, 1.0], color=BLACK, linewidth=2)
    axes.text(32.7, 0, "update", fontsize=8)
    axes.set(xlim=(-0.3, 44), ylim=(bottom - 0.4, 1.4))
    axes.axis("off")
    save(figure, "rollouts.png")


if __name__ == "__main__":
    draw_group()
    draw_noise()
    draw_rollouts()
