"""Save models atomically, check files before loading, and go on from models of PPO and of version 0.1."""

import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch as th
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file, open_path
from stable_baselines3.common.type_aliases import GymEnv

from sb3_hybrid_grpo.auto_grouping import AutoGrouping
from sb3_hybrid_grpo.notices import notice
from sb3_hybrid_grpo.signatures import arguments_of, refuse_unknown
from sb3_hybrid_grpo.validation import check_no_longer

SelfModelFiles = TypeVar("SelfModelFiles", bound="ModelFiles")

_ONLY_IN_0_1 = ("num_simulator_steps", "sampling_temperature", "target_entropy", "_sibling_ends")
# Attributes bound to one process: simulators, and recorded graphs.
_NOT_SAVED = ("_groups", "_groups_of", "_shape_of_groups", "_transform", "_variances", "_sampling", "_update")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """
    Write a file atomically. The path of a temporary file is yielded; at the end that file is renamed to ``path``. After an
    error, ``path`` is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class ModelFiles(OnPolicyAlgorithm):
    """Saving and loading of algorithms with groups. A subclass has ``n_samples`` as an argument."""

    _without_groups: ClassVar[type[Any]]
    """The algorithm to which a subclass adds groups."""
    num_executed_steps: int

    def save(
        self,
        path: str | Path | BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save the model. A file of that name is replaced only when the new one is complete.

        :param path: Path to the file, or an open file
        :param exclude: Names of attributes to leave out in addition to the default ones
        :param include: Names of attributes to save although they are left out by default
        """
        if isinstance(path, BufferedIOBase):
            super().save(path, exclude, include)
            return
        path = Path(path)
        path = (path if path.suffix else path.with_name(f"{path.name}.zip")).resolve()  # the target of a link
        with replacing(path) as unfinished:
            super().save(unfinished, exclude, include)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), *_NOT_SAVED]

    def __getstate__(self) -> dict[str, Any]:
        """Recorded graphs cannot be pickled; a copy records its own."""
        return {name: value for name, value in vars(self).items() if name not in _NOT_SAVED[-2:]}

    @classmethod
    def load(
        cls: type[SelfModelFiles],
        path: str | Path | BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfModelFiles:
        """
        Load a model as SB3 does, after a check of the file.

        :param path: Path to the file, or an open file
        :param env: The envs to train in; None for prediction alone
        :param device: Device (cpu, cuda, ...) on which the code should be run
        :param custom_objects: Objects to use instead of saved ones
        :param print_system_info: Whether to print the system that the model was saved on
        :param force_reset: Whether the envs are reset before the next training
        :param kwargs: Arguments of the model that replace the saved ones
        :return: The model
        :raises ValueError: if the file is incomplete, was saved by another algorithm, or by version 0.1 with an argument that
            was removed
        :raises TypeError: if an argument is unknown
        """
        saved = _saved_data(path)
        if "n_samples" not in saved:
            other = cls._without_groups.__name__
            raise ValueError(
                f"Received {path}, which was not saved by {cls.__name__}. If {other} saved it, go on from it with "
                f"{cls.__name__}.from_ppo(path, env=env); else load it with the algorithm that saved it."
            )
        old = "num_simulator_steps" in saved  # version 0.1
        refuse_unknown(kwargs.keys() - (set(_ONLY_IN_0_1) if old else set()), cls.__name__, _replaceable(cls))
        if old:
            kwargs = _counted_in_simulator_steps(path, saved, kwargs)
            custom_objects = {"auto_grouping": None, **(custom_objects or {})}
        model = super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
        if old:
            vars(model).update(num_executed_steps=saved["num_timesteps"], auto_grouping=AutoGrouping())
            for name in _ONLY_IN_0_1:
                vars(model).pop(name, None)
        return model

    @classmethod
    def from_ppo(
        cls: type[SelfModelFiles],
        path: str | Path | BufferedIOBase,
        env: GymEnv | str | None = None,
        device: th.device | str = "auto",
        **kwargs: Any,
    ) -> SelfModelFiles:
        """
        Go on from a model that PPO saved (for the variants MaskablePPO or RecurrentPPO), with its policy, the state of its
        optimizer, its arguments and its number of timesteps.

        :param path: Path to the file, or an open file
        :param env: The envs to train in, or the id of one; None for prediction alone
        :param device: Device (cpu, cuda, ...) on which the code should be run
        :param kwargs: Arguments that replace PPO's or that PPO does not have, for example ``n_samples=8``
        :return: The model; go on with ``model.learn(..., reset_num_timesteps=False)``
        :raises ValueError: if the file is incomplete or was not saved by PPO
        :raises TypeError: if an argument is unknown
        """
        saved, other = _saved_data(path), cls._without_groups.__name__
        if "n_samples" in saved:
            raise ValueError(
                f"Received {path}, which was not saved by {other}: it has groups already. Use {cls.__name__}.load(path)."
            )
        if not {"n_epochs", "clip_range", "gae_lambda"} <= saved.keys():
            raise ValueError(f"Received {path}, which was not saved by {other}. Use the zip file that its model.save() wrote.")
        policy = load_from_zip_file(path, device="cpu")[0]["policy_class"]  # type: ignore[index]
        wanted = cls.policy_aliases["MlpPolicy" if "MlpPolicy" in cls.policy_aliases else "MlpLstmPolicy"]
        others = {MaskableActorCriticPolicy, RecurrentActorCriticPolicy} - {wanted}
        if not issubclass(policy, wanted) or issubclass(policy, tuple(others)):
            raise ValueError(
                f"Received {path}, which has a {policy.__name__} and was not saved by {other}. MaskableHybridGRPO goes on "
                "from MaskablePPO, RecurrentHybridGRPO from RecurrentPPO, HybridGRPO from PPO."
            )
        refuse_unknown(kwargs, cls.__name__, _replaceable(cls))
        made = None if env is None else maybe_make_env(env, verbose=0)
        # PPO saves the class of the buffer that it chose for itself
        model = super().load(path, made, device, **{"rollout_buffer_class": None, **kwargs})
        model.num_executed_steps = model.num_timesteps
        return model


def _replaceable(algorithm: type[Any]) -> list[str]:
    """The arguments that can be given when a model is loaded."""
    return [name for name in arguments_of(algorithm) if name not in ("policy", "_init_setup_model")]


def _saved_data(path: str | Path | BufferedIOBase) -> dict[str, Any]:
    """Read the attributes of a saved model; pickled ones stay pickled."""
    file: Any = open_path(path, "r", suffix="zip")
    begin = file.tell()
    try:
        with zipfile.ZipFile(file) as archive:
            if broken := archive.testzip():
                raise zipfile.BadZipFile(f"{broken} is damaged")
            data: dict[str, Any] = json.loads(archive.read("data"))
            return data
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError) as error:
        raise ValueError(
            f"Received {path}, which wasn't a zip-file with a complete model ({error}). Give the file that save() wrote. "
            "A file that was cut short when it was copied or written cannot be repaired: take an earlier checkpoint."
        ) from error
    finally:
        if isinstance(path, BufferedIOBase):
            file.seek(begin)
        else:
            file.close()


def _counted_in_simulator_steps(path: Any, saved: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Explain how version 0.1 counted steps, and add the converted arguments to the user's ``kwargs``."""
    given = {**saved, **kwargs}
    check_no_longer({name: given[name] for name in ("branch_horizon", "ent_coef", "sampling_temperature") if name in given})
    if isinstance(saved["ent_coef"], str) and saved["ent_coef"].startswith("auto"):
        raise ValueError(
            f"Received {path}, saved by version 0.1 with a learned entropy coefficient, which was removed. Load it with "
            "version 0.1; train anew with a number, and let a callback change model.ent_coef if it is to decay."
        )
    n_steps, n_samples = saved["n_steps"], saved["n_samples"]
    replaced = {"num_timesteps": saved["num_simulator_steps"], "n_steps": n_steps * n_samples, **kwargs}
    notice(
        f"{path} was saved by version 0.1, which counted steps of the executed member alone. Now every step of the simulator "
        f"counts: num_timesteps is {replaced['num_timesteps']} instead of {saved['num_timesteps']}, and n_steps "
        f"{replaced['n_steps']} instead of {n_steps}, so that an update keeps its size. Give learn() {n_samples} times the "
        "total_timesteps for as many executed steps as before."
    )
    return replaced
