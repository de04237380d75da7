"""Adam's steps in few calls: while a policy is updated, its parameters lie side by side in one tensor."""

from typing import Any

import torch as th

from sb3_hybrid_grpo.graph_replay import has_hooks

_MOMENTS = ("exp_avg", "exp_avg_sq")


def can_be_flat(optimizer: th.optim.Optimizer, parameters: list[th.nn.Parameter]) -> bool:
    """
    :param optimizer: An optimizer
    :param parameters: The parameters that will have a gradient at every step
    :return: Whether :class:`FlatAdam` makes its steps
    """
    if type(optimizer) is not th.optim.Adam or len(optimizer.param_groups) != 1 or has_hooks([optimizer]):
        return False
    group = optimizer.param_groups[0]
    if group["amsgrad"] or group["capturable"] or group["fused"] or "step" in vars(optimizer):
        return False
    known = {id(one) for one in group["params"]}
    steps = {float(optimizer.state[one]["step"]) if optimizer.state[one] else 0.0 for one in parameters}
    return len(steps) == 1 and all(id(one) in known and one.dtype == th.float32 for one in parameters)


class FlatAdam:
    """
    Torch's Adam over one tensor in place of many. Each number is computed as it is without this, to the last bit.

    A context: inside, the parameters are views of the tensor; outside, parameters and optimizer are what they were, updated.

    :param optimizer: The optimizer whose steps are made, see :func:`can_be_flat`
    :param parameters: The parameters that have a gradient
    """

    def __init__(self, optimizer: th.optim.Optimizer, parameters: list[th.nn.Parameter]) -> None:
        self._optimizer, self._parameters = optimizer, parameters

    def __enter__(self) -> "FlatAdam":
        self._flat = th.nn.Parameter(_flat(self._parameters))
        options = {name: value for name, value in self._optimizer.param_groups[0].items() if name != "params"}
        self._adam = th.optim.Adam([self._flat], **{**options, "foreach": False})
        states: list[dict[str, Any]] = [self._optimizer.state[one] for one in self._parameters]
        if states[0]:
            moments = {name: _flat([state[name] for state in states]) for name in _MOMENTS}
            self._adam.state[self._flat] = {"step": states[0]["step"].clone(), **moments}
        self._own = [one.data for one in self._parameters]
        for parameter, view in zip(self._parameters, self._views(self._flat.detach()), strict=True):
            parameter.data = view
        return self

    def step(self, gradient: th.Tensor) -> None:
        """
        Make a step.

        :param gradient: The gradients of all parameters, one after another
        """
        self._flat.grad = gradient
        self._adam.step()

    def __exit__(self, *_: object) -> None:
        for parameter, own in zip(self._parameters, self._own, strict=True):
            parameter.data = own.copy_(parameter.data)
        state = self._adam.state[self._flat]
        if not state:  # no step was made
            return
        moments = [self._views(state[name]) for name in _MOMENTS]
        for parameter, mean, square in zip(self._parameters, *moments, strict=True):
            its = {"step": state["step"].clone(), "exp_avg": mean.clone(), "exp_avg_sq": square.clone()}
            self._optimizer.state[parameter] = its

    def _views(self, flat: th.Tensor) -> list[th.Tensor]:
        parts = th.split(flat, [one.numel() for one in self._parameters])
        return [part.view(one.shape) for part, one in zip(parts, self._parameters, strict=True)]


def _flat(tensors: list[Any]) -> th.Tensor:
    return th.cat([tensor.detach().reshape(-1) for tensor in tensors])
