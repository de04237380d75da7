"""Rules for Python's own objects: containers, functions, references, buffers."""

import collections
import contextlib
import functools
import gc
import operator
import sys
import threading
import types
import warnings
import weakref
from typing import Any

import gymnasium as gym

from sb3_hybrid_grpo.branching import engines
from sb3_hybrid_grpo.branching.engines import ATOMS, CannotCopyError, Rule
from sb3_hybrid_grpo.branching.wrapper_chain import generator_of, set_generator

_RECORDS_OF_ENVS = frozenset({"_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs"})
"""Attributes that record how an env was made. No step reads them."""
LOCK, RLOCK = type(threading.Lock()), type(threading.RLock())


def fill(c: Any, obj: Any, made: Any) -> Any:
    """Copy an object's attributes and slots into its new copy."""
    kind: Any = type(obj)
    c.memo[id(obj)] = made
    shared, variables = _of_class(kind)
    if kind.__dictoffset__:
        attributes, atoms = made.__dict__, ATOMS
        attributes.update(obj.__dict__)
        for name, value in obj.__dict__.items():
            if type(value) not in atoms and name not in shared:
                attributes[name] = c(value)
    values = []
    for slot in slots_of(kind):
        with contextlib.suppress(AttributeError):  # it has no value
            values.append((slot, slot.__get__(obj)))
            slot.__set__(made, values[-1][1])  # a cycle of references may need it: sets ask their objects for hashes
    for slot, value in values:
        slot.__set__(made, c(value))
    for cell in variables:
        with contextlib.suppress(ValueError):  # not assigned yet
            if isinstance(cell.cell_contents, gym.Env) and id(cell.cell_contents) in c.memo:
                raise CannotCopyError(
                    f"is a {engines.name_of(kind)}, a class made in a function, whose methods use the function's variable for "
                    "the env, also in a copy; let them use an attribute of self"
                )
    return made


def without_finalizer(kind: Any) -> Any:
    """The class for copies of an env whose ``__del__`` closes it: all that it closes belongs to the original."""
    if kind.__del__ is _leave_open:  # a copy's class
        return kind
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__slots__": (), "__del__": _leave_open}
    return type(kind)(kind.__name__, (kind,), names)


def _leave_open(self: Any) -> None:
    """Replaces ``__del__``."""


def _variables_of(kind: Any) -> tuple[types.CellType, ...]:
    """The variables of enclosing functions that a class's methods use, apart from the ``__class__`` of ``super()``."""
    members = [one for base in kind.__mro__ for one in vars(base).values()]
    members += [one.__func__ for one in members if isinstance(one, classmethod | staticmethod)]
    members += [function for one in members if isinstance(one, property) for function in (one.fget, one.fset)]
    methods = [one for one in members if isinstance(one, types.FunctionType)]
    named = [zip(one.__code__.co_freevars, one.__closure__ or (), strict=True) for one in methods]
    return tuple(cell for pairs in named for name, cell in pairs if name != "__class__")


@functools.lru_cache(maxsize=4096)
def slots_of(kind: Any) -> tuple[Any, ...]:
    with_slots = [vars(base).values() for base in kind.__mro__ if "__slots__" in vars(base)]
    return tuple(one for values in with_slots for one in values if isinstance(one, types.MemberDescriptorType))


@functools.lru_cache(maxsize=4096)
def _of_class(kind: Any) -> tuple[frozenset[str], tuple[types.CellType, ...]]:
    """The attributes that are not copied (records of how an env was made, constants), and :func:`_variables_of` the class."""
    records = _RECORDS_OF_ENVS if issubclass(kind, gym.Env) else frozenset()
    constants = (engines.CONSTANTS.get(engines.name_of(base), ()) for base in kind.__mro__)
    return records.union(*constants), _variables_of(kind)


def copy_space(c: Any, obj: Any) -> Any:
    """One of gymnasium's simple spaces, which shares its arrays (bounds, numbers of actions) with the copy."""
    made = c.remember(obj, object.__new__(type(obj)))
    made.__dict__.update(vars(obj))
    set_generator(made, c(generator_of(obj)))
    return made


def copy_monitor(c: Any, obj: Any) -> Any:
    """A Monitor inside of other wrappers, which may read the episodes in its infos. The copy writes no file."""
    c.memo[id(obj.results_writer)] = None
    for record in (obj.episode_returns, obj.episode_lengths, obj.episode_times):  # of earlier episodes
        c.memo[id(record)] = []
    return fill(c, obj, object.__new__(type(obj)))


def copy_mapping(c: Any, obj: Any) -> Any:
    made = c.remember(obj, obj.copy())
    for key, value in obj.items():
        if type(key) not in ATOMS and c(key) is not key:  # a copied key: insert all anew, to keep the order
            made.clear()
            made.update((c(key), c(value)) for key, value in list(obj.items()))
            return made
        if type(value) not in ATOMS:
            made[key] = c(value)
    return made


def copy_dict_view(name: str, c: Any, obj: Any) -> Any:
    """The ``keys()``, ``values()`` or ``items()`` of a dict."""
    return getattr(dict, name)(c(*gc.get_referents(obj)))


def copy_list(c: Any, obj: Any) -> Any:
    made = c.remember(obj, obj.copy())
    if not ATOMS.issuperset(map(type, obj)):
        made[:] = [one if type(one) in ATOMS else c(one) for one in obj]
    return made


def copy_tuple(c: Any, obj: Any) -> Any:
    if ATOMS.issuperset(map(type, obj)):
        return obj
    parts = [c(one) for one in obj]
    if id(obj) in c.memo:  # a cycle of references has copied it
        return c.memo[id(obj)]
    return obj if all(map(operator.is_, parts, obj)) else tuple.__new__(type(obj), parts)


def copy_set(c: Any, obj: Any) -> Any:
    """A set. Two ways to build it are tried, to keep the original's order; see docs/branching.md."""
    parts = [c(one) for one in obj]
    same = all(map(operator.is_, parts, obj))
    if type(obj) is frozenset:
        return obj if same else frozenset(parts)
    made = obj.copy() if same else set(parts)
    if same and (list(made) != parts or sys.getsizeof(made) != sys.getsizeof(obj)):
        made = grown if list(grown := set(parts)) == parts else made
    return made


def subclass_of(base: Any) -> Rule:
    """A rule for subclasses of a container. It calls the base's methods, because a subclass's may have side effects."""

    def copy(c: Any, obj: Any) -> Any:
        made = c.remember(obj, base.__new__(type(obj)))
        if base is collections.deque:
            base.__init__(made, maxlen=obj.maxlen)
        if issubclass(base, dict):
            for key, value in list(base.items(obj)):
                base.__setitem__(made, c(key), c(value))
        else:
            (base.update if base is set else base.extend)(made, map(c, list(base.__iter__(obj))))
        if base is collections.defaultdict:
            made.default_factory = c(obj.default_factory)
        return fill(c, obj, made)

    return copy


def immutable_subclass_of(base: Any) -> Rule:
    """A rule for subclasses of numbers, strings and tuples, whose objects may have attributes."""

    def copy(c: Any, obj: Any) -> Any:
        made = copy_tuple(c, obj) if base is tuple else obj
        has_attributes = type(obj).__dictoffset__ and obj.__dict__
        return fill(c, obj, base.__new__(type(obj), made)) if has_attributes else made

    return copy


def copy_function(c: Any, obj: Any) -> Any:
    """A function: shared, unless it keeps values between calls (closure, attributes, defaults) and is no module's global."""
    defaults = (*(obj.__defaults__ or ()), *(obj.__kwdefaults__ or {}).values())
    is_plain = obj.__closure__ is None and not obj.__dict__ and ATOMS.issuperset(map(type, defaults))
    if is_plain or _is_global(obj):
        return obj
    closure = tuple(map(c, obj.__closure__ or ()))
    if id(obj) in c.memo:  # it calls itself
        return c.memo[id(obj)]
    made = types.FunctionType(obj.__code__, obj.__globals__, obj.__name__, None, closure)
    c.remember(obj, made).__dict__.update(c(obj.__dict__))
    made.__defaults__, made.__kwdefaults__ = c(obj.__defaults__), c(obj.__kwdefaults__)
    made.__qualname__, made.__module__ = obj.__qualname__, obj.__module__
    return made


def _is_global(function: Any) -> bool:
    """Whether a function is found by its name in its module."""
    found: Any = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is function


def copy_cell(c: Any, obj: Any) -> Any:
    made = c.remember(obj, types.CellType())
    try:
        contents = obj.cell_contents
    except ValueError:  # not assigned yet
        return made
    made.cell_contents = c(contents)
    return made


def copy_method(c: Any, obj: Any) -> Any:
    function, owner = c(obj.__func__), c(obj.__self__)
    return obj if owner is obj.__self__ and function is obj.__func__ else type(obj)(function, owner)


def copy_bound_builtin(c: Any, obj: Any) -> Any:
    owner = getattr(obj, "__self__", None)
    made = owner if owner is None or isinstance(owner, types.ModuleType | type) else c(owner)
    return obj if made is owner else getattr(made, obj.__name__)


def copy_cached_function(c: Any, obj: Any) -> Any:
    """A function with an ``lru_cache``: the cached results cannot be copied, but an empty cache can be made anew."""
    function = c(obj.__wrapped__)
    if _is_global(obj) or (function is obj.__wrapped__ and obj.cache_info().currsize == 0):
        return obj
    if obj.cache_info().currsize:
        raise CannotCopyError("is a function with a cache (lru_cache) of its own, which holds results")
    return functools.lru_cache(**obj.cache_parameters())(function)


def copy_and_keep(c: Any, obj: Any) -> Any:
    c.alive.append(c(obj))
    return c.alive[-1]


def copy_weak_reference(c: Any, obj: Any) -> Any:
    target = obj()
    callback = () if obj.__callback__ is None else [c(obj.__callback__)]
    return obj if target is None else weakref.ref(copy_and_keep(c, target), *callback)


def copy_weak_container(c: Any, obj: Any) -> Any:
    made = c.remember(obj, type(obj)())
    made.update(copy_and_keep(c, list(obj) if isinstance(obj, weakref.WeakSet) else list(obj.items())))
    return made


def copy_by_reduce(c: Any, obj: Any) -> Any:
    """One of Python's own objects in C, rebuilt from the parts that ``__reduce__`` returns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about itertools, which cannot be copied from Python 3.14 on
        make, arguments, *state = obj.__reduce_ex__(2)
        arguments = [c(one) for one in arguments]
        if id(obj) in c.memo:
            return c.memo[id(obj)]
        made = c.remember(obj, make(*arguments))
        if state and state[0] is not None:
            made.__setstate__(c(state[0]))
    return made


def copy_file(c: Any, obj: Any) -> Any:
    if obj in (sys.stdout, sys.stderr, sys.stdin, sys.__stdout__, sys.__stderr__) or obj.closed:
        return obj
    raise CannotCopyError(
        "is an open file: all siblings would share its position, and a sibling's writes cannot be undone",
        "Read the file before the training, and close it; write from a callback, or with SB3's Monitor",
    )


def copy_lock(c: Any, obj: Any) -> Any:
    if isinstance(obj, LOCK) and obj.locked():
        raise CannotCopyError("is a lock that is held: by the env, or by a thread, which a forked process does not have")
    return threading.Lock() if isinstance(obj, LOCK) else threading.RLock()


def copy_ufunc(c: Any, obj: Any) -> Any:
    if obj.__name__.endswith("(vectorized)"):  # np.frompyfunc, of any function
        raise CannotCopyError("is a function of np.frompyfunc, and the Python function in it cannot be read")
    return obj


def copy_local(c: Any, obj: Any) -> Any:
    """A ``threading.local``."""
    made = c.remember(obj, type(obj)())
    made.__dict__.update({name: c(value) for name, value in obj.__dict__.items()})
    return made


engines.CACHES.append(_of_class)
