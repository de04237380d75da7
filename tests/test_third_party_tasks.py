"""Tasks of other libraries, for the comparison: none of these libraries is needed."""

import runpy
from pathlib import Path

import gymnasium as gym
import pytest

TASKS = Path(__file__).parents[1] / "benchmarks" / "third_party" / "tasks.py"


def registered_with(monkeypatch: pytest.MonkeyPatch, *installed: str) -> set[str]:
    """Execute the module where these libraries alone are installed; the ids that it registers."""
    if not TASKS.is_file():
        pytest.skip("runs without the benchmarks")
    registry: dict[str, gym.envs.registration.EnvSpec] = {}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name in installed else None)
    monkeypatch.setattr("gymnasium.envs.registration.registry", registry)
    runpy.run_path(str(TASKS))
    return set(registry)


def test_nothing_is_registered_without_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    assert registered_with(monkeypatch) == set()


def test_tasks_of_an_installed_library_are_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    found = registered_with(monkeypatch, "or_gym", "minigrid")
    assert {"third_party/InvManagementBacklog-v0", "third_party/DynamicObstacles-v0"} <= found
    assert "third_party/Reactor-v0" not in found
