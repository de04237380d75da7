"""
Copies object graphs: one rule for each type, by public APIs alone.

``copy.deepcopy`` cannot do it: where a class says how it is pickled (gymnasium's ``EzPickle``) it builds a new env, silently in
another state. Here every object is copied by what it is made of, and an object that no rule knows is refused by name.
"""

import array
import collections
import datetime
import decimal
import enum
import fractions
import functools
import io
import itertools
import logging
import operator
import pathlib
import random
import re
import sys
import threading
import types
import uuid
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.vec_env import VecEnv

from sb3_hybrid_grpo.branching import native_types as native
from sb3_hybrid_grpo.branching.engines import (
    ATOMS,
    CannotCopyError,
    RefusedError,
    Shared,
    constants_of,
    module_of,
    name_of,
    on_registration,
    refusal_of,
    registered_rule,
)
from sb3_hybrid_grpo.branching.wrapper_chain import is_skipped

Rule = Callable[["Copier", Any], Any]
_RECORDS_OF_ENVS = frozenset({"_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs", "spec", "_cached_spec"})
"""How an env was made. No step reads it."""
_CONSTANT: tuple[type, ...] = (
    *(type, enum.Enum, np.generic, np.dtype, range, slice, property, staticmethod, classmethod, type(Ellipsis)),
    *(types.ModuleType, types.CodeType, types.GenericAlias, types.NotImplementedType, types.MethodDescriptorType),
    *(types.WrapperDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType, types.UnionType),
    *(re.Pattern, pathlib.PurePath, uuid.UUID, fractions.Fraction, decimal.Decimal, EnvSpec, logging.Logger, logging.Handler),
    *(datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo),
    *(operator.itemgetter, operator.attrgetter, operator.methodcaller),
)
_ITERATORS: tuple[Any, ...] = (
    *(zip, map, filter, enumerate, reversed, type(iter([])), type(iter(())), type(iter(range(0))), type(iter(reversed([])))),
    *(type(iter("")), type(iter({})), type(iter({}.values())), type(iter({}.items())), type(iter(set()))),
    *(itertools.count, itertools.cycle, itertools.chain, itertools.repeat, itertools.islice, itertools.accumulate),
    *(itertools.product, itertools.permutations, itertools.combinations, itertools.compress, itertools.starmap),
    *(itertools.takewhile, itertools.dropwhile, itertools.zip_longest),
)


class Copier:
    """
    Copies whatever an object leads to. Objects that refer to each other do so in the copy; what never changes is shared.

    :param reuse: ``natives`` of an earlier copy that nobody needs any more: they are written over instead of made anew
    :param own_models: Whether each copy has an MjModel of its own
    :param shared: Objects to share
    """

    def __init__(
        self, reuse: dict[int, tuple[Any, Any]] | None = None, own_models: bool = False, shared: Sequence[Any] = ()
    ) -> None:
        self.own_models = own_models
        self.memo: dict[int, Any] = {id(one): one for one in shared} if shared else {}
        self.originals: list[Any] = []
        """What was copied. It is kept, so that ids stay its own."""
        self.reuse = {} if reuse is None else reuse
        self.natives: dict[int, tuple[Any, Any]] = {}
        """Simulators and generators by the id of the original: the original and its copy."""
        self.swapped: list[tuple[Shared, Any]] = []
        """Objects that save and restore themselves, which all members share, and the state that the copy begins in."""
        self.alive: list[Any] = []
        """What the copy has weak references to."""

    def __call__(self, obj: Any) -> Any:
        kind = type(obj)
        if kind in ATOMS:
            return obj
        made = self.memo.get(id(obj), self)
        if made is not self:
            return made
        rule = _RULES.get(kind)
        made = (_rule_of(kind) if rule is None else rule)(self, obj)
        if made is not obj:
            self.memo[id(obj)] = made
            self.originals.append(obj)
        return made

    def remember(self, obj: Any, made: Any) -> Any:
        """Note a copy that is still to be filled: what it leads to may lead back to it."""
        self.memo[id(obj)] = made
        return made

    def native(self, obj: Any, make: Callable[[Any, Any], Any]) -> Any:
        """
        Copy an object that is costly to make.

        :param obj: The object
        :param make: ``make(obj, reuse)``; ``reuse`` is an earlier copy of it that may be written over, or None
        :return: The copy
        """
        known = self.reuse.get(id(obj))
        made = make(obj, known[1] if known is not None and known[0] is obj else None)
        self.natives[id(obj)] = (obj, made)
        return made


class Survey:
    """
    Looks for an env's generators of random numbers and simulators.

    :param env: The env
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.env = env
        self._reuse: dict[int, tuple[Any, Any]] = {}

    def __call__(self) -> tuple[list[Any], list[Any]]:
        """
        :return: The generators, and the MjModels
        :raises CannotCopyError: if the env cannot be copied
        """
        copier = Copier(self._reuse)
        copier(self.env)
        self._reuse = copier.natives
        natives = copier.natives.values()
        return [one for one, _ in natives if isinstance(one, native.GENERATORS)], [one for one, made in natives if one is made]


def _fill(c: Copier, obj: Any, made: Any) -> Any:
    """Copy Python attributes and slots into a copy that was made and remembered."""
    kind = type(obj)
    if kind.__dictoffset__:
        attributes, atoms, shared = made.__dict__, ATOMS, _shared_attributes(kind)
        attributes.update(obj.__dict__)
        for name, value in obj.__dict__.items():
            if type(value) not in atoms and name not in shared:
                attributes[name] = c(value)
    for slot in _slots(kind):
        try:
            value = slot.__get__(obj)
        except AttributeError:
            continue
        slot.__set__(made, c(value))
    return made


def _instance(c: Copier, obj: Any) -> Any:
    return _fill(c, obj, c.remember(obj, object.__new__(type(obj))))


@functools.lru_cache(maxsize=4096)
def _slots(kind: type) -> tuple[Any, ...]:
    with_slots = [vars(base).values() for base in kind.__mro__ if "__slots__" in vars(base)]
    return tuple(one for values in with_slots for one in values if isinstance(one, types.MemberDescriptorType))


@functools.lru_cache(maxsize=4096)
def _shared_attributes(kind: type) -> frozenset[str]:
    """Attributes that are not copied: how an env was made, and what was declared constant."""
    records = _RECORDS_OF_ENVS if issubclass(kind, gym.Env) else frozenset()
    return records.union(*(constants_of(base) for base in kind.__mro__))


def _skip(c: Copier, obj: Any) -> Any:
    """A recorder, or what is only for checks: what it wraps stands for it."""
    return c(obj.env)


def _plain_space(c: Copier, obj: Any) -> Any:
    """A space without spaces in it: constant but for its generator."""
    if obj._np_random is None:
        return obj
    made = c.remember(obj, object.__new__(type(obj)))
    made.__dict__.update(obj.__dict__)
    made._np_random = c(obj._np_random)
    return made


def _space(c: Copier, obj: Any) -> Any:
    """Any space: constant but for its generator, and spaces in it."""
    inner = [name for name, value in obj.__dict__.items() if name == "spaces" or isinstance(value, gym.Space)]
    if obj._np_random is None and not inner:
        return obj
    made = c.remember(obj, object.__new__(type(obj)))
    made.__dict__.update(obj.__dict__)
    for name in ("_np_random", *inner):
        made.__dict__[name] = c(obj.__dict__[name])
    return made


def _mapping(c: Copier, obj: Any) -> Any:
    made = c.remember(obj, obj.copy())
    for key, value in obj.items():
        if type(key) not in ATOMS and c(key) is not key:  # objects as keys: the order is that of insertion
            made.clear()
            made.update((c(key), c(value)) for key, value in list(obj.items()))
            return made
        if type(value) not in ATOMS:
            made[key] = c(value)
    return made


def _defaultdict(c: Copier, obj: Any) -> Any:
    made = _mapping(c, obj)
    made.default_factory = c(obj.default_factory)
    return made


def _list(c: Copier, obj: Any) -> Any:
    made = c.remember(obj, obj.copy())
    if not ATOMS.issuperset(map(type, obj)):
        made[:] = [one if type(one) in ATOMS else c(one) for one in obj]
    return made


def _deque(c: Copier, obj: Any) -> Any:
    made = c.remember(obj, collections.deque(maxlen=obj.maxlen))
    made.extend(map(c, obj))
    return made


def _tuple(c: Copier, obj: Any) -> Any:
    if ATOMS.issuperset(map(type, obj)):
        return obj
    parts = [c(one) for one in obj]
    if id(obj) in c.memo:  # it leads back to itself
        return c.memo[id(obj)]
    return obj if all(map(operator.is_, parts, obj)) else tuple.__new__(type(obj), parts)


def _set(c: Copier, obj: Any) -> Any:
    """A set. Its order is the original's where one of two ways to build it gives that; see docs/branching.md."""
    parts = [c(one) for one in obj]
    same = all(map(operator.is_, parts, obj))
    if type(obj) is frozenset:
        return obj if same else frozenset(parts)
    made = obj.copy() if same else set(parts)
    if len(parts) > 1 and (list(made) != parts or sys.getsizeof(made) != sys.getsizeof(obj)):
        grown: set[Any] = set()
        for one in parts:
            grown.add(one)
        if list(grown) == parts:
            return grown
    return made


def _subclass_of(base: Any) -> Rule:
    """A rule for subclasses of a container, whose own methods may do more than hold an item."""
    is_mapping = issubclass(base, dict)

    def copy(c: Copier, obj: Any) -> Any:
        made = c.remember(obj, base.__new__(type(obj)))
        if base is collections.deque:
            base.__init__(made, maxlen=obj.maxlen)
        if is_mapping:
            for key, value in list(base.items(obj)):
                base.__setitem__(made, c(key), c(value))
        elif base is set:
            set.update(made, map(c, set.__iter__(obj)))
        else:
            base.extend(made, map(c, list(base.__iter__(obj))))
        if base is collections.defaultdict:
            made.default_factory = c(obj.default_factory)
        return _fill(c, obj, made)

    return copy


def _tuple_subclass(c: Copier, obj: Any) -> Any:
    made = _tuple(c, obj)
    if not type(obj).__dictoffset__ or not obj.__dict__:
        return made
    return _fill(c, obj, c.remember(obj, tuple.__new__(type(obj), made)))


def _number_or_text(c: Copier, obj: Any) -> Any:
    """An object of a subclass of int, float, str, …; it may have attributes."""
    if not type(obj).__dictoffset__ or not obj.__dict__:
        return obj
    base = next(base for base in type(obj).__mro__ if base in ATOMS)
    return _fill(c, obj, c.remember(obj, base.__new__(type(obj), obj)))


def _function(c: Copier, obj: Any) -> Any:
    """A function: shared, unless it keeps something from call to call that its module does not keep."""
    defaults = (*(obj.__defaults__ or ()), *(obj.__kwdefaults__ or {}).values())
    if obj.__closure__ is None and not obj.__dict__ and ATOMS.issuperset(map(type, defaults)):
        return obj
    if _is_global(obj):
        return obj
    made = types.FunctionType(obj.__code__, obj.__globals__, obj.__name__, None, tuple(map(c, obj.__closure__ or ())))
    c.remember(obj, made)
    made.__defaults__, made.__kwdefaults__ = c(obj.__defaults__), c(obj.__kwdefaults__)
    made.__dict__.update(c(obj.__dict__))
    made.__qualname__, made.__module__ = obj.__qualname__, obj.__module__
    return made


def _is_global(function: Any) -> bool:
    """Whether a function is found by its name in its module, so that it is one for all."""
    found: Any = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is function


def _cell(c: Copier, obj: Any) -> Any:
    made = c.remember(obj, types.CellType())
    try:
        contents = obj.cell_contents
    except ValueError:  # not assigned yet
        return made
    made.cell_contents = c(contents)
    return made


def _method(c: Copier, obj: Any) -> Any:
    function, owner = c(obj.__func__), c(obj.__self__)
    return obj if owner is obj.__self__ and function is obj.__func__ else type(obj)(function, owner)


def _bound_builtin(c: Copier, obj: Any) -> Any:
    owner = getattr(obj, "__self__", None)
    made = owner if owner is None or isinstance(owner, types.ModuleType | type) else c(owner)
    return obj if made is owner else getattr(made, obj.__name__)


def _partial(c: Copier, obj: Any) -> Any:
    made = type(obj)(c(obj.func), *map(c, obj.args), **{name: c(value) for name, value in obj.keywords.items()})
    return _fill(c, obj, c.remember(obj, made))


def _cached_function(c: Copier, obj: Any) -> Any:
    """``lru_cache``: what it holds cannot be copied, but an empty one can be made again."""
    function = c(obj.__wrapped__)
    if _is_global(obj) or (function is obj.__wrapped__ and obj.cache_info().currsize == 0):
        return obj
    if obj.cache_info().currsize:
        raise CannotCopyError("is a function with a cache (lru_cache) of its own, which holds results", obj)
    return functools.lru_cache(**obj.cache_parameters())(function)


def _weak_reference(c: Copier, obj: Any) -> Any:
    target = obj()
    if target is None:
        return obj
    c.alive.append(c(target))
    return type(obj)(c.alive[-1], *(() if obj.__callback__ is None else [c(obj.__callback__)]))


def _weak_proxy(c: Copier, obj: Any) -> Any:
    try:
        target = obj.__reduce_ex__.__self__
    except ReferenceError:
        return obj
    c.alive.append(c(target))
    return weakref.proxy(c.alive[-1])


def _weak_container(c: Copier, obj: Any) -> Any:
    made = c.remember(obj, type(obj)())
    items = list(obj) if isinstance(obj, weakref.WeakSet) else list(obj.items())
    c.alive.append(c(items))
    made.update(c.alive[-1])
    return made


def _iterator(c: Copier, obj: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of itertools, which cannot be copied from Python 3.14 on
        reduced: Any = obj.__reduce__()
    if isinstance(reduced, str) or not callable(reduced[0]) or reduced[0].__module__ == "copyreg":
        raise CannotCopyError(f"is an iterator ({name_of(type(obj))}) that does not tell where it is", obj)
    made = reduced[0](*map(c, reduced[1]))
    if len(reduced) > 2 and reduced[2] is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            made.__setstate__(c(reduced[2]))
    return made


def _buffer(c: Copier, obj: Any) -> Any:
    """``bytearray``, ``array.array``."""
    return _fill(c, obj, c.remember(obj, type(obj)(obj))) if type(obj).__dictoffset__ else obj[:]


def _text_stream(c: Copier, obj: Any) -> Any:
    """``StringIO``, ``BytesIO``."""
    made = type(obj)()
    made.__setstate__(obj.__getstate__())
    return made


def _file(c: Copier, obj: Any) -> Any:
    if obj in (sys.stdout, sys.stderr, sys.stdin, sys.__stdout__, sys.__stderr__) or obj.closed:
        return obj
    raise RefusedError(
        "is an open file: all siblings would share its position, and what one writes cannot be taken back",
        obj,
        "Read what the env needs of it before the training, and close it; write from a callback, or with SB3's Monitor",
    )


def _lock(c: Copier, obj: Any) -> Any:
    if isinstance(obj, type(threading.Lock())) and obj.locked():
        raise CannotCopyError("is a lock that is held", obj)
    return threading.Lock() if isinstance(obj, type(threading.Lock())) else threading.RLock()


def _thread_local(c: Copier, obj: Any) -> Any:
    made = c.remember(obj, type(obj)())
    made.__dict__.update({name: c(value) for name, value in obj.__dict__.items()})
    return made


def _ufunc(c: Copier, obj: Any) -> Any:
    if obj.__name__.endswith("(vectorized)"):  # np.frompyfunc, of any function
        raise CannotCopyError("is a function of np.frompyfunc, which does not tell what it calls", obj)
    return obj


def _never(reason: str) -> Rule:
    def refuse(c: Copier, obj: Any) -> Any:
        raise CannotCopyError(reason, obj)

    return refuse


@functools.lru_cache(maxsize=4096)
def _rule_of(kind: Any) -> Rule:
    """The rule for a type that has none of its own."""
    registered = registered_rule(kind)
    if registered is not None:
        return registered
    if issubclass(kind, gym.Wrapper) and is_skipped(kind):
        return _skip
    rule = native.native_rule(kind)
    if rule is not None:
        return rule
    refusal = refusal_of(kind)
    if refusal is not None:
        return lambda c, obj: _refuse(obj, *refusal)
    for base, base_rule in _BASES.items():
        if issubclass(kind, base):
            return base_rule
    if issubclass(kind, _CONSTANT) or kind is object or module_of(kind) == "typing":
        return native.share
    if kind.__name__ == "cython_function_or_method":
        return _bound_builtin
    return _rule_of_instances(kind)


def _rule_of_instances(kind: Any) -> Rule:
    if issubclass(kind, VecEnv):
        return _never("is a VecEnv, which leads to all envs")
    if hasattr(kind, "__del__"):
        return _never(f"is a {name_of(kind)}, which does something when it is thrown away (__del__)")
    fields = (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0) + len(_slots(kind))
    if kind.__basicsize__ > object.__basicsize__ + 8 * fields or kind.__itemsize__:
        return _never(f"is a {name_of(kind)}, written in C: say how it is copied (register_copier, register_engine)")
    return _instance


def _refuse(obj: Any, reason: str, advice: str) -> Any:
    raise RefusedError(reason, obj, advice)


on_registration(_rule_of.cache_clear)
on_registration(_shared_attributes.cache_clear)

_RULES: dict[Any, Rule] = {
    dict: _mapping,
    list: _list,
    tuple: _tuple,
    set: _set,
    frozenset: _set,
    collections.OrderedDict: _mapping,
    collections.defaultdict: _defaultdict,
    collections.deque: _deque,
    np.ndarray: native.copy_array,
    np.random.Generator: native.copy_generator,
    types.FunctionType: _function,
    types.MethodType: _method,
    types.CellType: _cell,
    types.BuiltinFunctionType: _bound_builtin,
    types.MethodWrapperType: _bound_builtin,
    types.MappingProxyType: lambda c, obj: types.MappingProxyType(c(obj.copy())),
    types.SimpleNamespace: lambda c, obj: _fill(c, obj, c.remember(obj, types.SimpleNamespace())),
    functools.partial: _partial,
    type(functools.lru_cache(len)): _cached_function,
    types.GeneratorType: _never("is a generator, whose place in its code cannot be copied"),
    weakref.ref: _weak_reference,
    weakref.ProxyType: _weak_proxy,
    weakref.CallableProxyType: _weak_proxy,
    memoryview: native.copy_memoryview,
    **dict.fromkeys((spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary), _plain_space),
    bytearray: _buffer,
    array.array: _buffer,
    type(threading.Lock()): _lock,
    type(threading.RLock()): _lock,
    np.random.SeedSequence: native.copy_seed_sequence,
    np.random.RandomState: native.copy_old_generator,
    **dict.fromkeys(_ITERATORS, _iterator),
}
_BASES: dict[Any, Rule] = {
    gym.Space: _space,
    np.ndarray: native.copy_array,
    np.void: native.copy_record,
    np.ufunc: _ufunc,
    np.random.BitGenerator: native.copy_bit_generator,
    random.Random: native.copy_old_generator,
    enum.Enum: native.share,
    **{base: _number_or_text for base in (int, float, complex, str, bytes)},
    tuple: _tuple_subclass,
    **{base: _subclass_of(base) for base in (collections.OrderedDict, collections.defaultdict, dict, list, collections.deque, set)},
    functools.partial: _partial,
    **dict.fromkeys((weakref.WeakSet, weakref.WeakKeyDictionary, weakref.WeakValueDictionary), _weak_container),
    **dict.fromkeys((io.StringIO, io.BytesIO), _text_stream),
    io.IOBase: _file,
    threading.local: _thread_local,
    BaseException: _never("is an exception"),
}
