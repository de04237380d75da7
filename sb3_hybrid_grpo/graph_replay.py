"""Record functions of tensors, and replay their kernels without Python and autograd in between: results are bit-identical."""

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable import policies as maskable
from stable_baselines3.common import distributions, policies, torch_layers
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from sb3_hybrid_grpo.notices import notice

# Recording takes about as much time as this many replays save.
CALLS_BEFORE_RECORDING = 300

# They compute the same at every call; subclasses may not. No convolutions: their kernels take longer than Python's overhead.
_MODULES = {
    *(policies.ActorCriticPolicy, policies.MultiInputActorCriticPolicy),
    *(maskable.MaskableActorCriticPolicy, maskable.MaskableMultiInputActorCriticPolicy),
    *(torch_layers.FlattenExtractor, torch_layers.CombinedExtractor, torch_layers.MlpExtractor),
    *(nn.Sequential, nn.ModuleDict, nn.Linear, nn.Flatten, nn.Identity),
    *(nn.Tanh, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus),
}
_HOOKS_OF_TENSORS = [name for name in dir(th.Tensor) if name.endswith("_hooks")]
_ONE_AT_A_TIME = threading.Lock()  # tracing changes torch's global state, and Optuna's jobs are threads
Function = Callable[..., tuple[th.Tensor, ...]]
_TRACED: dict[str, Function] = {}  # keys: the code of the graphs


class GraphReplay:
    """
    Calls a function. After many calls with tensors of the same shapes and types it records the function, and then replays it.

    :param function: The function. It may draw random numbers and call autograd. All else that it reads besides its arguments
        must stay the same, except that parameters of modules may change in place
    :param key: Changes when the function must be recorded anew, see :func:`graph_key`. The caller compares it
    """

    def __init__(self, function: Function, key: tuple[Any, ...] | None = None) -> None:
        self._function, self.key = function, key
        self._calls: Counter[Any] = Counter()
        self._recordings: dict[Any, Function] = {}

    def __call__(self, *tensors: th.Tensor) -> tuple[th.Tensor, ...]:
        """The function's results for its arguments."""
        kind = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        if kind in self._recordings:
            # TorchScript's optimizer would take time to fuse kernels, and round differently
            with th.no_grad(), th.jit.optimized_execution(False):  # type: ignore[attr-defined]
                return self._recordings[kind](*tensors)
        self._calls[kind] += 1
        if self._calls[kind] != CALLS_BEFORE_RECORDING:
            return self._function(*tensors)
        random_state = th.get_rng_state()
        outputs = self._function(*tensors)
        with th.random.fork_rng(devices=[]):
            try:
                self._recordings[kind] = _recorded(self._function, tensors)
                th.set_rng_state(random_state)
                if not all(map(th.equal, outputs, self(*tensors))):
                    raise RuntimeError("a replay gives other numbers")
            except Exception as error:  # torch raises all kinds
                self._recordings.pop(kind, None)
                notice(f"The policy's graph cannot be replayed, and training stays slower: {error}")
        return outputs


def _recorded(function: Function, tensors: tuple[th.Tensor, ...]) -> Function:
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        for kind in (DeprecationWarning, FutureWarning):  # TorchScript: nothing else is as fast without a compiler
            warnings.simplefilter("ignore", kind)
        validates = th.distributions.Distribution._validate_args  # torch has a public setter only
        th.distributions.Distribution.set_default_validate_args(False)  # validation branches on numbers: not traceable
        try:
            module = make_fx(function)(*tensors)
        finally:
            th.distributions.Distribution.set_default_validate_args(validates)
        # parameters become arguments, so that equal networks share a traced function: torch never frees one
        first, *_ = module.graph.nodes
        constants = [node for node in module.graph.nodes if node.op == "get_attr"]
        parameters = tuple(getattr(module, str(node.target)) for node in constants)
        for node in constants:
            with module.graph.inserting_before(first):
                node.replace_all_uses_with(module.graph.placeholder(str(node.target)))
            module.graph.erase_node(node)
        for name in {str(node.target) for node in constants}:
            delattr(module, name)
        module.recompile()
        if module.code not in _TRACED:
            trace: Any = th.no_grad()(th.jit.trace)
            _TRACED[module.code] = trace(lambda *args: module(*args), (*parameters, *tensors), check_trace=False)
    traced = _TRACED[module.code]
    return lambda *args: traced(*parameters, *args)


def graph_key(policy: nn.Module, observation_space: spaces.Space[Any]) -> tuple[Any, ...] | None:
    """
    :param policy: A policy
    :param observation_space: Its observation space
    :return: The objects that determine which function its forward pass computes, the policy first; None if the policy may
        compute another function at every call
    """
    parts = observation_space.spaces.values() if isinstance(observation_space, spaces.Dict) else [observation_space]
    modules, parameters = list(policy.modules()), list(policy.parameters())
    known = (
        all(isinstance(part, spaces.Box) for part in parts)  # the encoding of others branches on numbers
        and not isinstance(getattr(policy, "action_dist", None), distributions.StateDependentNoiseDistribution)
        and all(type(module) in _MODULES for module in modules)
        and all(one.device.type == "cpu" for one in parameters)
        and not has_hooks([*modules, *parameters])
    )
    return (*modules, *((id(one), one.requires_grad) for one in parameters)) if known else None


def has_hooks(objects: Iterable[Any]) -> bool:
    """Whether a user has registered a hook on one of these modules, parameters and optimizers."""
    names = ((one, (*vars(one), *_HOOKS_OF_TENSORS)) for one in objects)
    return any(getattr(one, name, None) for one, its in names for name in its if name.endswith("_hooks"))
