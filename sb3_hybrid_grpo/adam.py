"""
Adam's steps in few calls: the moments of all parameters lie side by side in one tensor each.

An operation on a number gives what it gives wherever the number lies. So the results are torch's, to the last bit.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch as th

# What makes Adam's step another function, if set.
_VARIANTS = ("amsgrad", "maximize", "capturable", "differentiable", "fused", "weight_decay")


@contextmanager
def steps_of(optimizer: th.optim.Optimizer, same_parameters: bool) -> Iterator[Callable[[], None]]:
    """
    Step an optimiser many times. What it knows of its parameters is up to date when the context is left.

    :param optimizer: The optimiser; any but plain Adam steps as it does by itself
    :param same_parameters: Whether the same parameters have a gradient at every step; if not, it steps as it does by itself
    :return: What makes a step
    """
    if not (same_parameters and _is_plain_adam(optimizer)):
        yield optimizer.step
        return
    adam = _FlatAdam(optimizer)
    try:
        yield adam.step
    finally:
        adam.hand_back()


def _is_plain_adam(optimizer: th.optim.Optimizer) -> bool:
    if type(optimizer) is not th.optim.Adam or len(optimizer.param_groups) != 1 or "step" in vars(optimizer):
        return False
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return False
    group = optimizer.param_groups[0]
    return not any(group[name] for name in _VARIANTS) and all(isinstance(group[name], float) for name in ("lr", "eps"))


class _FlatAdam:
    """
    Adam (https://arxiv.org/abs/1412.6980) with torch's operations in torch's order.

    :param optimizer: The optimiser whose steps are made
    """

    def __init__(self, optimizer: th.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._parameters: list[th.Tensor] | None = None  # until the first step, which shows who has a gradient
        self._n_steps = 0
        self._mean = self._square = self._scale = th.empty(0)
        self._means: list[th.Tensor] = []
        self._scales: list[th.Tensor] = []

    @th.no_grad()
    def step(self) -> None:
        """Make a step."""
        group = self._optimizer.param_groups[0]
        if self._parameters is None:
            self._take([parameter for parameter in group["params"] if parameter.grad is not None])
        if not self._parameters:
            self._optimizer.step()
            return
        self._n_steps += 1
        beta1, beta2 = group["betas"]
        gradient = _flat([parameter.grad for parameter in self._parameters])
        self._mean.lerp_(gradient, 1 - beta1)
        self._square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        th.sqrt(self._square, out=self._scale)
        self._scale.div_((1 - beta2**self._n_steps) ** 0.5).add_(group["eps"])
        th._foreach_addcdiv_(self._parameters, self._means, self._scales, -(group["lr"] / (1 - beta1**self._n_steps)))

    def _take(self, parameters: list[th.Tensor]) -> None:
        """Take over the moments of parameters that have made as many steps each; nothing if some have made more."""
        states: list[dict[str, Any]] = [self._optimizer.state[parameter] for parameter in parameters]
        steps = {float(state["step"]) if state else 0.0 for state in states}
        self._parameters = parameters if len(steps) == 1 else []
        if not self._parameters:
            return
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state["step"] = th.tensor(0.0)
                state["exp_avg"], state["exp_avg_sq"] = th.zeros_like(parameter), th.zeros_like(parameter)
        self._n_steps = int(steps.pop())
        self._mean, self._square = (_flat([state[name] for state in states]) for name in ("exp_avg", "exp_avg_sq"))
        self._scale = th.empty_like(self._square)
        self._means, self._scales = self._views(self._mean), self._views(self._scale)

    def hand_back(self) -> None:
        """Let the optimiser know the moments."""
        if not self._parameters:
            return
        for parameter, mean, square in zip(self._parameters, self._means, self._views(self._square), strict=True):
            state: dict[str, Any] = self._optimizer.state[parameter]
            state["exp_avg"].copy_(mean)
            state["exp_avg_sq"].copy_(square)
            state["step"].fill_(self._n_steps)

    def _views(self, flat: th.Tensor) -> list[th.Tensor]:
        parameters = self._parameters or []
        sizes = [parameter.numel() for parameter in parameters]
        return [part.view(one.shape) for part, one in zip(th.split(flat, sizes), parameters, strict=True)]


def _flat(tensors: list[Any]) -> th.Tensor:
    return th.cat([tensor.reshape(-1) for tensor in tensors])
