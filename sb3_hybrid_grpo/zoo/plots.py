"""The x-axis of ``plot_train``, in steps of the simulator."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
from stable_baselines3.common.monitor import load_results


class Episodes(pd.DataFrame):  # type: ignore[misc]
    """Episodes for ``plot_train``: it reads lengths in the column ``l``, and the x-axis' steps in the attribute ``l``."""

    _constructor = property(lambda self: Episodes)
    l = property(lambda self: self["simulator_steps"])  # noqa: E741


def load_scaled_results(folder: str) -> Episodes:
    """
    Load a run's Monitor files, which hold only the executed members' episodes, and convert their steps to simulator steps.
    Every model that the run saved has both counts of steps. The conversion is linear between two saved models, and is
    continued after the last.

    :param folder: The run's folder
    :return: The episodes; if no model was saved, the x-axis stays in executed steps
    """
    counts = {(0, 0)}
    for path in Path(folder).glob("*.zip"):
        with zipfile.ZipFile(path) as model:
            data = json.loads(model.read("data"))
        timesteps = data["num_timesteps"]  # of version 0.1: executed steps; of other algorithms: both
        counts.add((data.get("num_executed_steps", timesteps), data.get("num_simulator_steps", timesteps)))
    if len(counts) == 1:
        print(f"{folder} holds no saved model: its x-axis is executed steps")
        counts.add((1, 1))
    executed, simulated = np.array(sorted(counts), dtype=float).T
    slope = (simulated[-1] - simulated[-2]) / (executed[-1] - executed[-2])
    episodes = Episodes(load_results(folder))
    ends = np.cumsum(episodes["l"].to_numpy(dtype=float))
    steps = np.interp(ends, executed, simulated) + slope * np.maximum(ends - executed[-1], 0)
    episodes["simulator_steps"] = np.diff(steps, prepend=0)
    return episodes
