"""Simulators that save themselves: the Arcade Learning Environment, and those that users register."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from sb3_hybrid_grpo.branching.cells import OpaqueCell
from sb3_hybrid_grpo.branching.classes import name_of, slots_of
from sb3_hybrid_grpo.branching.layout import ATOMS


class EngineRefusal(TypeError):
    """An object of a registered type that its engine cannot save. The message says why, and what to do."""

    is_final = True
    """Whether forks are no way out: something better is, or what is wrong is to be corrected."""


class Registered(NamedTuple):
    """How objects of a type are saved and restored."""

    save: Callable[[Any], Any]
    restore: Callable[[Any, Any], None]
    may_be_noisy: bool = True
    """Whether such an object may draw random numbers that nobody sees."""
    make: Callable[[Any, Any], Any] | None = None
    """``make(obj, spare)`` gives another object for states of this one; the spare one, if there is one and it fits."""


def register_engine(
    type_name: str, save: Callable[[Any], Any], restore: Callable[[Any, Any], None], replace: bool = False
) -> None:
    """
    Say how the objects of a simulator's type are saved and restored, wherever an env holds one. What such an object refers to
    is not looked at: it is its engine's to save. An env can be of such a type too; its ``np_random`` is saved besides.

    Siblings of an env that holds such an object are snapshots, never copies of the env.

    An object of a subclass is saved so too where the registered type has no Python attributes, as many written in C; those of
    the subclass are saved besides. Where it has some, a subclass is refused until it is registered by its own name.

    Register before the env is handed to ``HybridGRPO``. The processes of a ``SubprocVecEnv`` know only what is registered in
    them: register where the env's class is defined, or in the function that makes the env.

    Example::

        register_engine(
            "mysim.core.World",
            save=lambda world: world.checkpoint(),
            restore=lambda world, state: world.load(state),
        )

    :param type_name: The type's full name, as in ``f"{type(obj).__module__}.{type(obj).__qualname__}"``. A name, so that the
        simulator need not be imported
    :param save: ``save(obj)`` returns everything that the object's future depends on, in memory of its own
    :param restore: ``restore(obj, state)`` puts the object back in place. A state is restored any number of times, and must
        not be consumed or changed by it
    :param replace: Whether to replace an engine that is registered already; the same two functions again are no error
    :raises TypeError: for an argument of another type
    :raises ValueError: for a name that cannot be that of a simulator's type, or that is registered already
    """
    _check_name(type_name)
    for name, function in (("save", save), ("restore", restore)):
        if not callable(function):
            parameters = "obj" if name == "save" else "obj, state"
            raise TypeError(f"{name} must be a function {name}({parameters}), got {function!r}.")
    engine = Registered(save, restore)
    if not replace and _ENGINES.get(type_name, engine) != engine:
        raise ValueError(
            f"{type_name!r} has an engine already. Register a type once, with the same functions each time, or pass "
            "replace=True to replace its engine."
        )
    _ENGINES[type_name] = engine
    engine_of.cache_clear()
    ATOMS.difference_update([kind for kind in ATOMS if engine_of(kind) is not None])  # met earlier, and taken for constant


def _check_name(type_name: Any) -> None:
    if isinstance(type_name, type):
        raise TypeError(f"type_name must be the name of a type, got the type itself. Pass {name_of(type_name)!r}.")
    if not isinstance(type_name, str):
        raise TypeError(f'type_name must be a string, the full name of a type such as "mysim.core.World", got {type_name!r}.')
    parts = type_name.replace("<locals>", "locals").split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise ValueError(
            f'type_name must be the full name of a type, such as "mysim.core.World", got {type_name!r}. '
            'Print it with f"{type(obj).__module__}.{type(obj).__qualname__}".'
        )
    if is_built_in(type_name):
        raise ValueError(
            f"type_name must be that of a simulator's type, got {type_name!r}. Python's and numpy's own types are saved in "
            "one way everywhere; register the type of the object that holds this one."
        )


def is_built_in(type_name: str) -> bool:
    """
    :param type_name: A type's full name
    :return: Whether it is one of Python's or numpy's own types, for which no engine can be registered
    """
    return type_name.split(".")[0] in ("builtins", "numpy")


@functools.lru_cache(maxsize=4096)
def engine_of(kind: type) -> tuple[type, Registered] | None:
    """
    Find the engine of a type.

    :param kind: The type of an object
    :return: The type that an engine is registered for (this one, or the nearest base) and the engine; None without one
    """
    return next(((base, _ENGINES[name]) for base in kind.__mro__ if (name := name_of(base)) in _ENGINES), None)


class EngineCell(OpaqueCell):
    """
    An object that a registered engine saves. The engine is tried at once.

    :param obj: The object
    :param registered_type: The type that the engine is registered for
    :param engine: The engine
    :raises EngineRefusal: if the engine cannot save the object
    """

    def __init__(self, obj: Any, registered_type: type, engine: Registered) -> None:
        self.obj = obj
        self.save_object, self.restore_object, self.may_be_noisy, _ = engine
        kind = type(obj)
        self.has_more = kind is not registered_type
        """Whether the object has attributes that the engine does not know: those of a subclass."""
        if self.has_more and (registered_type.__dictoffset__ or slots_of(registered_type)):
            raise EngineRefusal(
                f"it is a {name_of(kind)}, whose base {name_of(registered_type)} has an engine that need not know what the "
                f'subclass adds. Register one that does: register_engine("{name_of(kind)}", save, restore)'
            )
        try:
            self.save_object(obj)
        except EngineRefusal:
            raise
        except Exception as error:
            raise EngineRefusal(
                f"the function registered to save a {name_of(registered_type)} raised {error!r}. Correct the function, or "
                "bring the object into a state that can be saved"
            ) from error

    def save(self, previous: Any) -> Any:
        return self.save_object(self.obj)

    def restore(self, contents: Any) -> None:
        self.restore_object(self.obj, contents)


def _save_ale(ale: Any) -> Any:
    probability = ale.getFloat("repeat_action_probability")
    if probability > 0:  # the previous action is not in an ALEState
        raise EngineRefusal(
            f"the simulator repeats actions at random by itself (repeat_action_probability={probability:g}), and its state "
            "does not tell which action it repeats. Make the env with repeat_action_probability=0.0, or take one whose id "
            "ends in NoFrameskip-v4. Stable-Baselines3's AtariWrapper(env, action_repeat_probability=0.25) repeats actions in "
            "a way that can be saved"
        )
    return ale.cloneState(include_rng=True)


def _restore_ale(ale: Any, state: Any) -> None:
    ale.restoreState(state)


def _make_ale(ale: Any, spare: Any) -> Any:
    """Another emulator of the same game; the spare one, unless it has been set up otherwise. Loading a game takes long."""
    records = any(map(ale.getString, ("record_screen_dir", "record_sound_filename")))
    if records or any(map(ale.getBool, ("display_screen", "sound"))):
        raise EngineRefusal("it shows or records what it does")
    made = spare
    if spare is None or any(getattr(spare, f"get{kind}")(name) != value for kind, name, value in _settings_of(ale)):
        made = type(ale)()
        for kind, name, value in _settings_of(ale):
            getattr(made, f"set{kind}")(name, value)
        made.loadROM(ale.getString("rom_file"))
    made.setInt("random_seed", ale.getInt("random_seed"))
    return made


def _settings_of(ale: Any) -> list[tuple[str, str, Any]]:
    return [(kind, name, getattr(ale, f"get{kind}")(name)) for kind, name in _ALE_SETTINGS]


_ALE_SETTINGS = (
    *(("Int", name) for name in ("frame_skip", "max_num_frames", "max_num_frames_per_episode", "reward_min", "reward_max")),
    *(("Bool", name) for name in ("color_averaging", "sound_obs", "truncate_on_loss_of_life")),
    ("Float", "repeat_action_probability"),
    ("String", "rom_file"),
)
_ENGINES = {"ale_py._ale_py.ALEInterface": Registered(_save_ale, _restore_ale, may_be_noisy=False, make=_make_ale)}
