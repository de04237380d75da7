"""Groups of members: when siblings fork, what they see, and which of their steps belong to one trace."""

import functools
from typing import Any, Literal

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_hybrid_grpo.branching.batches import check_numbers, each, is_truncated, row_of
from sb3_hybrid_grpo.branching.fanout import Fanout, Observations
from sb3_hybrid_grpo.branching.processes import Then, forget_step, send_step, step_env
from sb3_hybrid_grpo.branching.stack import Stage, stages_of
from sb3_hybrid_grpo.branching.steps import GroupStep, MemberZero, SiblingRows

BranchHorizon = int | Literal["episode", "auto"]
AUTO_HORIZON = 64
"""Steps between two forks with ``branch_horizon="auto"``, in grouped rollouts."""


class Groups:
    """
    A VecEnv of E envs as E groups of N members each. Member 0 is the env itself, stepped by ``env.step`` and by nothing else;
    the siblings, members 1 to N − 1, are stepped beside it, by its :class:`BranchingWrapper`.

    :param env: The user's VecEnv
    :param n_samples: N
    :param branch_horizon: When siblings fork: every so many steps and at member 0's episode ends; ``"episode"``: at the latter
        only; ``"auto"``: every 64 steps
    :raises ValueError: if siblings cannot live beside these envs
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
        self._checked = False
        self._stepping = False
        self._n_steps = 0
        self.lost_member_0 = False
        """A step was broken off, and nobody knows where it has led: the envs are to be reset."""

    def __getstate__(self) -> dict[str, Any]:
        """The envs of a copy have no siblings: a training that goes on begins with new ones."""
        return {**vars(self), "starts_ME": np.ones(self._shape, dtype=bool), "_observations_ME": None}

    def start(self, env_was_reset: bool, check: bool = False) -> None:
        """
        Begin or go on with a training: siblings go on, unless member 0 was reset. Then they fork from it.

        :param env_was_reset: Whether the env has just been reset
        :param check: Whether to show, the first time, that siblings are exact
        :raises BranchingError: if they are not
        """
        self.lost_member_0 = False
        if env_was_reset or self._stepping:  # a step that was broken off leaves siblings anywhere
            self._fork_all()
        if check and not self._checked and self.n_samples > 1:
            self._fanout.check()
        self._checked, self._stepping = True, False

    def saw_noise(self) -> bool:
        """
        Find out whether there is a noise that members could share.

        :return: Whether an env has drawn random numbers in a step since this was first asked
        """
        return self.n_samples > 1 and self._fanout.saw_noise()

    def _fork_all(self) -> None:
        self.starts_ME = np.ones(self._shape, dtype=bool)
        self._age_E[:] = 0
        self._observations_ME = None

    def observations(self, of_member_0: Observations) -> Observations:
        """
        Put together what the members act on next.

        :param of_member_0: Member 0's observations, ``(E, ...)``
        :return: Those of all members, member by member, ``(N * E, ...)``
        """
        if self.starts_ME.all():
            return each(lambda own: np.concatenate([own] * self.n_samples), of_member_0)
        return each(lambda *rows: np.concatenate(rows), of_member_0, self._replaced(self.starts_ME, of_member_0))

    def _replaced(self, members_ME: np.ndarray, of_member_0: Observations) -> Observations:
        """What siblings reached, and in the rows of some of them what member 0 acts on next."""
        if not members_ME.any():
            return self._observations_ME
        flat, (_, envs) = members_ME.reshape(-1), np.nonzero(members_ME)
        rows = each(np.copy, self._observations_ME)
        each(lambda theirs, own: theirs.__setitem__(flat, own[envs]), rows, of_member_0)
        return rows

    def action_masks(self, n_members: int) -> np.ndarray:
        """
        Ask the envs' ``action_masks()`` which actions are valid in the states that members act in next.

        :param n_members: N, or 1 if member 0 acts alone
        :return: The masks, ``(n_members * E, ...)``, member by member
        """
        own_E = np.stack(self.env.env_method("action_masks")).astype(bool)
        if n_members == 1:
            return own_E
        masks_NE = np.repeat(own_E[None], n_members, axis=0)
        goes_on_ME = ~self.starts_ME
        if goes_on_ME.any():
            for e, masks in enumerate(self._fanout.masks(goes_on_ME)):
                for m, mask in zip(np.flatnonzero(goes_on_ME[:, e]), masks, strict=True):
                    masks_NE[m + 1, e] = mask
        return masks_NE.reshape(-1, *own_E.shape[1:])

    def step(self, actions_NE: np.ndarray) -> GroupStep:
        """
        Step every member once: the siblings, then member 0 through ``env.step``. Or member 0 alone; then all siblings fork
        from it when they are stepped again.

        :param actions_NE: Actions within the action space, ``(N, E, ...)``, or ``(1, E, ...)`` for member 0 alone
        :return: What happened
        :raises BranchingError: if a sibling's step fails, or gives NaN; with candidates, if what is executed leads elsewhere
        """
        self._stepping = True
        self._n_steps += 1
        if self.n_samples > 1:
            self._fanout.at_step = self._n_steps
        try:
            step = self._step_alone(actions_NE[0]) if len(actions_NE) == 1 else self._step(actions_NE)
        except BaseException:
            # nobody knows where members are, and what processes still answer is no answer to the next command
            self.lost_member_0 = forget_step(self.env)
            raise
        self._stepping = False
        return step

    def _step_alone(self, actions_E: np.ndarray) -> GroupStep:
        zero = self._step_member_0(actions_E)
        self._fork_all()
        dones_NE = zero.dones[None]
        return GroupStep(zero.new_obs, [zero.rewards], dones_NE, [zero.infos], zero.terminated_E[None], dones_NE)

    def _step(self, actions_NE: np.ndarray) -> GroupStep:
        last_step_E = self._age_E + 1 >= self._horizon
        send = functools.partial(send_step, self.env, actions_NE[0])
        siblings = self._step_siblings(actions_NE[1:], last_step_E, send)
        zero = self._step_member_0(actions_NE[0])
        dropped_E = zero.dones | last_step_E
        rewards_ME = self._settle(siblings, dropped_E)
        self._age_E = np.where(dropped_E, 0, self._age_E + 1)
        return GroupStep(
            each(lambda *rows: np.concatenate(rows), zero.new_obs, self._replaced(siblings.ended_ME, zero.new_obs)),
            [zero.rewards, *rewards_ME],
            np.concatenate([zero.dones[None], siblings.ended_ME]),
            [zero.infos, *siblings.infos],
            np.concatenate([zero.terminated_E[None], siblings.terminated_ME]),
            np.concatenate([zero.dones[None], self.starts_ME]),
        )

    def _step_member_0(self, actions_E: np.ndarray) -> MemberZero:
        new_obs, rewards, dones, infos = step_env(self.env, actions_E, self._n_steps)
        truncated_E = dones & [is_truncated(info) for info in infos] if dones.any() else dones
        return MemberZero(new_obs, rewards, dones, infos, dones & ~truncated_E)

    def _step_siblings(self, actions_ME: np.ndarray, last_step_E: np.ndarray, then: Then = None) -> SiblingRows:
        """Step the siblings; what they saw waits for the statistics that VecNormalize has after member 0's step."""
        for stage in self._stages:
            stage.fork(self.starts_ME)
        steps = self._fanout.step(actions_ME, self.starts_ME, ~last_step_E, then)
        members = range(len(actions_ME))
        observations = self._fanout.stacked([one.observations[m] for m in members for one in steps])
        rewards = self._fanout.rewards([one.rewards[m] for m in members for one in steps])
        check_numbers(observations, rewards, self._shape[1], self._n_steps)
        terminated_ME = np.array([one.terminated for one in steps]).T
        ended_ME = terminated_ME | np.array([one.truncated for one in steps]).T
        return SiblingRows(observations, rewards, terminated_ME, ended_ME, [[one.infos[m] for one in steps] for m in members])

    def _settle(self, siblings: SiblingRows, dropped_E: np.ndarray) -> np.ndarray:
        """
        Put what siblings saw through the VecEnv wrappers, and end the traces of those that do not go on.

        :param siblings: What the siblings saw; their infos are completed
        :param dropped_E: Whether all siblings of a group fork at the next step
        :return: Rewards ``(M, E)``
        """
        observations, rewards = siblings.observations, siblings.rewards
        for stage in self._stages:
            observations, rewards = stage.step(observations), stage.rewards(rewards)
        self._observations_ME = observations
        self.starts_ME = siblings.ended_ME | dropped_E
        for m, infos in enumerate(siblings.infos):
            for e, info in enumerate(infos):
                infos[e] = {key: value for key, value in info.items() if key != "episode"} | {"group_member": m + 1}
                if siblings.ended_ME[m, e]:
                    infos[e]["terminal_observation"] = row_of(observations, m * len(infos) + e)
                    infos[e]["TimeLimit.truncated"] = not siblings.terminated_ME[m, e]
        return rewards.reshape(self._shape)
