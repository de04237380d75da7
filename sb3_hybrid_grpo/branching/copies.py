"""
Copies of an env that live beside it: what a sibling is, where an env can be copied.

``copy.deepcopy`` cannot do it: where a class says how it is pickled (gymnasium's ``EzPickle``) it builds a new env, silently
in another state. Here every object is copied by what it is made of, and an env with an object of an unknown kind is not.
"""

import collections
import copy
import functools
import random
import types
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo.branching.box2d import box2d_names
from sb3_hybrid_grpo.branching.box2d_copies import WorldCopy, copy_box2d, point_all
from sb3_hybrid_grpo.branching.classes import has_hidden_fields, package_of, slots_of
from sb3_hybrid_grpo.branching.engines import Registered, engine_of
from sb3_hybrid_grpo.branching.layout import can_change, identical
from sb3_hybrid_grpo.branching.mujoco_state import ModelCell, is_mujoco
from sb3_hybrid_grpo.branching.objects import GeneratorCell, PCG64Cell
from sb3_hybrid_grpo.branching.kinds import (
    CONSTANT,
    LIVING,
    NUMBERS_AND_TEXTS,
    RECORDS_OF_ENVS,
    saves_itself,
)


class CannotCopyError(TypeError):
    """An env holds an object that only a snapshot in place can save."""


# A fixed set: what is constant for snapshots in place (a weak reference, say) need not be for a copy.
_ATOMS = frozenset({int, float, bool, str, bytes, complex, type(None), np.float64, np.float32, np.int64, np.bool_})
# Constant for the env, but they lead back to it: a copy's would lead to the original.
_LEADS_BACK = (weakref.ref, weakref.ProxyType, weakref.CallableProxyType, functools._lru_cache_wrapper, types.MappingProxyType)


class EnvCopy:
    """
    A copy of an env with its wrappers as it is now, its generators of random numbers included. It shares with the env what
    never changes, and nothing else.

    :param env: The env
    :param previous: An earlier copy that is not needed any more; its simulator and generators are used again, and it
        has no env any more
    :param own_models: Whether it needs an MjModel of its own, because the env changes its one
    :raises CannotCopyError: if the env holds an object of an unknown kind
    """

    def __init__(self, env: gym.Env[Any, Any], previous: "EnvCopy | None" = None, own_models: bool = False) -> None:
        self.own_models = own_models
        self.spare = {} if previous is None else previous.dear
        self.dear: dict[int, tuple[Any, Any]] = {}  # simulators, what Python has of them, generators: they cost much to make
        # by the id of the original, which is kept, so that it stays its id
        self.made: dict[int, Any] = {}
        self.originals: list[Any] = []
        self.worlds: list[WorldCopy] = []
        self.spare_worlds = [] if previous is None else previous.worlds
        if previous is not None:
            del previous.env  # what ends with it ends before its simulator lives on
        self.pointers: list[tuple[Any, Any]] = []
        self.env: gym.Env[Any, Any] = self.copy(env)
        point_all(self)
        self.made, self.originals, self.spare, self.spare_worlds, self.pointers = {}, [], {}, [], []
        for world in self.worlds:
            world.forget_things()

    def copy(self, obj: Any) -> Any:
        kind: Any = type(obj)
        if kind in _ATOMS or (kind is tuple and _ATOMS.issuperset(map(type, obj))):
            return obj
        made = self.made.get(id(obj))
        if made is not None:
            return made
        copier = _COPIERS.get(kind)
        if copier is None:
            engine = engine_of(kind)  # which may have been registered since
            if engine is not None:
                return self.simulator(obj, *engine)
            copier = _copier_of(kind)
        return copier(self, obj)

    def remember(self, obj: Any, made: Any) -> Any:
        self.made[id(obj)] = made
        self.originals.append(obj)
        return made

    def instance(self, obj: Any, only_state: bool = False) -> Any:
        """An instance of a class written in Python; of a space only what has state: its generator, and spaces in it."""
        kind: Any = type(obj)
        slots = _slots_to_copy(kind)
        made = self.remember(obj, object.__new__(kind))
        shared = RECORDS_OF_ENVS if issubclass(kind, gym.Env) else ()
        if hasattr(obj, "__dict__"):
            attributes = made.__dict__
            attributes.update(obj.__dict__)
            for name, value in [item for item in obj.__dict__.items() if type(item[1]) not in _ATOMS]:
                has_state = not only_state or isinstance(value, gym.Space) or name in ("_np_random", "spaces")
                if has_state and name not in shared:
                    attributes[name] = self.copy(value)
        for slot in slots:
            try:
                value = slot.__get__(obj)
            except AttributeError:
                continue
            slot.__set__(made, self.copy(value))
        return made

    def space(self, obj: Any) -> Any:
        """A space. All that an earlier copy shares with one that has drawn nothing yet is all there is to it."""
        spare = self.spare[id(obj)][1] if id(obj) in self.spare else None
        if spare is not None and identical([*vars(spare).values()], [*vars(obj).values()]):
            made = self.remember(obj, spare)
        else:
            made = self.instance(obj, only_state=True)
        self.dear[id(obj)] = (obj, made)
        return made

    def mujoco_data(self, obj: Any) -> Any:
        import mujoco

        if not hasattr(mujoco, "mj_copyData"):
            raise CannotCopyError("this version of mujoco cannot copy MjData")
        model = self.copy(obj.model)
        spare = self.spare[id(obj)][1] if id(obj) in self.spare else None
        made = mujoco.MjData(model) if spare is None or spare.model is not model else spare
        mujoco.mj_copyData(made, model, obj)
        self.dear[id(obj)] = (obj, made)
        return self.remember(obj, made)

    def mujoco_model(self, obj: Any) -> Any:
        if not self.own_models:
            return obj
        # in place of the models their cells, which cost more to make than to use
        mine, its = self.spare[id(obj)] if id(obj) in self.spare else (ModelCell(obj), ModelCell(copy.copy(obj)))
        its.restore(mine.save(None))
        self.dear[id(obj)] = (mine, its)
        return self.remember(obj, its.model)

    def simulator(self, obj: Any, registered_type: type, engine: Registered) -> Any:
        if engine.make is None or type(obj) is not registered_type:
            raise CannotCopyError(f"{type(obj)} has an engine, which restores it in place")
        made = engine.make(obj, self.spare[id(obj)][1] if id(obj) in self.spare else None)
        engine.restore(made, engine.save(obj))
        self.dear[id(obj)] = (obj, made)
        return self.remember(obj, made)

    def mapping(self, obj: Any) -> Any:
        if not _ATOMS.issuperset(map(type, obj)) and not all(map(_is_plain, obj)):
            raise CannotCopyError("a dict with objects as keys")
        made = self.remember(obj, type(obj)())
        made.update(obj)
        for key, value in [item for item in obj.items() if type(item[1]) not in _ATOMS]:
            made[key] = self.copy(value)
        return made

    def default_dict(self, obj: Any) -> Any:
        made = self.mapping(obj)
        made.default_factory = self.copy(obj.default_factory)
        return made

    def list(self, obj: Any) -> Any:
        made = self.remember(obj, [])
        made[:] = obj if _are_plain(obj) else [one if type(one) in _ATOMS else self.copy(one) for one in obj]
        return made

    def deque(self, obj: Any) -> Any:
        made = self.remember(obj, collections.deque(maxlen=obj.maxlen))
        made.extend(self.copy(one) for one in obj)
        return made

    def tuple(self, obj: Any) -> Any:
        parts = [self.copy(one) for one in obj]
        made = self.made.get(id(obj))  # it may lead back to itself
        return self.remember(obj, tuple.__new__(type(obj), parts)) if made is None else made

    def set(self, obj: Any) -> Any:
        if len(obj) > 1:  # the order in which a copy is run through may be another
            raise CannotCopyError("a set of several objects")
        return self.remember(obj, type(obj)(self.copy(one) for one in obj))

    def array(self, obj: np.ndarray) -> Any:
        if obj.dtype.hasobject:
            raise CannotCopyError("an array of objects")
        if not can_change(obj):
            return obj
        if obj.base is None:
            return self.remember(obj, obj.copy() if obj.flags.c_contiguous else obj.copy(order="K"))
        root: Any = obj
        while isinstance(root, np.ndarray) and root.base is not None:
            root = root.base
        if type(root) is not np.ndarray or not root.flags.c_contiguous or root.dtype.hasobject:
            raise CannotCopyError("an array that is a view of something else's memory")
        offset = obj.ctypes.data - root.ctypes.data
        made = np.ndarray(obj.shape, obj.dtype, self.copy(root).data, offset, obj.strides)
        made.flags.writeable = obj.flags.writeable
        return self.remember(obj, made)

    def generator(self, obj: Any) -> Any:
        if id(obj.bit_generator) in self.made:
            raise CannotCopyError("two generators that share a bit generator")
        its: Any
        mine, its = self.spare[id(obj)] if id(obj) in self.spare else (_state_of(obj), None)
        if its is None or _spawned(its.generator) != _spawned(obj):
            its = _state_of(copy.deepcopy(obj))
        its.restore(mine.save(None))
        self.dear[id(obj)] = (mine, its)
        self.remember(obj.bit_generator, its.generator.bit_generator)
        return self.remember(obj, its.generator)

    def small_generator(self, obj: Any) -> Any:
        return self.remember(obj, copy.deepcopy(obj))

    def function(self, obj: Any) -> Any:
        # a variable of a closure can be assigned anew; super() has a closure too, with the class in it
        closure = [cell.cell_contents for cell in obj.__closure__ or ()]
        defaults = (*(obj.__defaults__ or ()), *(obj.__kwdefaults__ or {}).values())
        if vars(obj) or not all(isinstance(one, type) for one in closure) or not _is_plain(defaults):
            raise CannotCopyError("a function with state")
        return obj

    def method(self, obj: Any) -> Any:
        return self.remember(obj, types.MethodType(self.copy(obj.__func__), self.copy(obj.__self__)))

    def builtin(self, obj: Any) -> Any:
        if not isinstance(obj.__self__, types.ModuleType | type | None):
            raise CannotCopyError("a bound method of an object written in C")
        return obj


@functools.lru_cache(maxsize=4096)
def _slots_to_copy(kind: Any) -> tuple[Any, ...]:
    """The slots of a class that has no fields that Python cannot see."""
    slots = slots_of(kind)
    if has_hidden_fields(kind, len(slots)):
        raise CannotCopyError(f"{kind} has fields that Python cannot see")
    return slots


def _is_plain(value: Any) -> bool:
    """Whether nothing can change in a value: an atom, or a tuple of such."""
    return type(value) in _ATOMS or (type(value) is tuple and all(map(_is_plain, value)))


def _are_plain(values: Iterable[Any]) -> bool:
    """Whether nothing can change in any of many values: atoms, or tuples of such."""
    for one in values:
        if type(one) not in _ATOMS and not (type(one) is tuple and _ATOMS.issuperset(map(type, one))):
            return False
    return True


def _is_constant(kind: Any) -> bool:
    """Whether objects of a type that no copier is known for never change, so that a copy can have them too."""
    if issubclass(kind, _LEADS_BACK):
        raise CannotCopyError(f"{kind} may lead back to the original")
    if issubclass(kind, np.void):
        raise CannotCopyError(f"{kind} has state")
    return issubclass(kind, CONSTANT) or package_of(kind) == "typing"


def _without_more(copier: EnvCopy, obj: Any) -> Any:
    """An object of a constant type, unless it has something that is not."""
    if isinstance(obj, np.ufunc) and getattr(np, obj.__name__, None) is not obj:
        raise CannotCopyError(f"{type(obj)} may lead back to the original")
    if isinstance(obj, NUMBERS_AND_TEXTS) and hasattr(obj, "__dict__"):
        raise CannotCopyError(f"{type(obj)} has state")
    return obj


def _state_of(generator: np.random.Generator) -> PCG64Cell | GeneratorCell:
    return PCG64Cell(generator) if PCG64Cell.readable(generator) else GeneratorCell(generator)


def _spawned(generator: np.random.Generator) -> int | None:
    spawned: int | None = getattr(generator.bit_generator.seed_seq, "n_children_spawned", None)
    return spawned


_Copier = Callable[[EnvCopy, Any], Any]


@functools.lru_cache(maxsize=4096)
def _copier_of(kind: Any) -> _Copier:
    """What copies an object of a type that no copier is known for by its name."""
    if box2d_names(kind):
        return copy_box2d
    if issubclass(kind, gym.Space):
        return EnvCopy.space
    if is_mujoco(kind, "MjData"):
        return EnvCopy.mujoco_data
    if is_mujoco(kind, "MjModel"):
        return EnvCopy.mujoco_model
    if _is_constant(kind):
        return _without_more
    if issubclass(kind, tuple) and hasattr(kind, "_fields") and not kind.__dictoffset__:
        return EnvCopy.tuple
    if saves_itself(kind):
        raise CannotCopyError(f"{kind} saves itself")
    if issubclass(kind, LIVING) or hasattr(kind, "__del__"):
        raise CannotCopyError(f"{kind} is alive, or does something when it is thrown away")
    return EnvCopy.instance


_COPIERS: dict[type, _Copier] = {
    dict: EnvCopy.mapping,
    collections.OrderedDict: EnvCopy.mapping,
    collections.defaultdict: EnvCopy.default_dict,
    list: EnvCopy.list,
    collections.deque: EnvCopy.deque,
    tuple: EnvCopy.tuple,
    set: EnvCopy.set,
    frozenset: EnvCopy.set,
    np.ndarray: EnvCopy.array,
    np.random.Generator: EnvCopy.generator,
    np.random.RandomState: EnvCopy.small_generator,
    random.Random: EnvCopy.small_generator,
    types.FunctionType: EnvCopy.function,
    types.MethodType: EnvCopy.method,
    types.BuiltinFunctionType: EnvCopy.builtin,
}
