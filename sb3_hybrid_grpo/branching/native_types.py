"""Rules for objects written in C: numpy's, and those of libraries that envs use. Each is copied by its public API."""

import array
import copy
import functools
import mmap
import operator
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from sb3_hybrid_grpo.branching.engines import ATOMS, CannotCopyError, module_of, name_of
from sb3_hybrid_grpo.branching.wrapper_chain import torch_generator


def remember_native(c: Any, obj: Any, make: Callable[[Any, Any], Any]) -> Any:
    """Copy an object that is costly to make: ``make(obj, reuse)`` may overwrite an earlier copy."""
    known = c.reuse.get(id(obj))
    made = make(obj, known[1] if known is not None and known[0] is obj else None)
    c.natives[id(obj)] = (obj, made)
    return made


def copy_array(c: Any, obj: Any) -> Any:
    """An array of any kind. A view becomes a view of its owner's copy; read-only memory is shared."""
    kind, writeable = type(obj), obj.flags.writeable
    if obj.base is None and kind is np.ndarray and not obj.dtype.hasobject:
        return obj.copy(order="K") if writeable else obj
    owner = obj
    while (base := _base_of(owner)) is not None and type(base).__name__ != "PyCapsule":
        owner = base
        writeable |= isinstance(owner, np.ndarray) and owner.flags.writeable
    if base is not None and owner is obj:
        return _copy_mujoco_array(c, obj)
    if base is None and not writeable and not obj.dtype.hasobject:
        if isinstance(owner, np.ndarray) or (isinstance(owner, mmap.mmap) and memoryview(owner).readonly):
            return obj
    if owner is not obj:
        its_copy = c(owner)
        if its_copy is owner:  # bytes, a JAX array, an array of a shared MjModel
            if isinstance(owner, np.ndarray) and not owner.flags.writeable:
                raise CannotCopyError("is a writeable view of an array that is read-only")
            return obj
        made = _same_view(obj, owner, its_copy)
    elif obj.dtype.hasobject:
        made = c.remember(obj, np.empty_like(obj, subok=False))
        _copy_objects(c, obj, made)
    else:
        made = np.array(obj, order="K", subok=False)
    if kind is not np.ndarray:
        made = c.remember(obj, made.view(kind))
        vars(made).update({name: c(value) for name, value in vars(obj).items()})
    if not obj.flags.writeable:
        made.flags.writeable = False
    return made


def _base_of(obj: Any) -> Any:
    """The object of which an array is a view; None for an owner of memory."""
    base: Any = obj.base if isinstance(obj, np.ndarray | np.void) else obj.obj if isinstance(obj, memoryview) else None
    return base.base if type(base).__name__ == "DummyArray" else base  # np.lib.stride_tricks puts it in between


def _copy_objects(c: Any, obj: Any, made: Any) -> None:
    if obj.dtype != object:
        raise CannotCopyError("is an array of records that refer to Python objects")
    if ATOMS.issuperset(map(type, obj.flat)):
        made[...] = obj
        return
    for place, one in enumerate(obj.flat):
        made.flat[place] = c(one)  # one by one: numpy would make an array of a nested list


def _same_view(obj: Any, owner: Any, made: Any) -> Any:
    """The same view of ``made``, the owner's copy, as ``obj`` is of ``owner``."""
    if obj.size == 0:
        return np.empty_like(obj, subok=False)
    offset = _address(obj) - _address(_flat(owner, obj))
    if obj.dtype.hasobject:
        return np.lib.stride_tricks.as_strided(_flat(made, obj)[offset // obj.itemsize :], obj.shape, obj.strides)
    return np.ndarray(obj.shape, obj.dtype, _flat(made, obj).view(np.uint8).data, offset, obj.strides)


def _flat(owner: Any, obj: Any) -> Any:
    """The memory of an owner as a flat array, in memory order."""
    if name_of(type(owner)) == "torch.Tensor":
        owner = owner.numpy()
    elif isinstance(owner, bytearray | array.array):
        return np.frombuffer(owner, np.uint8)
    elif not isinstance(owner, np.ndarray):
        raise CannotCopyError(f"is a view of memory that belongs to a {name_of(type(owner))}")
    flat = np.asarray(owner).ravel(order="K")
    if not np.may_share_memory(flat, owner):
        raise CannotCopyError("is a view of an array with gaps")
    return flat


def _address(array: Any) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def copy_record(c: Any, obj: Any) -> Any:
    """A row of a structured array, which shares the array's memory."""
    if obj.dtype.hasobject:
        raise CannotCopyError("is a record that refers to Python objects")
    return obj.copy() if obj.base is None else copy_array(c, np.asarray(obj).reshape(1))[0]


def copy_memoryview(c: Any, obj: Any) -> Any:
    """A view of an object's memory."""
    if not obj.contiguous:
        raise CannotCopyError("is a memoryview with gaps")
    start = _address(np.frombuffer(obj, np.uint8)) - _address(np.frombuffer(obj.obj, np.uint8)) if obj.nbytes else 0
    part = memoryview(c(obj.obj)).cast("B")[start : start + obj.nbytes]
    part = part if obj.format == "B" and obj.ndim == 1 else part.cast(obj.format, list(obj.shape))
    return part.toreadonly() if obj.readonly else part


def deep(c: Any, obj: Any) -> Any:
    """Copy by ``copy.deepcopy``. The shared memo keeps references between objects."""
    return copy.deepcopy(obj, c.memo)


def copy_mujoco_data(c: Any, obj: Any) -> Any:
    """MjData, with all arrays: rewards read derived arrays that lag behind ``qpos`` and that MuJoCo's own states lack."""
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


def _copy_mujoco_array(c: Any, obj: Any) -> Any:
    """An array of an MjData's or MjModel's memory, which names no owner: the same array of the copy, found by its address."""
    known = c.reuse.get(id(obj))
    place = known[1] if known is not None and known[0] is obj else None
    if place is None or not _is_there(c, obj, place):
        if _address(obj) not in c.mujoco_arrays:
            for data, _ in [pair for pair in c.natives.values() if name_of(type(pair[0])) == "mujoco._structs.MjData"]:
                for prefix, holder in (("", data), ("model.", data.model), ("warning.", data.warning), ("timer.", data.timer)):
                    for name in dir(holder):
                        array = getattr(holder, name)
                        if isinstance(array, np.ndarray) and array.size:
                            c.mujoco_arrays[_address(array)] = data, prefix + name
        place = c.mujoco_arrays.get(_address(obj))
    if place is None or not _is_there(c, obj, place):
        raise CannotCopyError(
            "is a view of memory that belongs to an object written in C. If it is MuJoCo's, read it anew in each step, or "
            "keep it in an attribute that is set after the MjData's"
        )
    c.natives[id(obj)] = (obj, place)
    data, path = place
    return operator.attrgetter(path)(c.natives[id(data)][1])


def _is_there(c: Any, obj: Any, place: tuple[Any, str]) -> bool:
    """Whether an array is still the one in this place: MuJoCo moves some arrays."""
    data, path = place
    if id(data) not in c.natives:
        return False
    array = operator.attrgetter(path)(data)
    return _address(array) == _address(obj) and array.dtype == obj.dtype and array.shape == obj.shape


def _copy_dm_control_index(c: Any, obj: Any) -> Any:
    """dm_control's ``physics.named.data``, whose class is made for one simulator and holds views of its memory."""
    return sys.modules["dm_control.mujoco.index"].make_struct_indexer(c(obj._asdict()))


_ALE_SETTINGS = (
    *(("Int", name) for name in ("frame_skip", "max_num_frames", "max_num_frames_per_episode", "reward_min", "reward_max")),
    *(("Bool", name) for name in ("color_averaging", "sound_obs", "truncate_on_loss_of_life")),
    *(("Float", "repeat_action_probability"), ("String", "rom_file")),
)


def copy_ale(c: Any, obj: Any) -> Any:
    """An emulator of Atari games. Loading a game takes long, so an earlier copy's emulator is used again."""
    if obj.getFloat("repeat_action_probability") > 0:  # the previous action is not in an ALEState
        raise CannotCopyError(
            "repeats actions at random, and its saved state lacks the previous action. Make the env with "
            "repeat_action_probability=0.0, or take an id that ends in NoFrameskip-v4; Stable-Baselines3's "
            "AtariWrapper(env, action_repeat_probability=0.25) repeats actions in a way that can be copied"
        )
    if any(map(obj.getString, ("record_screen_dir", "record_sound_filename"))) or any(
        map(obj.getBool, ("display_screen", "sound"))
    ):
        raise CannotCopyError("shows or records its screen or sound")

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
    """A pandas DataFrame or Series: shared if all its arrays are read-only, else a copy."""
    columns = [obj] if obj.ndim == 1 else [obj.iloc[:, place] for place in range(obj.shape[1])]
    if columns and not any(_is_writeable(one.to_numpy()) for one in columns if one.dtype.kind in "biufcmM"):
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


def _is_writeable(array: Any) -> bool:
    """Whether an array, or one that it views, can be written to. Pandas with copy-on-write shows read-only views."""
    return isinstance(array, np.ndarray) and (array.flags.writeable or _is_writeable(array.base))


def _copy_tensor(c: Any, obj: Any) -> Any:
    """A torch tensor. Copies of tensors that share memory share memory."""
    if obj.grad_fn is not None:
        raise CannotCopyError("is a tensor that belongs to a graph of gradients")
    made = deep(c, obj.data)  # a Parameter's own copy would have memory of its own
    parameter = type(obj) is not sys.modules["torch"].Tensor
    made = type(obj)(made, requires_grad=obj.requires_grad) if parameter else made.requires_grad_(obj.requires_grad)
    c.remember(obj, made)
    if obj.grad is not None:
        made.grad = c(obj.grad)
    return made


def _copy_surface(c: Any, obj: Any) -> Any:
    parent = obj.get_parent()
    return obj.copy() if parent is None else c(parent).subsurface((*obj.get_offset(), *obj.get_size()))


def share(c: Any, obj: Any) -> Any:
    """The object itself, because it never changes."""
    return obj


_BY_NAME: dict[str, Callable[[Any, Any], Any]] = {
    "mujoco._structs.MjData": copy_mujoco_data,
    # shared, unless the check finds that the env changes the model
    "mujoco._structs.MjModel": lambda c, obj: copy.copy(obj) if c.own_models else obj,
    **{f"mujoco._structs.Mj{part}": share for part in ("Option", "Statistic", "Visual", "vCamera", "vOption", "vPerturb")},
    **{f"mujoco._structs.Mjv{part}": share for part in ("Figure", "Scene")},
    "mujoco._render.MjrContext": share,
    "dm_control.mujoco.index.make_struct_indexer.<locals>.StructIndexer": _copy_dm_control_index,
    "dm_control.mujoco.index.Axis": share,
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
    **{f"pandas._libs.{part}": share for part in ("tslibs.offsets.BaseOffset", "tslibs.period._Period", "interval.Interval")},
    "pandas._libs.missing.NAType": share,
    "pandas.core.dtypes.dtypes.ExtensionDtype": share,
    "pandas.core.dtypes.base.ExtensionDtype": share,
    "pandas._libs.indexing.NDFrameIndexerBase": lambda c, obj: getattr(c(obj.obj), obj.name),
    "pandas.core.arrays.base.ExtensionArray": lambda c, obj: obj.copy(),
    "numpy._ArrayFunctionDispatcher": share,  # np.mean, np.linalg.norm and most other functions
    **{f"numba.{part}": share for part in ("core.registry.CPUDispatcher", "np.ufunc.dufunc.DUFunc")},
    **{f"scipy.spatial.{part}": share for part in ("_ckdtree.cKDTree", "_qhull._QhullUser", "transform._rotation.Rotation")},
    **dict.fromkeys(
        ("scipy.interpolate._rbfinterp.RBFInterpolator", "casadi.casadi.Function", "matplotlib.artist.Artist"), share
    ),
    **dict.fromkeys(("shapely.lib.Geometry", "shapely.lib.STRtree"), share),
    "torch.Tensor": _copy_tensor,
    "torch.storage.UntypedStorage": deep,
    **{f"torch.{part}": share for part in ("device", "dtype", "layout", "memory_format")},
}


def native_rule(kind: type) -> Callable[[Any, Any], Any] | None:
    """The rule of a type in ``_BY_NAME`` or of its subclass, ``rule(copier, obj)``; None for another type."""
    if module_of(kind).split(".")[0] in ("jax", "jaxlib"):  # their objects never change
        return share
    if kind is type(torch_generator() or ...):
        return lambda c, obj: obj if obj is torch_generator() else remember_native(c, obj, lambda one, _: one.clone_state())
    for base in kind.__mro__:
        rule = _BY_NAME.get(name_of(base))
        if rule is not None:
            adds_attributes = kind.__dictoffset__ and not base.__dictoffset__
            return functools.partial(_with_attributes, rule) if adds_attributes and rule is not share else rule
    return None


def _with_attributes(rule: Callable[[Any, Any], Any], c: Any, obj: Any) -> Any:
    """An object of a Python subclass, with its attributes."""
    made = rule(c, obj)
    if type(made) is not type(obj):
        raise CannotCopyError(f"is a {name_of(type(obj))}, whose base copies itself as another type")
    c.remember(obj, made).__dict__.update({name: c(value) for name, value in vars(obj).items()})
    return made
