"""The x-axis of ``plot_train``, in steps of the simulator."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
from stable_baselines3.common.monitor import load_results


class Episodes(pd.DataFrame):  # type: ignore[misc]
    """``plot_train`` reads an episode's length from the column ``l``, and the steps of its x-axis from the attribute ``l``."""

    _constructor = property(lambda self: Episodes)
    l = property(lambda self: self["simulator_steps"])  # noqa: E741


def load_scaled_results(folder: str) -> Episodes:
    """
    Load a run's Monitor files, which hold the executed members' episodes alone. Every model that was saved in the run knows
    both counts of steps; the scale is linear between two of them, and goes on after the last.

    :param folder: The run's folder
    :return: The episodes; where no model was saved, executed steps stay the x-axis
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
