"""Adam with few calls of torch: during an update, all parameters of a policy are views of one tensor."""

from collections.abc import Iterable
from typing import Any

import torch as th
from torch.nn import functional as F

from sb3_hybrid_grpo.graph_replay import has_hooks

_MOMENTS = ("exp_avg", "exp_avg_sq")
_ALIGNMENT = 64  # bytes; torch aligns tensors so on CPU


def can_be_flat(optimizer: th.optim.Optimizer, parameters: list[th.nn.Parameter]) -> bool:
    """
    :param optimizer: An optimizer
    :param parameters: The parameters that will have a gradient at every step
    :return: Whether :class:`FlatAdam` can make its steps
    """
    if type(optimizer) is not th.optim.Adam or len(optimizer.param_groups) != 1 or has_hooks([optimizer]):
        return False
    group = optimizer.param_groups[0]
    if group["amsgrad"] or group["capturable"] or group["fused"] or "step" in vars(optimizer):
        return False
    known = {id(one) for one in group["params"]}
    states = [optimizer.state.get(one) for one in parameters]  # a defaultdict: indexing adds an entry
    steps = {float(state["step"]) if state else 0.0 for state in states}
    return len(steps) == 1 and all(id(one) in known and one.dtype == th.float32 for one in parameters)


class FlatAdam:
    """
    Torch's Adam over one tensor in place of many, with bit-identical results.

    A context manager: inside, the parameters are views of the tensor. On exit, the new numbers, Adam's state and the last
    step's gradients are written to the original parameters and optimizer.

    :param optimizer: The optimizer, see :func:`can_be_flat`
    :param parameters: The parameters that have a gradient
    """

    def __init__(self, optimizer: th.optim.Optimizer, parameters: list[th.nn.Parameter]) -> None:
        self._optimizer, self._parameters = optimizer, parameters

    def __enter__(self) -> "FlatAdam":
        self._flat = th.nn.Parameter(flat(one.detach() for one in self._parameters))
        options = {name: value for name, value in self._optimizer.param_groups[0].items() if name != "params"}
        self._adam = th.optim.Adam([self._flat])
        # set later: only the constructor refuses a learning rate just below 0, with which a schedule may end
        self._adam.param_groups[0].update(options, foreach=False)
        states: list[Any] = [self._optimizer.state.get(one) for one in self._parameters]
        if states[0]:
            moments = {name: flat(state[name] for state in states) for name in _MOMENTS}
            self._adam.state[self._flat] = {"step": states[0]["step"].clone(), **moments}
        self._own = [one.data for one in self._parameters]
        for parameter, view in zip(self._parameters, self._views(self._flat.detach()), strict=True):
            parameter.data = view
        return self

    def step(self, gradient: th.Tensor) -> None:
        """
        Make a step.

        :param gradient: The gradients of all parameters, concatenated by :func:`flat`
        """
        self._flat.grad = gradient
        self._adam.step()

    def __exit__(self, *_: object) -> None:
        for parameter, own in zip(self._parameters, self._own, strict=True):
            parameter.data = own.copy_(parameter.data)
        if self._flat.grad is None:  # no step was made
            return
        state = self._adam.state[self._flat]
        parts = map(self._views, (self._flat.grad, *(state[name] for name in _MOMENTS)))
        self._optimizer.zero_grad()
        for parameter, gradient, mean, square in zip(self._parameters, *parts, strict=True):
            its = {"step": state["step"].clone(), "exp_avg": mean.clone(), "exp_avg_sq": square.clone()}
            self._optimizer.state[parameter] = its
            parameter.grad = gradient.clone()

    def _views(self, flat: th.Tensor) -> list[th.Tensor]:
        parts = th.split(flat, [one.numel() + _padding(one) for one in self._parameters])
        return [part[: one.numel()].view(one.shape) for part, one in zip(parts, self._parameters, strict=True)]


def flat(tensors: Iterable[th.Tensor]) -> th.Tensor:
    """
    Concatenate tensors, each aligned as torch aligns it: on unaligned memory, kernels may round differently.

    :param tensors: Tensors
    :return: One tensor, with zeros as padding
    """
    return th.cat([F.pad(one.reshape(-1), (0, _padding(one))) if _padding(one) else one.reshape(-1) for one in tensors])


def _padding(tensor: th.Tensor) -> int:
    return -tensor.numel() % (_ALIGNMENT // tensor.element_size())
