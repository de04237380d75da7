"""All actions are tried, then one of them is executed."""

from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_hybrid_grpo.branching.batches import each
from sb3_hybrid_grpo.branching.fanout import Observations
from sb3_hybrid_grpo.branching.groups import Groups
from sb3_hybrid_grpo.branching.steps import GroupStep, MemberZero
from sb3_hybrid_grpo.errors import BranchingError

Chooser = Callable[[Observations, np.ndarray, np.ndarray], np.ndarray]
"""From what N actions led to, observations ``(N * E, ...)``, rewards, terminations ``(N, E)``, which to execute, ``(E,)``."""


class Candidates(Groups):
    """
    Groups in which member 0's action is chosen when it is known what each of N actions leads to. All are tried in branches of
    the env, then the chosen one is executed by ``env.step``: a step of the simulator more. It must lead to what its branch
    led to, which checks the branching at every step.

    :param env: The user's VecEnv
    :param n_samples: N
    :param choose: Chooses
    :raises ValueError: if siblings cannot live beside these envs
    :raises BranchingError: if an env cannot be branched
    """

    def __init__(self, env: VecEnv, n_samples: int, choose: Chooser) -> None:
        super().__init__(env, n_samples + 1, branch_horizon=1)
        self.n_samples = n_samples
        self._choose = choose

    def _step(self, actions_NE: np.ndarray) -> GroupStep:
        """Try every action, choose one, and execute it. Members are in the order of ``order_NE``, the executed one first."""
        n_samples, n_envs = self._shape
        every_env = np.ones(n_envs, dtype=bool)
        tried = self._step_siblings(actions_NE.copy(), every_env)  # an env may change them in place
        previewed, rewards = tried.observations, tried.rewards
        for stage in self._stages:
            previewed, rewards = stage.preview(previewed), stage.rewards(rewards)
        chosen_E = self._choose(previewed, rewards.reshape(self._shape), tried.terminated_ME)
        envs = np.arange(n_envs)
        zero = self._step_member_0(actions_NE[chosen_E, envs])
        rewards_NE = self._settle(tried, every_env)
        self._compare(
            zero, each(lambda rows: rows[chosen_E * n_envs + envs], self._observations_ME), rewards_NE[chosen_E, envs]
        )

        others = np.array([[n for n in range(n_samples) if n != chosen] for chosen in chosen_E], dtype=int).T
        order_NE = np.concatenate([chosen_E[None], others.reshape(n_samples - 1, n_envs)])
        terminated_NE, dones_NE = tried.terminated_ME[order_NE, envs], tried.ended_ME[order_NE, envs]
        terminated_NE[0], dones_NE[0] = zero.terminated_E, zero.dones
        new_obs = self._replaced(tried.ended_ME, zero.new_obs)
        rows = (order_NE[1:] * n_envs + envs).reshape(-1)
        infos = [
            zero.infos,
            *([tried.infos[m][e] | {"group_member": n} for e, m in enumerate(its)] for n, its in enumerate(order_NE) if n),
        ]
        cut_NE = np.concatenate([zero.dones[None], np.ones((n_samples - 1, n_envs), dtype=bool)])
        return GroupStep(
            each(lambda own, theirs: np.concatenate([own, theirs[rows]]), zero.new_obs, new_obs),
            [zero.rewards, *rewards_NE[order_NE, envs][1:]],
            *(dones_NE, infos, terminated_NE, cut_NE, order_NE),
        )

    def _compare(self, zero: MemberZero, branch: Observations, rewards_E: np.ndarray) -> None:
        """Refuse to go on where the executed action did not lead to what its branch led to."""
        executed: Any = each(lambda rows: rows.copy(), zero.new_obs)
        for e in np.flatnonzero(zero.dones):  # those show the next episode already
            last = zero.infos[e]["terminal_observation"]
            for key in executed if isinstance(executed, dict) else [None]:
                (executed if key is None else executed[key])[e] = last if key is None else last[key]
        for key in executed if isinstance(executed, dict) else [None]:
            ours, theirs = (executed, branch) if key is None else (executed[key], branch[key])
            self._refuse("observation" if key is None else f"observation {key!r}", ours, theirs)
        self._refuse("reward", np.asarray(zero.rewards, np.float32), rewards_E.astype(np.float32))

    def _refuse(self, what: str, executed: np.ndarray, branch: np.ndarray) -> None:
        same = executed == branch
        if np.issubdtype(executed.dtype, np.floating):
            same |= np.isnan(executed) & np.isnan(branch)
        if not same.all():
            index = int(np.argwhere(~same)[0][0])
            raise BranchingError(
                f"Env {index} is not branched exactly: at step {self._n_steps} of the training the chosen action led to the "
                f"{what} {executed[index]}, but to {branch[index]} in its branch. The env keeps state where a snapshot does "
                "not see it; give it the two methods of sb3_hybrid_grpo.branching.SupportsBranching, or use n_samples=1."
            )
