"""Tuning through RL Baselines3 Zoo."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from stable_baselines3.common.env_util import make_vec_env

from sb3_hybrid_grpo import HybridGRPO
from tests.zoo import command, zoo_in

BUDGET = 1024
COVERED = {
    "n_samples",
    "branch_horizon",
    "group_baseline",
    "gae_lambda",
    "gamma",
    "learning_rate",
    "batch_size",
    "n_epochs",
    "ent_coef",
    "reward_transform",
}


@pytest.fixture
def zoo(tmp_path: Path) -> Iterator[None]:
    with zoo_in(tmp_path):
        config = {
            "n_envs": 2,
            "n_timesteps": BUDGET,
            "policy": "MlpPolicy",
            "n_samples": 4,
        }
        Path("short.yml").write_text(yaml.safe_dump({"CartPole-v1": config}), encoding="utf-8")
        yield


@pytest.fixture
def short_rollouts(zoo: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every trial draws n_steps=32."""
    import optuna

    suggest_int = optuna.Trial.suggest_int

    def suggest(self: Any, name: str, low: int, high: int, **options: Any) -> int:
        return suggest_int(self, name, low, 5 if name == "n_steps_pow" else high, **options)

    monkeypatch.setattr(optuna.Trial, "suggest_int", suggest)


def draws(number: int) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Trials, and the hyperparameters drawn in them."""
    import optuna

    from sb3_hybrid_grpo.zoo.tuning import sample_hybrid_grpo_params

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(number):
        trial = study.ask()
        yield trial, sample_hybrid_grpo_params(trial, 1, 2, {})


def optimize(*options: object) -> None:
    """Tune with short trials."""
    fixed = ("--env", "CartPole-v1", "-conf", "short.yml", "--n-evaluations", 2, "--eval-episodes", 1, "--no-optim-plots")
    command("train", "--optimize-hyperparameters", *fixed, "--device", "cpu", *options)


def study_of(storage: str) -> Any:
    """The only study there."""
    import optuna

    return optuna.load_study(study_name=None, storage=storage)


def test_500_draws_are_legal(zoo: None) -> None:
    env = make_vec_env("CartPole-v1", n_envs=2)
    seen: dict[str, set[Any]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # minibatches that are cut short, as PPO's are; rollouts that are longer than drawn
        for _, hyperparams in draws(500):
            for name, value in hyperparams.items():
                seen.setdefault(name, set()).add(str(value))
            small = {**hyperparams, "policy_kwargs": {"net_arch": []}}
            HybridGRPO("MlpPolicy", env, device="cpu", **small)
    assert {name for name, values in seen.items() if len(values) > 1} >= COVERED


def test_ppos_hyperparameters_are_the_zoos(zoo: None) -> None:
    import optuna
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER

    for trial, hyperparams in draws(20):
        again: Any = optuna.trial.FixedTrial(trial.params)
        theirs = HYPERPARAMS_SAMPLER["ppo"](again, 1, 2, {})
        assert {name: hyperparams[name] for name in theirs} == theirs


def test_a_stored_trial_gives_what_was_drawn(zoo: None) -> None:
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER

    for trial, hyperparams in draws(200):
        assert HYPERPARAMS_CONVERTER["hybrid_grpo"](dict(trial.params)) == hyperparams


@pytest.mark.parametrize("n_samples", [2, 8])
def test_a_trial_takes_the_entrys_steps_whatever_the_group(
    n_samples: int, short_rollouts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sb3_hybrid_grpo.zoo import tuning

    monkeypatch.setattr(tuning, "_CHOICES", {**tuning._CHOICES, "n_samples": [n_samples], "branch_horizon": [16]})
    learned: list[tuple[int, int]] = []
    learn = HybridGRPO.learn

    def recording(self: HybridGRPO, *arguments: Any, **options: Any) -> HybridGRPO:
        model = learn(self, *arguments, **options)
        learned.append((self.num_timesteps, self.num_executed_steps))
        return model

    monkeypatch.setattr(HybridGRPO, "learn", recording)
    named = ("--storage", "sqlite:///study.db", "--study-name", "one")
    optimize("--n-trials", 1, "--pruner", "none", "--sampler", "random", *named)
    assert learned == [(BUDGET, BUDGET // n_samples)]
    (trial,) = study_of("sqlite:///study.db").trials
    assert len(trial.intermediate_values) == 2  # --n-evaluations


def test_sqlite_tpe_and_median_in_two_jobs_and_resumed(short_rollouts: None) -> None:
    shared = ("--sampler", "tpe", "--pruner", "median", "--n-startup-trials", 1, "--storage", "sqlite:///study.db")
    for _ in range(2):
        optimize(*shared, "--study-name", "one", "--n-trials", 3, "--n-jobs", 2)
    states = [trial.state.name for trial in study_of("sqlite:///study.db").trials]
    assert len(states) == 6
    assert set(states) <= {"COMPLETE", "PRUNED"} and "COMPLETE" in states


def test_a_journal_random_and_halving(short_rollouts: None) -> None:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    shared = ("--sampler", "random", "--pruner", "halving", "--storage", "study.log", "--study-name", "one")
    for _ in range(2):
        optimize(*shared, "--n-trials", 2)
    journal = optuna.storages.JournalStorage(JournalFileBackend("study.log"))
    assert len(optuna.load_study(study_name="one", storage=journal).trials) == 4


def test_training_with_the_hyperparameters_of_a_trial(short_rollouts: None) -> None:
    named = ("--storage", "sqlite:///study.db", "--study-name", "one")
    optimize("--n-trials", 2, "--pruner", "none", *named)
    command("train", "--env", "CartPole-v1", "-conf", "short.yml", "--eval-freq", -1, "--trial-id", 1, *named)
    model = HybridGRPO.load("logs/hybrid_grpo/CartPole-v1_2/CartPole-v1.zip")
    stored = study_of("sqlite:///study.db").trials[1]
    assert (model.n_steps, model.n_samples, model.branch_horizon) == (
        32,
        *map(stored.params.get, ("n_samples", "branch_horizon")),
    )
    for name in ("gamma", "batch_size"):
        assert getattr(model, name) == stored.user_attrs[name], name


def test_what_tuning_cannot_be_combined_with_is_refused(zoo: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        optimize("--n-trials", 1, "-params", "advantage_estimator:'paper'", "branch_horizon:1")
    assert "advantage_estimator='paper' with --optimize-hyperparameters" in capsys.readouterr().err
