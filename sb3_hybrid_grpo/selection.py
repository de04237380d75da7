"""Value-based action selection: which of the N actions tried in a state is executed."""

import copy
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.utils import obs_as_tensor

FloatArray = npt.NDArray[np.floating[Any]]
ActionSelection = Literal["on_policy", "greedy", "softmax"]


def select_actions(
    scores_NE: FloatArray, selection: Literal["greedy", "softmax"], temperature: float, uniform_E: FloatArray
) -> npt.NDArray[np.intp]:
    r"""
    Choose one of N actions in each of E states by its one-step estimate of value (https://arxiv.org/abs/2502.01652,
    value-based action selection).

    .. math::
        q_n = f(R^n) + \gamma V(s'^n) (1 - terminated^n), \qquad
        \text{greedy: } \arg\max_n q_n, \qquad \text{softmax: } P(n) \propto \exp(q_n / \tau)

    :param scores_NE: q, shape (N actions, E envs)
    :param selection: ``"greedy"`` (the first of equal ones) or ``"softmax"``
    :param temperature: τ of softmax, in units of q, greater than 0
    :param uniform_E: A uniform random number from 0 to 1 for each env, shape (E,), for softmax
    :return: index of the chosen action, shape (E,)
    """
    if selection == "greedy":
        best_E: npt.NDArray[np.intp] = scores_NE.argmax(axis=0)
        return best_E
    weights_NE = np.exp((scores_NE - scores_NE.max(axis=0)).astype(np.float64) / temperature)
    shares_NE = weights_NE.cumsum(axis=0) / weights_NE.sum(axis=0)
    # the last share may be rounded to less than 1
    drawn_E: npt.NDArray[np.intp] = np.minimum((uniform_E >= shares_NE).sum(axis=0), len(scores_NE) - 1)
    return drawn_E


def choose_by_value(model: Any, observations: Any, rewards_NE: np.ndarray, terminated_NE: np.ndarray) -> np.ndarray:
    """
    Choose one of N actions that were tried in each of E states, see :func:`select_actions`.

    :param model: The model
    :param observations: The next observation after each action, ``(N * E, ...)``
    :param rewards_NE: The reward of each action
    :param terminated_NE: Whether the action led to a terminal state
    :return: Index of the chosen action, ``(E,)``
    """
    with th.no_grad():
        values = model.policy.predict_values(obs_as_tensor(observations, model.device)).cpu().numpy()
    # a copy, because a call may change the state of a user's object
    transform = copy.deepcopy(model.rollout_buffer.estimation.reward_transform)
    raw_TEN = rewards_NE.T[None]
    starts_TEN = np.zeros(raw_TEN.shape, dtype=bool)
    rewards_NE = transform(raw_TEN, starts_TEN, model.gamma, learn=False)[0].T
    scores_NE = rewards_NE + model.gamma * values.reshape(rewards_NE.shape) * ~terminated_NE
    uniform_E = th.rand(rewards_NE.shape[1]).numpy() if model.action_selection == "softmax" else np.empty(0)
    return select_actions(scores_NE, model.action_selection, model.selection_temperature, uniform_E)
