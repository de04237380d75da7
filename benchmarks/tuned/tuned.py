"""
PPO and HybridGRPO, each tuned by the same search: 20 trials at half the budget, then ten other seeds of the best one.

    OMP_NUM_THREADS=1 python benchmarks/tuned/tuned.py --env hybrid_grpo/Inventory-v0 --budget 65536

run.sh has the commands of all envs and of the report.

The search is Optuna's TPE with one seed for both, so that the first ten trials of both are the same. It draws PPO's arguments
alone; HybridGRPO's own stay at their defaults. A trial is one training, with a seed that the ten do not have; its score is the
mean of the last two of four evaluations. Observations and rewards are normalised. Adds what is missing to this folder.

--exchange trains each algorithm with the arguments that the other's search has found: is it the algorithm or its search?
"""

import argparse
import warnings
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import torch as th

from sb3_hybrid_grpo.benchmark.compare import preset_of
from sb3_hybrid_grpo.benchmark.results import Results, stamp, write_notes
from sb3_hybrid_grpo.benchmark.runs import COLUMNS, KEY, Run, execute
from sb3_hybrid_grpo.benchmark.variants import Variant

FOLDER = Path(__file__).parent
ALGORITHMS = ("ppo", "hybrid")
TRIALS, SEEDS, FIRST_TRIAL_SEED, EVALUATIONS = 20, 10, 100, 8
CHOICES: dict[str, optuna.distributions.BaseDistribution] = {
    "n_envs": optuna.distributions.CategoricalDistribution((1, 2, 4, 8)),
    "n_steps": optuna.distributions.CategoricalDistribution((128, 256, 512, 1024, 2048)),
    "batch_size": optuna.distributions.CategoricalDistribution((32, 64, 128, 256)),
    "learning_rate": optuna.distributions.FloatDistribution(1e-4, 3e-3, log=True),
    "gamma": optuna.distributions.CategoricalDistribution((0.9, 0.95, 0.98, 0.99, 0.995)),
    "gae_lambda": optuna.distributions.CategoricalDistribution((0.8, 0.9, 0.95, 0.98, 1.0)),
    "clip_range": optuna.distributions.CategoricalDistribution((0.1, 0.2, 0.3)),
    "ent_coef": optuna.distributions.FloatDistribution(1e-8, 0.1, log=True),
}
WHOLE = ("n_envs", "n_steps", "batch_size")
TRIAL = {"algorithm": str, "trial": int, **{name: int if name in WHOLE else float for name in CHOICES}, "score": float}


def variant_of(algorithm: str, params: dict[str, Any]) -> Variant:
    arguments = {name: value for name, value in params.items() if name != "n_envs"}
    arguments["batch_size"] = min(arguments["batch_size"], params["n_envs"] * params["n_steps"])
    return Variant(algorithm, params["n_envs"], arguments)


def train(run: Run) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        execute(run, rows.append)
    return pd.DataFrame(rows)


def search(env: str, algorithm: str, budget: int, episodes: int, trials: Results) -> dict[str, Any]:
    """Try what was not tried yet; return the best arguments."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    for number in range(TRIALS):
        trial = study.ask(CHOICES)
        known = trials.frame[(trials.frame.algorithm == algorithm) & (trials.frame.trial == number)]
        if len(known):
            score = float(known.score.iloc[0])
        else:
            variant = variant_of(algorithm, trial.params)
            rows = train(Run(env, variant, FIRST_TRIAL_SEED + number, budget // 2, EVALUATIONS // 2, episodes, True))
            score = float(rows.mean_reward[rows.simulator_steps > 0].iloc[-2:].mean())
            trials.add(pd.DataFrame([{"algorithm": algorithm, "trial": number, **trial.params, "score": score}]))
        study.tell(trial, score)
        print(f"{env} {algorithm} trial {number}: {score:.2f}", flush=True)
    return dict(study.best_params)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", required=True, help="id of an env, or module:id")
    parser.add_argument("--budget", type=int, required=True, help="simulator steps of a training, siblings included")
    parser.add_argument("--episodes", type=int, default=20, help="of an evaluation (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="trainings with the best arguments (default: %(default)s)")
    parser.add_argument("--exchange", action="store_true", help="train with the other's best arguments, into exchanged/")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the results (default: this one)")
    options = parser.parse_args()
    if options.budget < 2 * 8 * 2048:
        parser.error(f"--budget received {options.budget}: half of it must have room for the largest update, 8 * 2048 steps")
    th.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    preset_of(options.env, argparse.Namespace(hyperparams=[]))  # imports the env's module
    file = f"{options.env.rpartition(':')[2].replace('/', '-')}.csv"
    trials = Results(options.output / "trials" / file, TRIAL, ("algorithm", "trial"))
    results = Results(options.output / "exchanged" / file if options.exchange else options.output / file, COLUMNS, KEY)
    for path in (trials.path, results.path):
        path.parent.mkdir(parents=True, exist_ok=True)
    protocol = {"env": options.env, "budget": options.budget, "evaluations": EVALUATIONS, "episodes": options.episodes}
    write_notes(results.path.with_suffix(".json"), {**protocol, "normalize": True, "trials": TRIALS, "made_with": [stamp()]})
    best = [search(options.env, algorithm, options.budget, options.episodes, trials) for algorithm in ALGORITHMS]
    for algorithm, params in zip(ALGORITHMS, best[::-1] if options.exchange else best, strict=True):
        settings = " ".join(
            f"{name}:{value:.3g}" if type(value) is float else f"{name}:{value}" for name, value in params.items()
        )
        for seed in range(options.seeds):
            if (algorithm, settings, seed) not in results.done():
                variant = variant_of(algorithm, params)
                run = Run(options.env, variant, seed, options.budget, EVALUATIONS, options.episodes, True)
                results.add(train(run).assign(settings=settings))
                print(f"{options.env} {algorithm} seed {seed}", flush=True)


if __name__ == "__main__":
    main()
