"""
What is done with a policy again and again, replayed kernel by kernel without Python and autograd between the kernels.

Networks of the usual size for control take less time to compute than Python takes to walk through them. A recording runs the
same kernels in the same order as the policy and autograd do: its results are theirs, to the last bit.
"""

import threading
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
from torch.jit._trace import _unique_state_dict

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

_ONE_AT_A_TIME = threading.Lock()
"""Torch records by changes to itself, which another thread's recording would undo: Optuna's jobs are threads."""

Outputs = tuple[th.Tensor, ...]
_Kind = tuple[tuple[th.Size, th.dtype], ...]
"""Shapes and types of arguments: what a recording is made for."""


class Recorded:
    """
    A function of tensors that is recorded once it was called often with arguments of the same shapes and types, and replayed
    from then on.

    What it reads besides its arguments must stay what it is, parameters excepted, which may change in place.

    :param function: The function; it may draw random numbers, and call autograd
    """

    def __init__(self, function: Callable[..., Outputs]) -> None:
        self._function = function
        self._calls: Counter[_Kind] = Counter()
        self._recordings: dict[_Kind, Callable[..., Outputs]] = {}

    def __call__(self, *tensors: th.Tensor) -> Outputs:
        """
        :param tensors: The function's arguments
        :return: What it gives
        """
        kind = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        if kind in self._recordings:
            return _replay(self._recordings[kind], tensors)
        self._calls[kind] += 1
        if self._calls[kind] != CALLS_BEFORE_RECORDING:
            return self._function(*tensors)
        random_state = th.get_rng_state()
        outputs = self._function(*tensors)
        with th.random.fork_rng(devices=[]):
            self._record(kind, tensors, outputs, random_state)
        return outputs

    def _record(self, kind: "_Kind", tensors: tuple[th.Tensor, ...], outputs: Outputs, random_state: th.Tensor) -> None:
        """Record, and keep the recording if it gives what the function gave from the same random numbers."""
        try:
            with _ONE_AT_A_TIME, warnings.catch_warnings():
                # TorchScript is to go some day; nothing else runs kernels without Python and without other roundings
                warnings.simplefilter("ignore", DeprecationWarning)
                graph = make_fx(self._function)(*tensors)
                with th.no_grad():
                    traced, _ = th.jit._get_trace_graph(graph, tensors)  # type: ignore[attr-defined, no-untyped-call]
            # of its own, freed with its last user: what th.jit.trace makes stays as long as the process
            function = th._C._create_function_from_graph("recording", traced)
            parameters = tuple(_unique_state_dict(graph, keep_vars=True).values())  # type: ignore[no-untyped-call]

            def recording(*tensors: th.Tensor) -> Outputs:
                outputs = function(*tensors, *parameters)
                return (outputs,) if isinstance(outputs, th.Tensor) else outputs

            th.set_rng_state(random_state)
            if not all(map(th.equal, outputs, _replay(recording, tensors))):
                raise RuntimeError("a recording gives other numbers")
        except Exception as error:  # torch raises all kinds
            warnings.warn(f"The policy cannot be recorded, and stays as slow as it is: {error}", stacklevel=2)
            return
        self._recordings[kind] = recording


class Gradient:
    """
    Gives a policy's parameters the clipped gradient of a loss.

    :param policy: The policy
    :param loss: The loss of a minibatch, and a tensor of statistics
    :param max_grad_norm: The largest norm that the gradient may have
    :param records: Whether to record; then the loss must be what :class:`Recorded` wants of a function
    """

    def __init__(
        self,
        policy: policies.BasePolicy,
        loss: Callable[[Any], tuple[th.Tensor, th.Tensor]],
        max_grad_norm: float,
        records: bool,
    ) -> None:
        self.records, self._policy, self._loss, self._max_grad_norm = records, policy, loss, max_grad_norm
        self._parameters = list(policy.parameters())
        self._recorded = Recorded(lambda *tensors: self._compute(_like(self._batch, tensors))) if records else None

    def __call__(self, batch: Any) -> th.Tensor:
        """
        :param batch: A minibatch
        :return: The statistics
        """
        if self._recorded is None:
            return self._compute(batch)[0]
        self._batch = batch
        statistics, *gradients = self._recorded(*_tensors(batch))
        for parameter in self._parameters:  # a gradient that someone else left is not to be stepped
            parameter.grad = None
        for parameter, gradient in zip(self._trained, gradients, strict=True):
            parameter.grad = gradient
        return statistics

    def _compute(self, batch: Any) -> Outputs:
        loss, statistics = self._loss(batch)
        self._policy.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        th.nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)
        self._trained = [parameter for parameter in self._parameters if parameter.grad is not None]
        return statistics, *(cast(th.Tensor, parameter.grad) for parameter in self._trained)


def _tensors(batch: Any) -> tuple[th.Tensor, ...]:
    observations, *others = batch
    return (*observations.values(), *others) if isinstance(observations, dict) else tuple(batch)


def _like(batch: Any, tensors: tuple[th.Tensor, ...]) -> Any:
    """A minibatch made of other tensors."""
    if not isinstance(batch.observations, dict):
        return type(batch)(*tensors)
    keys = list(batch.observations)
    return type(batch)(dict(zip(keys, tensors, strict=False)), *tensors[len(keys) :])


def _replay(recording: Callable[..., Outputs], tensors: tuple[th.Tensor, ...]) -> Outputs:
    # optimised, it would take time to fuse kernels, and round otherwise
    with th.no_grad(), th.jit.optimized_execution(False):  # type: ignore[attr-defined]
        return recording(*tensors)


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
    if any(one._backward_hooks or one._post_accumulate_grad_hooks for one in policy.parameters()):
        return False
    on_cpu = all(parameter.device.type == "cpu" for parameter in policy.parameters())
    return on_cpu and all(type(module) in _MODULES for module in policy.modules())
