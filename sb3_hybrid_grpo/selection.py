"""Value-based action selection: which of the N actions tried in a state is executed."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
ActionSelection = Literal["on_policy", "greedy", "softmax"]


def select_actions(
    scores_NE: FloatArray, selection: ActionSelection, temperature: float, uniform_E: FloatArray
) -> npt.NDArray[np.intp]:
    r"""
    Choose one of N actions in each of E states by its one-step estimate of value (https://arxiv.org/abs/2502.01652,
    value-based action selection).

    .. math::
        q_n = f(R^n) + \gamma V(s'^n) (1 - terminated^n), \qquad
        \text{greedy: } \arg\max_n q_n, \qquad \text{softmax: } P(n) \propto \exp(q_n / \tau)

    :param scores_NE: q, shape (N actions, E envs)
    :param selection: ``"greedy"`` (the first of equal ones), ``"softmax"``, or ``"on_policy"``: the first, which is as good a
        sample of the policy as any
    :param temperature: τ of softmax, in units of q, greater than 0
    :param uniform_E: A uniform random number from 0 to 1 for each env, shape (E,), for softmax
    :return: which action, shape (E,)
    """
    if selection == "on_policy":
        return np.zeros(scores_NE.shape[1], dtype=np.intp)
    if selection == "greedy":
        best_E: npt.NDArray[np.intp] = scores_NE.argmax(axis=0)
        return best_E
    weights_NE = np.exp((scores_NE - scores_NE.max(axis=0)).astype(np.float64) / temperature)
    shares_NE = weights_NE.cumsum(axis=0) / weights_NE.sum(axis=0)
    # the last share may be rounded to less than 1
    drawn_E: npt.NDArray[np.intp] = np.minimum((uniform_E >= shares_NE).sum(axis=0), len(scores_NE) - 1)
    return drawn_E
