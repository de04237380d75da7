"""Estimate how much of the variance of returns is noise that the members of a group share."""

import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo.branching.exactness import RandomActions
from sb3_hybrid_grpo.branching.wrapper_chain import bits_of, is_generator, reseed
from sb3_hybrid_grpo.errors import BranchingError

N_STATES, N_NOISES, N_MEMBERS, N_STEPS = 32, 4, 2, 64
MOST_SECONDS = 20.0
Act = Callable[[Any, Any], Any]
"""Chooses an action for an env, given its last observation."""


def random_actions(env: gym.Env[Any, Any]) -> Act:
    """Random actions; only valid ones, if the env has ``action_masks()``."""
    actions = RandomActions(env, 0)
    return lambda at, _: actions(at)


def noise_share(env: gym.Env[Any, Any], act: Act) -> float:
    r"""
    Estimate the share of the variance of returns that is due to the noise that an env draws in its steps. Several states are
    tried with several future noises each; for each noise, M members take different actions:

    .. math:: share = \frac{\sigma^2_{noise}}{\sigma^2_{noise} + \sigma^2_{actions}}, \qquad
        \sigma^2_{noise} = \frac{MS_{between} - MS_{within}}{M}

    with the mean squares of returns between noises and within one noise (analysis of variance with random effects, e.g.
    Montgomery, *Design and Analysis of Experiments*). A group whose members share their noise can remove this share. A return
    is the sum of 64 rewards, or fewer if the episode ends. 32 states, 4 noises and 2 members take about 20,000 steps; if they
    take longer than 20 s, fewer states are tried.

    :param env: A branchable env whose siblings were checked; it is reset and stepped
    :param act: Chooses actions
    :return: The share, from 0 to 1
    :raises BranchingError: if even two states take longer, or the env comes to hold an object that cannot be copied
    """
    between, within, start, maker = [], [], time.monotonic(), env.get_wrapper_attr("sibling_maker")
    for state in range(N_STATES):
        if state > 1 and (time.monotonic() - start) * (state + 1) / state > MOST_SECONDS:
            break
        obs, _, ended = _play(env, env.reset(seed=state)[0], act, 8 * state)
        obs = env.reset()[0] if ended else obs
        returns = np.zeros((N_NOISES, N_MEMBERS))
        for noise, member in np.ndindex(returns.shape):
            if state < 2 and time.monotonic() - start > MOST_SECONDS:
                raise BranchingError(f"two states take longer than {MOST_SECONDS:g} s")
            copy = maker()
            if maker.forks:
                raise BranchingError(maker.why_forks())
            _seed(copy, N_NOISES * state + noise)
            _, returns[noise, member], _ = _play(copy, obs, act, N_STEPS)
        between.append(N_MEMBERS * returns.mean(axis=1).var(ddof=1))
        within.append(returns.var(axis=1, ddof=1).mean())
    of_noise = max(0.0, float(np.mean(between) - np.mean(within)) / N_MEMBERS)
    return of_noise / max(of_noise + float(np.mean(within)), 1e-12)


def _seed(copy: Any, seed: int) -> None:
    """Give a copy of an env another future noise: seed its own generators and its streams of shared ones, each differently."""
    shared, seeded = getattr(copy.shared_state, "shared", ()), set[int]()
    with copy.shared_state:
        for one in [*(own for _, own in copy.natives.values()), *(each.obj for each in shared)]:
            if isinstance(one, gym.Env):  # it saves and restores itself
                one.np_random = np.random.default_rng(seed)
            elif isinstance(one, gym.Space):
                one.seed(seed)
            elif is_generator(one) and id(bits_of(one)) not in seeded:
                reseed(one, seed + N_STATES * N_NOISES * len(seeded))
                seeded.add(id(bits_of(one)))


def _play(env: Any, obs: Any, act: Act, n_steps: int) -> tuple[Any, float, bool]:
    """Take up to ``n_steps`` steps: the last observation, the sum of the rewards, and whether the episode has ended."""
    total, ended = 0.0, False
    while n_steps and not ended:
        obs, reward, terminated, truncated, _ = env.step(act(env, obs))
        total, ended, n_steps = total + float(reward), bool(terminated or truncated), n_steps - 1
    return obs, total, ended
