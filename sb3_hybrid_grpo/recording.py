"""
The gradient of a loss, replayed kernel by kernel without Python and autograd between the kernels.

Networks of the usual size for control take less time to compute than Python takes to walk through them. A recording runs the
same kernels in the same order as the policy and autograd do: its results are theirs, to the last bit.
"""

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable import policies as maskable
from stable_baselines3.common import distributions, policies, torch_layers
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.jit import optimized_execution  # type: ignore[attr-defined]

# To record costs about what this many calls save.
CALLS_BEFORE_RECORDING = 300

# Only what is known to do the same at every call: no randomness, no state, no decision by the numbers. Of these very classes.
# No convolutions: TorchScript cannot trace their gradient, and they take longer than Python does.
_MODULES = {
    *(policies.ActorCriticPolicy, policies.MultiInputActorCriticPolicy),
    *(maskable.MaskableActorCriticPolicy, maskable.MaskableMultiInputActorCriticPolicy),
    *(torch_layers.FlattenExtractor, torch_layers.CombinedExtractor, torch_layers.MlpExtractor),
    *(nn.Sequential, nn.ModuleDict, nn.Linear, nn.Flatten, nn.Identity),
    *(nn.Tanh, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus),
}

Outputs = tuple[th.Tensor, ...]


class Gradient:
    """
    Gives a policy's parameters the clipped gradient of a loss. Recorded once minibatches of one shape have come often enough.

    What the loss reads besides the minibatch must stay what it is, parameters excepted, which may change in place.

    :param policy: The policy
    :param loss: The loss of a minibatch, and a tensor of statistics
    :param max_grad_norm: The largest norm that the gradient may have
    :param records: Whether to record
    """

    def __init__(
        self,
        policy: policies.BasePolicy,
        loss: Callable[[Any], tuple[th.Tensor, th.Tensor]],
        max_grad_norm: float,
        records: bool,
    ) -> None:
        self._policy, self._loss, self._max_grad_norm, self._records = policy, loss, max_grad_norm, records
        self._parameters = list(policy.parameters())
        self._calls: Counter[int] = Counter()
        self._recordings: dict[int, Any] = {}

    def __call__(self, batch: Any) -> th.Tensor:
        """
        :param batch: A minibatch
        :return: The statistics
        """
        if not self._records:
            return self._compute(batch)[0]
        size = len(batch.actions)
        if size in self._recordings:
            statistics, *gradients = _replay(self._recordings[size], _tensors(batch))
            self._give(gradients)
            return statistics
        self._calls[size] += 1
        statistics, *gradients = self._compute(batch)
        if self._calls[size] == CALLS_BEFORE_RECORDING:
            self._record(size, batch, (statistics, *gradients))
            self._give(gradients)  # while it was recorded, the parameters had others
        return statistics

    def _give(self, gradients: list[th.Tensor]) -> None:
        for parameter, gradient in zip(self._trained, gradients, strict=True):
            parameter.grad = gradient

    def _compute(self, batch: Any) -> Outputs:
        loss, statistics = self._loss(batch)
        self._policy.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        th.nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)
        self._trained = [parameter for parameter in self._parameters if parameter.grad is not None]
        return statistics, *(cast(th.Tensor, parameter.grad) for parameter in self._trained)

    def _record(self, size: int, batch: Any, outputs: Outputs) -> None:
        """Record, and keep the recording if it gives what was computed."""
        tensors = _tensors(batch)
        try:
            with warnings.catch_warnings():
                # TorchScript is to go some day; nothing else runs kernels without Python and without other roundings
                warnings.simplefilter("ignore", DeprecationWarning)
                graph = make_fx(lambda *tensors: self._compute(_like(batch, tensors)))(*tensors)
                with th.no_grad():
                    recording: Any = th.jit.trace(graph, tensors, check_trace=False)  # type: ignore[no-untyped-call]
            if not all(map(th.equal, outputs, _replay(recording, tensors))):
                raise RuntimeError("a recording gives other numbers")
        except Exception as error:  # torch raises all kinds
            warnings.warn(f"The update cannot be recorded, and stays as slow as it is: {error}", stacklevel=2)
            return
        self._recordings[size] = recording


def _tensors(batch: Any) -> tuple[th.Tensor, ...]:
    observations, *others = batch
    return (*observations.values(), *others) if isinstance(observations, dict) else tuple(batch)


def _like(batch: Any, tensors: tuple[th.Tensor, ...]) -> Any:
    """A minibatch made of other tensors."""
    if not isinstance(batch.observations, dict):
        return type(batch)(*tensors)
    keys = list(batch.observations)
    return type(batch)(dict(zip(keys, tensors, strict=False)), *tensors[len(keys) :])


def _replay(recording: Any, tensors: tuple[th.Tensor, ...]) -> Outputs:
    # optimised, it would take time to fuse kernels, and round otherwise
    with th.no_grad(), optimized_execution(False):
        outputs: Outputs = recording(*tensors)
    return outputs


def can_be_recorded(policy: nn.Module, observation_space: spaces.Space[Any]) -> bool:
    """
    :param policy: A policy
    :param observation_space: Its observation space
    :return: Whether its evaluation of actions does the same at every call, for all that is known
    """
    parts = observation_space.spaces.values() if isinstance(observation_space, spaces.Dict) else [observation_space]
    if not all(isinstance(part, spaces.Box) for part in parts):  # to encode others, torch looks at the numbers
        return False
    if isinstance(getattr(policy, "action_dist", None), distributions.StateDependentNoiseDistribution):
        return False
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, name) for module in policy.modules() for name in hooks):
        return False
    if any(parameter._backward_hooks for parameter in policy.parameters()):
        return False
    on_cpu = all(parameter.device.type == "cpu" for parameter in policy.parameters())
    return on_cpu and all(type(module) in _MODULES for module in policy.modules())
