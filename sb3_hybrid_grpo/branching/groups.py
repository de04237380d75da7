"""Groups of members: when siblings fork, what they see, and which of their steps belong to one trace."""

import functools
from typing import Any, Literal, NamedTuple

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_hybrid_grpo.branching.batches import check_numbers, each, is_truncated, joined, last_rows
from sb3_hybrid_grpo.branching.fanout import Fanout, Observations
from sb3_hybrid_grpo.branching.processes import Then, forget_step, send_step, step_env
from sb3_hybrid_grpo.branching.stack import Stage, learn_from_free, normalized_again, stages_of
from sb3_hybrid_grpo.branching.steps import GroupStep, MemberZero, SiblingRows

BranchHorizon = int | Literal["episode", "free", "auto"]
AUTO_HORIZON = 64
"""Steps between two forks with ``branch_horizon="auto"``, while siblings fork."""


class _Aside(NamedTuple):
    """Free siblings while they are put aside; the envs keep their simulators."""

    observations_ME: Observations
    starts_ME: np.ndarray
    stages: list[Any]


class Groups:
    """
    A VecEnv of E envs as E groups of N members each. Member 0 is the env itself, stepped by ``env.step`` and by nothing else;
    the siblings, members 1 to N − 1, are stepped beside it, by its :class:`BranchingWrapper`.

    :param env: The user's VecEnv
    :param n_samples: N
    :param branch_horizon: When siblings fork: every so many steps and at member 0's episode ends; ``"episode"``: at the latter
        only; ``"free"``: never, they reset by themselves; ``"auto"``: free, until :meth:`regroup` says otherwise
    :param share_states: Whether members that are always in one state have one row for all of them
    :raises ValueError: if siblings cannot live beside these envs
    :raises BranchingError: if an env cannot be branched
    """

    def __init__(self, env: VecEnv, n_samples: int, branch_horizon: BranchHorizon, share_states: bool = True) -> None:
        self.env, self.n_samples, self.free = env, n_samples, branch_horizon in ("free", "auto")
        horizon = AUTO_HORIZON if branch_horizon == "auto" else branch_horizon
        self._horizon = np.inf if isinstance(horizon, str) else horizon
        self._shape = (n_samples - 1, env.num_envs)
        self.shares_states = n_samples == 1 or (self._horizon == 1 and share_states)
        """Whether all members of a group are in one state at every step, and have one row."""
        if n_samples > 1:
            self._stages: list[Stage] = stages_of(env, n_samples - 1)
            self._fanout = Fanout(env)
        self.starts_ME = np.ones(self._shape, dtype=bool)
        """Siblings whose trace starts with the next step."""
        self._age_E = np.zeros(env.num_envs, dtype=int)
        self._observations_ME: Observations = None
        self._aside: _Aside | None = None
        self._started = False
        self._stepping = False
        self._n_steps = 0
        self.lost_member_0 = False  # a step was broken off, and nobody knows where it has led: the envs are to be reset

    def __getstate__(self) -> dict[str, Any]:
        """The envs of a copy have no siblings: a training that goes on begins with new ones."""
        return {**vars(self), "_started": False, "_aside": None}

    @property
    def forks_ME(self) -> np.ndarray:
        """Siblings that start the next step from member 0's state."""
        return np.zeros(self._shape, dtype=bool) if self.free else self.starts_ME

    def start(self, env_was_reset: bool, seed: int | None, check: bool = False) -> None:
        """
        Begin or go on with a training: siblings go on, unless member 0 was reset. Then they fork from it; free ones reset.

        :param env_was_reset: Whether the env has just been reset
        :param seed: Free siblings are reset with ``seed + m * E + e``, as a VecEnv of N·E envs would seed them;
            None: with fresh entropy. Where the envs were reset with seeds, those count
        :param check: Whether to show, the first time, that siblings are exact
        :raises BranchingError: if they are not
        """
        self.lost_member_0 = False
        goes_on = self._started and not env_was_reset and not self._stepping  # a step that was broken off leaves them anywhere
        if self.n_samples == 1 or goes_on:
            return
        self._drop_aside()
        if check and not self._started:
            self._fanout.check(resets=self.free)
        if self.free:
            self._reset_siblings(seed, new_seeds=not self._started, right_after_env=env_was_reset)
        else:
            self._fork_all()
        self._started, self._stepping = True, False

    def saw_noise(self) -> bool:
        """
        Find out whether there is a noise that members could share.

        :return: Whether an env has drawn random numbers in a step since this was first asked
        """
        return self.n_samples > 1 and self._fanout.saw_noise()

    def regroup(self, free: bool, seed: int | None) -> bool:
        """
        Before a rollout, let siblings fork from member 0, or let go of it those that did. Free siblings that fork for a single
        rollout are put aside meanwhile, and then go on where they were.

        :param free: Whether siblings are free in the next rollout
        :param seed: Siblings that begin a life of their own are reset, with a seed each that is made of this one; None: with
            fresh entropy
        :return: Whether siblings did so
        """
        if self.n_samples == 1:
            return False
        if free == self.free:
            self._drop_aside()  # a second grouped rollout: what is aside is too old, its statistics are no more those of now
            return False
        before, self._stepping = self._stepping, True  # one that is broken off leaves siblings anywhere
        reset = free and self._aside is None
        if not free:
            stages = [stage.state() for stage in self._stages]
            self._fanout.exchange()
            self._aside = _Aside(self._observations_ME, self.starts_ME, stages)
            self._observations_ME = None
            self._fork_all()
        elif self._aside is None:
            self._reset_siblings(seed, new_seeds=True, right_after_env=False)
        else:
            self._fanout.exchange()
            self._observations_ME, self.starts_ME, stages = self._aside
            for stage, state in zip(self._stages, stages, strict=True):
                stage.set_state(state)
            self._aside = None
        self.free = free
        self._stepping = before
        return reset

    def _drop_aside(self) -> None:
        if self._aside is not None:
            self._aside = None
            self._fanout.drop_aside()

    def _fork_all(self) -> None:
        self.starts_ME = np.ones(self._shape, dtype=bool)
        self._age_E[:] = 0

    def first_observations(self, of_member_0: Observations) -> Observations:
        """
        Right after :meth:`start`, look again at what a reset gave: free siblings have taught VecNormalize since.

        :param of_member_0: Member 0's observations, ``(E, ...)``
        :return: The same, normalised as those of the siblings are
        """
        return normalized_again(self._stages, of_member_0) if self.free and self.n_samples > 1 else of_member_0

    def observations(self, of_member_0: Observations) -> Observations:
        """
        Put together what the members act on next.

        :param of_member_0: Member 0's observations, ``(E, ...)``
        :return: Those of all members, member by member, ``(N * E, ...)``; those of the E states, where all members of a
            group are always in one
        """
        if self.shares_states:
            return of_member_0
        if self._observations_ME is None:  # all members fork
            self._observations_ME = each(lambda own: np.concatenate([own] * (self.n_samples - 1)), of_member_0)
        elif (forks_ME := self.forks_ME).any():
            _, envs = np.nonzero(forks_ME)
            flat = forks_ME.reshape(-1)
            each(lambda theirs, own: theirs.__setitem__(flat, own[envs]), self._observations_ME, of_member_0)
        return each(lambda own, theirs: np.concatenate([own, theirs]), of_member_0, self._observations_ME)

    def action_masks(self) -> np.ndarray:
        """
        Ask the envs' ``action_masks()`` which actions are valid in the states that members act in next.

        :return: The masks, in the rows of :meth:`observations`
        """
        own_E = np.stack(self.env.env_method("action_masks")).astype(bool)
        if self.shares_states:
            return own_E
        masks_NE = np.repeat(own_E[None], self.n_samples, axis=0)
        goes_on_ME = ~self.forks_ME
        if goes_on_ME.any():
            for e, masks in enumerate(self._fanout.masks(goes_on_ME)):
                for m, mask in zip(np.flatnonzero(goes_on_ME[:, e]), masks, strict=True):
                    masks_NE[m + 1, e] = mask
        return masks_NE.reshape(-1, *own_E.shape[1:])

    def step(self, actions_NE: np.ndarray) -> GroupStep:
        """
        Step every member once: the siblings, then member 0 through ``env.step``.

        :param actions_NE: Actions within the action space, ``(N, E, ...)``
        :return: What happened
        :raises BranchingError: if a sibling's step fails, or gives NaN; with candidates, if what is executed leads elsewhere
        """
        self._stepping = True
        self._n_steps += 1
        if self.n_samples > 1:
            self._fanout.at_step = self._n_steps
        try:
            step = self._step(actions_NE)
        except BaseException:
            # nobody knows where members are, and what processes still answer is no answer to the next command
            self.lost_member_0 = forget_step(self.env)
            raise
        self._stepping = False
        return step

    def _step(self, actions_NE: np.ndarray) -> GroupStep:
        last_step_E = np.zeros_like(self._age_E, bool) if self.free else self._age_E + 1 >= self._horizon
        send = functools.partial(send_step, self.env, actions_NE[0])
        siblings = self._step_siblings(actions_NE[1:], last_step_E, send) if self.n_samples > 1 else None
        zero = self._step_member_0(actions_NE[0])
        dones, reached = zero.dones, zero.reached
        shape = (self.n_samples, len(dones))
        rewards_NE, terminated_NE, cut_NE = np.empty(shape, np.float32), np.zeros(shape, bool), np.zeros(shape, bool)
        rewards_NE[0], terminated_NE[0], cut_NE[0] = zero.rewards, zero.terminated_E, dones
        ends = 0
        if siblings is not None:
            rewards_NE[1:], terminated_NE[1:], cut_NE[1:], rows, ends = self._settle(siblings, dones | last_step_E)
            reached += rows
            self._age_E = np.where(dones | last_step_E, 0, self._age_E + 1)
        return GroupStep(
            *(zero.observations, zero.rewards, dones, zero.infos, rewards_NE, terminated_NE, cut_NE, joined(reached)),
            sibling_ends=ends,
        )

    def _step_member_0(self, actions_E: np.ndarray) -> MemberZero:
        observations, rewards, dones, infos = step_env(self.env, actions_E, self._n_steps)
        if not dones.any():
            return MemberZero(observations, rewards, dones, infos, dones, [])
        truncated_E = dones & [is_truncated(info) for info in infos]
        return MemberZero(observations, rewards, dones, infos, dones & ~truncated_E, last_rows(infos, truncated_E))

    def _step_siblings(self, actions_ME: np.ndarray, last_step_E: np.ndarray, then: Then = None) -> SiblingRows:
        """Step the siblings; what they saw waits for the statistics that VecNormalize has after member 0's step."""
        forks_ME = self.forks_ME
        for stage in self._stages:
            stage.fork(forks_ME)
        steps = self._fanout.step(actions_ME, forks_ME, ~last_step_E, self.free, then)
        observations = self._fanout.stacked([one.observations[m] for m in range(len(actions_ME)) for one in steps])
        rewards = self._fanout.rewards([one.rewards[m] for m in range(len(actions_ME)) for one in steps])
        check_numbers(observations, rewards, self._shape[1], self._n_steps)
        resets = [(m * len(steps) + e, first) for e, one in enumerate(steps) for m, first in one.resets.items()]
        restarted = np.array([place for place, _ in resets], dtype=int)
        firsts = self._fanout.stacked([first for _, first in resets]) if resets else None
        if self.free:
            learn_from_free(self._stages, observations, rewards, restarted, firsts)
        return SiblingRows(steps, observations, rewards, restarted, firsts)

    def _settle(
        self, siblings: SiblingRows, dropped_E: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Observations], int]:
        """
        :param siblings: What the siblings saw
        :param dropped_E: Whether all siblings of a group fork at the next step
        :return: Rewards, terminations and cuts ``(M, E)``, rows for ``GroupStep.reached``, and how many episodes ended
        """
        steps, observations, rewards, restarted, firsts = siblings
        for stage in self._stages:
            observations, rewards = stage.step(observations), stage.rewards(rewards)
        terminated_ME = np.array([one.terminated for one in steps]).T
        ended_ME = terminated_ME | np.array([one.truncated for one in steps]).T
        cut_ME = ended_ME if self.free else ended_ME | dropped_E
        reached = (cut_ME & ~terminated_ME).reshape(-1)
        rows = [each(lambda theirs: theirs[reached], observations)] if reached.any() else []
        if firsts is not None:  # of siblings that reset by themselves
            for stage in self._stages:
                firsts = stage.restart(restarted, firsts)
            each(lambda theirs, new: theirs.__setitem__(restarted, new), observations, firsts)
        self.starts_ME = cut_ME
        self._observations_ME = observations
        return rewards.reshape(self._shape), terminated_ME, cut_ME, rows, int(ended_ME.sum())

    def _reset_siblings(self, seed: int | None, new_seeds: bool, right_after_env: bool) -> None:
        """Reset every free sibling, with a seed of its own or from its own stream of random numbers."""
        m_siblings, n_envs = self._shape
        seeds: list[list[int | None]] = [[None] * m_siblings for _ in range(n_envs)]
        if new_seeds:
            fresh = np.random.SeedSequence().generate_state(m_siblings * n_envs).reshape(n_envs, m_siblings)
            for e in range(n_envs):
                seeds[e] = [int(fresh[e, m - 1]) if seed is None else seed + m * n_envs + e for m in range(1, self.n_samples)]
        firsts = self._fanout.reset(seeds, right_after_env)
        rows = self._fanout.stacked([firsts[e][m] for m in range(m_siblings) for e in range(n_envs)])
        all_of_them = np.arange(m_siblings * n_envs)
        learn_from_free(self._stages, rows, None, all_of_them, rows)
        for stage in self._stages:
            rows = stage.restart(all_of_them, rows)
        self._observations_ME = rows
        self.starts_ME = np.ones(self._shape, dtype=bool)
