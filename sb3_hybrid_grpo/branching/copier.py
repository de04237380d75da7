"""
Copies object graphs: one rule for each type, by public APIs alone.

``copy.deepcopy`` is not enough: for a class that defines its own pickling (gymnasium's ``EzPickle``) it builds a new env,
silently in another state. Here a rule copies each object's contents, and an object without a rule is refused by name.
"""

import array
import collections
import datetime
import decimal
import enum
import fractions
import functools
import gc
import io
import logging
import operator
import pathlib
import random
import re
import struct
import sys
import threading
import types
import uuid
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from sb3_hybrid_grpo.branching import engines
from sb3_hybrid_grpo.branching import native_types as native
from sb3_hybrid_grpo.branching import python_types as python
from sb3_hybrid_grpo.branching.engines import ATOMS, CannotCopyError, Rule, module_of, name_of, never
from sb3_hybrid_grpo.branching.wrapper_chain import PROCESS_WIDE_NUMPY, PROCESS_WIDE_PYTHON, is_skipped, set_state, state_of

DEEPEST = 5000
"""The limit of Python's recursion while an env is copied; 1000 is usual. It takes a megabyte of the main thread's stack."""


class Copier:
    """
    Copies an object and all objects that it refers to, with their references to each other. Immutable objects are shared.

    :param reuse: ``natives`` of an earlier copy that is not needed any more: they are overwritten instead of made anew
    :param own_models: Whether each copy has an MjModel of its own
    :param shared: Objects to share
    """

    def __init__(self, reuse: Any = None, own_models: bool = False, shared: Sequence[Any] = ()) -> None:
        self.own_models = own_models
        self.memo: dict[int, Any] = {id(one): one for one in shared} if shared else {}
        self.originals: list[Any] = []
        """The objects that were copied. They are kept alive, so that no other object gets one of their ids."""
        self.reuse: dict[int, Any] = {} if reuse is None else reuse
        self.natives: dict[int, tuple[Any, Any]] = {}
        """For simulators and generators, by the id of the original: the original and its copy."""
        self.mujoco_arrays: dict[int, tuple[Any, str]] = {}
        """Arrays of the copied simulators, by address: the MjData, and the array's path of attributes from there."""
        self.swapped: list[tuple[engines.Shared, Any]] = []
        """The objects that all members share because they save and restore themselves, and the copy's state of each."""
        self.alive: list[Any] = []
        """Targets of the copy's weak references."""

    def whole(self, env: Any) -> Any:
        """Copy an env. A graph of linked objects is as deep as it has objects, so Python may recurse deeper than usual."""
        limit = sys.getrecursionlimit()
        if threading.current_thread() is threading.main_thread():  # other threads may have less memory for it
            sys.setrecursionlimit(max(limit, DEEPEST))
        try:
            return self(env)
        finally:
            sys.setrecursionlimit(limit)

    def __call__(self, obj: Any) -> Any:
        kind: Any = type(obj)
        if kind in ATOMS:
            return obj
        made = self.memo.get(id(obj), self)
        if made is not self:
            return made
        rule = _RULES.get(kind)
        try:
            made = (_rule_of(kind) if rule is None else rule)(self, obj)
        except CannotCopyError as error:
            error.holders.append(obj)
            raise
        except RecursionError:
            raise
        except Exception as error:
            refusal = CannotCopyError(f"is a {name_of(kind)}, and copying or saving it raised {error!r}")
            refusal.holders.append(obj)
            raise refusal from error
        if made is not obj:
            made = self.memo.setdefault(id(obj), made)  # a cycle of references may have copied it already
            self.originals.append(obj)
        return made

    def remember(self, obj: Any, made: Any) -> Any:
        """Register a copy before it is filled, because its contents may refer back to it."""
        self.memo[id(obj)] = made
        return made


def _copy_bit_generator(c: Any, obj: Any) -> Any:
    """A bit generator, with the seed sequence from which it spawns others."""
    known = c.reuse.get(id(obj))
    if known is not None and known[0] is obj and _n_spawned(known[1]) == _n_spawned(obj):
        made = known[1]
    else:
        made = type(obj)(c(obj.seed_seq)) if type(obj.seed_seq) is np.random.SeedSequence else native.deep(c, obj)
    made.state = obj.state
    c.natives[id(obj)] = (obj, made)
    return made


def _n_spawned(bits: Any) -> Any:
    return getattr(bits.seed_seq, "n_children_spawned", None)


def _copy_old_generator(c: Any, obj: Any) -> Any:
    """A RandomState or a Random; the process-wide ones are shared, see :mod:`global_state`."""

    def make(generator: Any, reuse: Any) -> Any:
        if reuse is None:
            return native.deep(c, generator)
        set_state(reuse, state_of(generator))
        return reuse

    if obj is PROCESS_WIDE_NUMPY or obj is PROCESS_WIDE_PYTHON:
        return obj
    if type(obj) in (random.Random, np.random.RandomState):
        return native.remember_native(c, obj, make)
    made = python.fill(c, obj, random.Random.__new__(type(obj)))  # of a subclass, which may have attributes
    random.Random.setstate(made, random.Random.getstate(obj))  # its own methods may do something else
    c.natives[id(obj)] = (obj, made)
    return made


@functools.lru_cache(maxsize=4096)
def _rule_of(kind: Any) -> Rule:
    """The rule for a type that is not in ``_RULES``."""
    rule = engines.registered_rule(kind)
    if rule is None and issubclass(kind, gym.Wrapper) and is_skipped(kind):
        return lambda c, obj: c(obj.env)  # the copy has the wrapped env in place of the recorder
    rule = rule or native.native_rule(kind)
    if rule is not None:
        return rule
    refusal = engines.refusal_of(kind)
    if refusal is not None:
        return never(*refusal)
    for base, base_rule in _BASES.items():
        if issubclass(kind, base):
            return base_rule
    if kind is object or module_of(kind) == "typing":
        return native.share
    if kind.__name__ == "cython_function_or_method":
        return python.copy_bound_builtin
    finalized = hasattr(kind, "__del__")
    if finalized and not all(callable(getattr(kind, name, None)) for name in ("reset", "step", "close")):
        return never(f"is a {name_of(kind)}, which runs code when it is deleted (__del__)")
    fields = (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0) + len(python.slots_of(kind))
    if kind.__basicsize__ > object.__basicsize__ + 8 * fields or kind.__itemsize__:
        if issubclass(kind, Iterator) and module_of(kind) in ("builtins", "itertools"):
            return python.copy_by_reduce
        return never(f"is a {name_of(kind)}, written in C: declare how it is copied (register_copier, register_engine)")
    made_kind = python.without_finalizer(kind) if finalized else kind
    return lambda c, obj: python.fill(c, obj, object.__new__(made_kind))


engines.CACHES.append(_rule_of)

_RULES: dict[Any, Rule] = {
    **dict.fromkeys((dict, collections.OrderedDict), python.copy_mapping),
    list: python.copy_list,
    tuple: python.copy_tuple,
    **dict.fromkeys((set, frozenset), python.copy_set),
    np.ndarray: native.copy_array,
    np.random.Generator: lambda c, obj: np.random.Generator(c(obj.bit_generator)),
    types.FunctionType: python.copy_function,
    types.MethodType: python.copy_method,
    types.CellType: python.copy_cell,
    **dict.fromkeys((types.BuiltinFunctionType, types.MethodWrapperType), python.copy_bound_builtin),
    **{type(getattr({}, name)()): functools.partial(python.copy_dict_view, name) for name in ("keys", "values", "items")},
    types.MappingProxyType: lambda c, obj: types.MappingProxyType(c(*gc.get_referents(obj))),
    types.SimpleNamespace: lambda c, obj: python.fill(c, obj, types.SimpleNamespace()),
    types.GeneratorType: never("is a generator, whose position in its code cannot be copied"),
    type(functools.lru_cache(len)): python.copy_cached_function,
    weakref.ref: python.copy_weak_reference,
    **dict.fromkeys(
        (weakref.ProxyType, weakref.CallableProxyType),
        lambda c, obj: weakref.proxy(python.copy_and_keep(c, obj.__reduce_ex__.__self__)),
    ),
    memoryview: native.copy_memoryview,
    **dict.fromkeys((bytearray, array.array), lambda c, obj: obj[:]),
    **dict.fromkeys((spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary), python.copy_space),
    **dict.fromkeys((python.LOCK, python.RLOCK), python.copy_lock),
    np.random.SeedSequence: native.deep,
    np.random.RandomState: _copy_old_generator,
}
_BASES: dict[Any, Rule] = {
    Monitor: python.copy_monitor,
    np.ndarray: native.copy_array,
    np.void: native.copy_record,
    np.ufunc: python.copy_ufunc,
    np.random.BitGenerator: _copy_bit_generator,
    np.random.Generator: lambda c, obj: python.fill(c, obj, type(obj)(c(obj.bit_generator))),
    random.Random: _copy_old_generator,
    **dict.fromkeys((enum.Enum, type, np.generic, np.dtype, range, slice, property, staticmethod), native.share),
    **dict.fromkeys((classmethod, type(...), type(NotImplemented), types.ModuleType, types.CodeType), native.share),
    **dict.fromkeys((types.GenericAlias, types.MethodDescriptorType, types.WrapperDescriptorType), native.share),
    **dict.fromkeys((re.Pattern, re.Match, struct.Struct, types.UnionType, pathlib.PurePath, uuid.UUID), native.share),
    **dict.fromkeys((fractions.Fraction, decimal.Decimal), native.share),
    **dict.fromkeys((datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo, EnvSpec), native.share),
    **dict.fromkeys((logging.Logger, logging.Handler), native.share),
    **dict.fromkeys((operator.itemgetter, operator.attrgetter, operator.methodcaller), native.share),
    **{base: python.immutable_subclass_of(base) for base in (int, float, complex, str, bytes, tuple)},
    **{
        base: python.subclass_of(base)
        for base in (collections.OrderedDict, collections.defaultdict, dict, list, set, collections.deque)
    },
    **dict.fromkeys((functools.partial, io.StringIO, io.BytesIO), python.copy_by_reduce),
    **dict.fromkeys((weakref.WeakSet, weakref.WeakKeyDictionary, weakref.WeakValueDictionary), python.copy_weak_container),
    io.IOBase: python.copy_file,
    threading.local: python.copy_local,
    VecEnv: never("is a VecEnv, which refers to all envs"),
}
