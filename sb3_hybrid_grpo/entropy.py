"""The coefficient α of the entropy bonus: a number, a schedule, or learned so that the policy's entropy stays at a target."""

import math
from typing import Any, Literal

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule

# Share of the largest possible entropy that a policy over finitely many actions is held at by default.
DISCRETE_SHARE = 0.5


class EntropyCoefficient:
    r"""
    α of the objective :math:`\mathbb{E}[L^{clip}] + \alpha\, \mathcal{H}(\pi(\cdot|s))`
    (the paper's entropy-regularised sampling, https://arxiv.org/abs/2502.01652).

    ``"auto"`` learns it as SAC does (https://arxiv.org/abs/1812.05905, section 5), with Adam on its logarithm:

    .. math::
        J(\log \alpha) = \log \alpha \cdot (\mathcal{H}(\pi) - \mathcal{H}_{target})

    :param ent_coef: α: a number; a function of the progress that remains (from 1 to 0); ``"lin_0.01"`` (from 0.01 to 0);
        ``"auto"``, which begins at 0.01, or ``"auto_0.1"``, which begins at 0.1
    :param target_entropy: Entropy to stay at, in nats, for ``"auto"`` only. ``"auto"``: minus the number of action dimensions
        for continuous actions, as in SAC; half of the largest possible entropy for discrete ones
    :param action_space: The action space
    :param learning_rate: Learning rate of log α at the start
    :param device: PyTorch device
    :raises ValueError: if an argument is not what it may be
    """

    def __init__(
        self,
        ent_coef: float | str | Schedule,
        target_entropy: float | Literal["auto"],
        action_space: spaces.Space[Any],
        learning_rate: float,
        device: th.device | str,
    ) -> None:
        self.given = ent_coef
        # where nothing is learned, it takes what a saved model may have learned, and is not looked at
        self.log_coef = th.zeros(1, device=device)
        self.optimizer: th.optim.Optimizer | None = None
        self._schedule: FloatSchedule | None = None
        word, _, number = ent_coef.partition("_") if isinstance(ent_coef, str) else ("", "", "")
        if word == "auto":
            start = _number(number or "0.01", ent_coef)
            if start <= 0.0:
                raise ValueError(f"Received ent_coef={ent_coef!r}: a learned coefficient begins above 0, as in 'auto_0.01'.")
            self.target = _target(target_entropy, action_space)
            self.log_coef = th.full((1,), math.log(start), device=device, requires_grad=True)
            self.optimizer = th.optim.Adam([self.log_coef], lr=learning_rate)
            return
        if target_entropy != "auto":
            raise ValueError(
                f"Received target_entropy={target_entropy!r} with ent_coef={ent_coef!r}, where nothing would aim at it: "
                "use ent_coef='auto' with it, or leave target_entropy at 'auto'."
            )
        if word == "lin":
            self._schedule = FloatSchedule(LinearSchedule(_number(number, ent_coef), 0.0, 1.0))
        elif callable(ent_coef):
            self._schedule = FloatSchedule(ent_coef)
        else:
            self._fixed = _number(ent_coef, ent_coef)

    @property
    def changes(self) -> bool:
        """Whether it is anything but one fixed number."""
        return self._schedule is not None or self.optimizer is not None

    def value(self, progress_remaining: float) -> float:
        """
        :param progress_remaining: From 1 at the start of the training to 0 at its end
        :return: α now
        """
        if self.optimizer is not None:
            return math.exp(self.log_coef.item())
        return self._fixed if self._schedule is None else self._schedule(progress_remaining)

    def suited(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """
        Make a model's parameters those of one with this coefficient: what was not learned where they come from begins anew,
        and what is not learned here is left out.

        :param parameters: Parameters of another model
        :return: Parameters for this one
        """
        name = "entropy.optimizer"
        others = {key: value for key, value in parameters.items() if key != name}
        return others if self.optimizer is None else {name: self.optimizer.state_dict(), **parameters}

    def adapt(self, entropy: th.Tensor) -> None:
        """
        Learn from a minibatch; nothing happens unless α is learned.

        :param entropy: The policy's mean entropy, in nats, a scalar
        """
        if self.optimizer is None:
            return
        loss = (self.log_coef * (entropy.detach() - self.target)).mean()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


def _number(text: object, received: object) -> float:
    try:
        number = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"Received ent_coef={received!r}: it must be a number, a function of the remaining progress, 'lin_0.01' (from "
            "0.01 down to 0), 'auto' or 'auto_0.01' (learned, from 0.01 on)."
        )
    return number


def _target(target_entropy: float | str, action_space: spaces.Space[Any]) -> float:
    if isinstance(target_entropy, int | float | np.number) and math.isfinite(target_entropy):
        return float(target_entropy)
    if target_entropy != "auto":
        raise ValueError(f"Received target_entropy={target_entropy!r}: it must be 'auto' or a number of nats.")
    if isinstance(action_space, spaces.Box):
        return -float(np.prod(action_space.shape))
    if isinstance(action_space, spaces.Discrete):
        largest = math.log(action_space.n)
    elif isinstance(action_space, spaces.MultiDiscrete):
        largest = float(np.log(action_space.nvec).sum())
    else:
        assert isinstance(action_space, spaces.MultiBinary)
        largest = math.log(2) * float(np.prod(action_space.shape))
    return DISCRETE_SHARE * largest
