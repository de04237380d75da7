"""Batches with the rows of all members: clip their actions, split them, and call the callbacks for each member."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import obs_as_tensor

from sb3_hybrid_grpo.branching import GroupStep

_OF_MEMBERS = ("obs_tensor", "actions", "clipped_actions", "values", "log_probs")


def call_for_each_member(model: Any, callback: BaseCallback, shown: dict[str, Any], step: GroupStep) -> bool:
    """
    Call ``on_step`` for each member, member 0 first, with the local variables that PPO passes. ``model.num_timesteps`` grows
    before each call. If the callback changes ``locals["rewards"]``, the new rewards are written to the step.

    :param model: The model
    :param callback: The callback
    :param shown: Local variables; arrays and tensors have the rows of all members, ``(N * E, ...)``
    :param step: The step
    :return: False if the callback stops the training; it is then not called for further members
    :raises ValueError: if the callback has replaced the rewards by an array of another shape
    """
    n_members, n_envs = step.dones_NE.shape
    rows = [rows_of_members(shown[name], n_members) for name in _OF_MEMBERS]
    rows += [rows_of_members(step.new_obs, n_members), step.rewards, step.dones_NE, step.infos]
    names = (*_OF_MEMBERS, "new_obs", "rewards", "dones", "infos")
    callback.update_locals(shown)
    for member, its in enumerate(zip(*rows, strict=True)):
        model.num_timesteps += n_envs
        callback.update_locals(dict(zip(names, its, strict=True)))
        go_on = callback.on_step()
        step.rewards[member] = rewards = callback.locals["rewards"]
        if np.shape(rewards) != (n_envs,):
            raise ValueError(
                f'A callback has set locals["rewards"] to an array of shape {np.shape(rewards)}: it must keep one reward for '
                f'each of the {n_envs} envs, shape ({n_envs},). Change it in place: self.locals["rewards"] += bonus.'
            )
        if not go_on:
            return False
    return True


def within_space(policy: Any, action_space: spaces.Space[Any], actions: np.ndarray) -> np.ndarray:
    """
    Bring a policy's actions into the action space, as PPO does.

    :param policy: The policy
    :param action_space: The env's action space
    :param actions: Actions
    :return: The actions, unscaled if they are squashed, else clipped
    """
    if not isinstance(action_space, spaces.Box):
        return actions
    squashed = getattr(policy, "squash_output", False)
    within: np.ndarray = policy.unscale_action(actions) if squashed else np.clip(actions, action_space.low, action_space.high)
    return within


def rows_of_members(batch: Any, n_members: int) -> Any:
    """
    Split a batch by members.

    :param batch: An array, a tensor, or a dict of them, ``(N * E, ...)``
    :param n_members: N
    :return: N batches of E rows
    """
    if n_members == 1:
        return [batch]
    if isinstance(batch, dict):
        parts = {key: rows_of_members(value, n_members) for key, value in batch.items()}
        return [{key: its[member] for key, its in parts.items()} for member in range(n_members)]
    return batch.chunk(n_members) if isinstance(batch, th.Tensor) else batch.reshape(n_members, -1, *batch.shape[1:])


def observations_reached(step: GroupStep, reached_NE: np.ndarray) -> list[Any]:
    """The next observations of the members that ``reached_NE`` marks; the terminal observation where an episode ended."""
    obs, found = step.new_obs, []
    for column, (member, e) in zip(np.flatnonzero(reached_NE), np.argwhere(reached_NE), strict=True):
        row = {key: value[column] for key, value in obs.items()} if isinstance(obs, dict) else obs[column]
        found.append(step.infos[member][e].get("terminal_observation", row))
    return found


def tensor_of(rows: list[Any], device: th.device) -> Any:
    """Stack observations, arrays or dicts of arrays, to a tensor or a dict of tensors."""
    if isinstance(rows[0], dict):
        return obs_as_tensor({key: np.stack([row[key] for row in rows]) for key in rows[0]}, device)
    return obs_as_tensor(np.stack(rows), device)
