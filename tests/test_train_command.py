"""The ``train`` command: what it writes, and how it answers mistyped input."""

import importlib
import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from matplotlib.axes import Axes

from sb3_hybrid_grpo import HybridGRPO, __version__
from sb3_hybrid_grpo.__main__ import COMMANDS, main, run_command
from sb3_hybrid_grpo.commands import evaluation, train
from sb3_hybrid_grpo.commands.arguments import parse_hyperparams, positive_int, with_schedules
from sb3_hybrid_grpo.commands.cli import CommandError
from sb3_hybrid_grpo.model_files import replacing
from sb3_hybrid_grpo.commands.evaluation import make_env
from sb3_hybrid_grpo.commands.train import new_run_folder, save_learning_curve
from tests.zoo import command, zoo_in

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def train_args(folder: Path, *more: str, env: str = "CartPole-v1") -> list[str]:
    """A training of 256 simulator steps, in a few seconds."""
    fixed = ["--timesteps", "256", "--n-envs", "2", "--eval-episodes", "3", "--output-dir", str(folder)]
    groups = ["n_steps:64", "n_epochs:1", "n_samples:2", "branch_horizon:16"]
    return ["train", "--env", env, *fixed, "--hyperparams", *groups, *more]


def run_folder(folder: Path, number: int = 1) -> Path:
    return folder / "hybrid_grpo" / f"CartPole-v1_{number}"


def usage_error(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The message of a command that ends with a usage error."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_writes_everything_and_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(train_args(tmp_path)) == 0
    folder = run_folder(tmp_path)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    written = {"CartPole-v1.zip", "monitor.csv", "learning_curve.png", "evaluation.json", "CartPole-v1/config.yml"}
    assert names == written
    printed = capsys.readouterr().out
    assert all(str(folder / name) in printed for name in names)
    assert "ep_rew_mean" in printed  # SB3's log table
    assert "Mean reward of 3 episodes" in printed and "it lags" in printed
    assert f"hybrid-grpo-zoo enjoy --env CartPole-v1 -f {tmp_path}" in printed
    assert (folder / "learning_curve.png").read_bytes().startswith(PNG_SIGNATURE)


@pytest.mark.parametrize("normalize", [[], ["--normalize"]])
def test_enjoy_plays_what_was_trained(tmp_path: Path, normalize: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with zoo_in(tmp_path):
        assert main([*train_args(Path("logs")), *normalize]) == 0
        command("enjoy", "--env", "CartPole-v1", "-f", "logs", "--no-render", "-n", 30)
    assert f"Loading {Path('logs/hybrid_grpo/CartPole-v1_1/CartPole-v1.zip')}" in capsys.readouterr().out


def test_evaluation_json(tmp_path: Path) -> None:
    main(train_args(tmp_path, "gamma:0.9"))
    report = json.loads((run_folder(tmp_path) / "evaluation.json").read_text(encoding="utf-8"))
    assert report["executed_steps"] == 128
    assert report["simulator_steps"] == 256
    assert report["versions"]["sb3_hybrid_grpo"] == __version__
    assert report["settings"]["hyperparams"]["gamma"] == 0.9
    assert report["settings"]["timesteps"] == 256
    assert len(report["rewards"]) == 3
    assert report["mean_reward"] == pytest.approx(sum(report["rewards"]) / 3)


def test_monitor_csv_has_the_steps_of_each_episode(tmp_path: Path) -> None:
    main(train_args(tmp_path))
    header, names, *rows = (run_folder(tmp_path) / "monitor.csv").read_text(encoding="utf-8").splitlines()
    assert json.loads(header[1:])["env_id"] == "CartPole-v1"
    assert names == "r,l,t,simulator_steps,executed_steps"
    assert rows
    for row in rows:
        _, _, _, simulator_steps, executed_steps = map(float, row.split(","))
        assert 0 <= executed_steps < simulator_steps <= 256


def test_saved_model_loads(tmp_path: Path) -> None:
    main(train_args(tmp_path))
    model = HybridGRPO.load(run_folder(tmp_path) / "CartPole-v1.zip")
    assert model.n_samples == 2
    assert (model.num_timesteps, model.num_executed_steps) == (256, 128)


def test_normalize_saves_the_statistics(tmp_path: Path) -> None:
    assert main([*train_args(tmp_path, "gamma:0.9"), "--normalize"]) == 0
    env = make_env("CartPole-v1", 1, seed=0)
    statistics = VecNormalize.load(str(run_folder(tmp_path) / "CartPole-v1" / "vecnormalize.pkl"), env)
    assert statistics.gamma == 0.9
    assert isinstance(statistics.obs_rms, RunningMeanStd)
    assert statistics.obs_rms.count > 100


def test_runs_are_numbered_and_never_overwritten(tmp_path: Path) -> None:
    assert new_run_folder(tmp_path, "A-v1").name == "A-v1_1"
    (tmp_path / "hybrid_grpo" / "A-v1_7").mkdir()
    (tmp_path / "hybrid_grpo" / "A-v1_notes").mkdir()
    assert new_run_folder(tmp_path, "A-v1").name == "A-v1_8"


def test_slashes_and_modules_are_no_folders(tmp_path: Path) -> None:
    assert main(train_args(tmp_path, env="sb3_hybrid_grpo:hybrid_grpo/Queue-v0")) == 0
    assert (tmp_path / "hybrid_grpo" / "hybrid_grpo-Queue-v0_1" / "hybrid_grpo-Queue-v0.zip").is_file()


def test_interrupt_saves_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupting(train.EpisodeLog):
        def _on_step(self) -> bool:
            if self.num_timesteps >= 200:
                raise KeyboardInterrupt
            return super()._on_step()

    monkeypatch.setattr(train, "EpisodeLog", Interrupting)
    assert main(train_args(tmp_path)) == 130
    folder = run_folder(tmp_path)
    assert {path.name for path in folder.iterdir()} == {"CartPole-v1.zip", "CartPole-v1", "monitor.csv", "learning_curve.png"}
    printed = capsys.readouterr().out
    assert "Interrupted" in printed
    assert str(folder / "CartPole-v1.zip") in printed
    assert HybridGRPO.load(folder / "CartPole-v1.zip").num_timesteps == 200


def test_error_while_training_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: BaseCallback) -> bool:
        raise RuntimeError("from the callback")

    monkeypatch.setattr(train.EpisodeLog, "_on_step", fail)
    with pytest.raises(RuntimeError, match="from the callback"):
        main(train_args(tmp_path))


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ("CartPol-v1", "CartPole"),
        ("no_such_module_at_all:Env-v0", "no_such_module_at_all"),
        ("Blackjack-v1", "Tuple"),
    ],
)
def test_bad_env(tmp_path: Path, capsys: pytest.CaptureFixture[str], env: str, expected: str) -> None:
    message = usage_error(capsys, train_args(tmp_path, env=env))
    assert env in message
    assert expected in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("n_sample:4", "n_samples"),
        ("seed:1", "seed is no hyperparameter: remove it"),
        ("gamma", "key:value"),
        ("_init_setup_model:False", "_init_setup_model is no hyperparameter"),
        ("learning_rate:lin_fast", "linear decay"),
        ("n_samples:0", "n_samples"),
        ("branch_horizon:sometimes", "branch_horizon"),
        ("no_such_argument:1", "HybridGRPO has no argument no_such_argument"),
    ],
)
def test_bad_hyperparams(tmp_path: Path, capsys: pytest.CaptureFixture[str], item: str, expected: str) -> None:
    assert expected in usage_error(capsys, train_args(tmp_path, item))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["train"],
        ["fly"],
        ["train", "--env", "CartPole-v1", "--timesteps", "0"],
        ["train", "--env", "CartPole-v1", "--timesteps", "many"],
        ["train", "--env", "CartPole-v1", "--n-envs", "2.5"],
        ["train", "--env", "CartPole-v1", "--seed", "-1"],
    ],
)
def test_bad_arguments(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert "error:" in usage_error(capsys, arguments)


def test_output_dir_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.touch()
    assert str(file) in usage_error(capsys, train_args(file))


def test_missing_extra_names_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = usage_error(capsys, train_args(tmp_path))
    assert "tqdm, rich, matplotlib" in message
    assert "sb3-hybrid-grpo[extra]" in message


def test_missing_env_dependency_names_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise gym.error.DependencyNotInstalled("MuJoCo is not installed.")

    monkeypatch.setattr(evaluation, "make_vec_env", fail)
    assert "sb3-hybrid-grpo[mujoco]" in usage_error(capsys, train_args(tmp_path, env="HalfCheetah-v5"))


def test_hyperparams_are_literals_or_words() -> None:
    typed = parse_hyperparams(["gamma:0.9", "branch_horizon:auto", "policy_kwargs:{'net_arch': [8]}", "target_kl:None"])
    assert typed == {"gamma": 0.9, "branch_horizon": "auto", "policy_kwargs": {"net_arch": [8]}, "target_kl": None}


def test_linear_schedule() -> None:
    built = with_schedules({"learning_rate": "lin_0.5", "clip_range": 0.2})
    assert [built["learning_rate"](remaining) for remaining in (1.0, 0.5, 0.0)] == [0.5, 0.25, 0.0]
    assert built["clip_range"] == 0.2


def test_whole_numbers_may_be_written_with_an_exponent() -> None:
    assert positive_int("5e4") == positive_int("50_000") == 50_000


def test_learning_curve_has_no_jags_where_episodes_end_at_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[tuple[Any, ...]] = []
    monkeypatch.setattr(Axes, "plot", lambda self, x, y, *_, **__: lines.append((list(x), list(y))))
    monkeypatch.setattr(Axes, "legend", lambda *_, **__: None)
    save_learning_curve(tmp_path / "curve.png", [10, 20, 20, 30], [2.0, 4.0, 6.0, 2.0], "")
    assert lines == [([10, 20, 20, 30], [2.0, 4.0, 6.0, 2.0]), ([10, 20, 30], [2.0, 4.0, 3.5])]


def test_learning_curve_without_a_finished_episode(tmp_path: Path) -> None:
    save_learning_curve(tmp_path / "curve.png", [], [], "no episode ended")
    assert (tmp_path / "curve.png").read_bytes().startswith(PNG_SIGNATURE)


@pytest.mark.parametrize(("name", "extra"), [("benchmark.compare", "compare"), ("benchmark.zoo", "zoo")])
def test_a_missing_dependency_names_the_extra(
    name: str, extra: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(module: str) -> None:
        raise ModuleNotFoundError("No module named 'pandas'")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(SystemExit, match="2"):
        run_command(f"sb3_hybrid_grpo.{name}", name, [])
    message = capsys.readouterr().err
    assert "No module named 'pandas'" in message and f"sb3-hybrid-grpo[{extra}]" in message


@pytest.mark.parametrize("name", COMMANDS)
def test_help_tells_no_empty_defaults(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([*name.split(), "--help"])
    text = capsys.readouterr().out
    assert f"usage: python -m sb3_hybrid_grpo {name}" in text
    assert "default: None" not in text and "default: []" not in text and "SUPPRESS" not in text


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old", encoding="utf-8")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half", encoding="utf-8")
            raise CommandError("stopped")

    with pytest.raises(CommandError):
        fail()
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_of_the_run_is_in_the_model(tmp_path: Path) -> None:
    main(train_args(tmp_path))
    with zipfile.ZipFile(run_folder(tmp_path) / "CartPole-v1.zip") as archive:
        data = json.loads(archive.read("data"))
    assert "env" not in data
    assert "_logger" not in data
