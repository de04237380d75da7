"""Estimate how much of the variance of returns is noise that the members of a group share."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.branching.exactness import RandomActions
from sb3_hybrid_grpo.branching.wrapper_chain import is_generator, reseed

N_STATES, N_NOISES, N_MEMBERS = 64, 4, 4
Act = Callable[[Any, Any], Any]
"""Chooses an action for an env, given its last observation."""


def random_actions(env: gym.Env[Any, Any]) -> Act:
    """Random actions; only valid ones, if the env has ``action_masks()``."""
    actions = RandomActions(env)
    return lambda at, _: actions(at)


def actions_of(path: Path, env: gym.Env[Any, Any]) -> Act:
    """A saved policy's sampled actions. Observations are normalised if a ``VecNormalize`` was saved beside the policy."""
    model = HybridGRPO.load(path, device="cpu")
    saved = next(path.parent.glob("*/vecnormalize.pkl"), None)
    normalize: Any = (
        (lambda obs: obs) if saved is None else VecNormalize.load(str(saved), DummyVecEnv([lambda: env])).normalize_obs
    )
    return lambda _, obs: model.predict(normalize(obs), deterministic=False)[0]


def noise_share(env: gym.Env[Any, Any], act: Act, n_steps: int = 64, seconds: float = 5.0) -> float:
    r"""
    Estimate the share of the variance of returns that is due to the noise that an env draws in its steps. Several states are
    tried with several future noises each; for each noise, M members take different actions:

    .. math:: share = \frac{\sigma^2_{noise}}{\sigma^2_{noise} + \sigma^2_{actions}}, \qquad
        \sigma^2_{noise} = \frac{MS_{between} - MS_{within}}{M}

    with the mean squares of returns between noises and within one noise (analysis of variance with random effects, e.g.
    Montgomery, *Design and Analysis of Experiments*). A group whose members share their noise can remove this share.

    :param env: A branchable env that was checked and can be copied; it is reset and stepped
    :param act: Chooses actions
    :param n_steps: Steps of an undiscounted return; it ends early with the episode
    :param seconds: Time after which no further state is tried; two states are tried in any case
    :return: The share, from 0 to 1
    """
    start, between, within = time.perf_counter(), [], []
    make_sibling = env.get_wrapper_attr("sibling_maker")
    for state in range(N_STATES):
        if state >= 2 and time.perf_counter() - start > seconds:
            break
        obs, _, ended = _play(env, env.reset(seed=state)[0], act, 8 * (state % 8))
        obs = env.reset()[0] if ended else obs
        returns = np.zeros((N_NOISES, N_MEMBERS))
        for noise, member in np.ndindex(returns.shape):
            copy = make_sibling()
            _seed(copy, N_NOISES * state + noise)
            _, returns[noise, member], _ = _play(copy, obs, act, n_steps)
        between.append(N_MEMBERS * returns.mean(axis=1).var(ddof=1))
        within.append(returns.var(axis=1, ddof=1).mean())
    of_noise = max(0.0, float(np.mean(between) - np.mean(within)) / N_MEMBERS)
    return of_noise / max(of_noise + float(np.mean(within)), 1e-12)


def _seed(copy: Any, seed: int) -> None:
    """Give a copy of an env another future noise: seed its own generators, and its streams of shared ones."""
    shared = getattr(copy.shared_state, "shared", ())
    with copy.shared_state:
        for one in [*(own for _, own in copy.natives.values()), *(each.obj for each in shared)]:
            if isinstance(one, gym.Env):  # it saves and restores itself
                one.np_random = np.random.default_rng(seed)
            elif isinstance(one, gym.Space):
                one.seed(seed)
            elif is_generator(one):
                reseed(one, seed)


def _play(env: Any, obs: Any, act: Act, n_steps: int) -> tuple[Any, float, bool]:
    """Take up to ``n_steps`` steps: the last observation, the sum of the rewards, and whether the episode has ended."""
    total, ended = 0.0, False
    while n_steps and not ended:
        obs, reward, terminated, truncated, _ = env.step(act(env, obs))
        total, ended, n_steps = total + float(reward), bool(terminated or truncated), n_steps - 1
    return obs, total, ended
