"""What is in a saved model, found out before it is loaded."""

import json
import zipfile
import zlib
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from stable_baselines3.common.save_util import open_path


def saved_names(path: str | Path | BufferedIOBase) -> set[str]:
    """
    List the attributes that a saved model has.

    :param path: The file, or an open one, which is left where it was
    :return: Their names
    :raises ValueError: if the file holds no model, or one that is incomplete
    """
    file: Any = open_path(path, "r", suffix="zip")
    begin = file.tell()
    try:
        if not zipfile.is_zipfile(file):
            raise zipfile.BadZipFile("it wasn't a zip-file")
        file.seek(begin)
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
            if broken is not None:
                raise zipfile.BadZipFile(f"{broken} is damaged")
            return set(json.loads(archive.read("data")))
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError) as error:
        raise ValueError(
            f"Received {path}, which holds no complete model ({error}). Give the zip file that model.save() wrote; one that "
            "was cut short when it was copied or written cannot be repaired: take an earlier checkpoint."
        ) from error
    finally:
        if isinstance(path, BufferedIOBase):
            file.seek(begin)
        else:
            file.close()


def check_is_hybrid(path: str | Path | BufferedIOBase, wanted: str, other: str) -> None:
    """
    Check that a file was saved by one of this package's algorithms.

    :param path: The file
    :param wanted: Name of the algorithm that is to load it
    :param other: Name of the algorithm without groups
    :raises ValueError: if it was not
    """
    if "n_samples" not in saved_names(path):
        raise ValueError(
            f"Received {path}, which was not saved by {wanted}. If it was saved by {other}, go on from it with "
            f"{wanted}.from_ppo(path, env=env); else load it with the algorithm that saved it."
        )


def check_is_ppo(path: str | Path | BufferedIOBase, wanted: str, other: str) -> None:
    """
    Check that a file was saved by PPO, or by the variant of it that belongs to an algorithm.

    :param path: The file
    :param wanted: Name of the algorithm that is to go on from it
    :param other: Name of the algorithm that should have saved it
    :raises ValueError: if it was not
    """
    names = saved_names(path)
    if "n_samples" in names:
        raise ValueError(f"Received {path}, which was not saved by {other}: it has groups already. Use {wanted}.load(path).")
    if not {"n_epochs", "clip_range", "gae_lambda"} <= names:
        raise ValueError(f"Received {path}, which was not saved by {other}. Use the zip file that its model.save() wrote.")
