"""Groups of members: when siblings fork, their observations and rewards, and where their traces are cut."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_hybrid_grpo.branching.exactness import first_difference
from sb3_hybrid_grpo.branching.vec_calls import Fanout, Then, forget_step, send_step, step_env
from sb3_hybrid_grpo.branching.vec_wrappers import Observations, Rows, Stage, check_numbers, each, row_of, stages_of
from sb3_hybrid_grpo.errors import BranchingError

BranchHorizon = int | Literal["episode", "auto"]
AUTO_HORIZON = 256
"""Steps between two forks with ``branch_horizon="auto"``, in grouped rollouts."""


class GroupStep(NamedTuple):
    """One step of E groups of N members, member by member. Member 0's part is the result of ``env.step``."""

    new_obs: Observations
    """Each member's next observation, before a fork, ``(N * E, ...)``. A sibling whose own episode ended has member 0's."""
    rewards: list[np.ndarray]
    """Rewards of each member, ``(E,)``."""
    dones_NE: np.ndarray
    """Members whose own episode ended."""
    infos: list[list[dict[str, Any]]]
    """Infos of each member, E of them."""
    terminated_NE: np.ndarray
    """Members whose own episode ended in a terminal state."""
    cut_NE: np.ndarray
    """Members that do not go on: their episode ended, or (siblings) they fork at the next step."""
    order_NE: np.ndarray | None = None
    """The number of the action that each member took, if it is not the member's own number."""


class Groups:
    """
    A VecEnv of E envs as E groups of N members each. Member 0 is the env itself, which only ``env.step`` moves. The env's
    :class:`BranchingWrapper` steps the siblings, members 1 to N − 1.

    :param env: The user's VecEnv
    :param n_samples: N
    :param branch_horizon: When siblings fork from member 0: an int K, every K steps and when member 0's episode ends;
        ``"episode"``, only when member 0's episode ends; ``"auto"``, as K = 256
    :raises ValueError: if this kind of VecEnv cannot have siblings
    :raises BranchingError: if an env cannot be branched
    """

    def __init__(self, env: VecEnv, n_samples: int, branch_horizon: BranchHorizon) -> None:
        self.env, self.n_samples = env, n_samples
        horizon = AUTO_HORIZON if branch_horizon == "auto" else branch_horizon
        self._horizon = np.inf if horizon == "episode" else horizon
        self._shape = (n_samples - 1, env.num_envs)
        if n_samples > 1:
            self._stages: list[Stage] = stages_of(env, n_samples - 1)
            self._fanout = Fanout(env)
        self.starts_ME = np.ones(self._shape, dtype=bool)
        """Siblings that fork from member 0 at the next step."""
        self._age_E = np.zeros(env.num_envs, dtype=int)
        self._observations_ME: Observations = None
        self._checked, self._has_siblings = False, False
        self._n_steps = 0
        self.lost_member_0 = False
        """Whether a step was interrupted, so that member 0's state is unknown and the envs must be reset."""

    def __getstate__(self) -> dict[str, Any]:
        """The envs of a copy have no siblings: all siblings fork at its next step."""
        return {**vars(self), "starts_ME": np.ones(self._shape, dtype=bool), "_observations_ME": None}

    def start(self, env_was_reset: bool, check: bool = False) -> None:
        """
        Begin a training or go on with one. Siblings go on from their states, unless member 0 was reset: then they fork.

        :param env_was_reset: Whether the env has just been reset
        :param check: Whether to check that siblings are exact, the first time
        :raises BranchingError: if siblings are not exact
        """
        self.lost_member_0 = False
        if env_was_reset:
            self._fork_all()
        if check and not self._checked and self.n_samples > 1:
            self.drop_siblings()  # the present ones were made before the check
            self._fanout.check()
        self._checked |= check

    def saw_noise(self) -> bool | None:
        """Whether the first steps of an env draw random numbers, which members share; None without siblings or a check."""
        answers = self._fanout.call("saw_noise") if self.n_samples > 1 else [None]
        return True if True in answers else None if None in answers else False

    def fork_reasons(self) -> str:
        """Why siblings of an env are forked processes, which cost milliseconds; empty if all are copies."""
        return next(filter(None, self._fanout.call("fork_reasons")), "") if self.n_samples > 1 else ""

    def drop_siblings(self) -> None:
        """End all siblings, to free memory or processes. New siblings fork from member 0 at the next grouped step."""
        if self._has_siblings:
            self._has_siblings = False
            with contextlib.suppress(OSError, BranchingError):  # siblings of a process that has ended have ended, too
                self._fanout.call("drop_siblings")
        self._fork_all()

    def _fork_all(self) -> None:
        self.starts_ME = np.ones(self._shape, dtype=bool)
        self._age_E[:] = 0
        self._observations_ME = None

    def observations(self, of_member_0: Observations) -> Observations:
        """
        Put together the observations on which the members act next.

        :param of_member_0: Member 0's observations, ``(E, ...)``
        :return: All members' observations, member by member, ``(N * E, ...)``
        """
        if self.starts_ME.all():
            return each(lambda own: np.concatenate([own] * self.n_samples), of_member_0)
        return each(lambda *rows: np.concatenate(rows), of_member_0, self._replaced(self.starts_ME, of_member_0))

    def _replaced(self, members_ME: np.ndarray, of_member_0: Observations) -> Observations:
        """The siblings' next observations; in the rows of the given members, member 0's observations replace them."""
        if not members_ME.any():
            return self._observations_ME
        flat, (_, envs) = members_ME.reshape(-1), np.nonzero(members_ME)
        rows = each(np.copy, self._observations_ME)
        each(lambda theirs, own: theirs.__setitem__(flat, own[envs]), rows, of_member_0)
        return rows

    def action_masks(self, n_members: int) -> np.ndarray:
        """
        Ask the envs' ``action_masks()`` which actions are valid in the members' present states.

        :param n_members: N, or 1 if member 0 acts alone
        :return: The masks, ``(n_members * E, ...)``, member by member
        """
        own_E = np.stack(self.env.env_method("action_masks")).astype(bool)
        if n_members == 1:
            return own_E
        masks_NE = np.repeat(own_E[None], n_members, axis=0)
        goes_on_ME = ~self.starts_ME
        if goes_on_ME.any():
            wanted = [(np.flatnonzero(its).tolist(),) for its in goes_on_ME.T]
            for e, masks in enumerate(self._fanout.call("mask_siblings", wanted)):
                for m, mask in zip(np.flatnonzero(goes_on_ME[:, e]), masks, strict=True):
                    masks_NE[m + 1, e] = mask
        return masks_NE.reshape(-1, *own_E.shape[1:])

    def step(self, actions_NE: np.ndarray) -> GroupStep:
        """
        Step every member once: first the siblings, then member 0 through ``env.step``. If only member 0's actions are given,
        only member 0 is stepped, and all siblings fork from it at the next step.

        :param actions_NE: Actions within the action space, ``(N, E, ...)``, or ``(1, E, ...)`` for member 0 alone
        :return: Observations, rewards, ends and infos of each member
        :raises BranchingError: if a sibling's step fails or gives NaN; for :class:`Candidates`, if the executed action has
            another result than its branch
        """
        self._n_steps += 1
        if self.n_samples > 1:
            self._fanout.at_step = self._n_steps
        try:
            return self._step_alone(actions_NE[0]) if len(actions_NE) == 1 else self._step(actions_NE)
        except BaseException:
            # the members' states are unknown, and pending answers of processes must not be taken for later ones
            self._fork_all()
            self.lost_member_0 |= forget_step(self.env)
            raise

    def _step_alone(self, actions_E: np.ndarray) -> GroupStep:
        self.drop_siblings()
        zero, terminated_E = self._step_member_0(actions_E)
        dones_NE = zero.dones[None]
        return GroupStep(zero.observations, [zero.rewards], dones_NE, [zero.infos], terminated_E[None], dones_NE)

    def _step(self, actions_NE: np.ndarray) -> GroupStep:
        last_step_E = self._age_E + 1 >= self._horizon
        send = functools.partial(send_step, self.env, actions_NE[0])
        try:
            siblings, terminated_ME = self._step_siblings(actions_NE[1:], send)
        except BranchingError as error:
            if error.__cause__ is not None and not forget_step(self.env):  # member 0's step may raise the env's own error
                self._step_member_0(actions_NE[0])
            raise
        zero, terminated_E = self._step_member_0(actions_NE[0])
        dropped_E = zero.dones | last_step_E
        rows = self._settle(siblings, dropped_E)
        ended_ME, n_envs = siblings.dones.reshape(self._shape), self._shape[1]
        self._age_E = (self._age_E + 1) * ~dropped_E
        return GroupStep(
            each(lambda *rows: np.concatenate(rows), zero.observations, self._replaced(ended_ME, zero.observations)),
            [zero.rewards, *rows.rewards.reshape(self._shape)],
            np.concatenate([zero.dones[None], ended_ME]),
            [zero.infos, *(rows.infos[start : start + n_envs] for start in range(0, len(rows.infos), n_envs))],
            np.concatenate([terminated_E[None], terminated_ME]),
            np.concatenate([zero.dones[None], self.starts_ME]),
        )

    def _step_member_0(self, actions_E: np.ndarray) -> tuple[Rows, np.ndarray]:
        """Step member 0 in all envs: its results, and where it ended in a terminal state."""
        self.lost_member_0 = True
        zero = Rows(*step_env(self.env, actions_E, self._n_steps))
        self.lost_member_0 = False
        if not zero.dones.any():
            return zero, zero.dones
        cut_off = [bool(one.get("TimeLimit.truncated")) and "terminal_observation" in one for one in zero.infos]
        return zero, zero.dones & ~np.array(cut_off)

    def _step_siblings(self, actions_ME: np.ndarray, then: Then = None) -> tuple[Rows, np.ndarray]:
        """
        Step the siblings: their results, and which ended in a terminal state, ``(M, E)``. The results are normalised later,
        with VecNormalize's statistics after member 0's step.
        """
        self._has_siblings = True
        for stage in self._stages:
            stage.fork(self.starts_ME)
        steps = self._fanout.step(actions_ME, self.starts_ME, then)
        members = range(len(actions_ME))
        observations = self._fanout.stacked([one.observations[m] for m in members for one in steps])
        rewards = np.array([one.rewards[m] for m in members for one in steps], dtype=self._fanout.dtype_of_rewards)
        check_numbers(observations, rewards, self._shape[1], self._n_steps)
        infos = [one.infos[m] | {"group_member": m + 1} for m in members for one in steps]
        terminated_ME = np.array([one.terminated for one in steps]).T
        ended_ME = terminated_ME | np.array([one.truncated for one in steps]).T
        for row in np.flatnonzero(ended_ME):
            infos[row]["TimeLimit.truncated"] = not terminated_ME.flat[row]
        rows = Rows(observations, rewards, ended_ME.reshape(-1), infos)
        return rows.showing(observations), terminated_ME

    def _settle(self, rows: Rows, dropped_E: np.ndarray) -> Rows:
        """Apply the VecEnv wrappers to the siblings' results, and note which siblings fork at the next step."""
        self.starts_ME = rows.dones.reshape(self._shape) | dropped_E
        for stage in self._stages:
            rows = stage.step(rows)
        self._observations_ME = rows.observations
        return rows


Chooser = Callable[[Observations, np.ndarray, np.ndarray], np.ndarray]
"""From N actions' observations ``(N * E, ...)``, rewards and terminations ``(N, E)``: the index of the best one, ``(E,)``."""


class Candidates(Groups):
    """
    Groups whose member 0 executes the best of N actions. All N actions are tried in branches of the env, ``choose`` chooses
    one by their results, and ``env.step`` executes it: N + 1 simulator steps. Its result must equal its branch's result, so
    every step checks the branching.
    """

    def __init__(self, env: VecEnv, n_samples: int, choose: Chooser) -> None:
        super().__init__(env, n_samples + 1, branch_horizon=1)
        self.n_samples = n_samples
        self._choose = choose

    def _step(self, actions_NE: np.ndarray) -> GroupStep:
        """Try every action, choose one, and execute it. Members are in the order of ``order_NE``, the executed one first."""
        n_samples, n_envs = self._shape
        tried, terminated_ME = self._step_siblings(actions_NE.copy())  # an env may change them in place
        previewed = tried._replace(infos=[dict(info) for info in tried.infos])
        for stage in self._stages:
            previewed = stage.preview(previewed)
        chosen_E = self._choose(previewed.observations, previewed.rewards.reshape(self._shape), terminated_ME)
        envs = np.arange(n_envs)
        zero, terminated_E = self._step_member_0(actions_NE[chosen_E, envs])
        settled = self._settle(tried, np.ones(n_envs, dtype=bool))
        rewards_NE = settled.rewards.reshape(self._shape)
        led_to = each(lambda rows: rows[chosen_E * n_envs + envs], self._observations_ME)
        if not any("worker_restarted" in info for info in zero.infos):  # a RayVecEnv has lost the step
            self._compare(zero, led_to, rewards_NE[chosen_E, envs])

        order_NE = np.argsort(np.arange(n_samples)[:, None] != chosen_E, axis=0, kind="stable")
        ended_ME = tried.dones.reshape(self._shape)
        terminated_NE, dones_NE = terminated_ME[order_NE, envs], ended_ME[order_NE, envs]
        terminated_NE[0], dones_NE[0] = terminated_E, zero.dones
        new_obs = self._replaced(ended_ME, zero.observations)
        rows = (order_NE[1:] * n_envs + envs).reshape(-1)
        infos = [
            zero.infos,
            *(
                [settled.infos[m * n_envs + e] | {"group_member": n} for e, m in enumerate(its)]
                for n, its in enumerate(order_NE)
                if n
            ),
        ]
        cut_NE = np.concatenate([zero.dones[None], np.ones((n_samples - 1, n_envs), dtype=bool)])
        return GroupStep(
            each(lambda own, theirs: np.concatenate([own, theirs[rows]]), zero.observations, new_obs),
            [zero.rewards, *rewards_NE[order_NE, envs][1:]],
            *(dones_NE, infos, terminated_NE, cut_NE, order_NE),
        )

    def _compare(self, zero: Rows, branch: Observations, rewards_E: np.ndarray) -> None:
        """Raise an error if the executed action has another result than its branch."""
        for e, done in enumerate(zero.dones):
            theirs = row_of(branch, e)
            executed = zero.infos[e]["terminal_observation"] if done else row_of(zero.observations, e)
            executed = each(lambda one, other: np.asarray(one, other.dtype, order="C"), executed, theirs)
            found = first_difference("observation", executed, theirs)
            found = found or first_difference("reward", float(np.float32(zero.rewards[e])), float(np.float32(rewards_E[e])))
            if found is not None:
                raise BranchingError(
                    f"Env {e} is not branched exactly: at step {self._n_steps} of the training the chosen action had another "
                    f"result than in its branch: {found}. The env keeps state that its copies share; give it the two methods "
                    "of sb3_hybrid_grpo.branching.SupportsBranching, or use n_samples=1."
                )
