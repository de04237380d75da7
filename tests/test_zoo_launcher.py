"""The launcher for RL Baselines3 Zoo: python -m sb3_hybrid_grpo.zoo."""

import multiprocessing
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from argparse import Namespace
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio.v3 as imageio
import numpy as np
import pytest
import yaml
from stable_baselines3 import PPO

import sb3_hybrid_grpo
from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.zoo.__main__ import COMMANDS, main
from tests.zoo import command, zoo_in

ROOT = Path(sb3_hybrid_grpo.__file__).parents[1]
# Everything that the Zoo does to an env
PENDULUM: dict[str, Any] = {
    "n_envs": 2,
    "n_timesteps": 128,
    "policy": "MlpPolicy",
    "policy_kwargs": "dict(net_arch=[8], activation_fn=nn.ReLU)",
    "n_steps": 32,
    "learning_rate": "lin_1e-3",
    "normalize": True,
    "frame_stack": 2,
    "env_wrapper": [{"gymnasium.wrappers.RescaleAction": {"min_action": -1.0, "max_action": 1.0}}],
    "vec_env_wrapper": "stable_baselines3.common.vec_env.VecCheckNan",
    "callback": [{"stable_baselines3.common.callbacks.StopTrainingOnMaxEpisodes": {"max_episodes": 1000}}],
    "n_samples": 2,
    "branch_horizon": 16,
}
TRAIN = ("train", "--env", "Pendulum-v1", "-conf", "short.yml", "--device", "cpu", "--eval-episodes", 2)
RUN = Path("logs/hybrid_grpo/Pendulum-v1_1")


class Remembering(gym.Wrapper[Any, Any, Any, Any]):
    """Holds what can be neither copied nor forked."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.stream, _ = multiprocessing.Pipe()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short training."""
    path = tmp_path_factory.mktemp("zoo")
    with zoo_in(path):
        Path("short.yml").write_text(yaml.safe_dump({"Pendulum-v1": PENDULUM}), encoding="utf-8")
        command(*TRAIN, "--eval-freq", 64, "--save-freq", 64, "-tb", "tb", "-P", "-params", "gamma:0.9", "--seed", 1)
    return path


@pytest.fixture
def zoo(folder: Path) -> Iterator[None]:
    with zoo_in(folder):
        yield


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command that cannot be run prints; it ends with code 2."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("arguments", [(), ("nonsense",)])
def test_without_a_known_command_it_says_which_exist(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    printed = refusal(capsys, *arguments)
    assert all(name in printed for name in COMMANDS)


def test_without_the_zoo_it_says_what_installs_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rl_zoo3" else find_spec(name))
    printed = refusal(capsys, "train")
    assert "needs rl_zoo3" in printed and 'pip install "sb3-hybrid-grpo[zoo]"' in printed


def test_training_with_everything(zoo: None) -> None:
    written = {path.name for path in RUN.iterdir()}
    assert {"Pendulum-v1.zip", "best_model.zip", "rl_model_64_steps.zip", "rl_model_128_steps.zip"} <= written
    assert np.load(RUN / "evaluations.npz")["timesteps"].tolist() == [64, 128]
    assert (RUN / "Pendulum-v1" / "vecnormalize.pkl").is_file()
    assert list(Path("tb/Pendulum-v1/HybridGRPO_1").iterdir())
    model = HybridGRPO.load(RUN / "Pendulum-v1.zip", device="cpu")
    assert (model.gamma, model.n_samples, model.seed) == (0.9, 2, 1)
    assert (model.num_timesteps, model.num_executed_steps, model._n_updates) == (128, 64, 20)
    assert model.observation_space.shape == (6,)
    saved = yaml.unsafe_load((RUN / "Pendulum-v1" / "config.yml").read_text(encoding="utf-8"))
    assert dict(saved) == {**PENDULUM, "gamma": 0.9}


def test_training_goes_on(zoo: None) -> None:
    command(*TRAIN, "--eval-freq", -1, "-i", RUN / "Pendulum-v1.zip", "-f", "more", "-n", 64, "-params", "n_epochs:1")
    before = HybridGRPO.load(RUN / "Pendulum-v1.zip", device="cpu")
    after = HybridGRPO.load("more/hybrid_grpo/Pendulum-v1_1/Pendulum-v1.zip", device="cpu")
    assert after._n_updates == before._n_updates + 1
    assert after.num_timesteps == 64


def test_envs_in_processes_of_their_own(zoo: None) -> None:
    arguments = [*map(str, TRAIN), "--eval-freq", "64", "--vec-env", "subproc", "-f", "processes"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command_line = [sys.executable, "-m", "sb3_hybrid_grpo.zoo", *arguments]
    subprocess.run(command_line, check=True, env={**os.environ, "PYTHONPATH": path})
    model = HybridGRPO.load("processes/hybrid_grpo/Pendulum-v1_1/Pendulum-v1.zip", device="cpu")
    assert (model.num_timesteps, model.num_executed_steps) == (128, 64)


def test_console_script() -> None:
    try:
        scripts = distribution("sb3-hybrid-grpo").entry_points.select(name="hybrid-grpo-zoo")
    except PackageNotFoundError:
        pytest.skip("runs from a folder, without an installation")
    assert [script.load() for script in scripts] == [main]


def test_processes_change_nothing(zoo: None) -> None:
    trained = []
    for kind in ("dummy", "subproc"):
        command(*TRAIN, "--eval-freq", -1, "--vec-env", kind, "-f", kind, "--seed", 3)
        trained.append(HybridGRPO.load(f"{kind}/hybrid_grpo/Pendulum-v1_1/Pendulum-v1.zip", device="cpu"))
    for one, other in zip(*(model.policy.parameters() for model in trained), strict=True):
        # rewards come from processes with 64 bits
        np.testing.assert_allclose(one.detach().numpy(), other.detach().numpy(), rtol=1e-3, atol=1e-6)


def test_watching(zoo: None, capsys: pytest.CaptureFixture[str]) -> None:
    for which in ((), ("--load-best",), ("--load-checkpoint", 64), ("--load-last-checkpoint",)):
        command("enjoy", "--env", "Pendulum-v1", "-f", "logs", "--no-render", "-n", 200, *which)
        assert "1 Episodes" in capsys.readouterr().out


@pytest.mark.parametrize("n_envs", [1, 2])
def test_recording_a_video(n_envs: int, zoo: None) -> None:
    command("record_video", "--env", "Pendulum-v1", "-f", "logs", "-n", 20, "--n-envs", n_envs, "-o", f"video{n_envs}")
    (video,) = Path(f"video{n_envs}").glob("*.mp4")
    frames = imageio.imread(video)
    assert len(frames) >= 20
    assert frames.min() < frames.max()


def test_plots(zoo: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import pyplot

    for seed in (0, 1):
        command(*TRAIN, "--eval-freq", 832, "-f", "plotted", "-n", 1664, "--seed", seed)
    drawn: list[list[list[float]]] = []

    def show() -> None:
        drawn.append([np.asarray(line.get_xdata()).tolist() for line in pyplot.gca().lines])
        pyplot.close()

    monkeypatch.setattr(pyplot, "show", show)
    command("plot_train", "-e", "Pendulum", "-f", "plotted", "-w", 1)
    command("plot_train", "-e", "Pendulum", "-f", "plotted", "-w", 1, "-max", 800)
    # an episode has 200 executed steps
    assert drawn == [[[400, 800, 1200, 1600]] * 2, [[400, 800]] * 2]
    command("all_plots", "--algos", "hybrid_grpo", "-e", "Pendulum-v1", "-f", "plotted", "--no-million", "-o", "results")
    assert drawn[2] == [[832, 1664]]
    command("plot_from_file", "-i", "results.pkl", "-o", "figure", "--format", "png")
    assert imageio.imread("figure").std() > 0


@pytest.mark.parametrize(
    ("models", "steps"),
    [
        # grouped, then single, as with "auto"; the last slope goes on after the last model
        (
            [{"num_executed_steps": 100, "num_timesteps": 400}, {"num_executed_steps": 400, "num_timesteps": 700}],
            [400, 500, 800],
        ),
        ([{"num_executed_steps": 500, "num_timesteps": 2000}], [400, 800, 2000]),
        ([{"num_timesteps": 500, "num_simulator_steps": 2000}], [400, 800, 2000]),  # version 0.1
        ([{"num_timesteps": 500}], [100, 200, 500]),  # another algorithm
        ([], [100, 200, 500]),
    ],
)
def test_episodes_are_put_at_simulator_steps(
    models: list[dict[str, int]], steps: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rl_zoo3", reason="needs the extra zoo")
    from sb3_hybrid_grpo.zoo.plots import load_scaled_results

    (tmp_path / "0.monitor.csv").write_text('#{"t_start": 0}\nr,l,t\n1,100,1\n1,100,2\n1,300,3\n', encoding="utf-8")
    for number, model in enumerate(models):
        with zipfile.ZipFile(tmp_path / f"{number}.zip", "w") as file:
            file.writestr("data", json.dumps(model))
    episodes = load_scaled_results(str(tmp_path))
    assert episodes.l.cumsum().tolist() == steps
    shown = episodes[episodes.l.cumsum() <= steps[1]]
    assert (shown.l.cumsum().tolist(), shown["l"].tolist()) == (steps[:2], [100, 100])
    assert ("its x-axis is executed steps" in capsys.readouterr().out) == (not models)


def test_sharing_a_model(zoo: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    uploaded: dict[str, Path] = {}

    class Hub:
        def create_repo(self, **options: Any) -> str:
            return str(options["repo_id"])

        def snapshot_download(self, local_dir: Path, **options: Any) -> None:
            local_dir.mkdir(parents=True)

        def upload_folder(self, repo_id: str, folder_path: Path, **options: Any) -> None:
            uploaded[repo_id] = folder_path

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    command("push_to_hub", "--env", "Pendulum-v1", "-f", "logs", "-orga", "us", "--no-render", "-n", 20)
    folder = uploaded["us/hybrid_grpo-Pendulum-v1"]
    assert "hybrid_grpo" in (folder / "args.yml").read_text(encoding="utf-8")
    assert "**HybridGRPO** Agent playing **Pendulum-v1**" in (folder / "README.md").read_text(encoding="utf-8")

    monkeypatch.setattr("huggingface_sb3.load_from_hub", lambda repo_id, filename: str(uploaded[str(repo_id)] / filename))
    command("load_from_hub", "--env", "Pendulum-v1", "-f", "downloaded", "-orga", "us")
    command("enjoy", "--env", "Pendulum-v1", "-f", "downloaded", "--no-render", "-n", 10)
    with zipfile.ZipFile("downloaded/hybrid_grpo/Pendulum-v1_1/Pendulum-v1.zip") as model:
        assert model.testzip() is None


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("foo:1", "HybridGRPO has no argument foo"),
        ("seed:1", "multiple values for keyword argument 'seed'"),
        ("n_samples:0", "n_samples=0"),
        ("branch_horizon:'never'", "branch_horizon='never'"),
        ("learning_rate:'abc'", "learning_rate='abc'"),
        ("n_samples:'x'", "n_samples='x'"),
        ("n_envs:1.5", "n_envs=1.5"),
        ("n_timesteps:None", "n_timesteps=None"),
        ("policy_kwargs:'dict(foo=1)'", "foo"),
        ("policy_kwargs:'dict(activation_fn=nn.Foo)'", "policy_kwargs='dict(activation_fn=nn.Foo)'"),
        ("policy:'missing.Policy'", "policy='missing.Policy'"),
        ("env_wrapper:'missing.Wrapper'", "env_wrapper='missing.Wrapper'"),
        ("callback:'stable_baselines3.common.callbacks.Missing'", "callback='stable_baselines3.common.callbacks.Missing'"),
    ],
)
def test_an_illegal_option_is_named_with_its_file(
    option: str, message: str, zoo: None, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = refusal(capsys, *TRAIN, "-f", "refused", "-params", option)
    assert "short.yml" in printed
    assert message in printed


@pytest.mark.parametrize("content", [None, "CartPole-v1: [1, 2"])
def test_a_file_that_cannot_be_read_is_named(content: str | None, zoo: None, capsys: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        Path("broken.yml").write_text(content, encoding="utf-8")
    assert "'broken.yml'" in refusal(capsys, "train", "--env", "CartPole-v1", "-f", "refused", "-conf", "broken.yml")
    Path("broken.yml").unlink(missing_ok=True)


@pytest.mark.parametrize("kind", ["dummy", "subproc"])
def test_an_env_that_cannot_be_branched_is_refused(kind: str, zoo: None, capsys: pytest.CaptureFixture[str]) -> None:
    wrapped = ("--eval-freq", -1, "-params", "env_wrapper:'tests.test_zoo_launcher.Remembering'")
    why = "another process" if kind == "dummy" else "the process of an env has ended"  # which writes to this process's stderr
    assert why in refusal(capsys, *TRAIN, "-f", "refused", "--vec-env", kind, *wrapped)
    command(*TRAIN, "-f", f"single-{kind}", "--vec-env", kind, *wrapped, "n_samples:1")
    assert Path(f"single-{kind}/hybrid_grpo/Pendulum-v1_1/Pendulum-v1.zip").is_file()


def test_other_algorithms_are_the_zoos_own(zoo: None) -> None:
    from rl_zoo3.exp_manager import ExperimentManager

    from sb3_hybrid_grpo.zoo.manager import experiment_manager

    manager = experiment_manager(Namespace(), "ppo", "CartPole-v1", "other", eval_freq=-1, verbose=0)
    assert type(manager) is ExperimentManager
    experiment = manager.setup_experiment()
    assert experiment is not None
    assert type(experiment[0]) is PPO
    assert manager.config.endswith("ppo.yml")
