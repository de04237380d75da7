"""How objects that are written in C are copied: numpy's, and those of libraries that envs use, each by its public API."""

import copy
import functools
import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from sb3_hybrid_grpo.branching.engines import ATOMS, CannotCopyError, module_of, name_of

PROCESS_WIDE_NUMPY: Any = getattr(np.random.random_sample, "__self__", None)
PROCESS_WIDE_PYTHON: Any = getattr(random.random, "__self__", None)
GENERATORS = (np.random.Generator, np.random.BitGenerator, np.random.RandomState, random.Random)
"""Types of generators whose state can be read."""


def state_of(generator: Any) -> Any:
    """Its state, which :func:`set_state` takes and pickle writes."""
    if isinstance(generator, np.random.Generator | np.random.BitGenerator):
        bits: Any = getattr(generator, "bit_generator", generator)
        return bits.state
    return generator.get_state(legacy=False) if isinstance(generator, np.random.RandomState) else generator.getstate()


def set_state(generator: Any, state: Any) -> None:
    """
    :param generator: One of :data:`GENERATORS`
    :param state: What :func:`state_of` returned
    """
    if isinstance(generator, np.random.Generator | np.random.BitGenerator):
        bits: Any = getattr(generator, "bit_generator", generator)
        bits.state = state
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.setstate(state)


def remember_native(c: Any, obj: Any, make: Callable[[Any, Any], Any]) -> Any:
    """Copy an object that is costly to make: ``make(obj, reuse)`` may write over an earlier copy of it."""
    known = c.reuse.get(id(obj))
    made = make(obj, known[1] if known is not None and known[0] is obj else None)
    c.natives[id(obj)] = (obj, made)
    return made


def copy_array(c: Any, obj: Any) -> Any:
    """An array of any kind. A view is a view of its owner's copy; what nobody can write to is shared."""
    kind = type(obj)
    if obj.base is None and kind is np.ndarray and not obj.dtype.hasobject:
        return obj.copy(order="K") if obj.flags.writeable else obj
    root = obj
    writeable = obj.flags.writeable
    while isinstance(_base_of(root), np.ndarray):
        root = _base_of(root)
        writeable |= root.flags.writeable
    base = _base_of(root)
    if isinstance(base, bytes) or (not writeable and base is None and not root.dtype.hasobject):
        return obj
    if root is obj and base is None:
        made = c.remember(
            obj, np.empty_like(obj, subok=False) if obj.dtype.hasobject else np.array(obj, order="K", subok=False)
        )
        if obj.dtype.hasobject:
            _copy_objects(c, obj, made)
    else:
        made = _view(obj, root, c(root) if root is not obj else _foreign_root(c, obj))
    if kind is not np.ndarray:
        made = c.remember(obj, made.view(kind))
        vars(made).update({name: c(value) for name, value in vars(obj).items()})
    if not obj.flags.writeable:
        made.flags.writeable = False
    return made


def _base_of(array: Any) -> Any:
    """What an array is a view of."""
    base = array.base
    return base.base if type(base).__name__ == "DummyArray" else base  # of np.lib.stride_tricks


def _copy_objects(c: Any, obj: Any, made: Any) -> None:
    if obj.dtype != object:
        raise CannotCopyError("is an array of records that refer to Python objects", obj)
    for place, one in enumerate(obj.flat):
        made.flat[place] = c(one)  # one by one: numpy would take a nested list apart


def _foreign_root(c: Any, obj: Any) -> Any:
    """The copy of what an array lies in that is no array."""
    base = obj.base
    base = base.obj if isinstance(base, memoryview) else base
    if name_of(type(base)) == "torch.Tensor":
        return c(base).numpy()
    if type(base).__name__ != "bytearray" and name_of(type(base)) != "array.array":
        raise CannotCopyError(f"is a view of memory that belongs to a {name_of(type(base))}", obj)
    return np.frombuffer(c(base), np.uint8)


def _view(obj: Any, root: Any, made: Any) -> Any:
    """The view of a copy that another array is of the original."""
    base = obj.base
    whole = root if root is not obj else np.frombuffer(base, np.uint8) if not hasattr(base, "numpy") else base.numpy()
    offset = _address(obj) - _address(whole)
    if obj.dtype.hasobject:
        flat = made.ravel(order="K")[offset // obj.itemsize :]
        return np.lib.stride_tricks.as_strided(flat, obj.shape, obj.strides)
    flat = made.ravel(order="K") if type(made) is np.ndarray else np.asarray(made).ravel(order="K")
    if not np.may_share_memory(flat, made):
        raise CannotCopyError("is a view of an array with gaps", obj)
    return np.ndarray(obj.shape, obj.dtype, flat.view(np.uint8).data, offset, obj.strides)


def _address(array: Any) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def copy_record(c: Any, obj: Any) -> Any:
    """A row of a structured array, which shares the array's memory."""
    if obj.dtype.hasobject:
        raise CannotCopyError("is a record that refers to Python objects", obj)
    root = obj.base
    while isinstance(root, np.ndarray) and isinstance(_base_of(root), np.ndarray):
        root = _base_of(root)
    if not isinstance(root, np.ndarray):
        return obj.copy()
    flat, offset = c(root).ravel(order="K").view(np.uint8), _address(np.asarray(obj)) - _address(root)
    return np.ndarray(1, obj.dtype, flat.data, offset)[0]


def copy_memoryview(c: Any, obj: Any) -> Any:
    """A view of an object's memory."""
    if isinstance(obj.obj, bytes) or not obj.contiguous:
        if obj.contiguous:
            return obj
        raise CannotCopyError("is a memoryview with gaps", obj)
    whole = memoryview(c(obj.obj)).cast("B")
    start = _address(np.frombuffer(obj, np.uint8)) - _address(np.frombuffer(obj.obj, np.uint8)) if obj.nbytes else 0
    part = whole[start : start + obj.nbytes]
    part = part if obj.format == "B" and obj.ndim == 1 else part.cast(obj.format, list(obj.shape))
    return part.toreadonly() if obj.readonly else part


def copy_mujoco_data(c: Any, obj: Any) -> Any:
    """MjData, all of it: rewards read derived arrays that lag behind ``qpos``, so that no state of MuJoCo's own is exact."""
    import mujoco

    if not hasattr(mujoco, "mj_copyData"):  # before 3.5
        made = copy.deepcopy(obj) if c.own_models else copy.copy(obj)
        if c.own_models:
            c.remember(obj.model, made.model)
        c.natives[id(obj)] = (obj, made)
        return made
    model = c(obj.model)

    def make(data: Any, reuse: Any) -> Any:
        made = mujoco.MjData(model) if reuse is None or reuse.model is not model else reuse
        mujoco.mj_copyData(made, model, data)
        return made

    return remember_native(c, obj, make)


def copy_mujoco_model(c: Any, obj: Any) -> Any:
    """MjModel: shared, until the check sees siblings differ, which may be because the env changes it."""
    return copy.copy(obj) if c.own_models else obj


_ALE_SETTINGS = (
    *(("Int", name) for name in ("frame_skip", "max_num_frames", "max_num_frames_per_episode", "reward_min", "reward_max")),
    *(("Bool", name) for name in ("color_averaging", "sound_obs", "truncate_on_loss_of_life")),
    *(("Float", "repeat_action_probability"), ("String", "rom_file")),
)


def copy_ale(c: Any, obj: Any) -> Any:
    """An emulator of Atari games. Loading a game takes long, so an earlier copy's emulator is used again."""
    if obj.getFloat("repeat_action_probability") > 0:  # the previous action is not in an ALEState
        raise CannotCopyError(
            "repeats actions at random by itself, and its state does not tell which action it repeats. Make the env with "
            "repeat_action_probability=0.0, or take an id that ends in NoFrameskip-v4; Stable-Baselines3's "
            "AtariWrapper(env, action_repeat_probability=0.25) repeats actions in a way that can be copied",
            obj,
        )
    if any(map(obj.getString, ("record_screen_dir", "record_sound_filename"))) or any(
        map(obj.getBool, ("display_screen", "sound"))
    ):
        raise CannotCopyError("shows or records what it does", obj)

    def make(ale: Any, reuse: Any) -> Any:
        settings = [(kind, name, getattr(ale, f"get{kind}")(name)) for kind, name in _ALE_SETTINGS]
        if reuse is None or any(getattr(reuse, f"get{kind}")(name) != value for kind, name, value in settings):
            reuse = type(ale)()
            for kind, name, value in settings:
                getattr(reuse, f"set{kind}")(name, value)
            reuse.loadROM(ale.getString("rom_file"))
        reuse.setInt("random_seed", ale.getInt("random_seed"))
        reuse.restoreState(ale.cloneState(include_rng=True))
        return reuse

    return remember_native(c, obj, make)


def _copy_table(c: Any, obj: Any) -> Any:
    """A pandas DataFrame or Series: shared where all its arrays are read-only, else a copy."""
    columns = [obj] if obj.ndim == 1 else [obj.iloc[:, place] for place in range(obj.shape[1])]
    if columns and not any(one.to_numpy().flags.writeable for one in columns if one.dtype.kind in "biufcmM"):
        if all(one.dtype.kind in "biufcmM" for one in columns):
            return obj
    made = obj.copy()
    for place, one in enumerate(columns):
        if one.dtype == object and not ATOMS.issuperset(map(type, one)):
            values = np.empty(len(one), dtype=object)
            _copy_objects(c, one.to_numpy(), values)
            made.iloc[slice(None) if obj.ndim == 1 else (slice(None), place)] = values
    made.attrs = c(obj.attrs)
    return made


def _copy_tensor(c: Any, obj: Any) -> Any:
    """A torch tensor. Tensors that share memory do so in the copy."""
    torch = sys.modules["torch"]
    if obj.grad_fn is not None or obj.layout != torch.strided:
        raise CannotCopyError("is a tensor that belongs to a graph of gradients, or is not dense", obj)
    storage = c(obj.untyped_storage())
    made = torch.empty(0, dtype=obj.dtype, device=obj.device).set_(storage, obj.storage_offset(), obj.size(), obj.stride())
    made = (
        type(obj)(made, requires_grad=obj.requires_grad)
        if type(obj) is not torch.Tensor
        else made.requires_grad_(obj.requires_grad)
    )
    c.remember(obj, made)
    if obj.grad is not None:
        made.grad = c(obj.grad)
    return made


def _copy_storage(c: Any, obj: Any) -> Any:
    """The memory of tensors, which Python meets as another object each time."""
    key = -obj.data_ptr() - 1  # no id is negative
    if key not in c.memo:
        c.memo[key] = obj.clone()
    return c.memo[key]


def _copy_surface(c: Any, obj: Any) -> Any:
    parent = obj.get_parent()
    return obj.copy() if parent is None else c(parent).subsurface((*obj.get_offset(), *obj.get_size()))


def share(c: Any, obj: Any) -> Any:
    """What never changes."""
    return obj


_BY_NAME: dict[str, Callable[[Any, Any], Any]] = {
    "mujoco._structs.MjData": copy_mujoco_data,
    "mujoco._structs.MjModel": copy_mujoco_model,
    **{f"mujoco._structs.Mj{part}": share for part in ("Option", "Statistic", "Visual", "vCamera", "vOption", "vPerturb")},
    **{f"mujoco._structs.Mjv{part}": share for part in ("Figure", "Scene")},
    "mujoco._render.MjrContext": share,
    "gymnasium.envs.mujoco.mujoco_rendering.BaseRender": share,
    "ale_py._ale_py.ALEInterface": copy_ale,
    **{f"ale_py._ale_py.{part}": share for part in ("Action", "ALEState", "LoggerMode")},
    **{f"pygame.{part}": lambda c, obj: obj.copy() for part in ("rect.Rect", "rect.FRect", "math.Vector2", "math.Vector3")},
    **{f"pygame.{part}": lambda c, obj: obj.copy() for part in ("Rect", "FRect", "Vector2", "Vector3", "Mask", "mask.Mask")},
    **{f"pygame.{part}": _copy_surface for part in ("Surface", "surface.Surface")},
    **{f"pygame.{part}Color": lambda c, obj: type(obj)(obj) for part in ("", "color.")},
    **{
        f"pygame.{part}": share
        for part in ("time.Clock", "font.Font", "Font", "mixer.Sound", "Sound", "mixer.Channel", "Channel")
    },
    **{f"pandas.{part}": _copy_table for part in ("DataFrame", "Series", "core.frame.DataFrame", "core.series.Series")},
    "pandas.core.indexes.base.Index": share,
    **{f"pandas._libs.tslibs.{part}": share for part in ("timestamps.Timestamp", "timedeltas.Timedelta", "nattype.NaTType")},
    "pandas.core.dtypes.dtypes.ExtensionDtype": share,
    "pandas.core.dtypes.base.ExtensionDtype": share,
    "pandas._libs.indexing.NDFrameIndexerBase": lambda c, obj: getattr(c(obj.obj), obj.name),
    "pandas.core.arrays.base.ExtensionArray": lambda c, obj: obj.copy(),
    "torch.Tensor": _copy_tensor,
    "torch.storage.UntypedStorage": _copy_storage,
    "torch._C.Generator": lambda c, obj: obj if obj is sys.modules["torch"].default_generator else obj.clone_state(),
    **{f"torch.{part}": share for part in ("device", "dtype", "layout", "memory_format")},
}
_CONSTANT_PACKAGES = ("jax", "jaxlib")
"""Arrays that never change, and functions of these."""


@functools.lru_cache(maxsize=4096)
def native_rule(kind: type) -> Callable[[Any, Any], Any] | None:
    """How it is copied, ``rule(copier, obj)``, if it is one of those above or a subclass without attributes of its own."""
    if module_of(kind).split(".")[0] in _CONSTANT_PACKAGES:
        return share
    for base in kind.__mro__:
        rule = _BY_NAME.get(name_of(base))
        if rule is not None:
            adds_attributes = kind.__dictoffset__ and not base.__dictoffset__
            return functools.partial(_with_attributes, rule) if adds_attributes and rule is not share else rule
    return None


def _with_attributes(rule: Callable[[Any, Any], Any], c: Any, obj: Any) -> Any:
    """An object of a subclass written in Python."""
    made = rule(c, obj)
    if type(made) is not type(obj):
        raise CannotCopyError(f"is a {name_of(type(obj))}, whose base copies itself as another type", obj)
    c.remember(obj, made).__dict__.update({name: c(value) for name, value in vars(obj).items()})
    return made
