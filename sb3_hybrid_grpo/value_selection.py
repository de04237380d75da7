"""Value-based action selection with a model's critic and reward transform."""

import copy
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.utils import obs_as_tensor

from sb3_hybrid_grpo.selection import select_actions
from sb3_hybrid_grpo.transforms import apply_transform


def choose_by_value(model: Any, observations: Any, rewards_NE: np.ndarray, terminated_NE: np.ndarray) -> np.ndarray:
    """
    Choose one of N actions that were tried in each of E states, see :func:`sb3_hybrid_grpo.selection.select_actions`.

    :param model: The model
    :param observations: What the actions led to, ``(N * E, ...)``
    :param rewards_NE: Their rewards
    :param terminated_NE: Whether they led to a terminal state
    :return: Which action, ``(E,)``
    """
    with th.no_grad():
        values = model.policy.predict_values(obs_as_tensor(observations, model.device)).cpu().numpy()
    # a copy, because an object of the user's may change when it is called
    transform = copy.deepcopy(model.rollout_buffer.estimation.reward_transform)
    raw_TEN = rewards_NE.T[None]
    starts_TEN = np.zeros(raw_TEN.shape, dtype=bool)
    rewards_NE = apply_transform(transform, raw_TEN, starts_TEN, model.gamma, learn=False)[0].T
    scores_NE = rewards_NE + model.gamma * values.reshape(rewards_NE.shape) * ~terminated_NE
    uniform_E = th.rand(rewards_NE.shape[1]).numpy() if model.action_selection == "softmax" else np.empty(0)
    return select_actions(scores_NE, model.action_selection, model.selection_temperature, uniform_E)
