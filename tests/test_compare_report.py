"""The report of a comparison: its numbers, its files, and what it refuses."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rliable.metrics import aggregate_iqm

from sb3_hybrid_grpo.benchmark import report, statistics
from sb3_hybrid_grpo.benchmark.page import scores, steps
from sb3_hybrid_grpo.benchmark.plots import label_of, styles_of
from sb3_hybrid_grpo.benchmark.report import verdict
from sb3_hybrid_grpo.benchmark.results import Results, read_notes, write_notes
from sb3_hybrid_grpo.benchmark.runs import COLUMNS, KEY
from sb3_hybrid_grpo.benchmark.statistics import EnvResults, Estimate, Runs, interquartile_means, performance_profiles
from sb3_hybrid_grpo.commands.cli import CommandError

PNG = b"\x89PNG\r\n\x1a\n"
SETTINGS = ("n_envs:4", "n_envs:16")
GROWTH = {"ppo": 1.0, "trpo": 0.8, "hybrid": 2.0}


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 50)


def make_run(
    rewards: Sequence[float],
    every: int = 100,
    env: str = "Env-v0",
    algorithm: str = "ppo",
    settings: str = "a:1",
    seed: int = 0,
) -> pd.DataFrame:
    """Rows of evaluations ``every`` steps apart, the first one before training."""
    members = 4 if algorithm.startswith("hybrid") else 1
    rows = [
        (env, algorithm, settings, seed, place, place // members, place / 10, reward, 5, 0.25 if members > 1 else np.nan)
        for place, reward in zip(range(0, every * len(rewards), every), rewards, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def make_variant(*runs: Sequence[float], algorithm: str = "ppo", settings: str = "a:1", every: Sequence[int] = ()) -> Runs:
    places = every or [100] * len(runs)
    rows = [make_run(rewards, place, seed=seed) for seed, (rewards, place) in enumerate(zip(runs, places, strict=True))]
    return Runs(algorithm, settings, pd.concat(rows))


def results_of(folder: Path, env: str) -> Results:
    return Results(folder / f"{env.rpartition(':')[2].replace('/', '-')}.csv", COLUMNS, KEY)


def fill(folder: Path, env: str, growth: dict[str, float], settings: Sequence[str] = SETTINGS, seeds: int = 3) -> None:
    """Write results: all start at 10; each step adds the algorithm's growth, half of it at other than the first settings."""
    results = results_of(folder, env)
    made = {"env": env, "budget": 500_000, "evaluations": 5, "episodes": 5, "hyperparams": {"gamma": 0.98}}
    write_notes(results.path.with_suffix(".json"), made)
    for algorithm, rate in growth.items():
        for index, setting in enumerate(settings):
            for seed in range(seeds):
                slope = rate / (1 + index) * (1 + 0.02 * seed)
                results.add(make_run([10 + slope * place for place in range(6)], 100_000, env, algorithm, setting, seed))


def write_report(folder: Path, *arguments: str) -> str:
    """Run the command; return the page."""
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    options = parser.parse_args([str(folder), *arguments])
    assert report.run(options) == 0
    return ((options.output or folder) / "README.md").read_text(encoding="utf-8")


def table_row(page: str, *beginning: str) -> list[str]:
    """All cells of the only row of a table that begins so."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    (found,) = (row for row in rows if row[: len(beginning)] == list(beginning))
    return found


def test_interquartile_means_of_known_numbers() -> None:
    scores = np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 8.0], [100.0, 9.0]])
    assert interquartile_means(scores).tolist() == [3.0, 8 / 3]
    assert interquartile_means(scores[:1]).tolist() == [1.0, 0.0]
    assert interquartile_means(scores[[0, 4]]).tolist() == [50.5, 4.5]


@pytest.mark.parametrize("n_seeds", range(1, 13))
def test_interquartile_means_are_those_of_rliable(n_seeds: int) -> None:
    scores = np.random.default_rng(n_seeds).normal(size=(n_seeds, 4))
    expected = [aggregate_iqm(scores[:, [column]]) for column in range(4)]
    np.testing.assert_allclose(interquartile_means(scores), expected, rtol=1e-12)


def test_intervals_are_repeatable_and_leave_the_generator_alone() -> None:
    def final(seeds: int) -> Estimate:
        return make_variant(*([0, value, value] for value in (1.0, 2.0, 3.0, 4.0, 100.0)[:seeds])).final

    np.random.seed(1)
    first = final(5)
    after = np.random.random()
    np.random.seed(1)
    assert np.random.random() == after
    assert final(5) == first
    assert first.interval is not None
    low, high = first.interval
    assert 1.0 <= low < 3.0 < high <= 100.0
    assert (final(1), final(2)) == (Estimate(1.0, None), Estimate(1.5, None))
    assert final(3).interval is not None


@pytest.mark.parametrize("other, overlap", [((2.0, 3.0), True), ((2.1, 3.0), False), ((-1.0, 0.9), False), (None, None)])
def test_overlap(other: tuple[float, float] | None, overlap: bool | None) -> None:
    assert Estimate(1.5, (1.0, 2.0)).overlaps(Estimate(2.5, other)) is overlap


def test_common_grid_is_linear_and_ends_with_the_shortest_run() -> None:
    grid, values = make_variant([0.0, 10.0, 20.0, 30.0], [0.0, 30.0], every=[100, 150]).on_common_grid()
    assert grid.tolist() == [0.0, 100.0, 150.0]
    assert values.tolist() == [[0.0, 10.0, 15.0], [0.0, 20.0, 30.0]]


def test_common_grid_of_many_evaluations_is_even() -> None:
    grid, values = make_variant(np.arange(1000.0).tolist()).on_common_grid("wall_seconds")
    assert len(grid) == statistics.GRID_POINTS
    assert (grid[0], grid[-1]) == (0.0, 9990.0)
    np.testing.assert_allclose(values[0], grid / 10)


def test_first_reaching() -> None:
    places = np.array([0.0, 100.0, 200.0, 300.0])
    values = np.array([0.0, 5.0, 3.0, 6.0])
    assert statistics.first_reaching(places, values, 4.0) == 100.0
    assert statistics.first_reaching(places, values, 5.5) == 300.0
    assert statistics.first_reaching(places, values, 6.5) is None


def test_steps_to_reach_of_the_mean_and_of_each_seed() -> None:
    variant = make_variant([0, 1, 2, 3, 4], [0, 2, 4, 6, 8], [0, 0, 0, 0, 0])
    # means 0 1 2 3 4: three seeds are too few to cut any
    assert variant.steps_to_reach(3.0) == 300.0
    assert variant.seeds_steps_to_reach(3.0) == [300.0, 200.0, None]
    assert variant.steps_to_reach(4.5) is None


def test_means_leave_the_untrained_policy_out_and_finals_are_of_two() -> None:
    variant = make_variant([-100, 1, 2, 6], [-100, 5, 5, 5])
    assert variant.means.tolist() == [3.0, 5.0]
    assert variant.finals.tolist() == [4.0, 5.0]
    assert (variant.training.value, variant.final.value) == (4.0, 4.5)


def test_best_settings_are_chosen_by_the_plain_mean() -> None:
    steady = make_variant(*[[0, 3, 3]] * 5)
    lucky = make_variant(*[[0, 2, 2]] * 4, [0, 12, 12], settings="a:2")  # interquartile mean 2, mean 4
    ours = make_variant([0, 1, 1], algorithm="hybrid")
    results = EnvResults("Env-v0", "Env-v0", [steady, lucky, ours])
    assert results.best == {"ppo": lucky, "hybrid": ours}
    assert results.best_training("ppo") is lucky
    assert results.best_final("ppo") is steady
    assert results.best_final("ours") is ours
    assert results.best_training("trpo") is None


def test_arguments_of_its_own_do_not_make_a_baseline_ours() -> None:
    groups = {name: make_variant([0, 1], algorithm=name).group for name in ("ppo", "ppo,gae_lambda:0.9", "trpo", "paper")}
    assert groups == {"ppo": "ppo", "ppo,gae_lambda:0.9": "ppo", "trpo": "trpo", "paper": "ours"}


def test_profiles_normalise_by_the_untrained_policy_and_ppo() -> None:
    def env(name: str, scale: float) -> EnvResults:
        ppo = make_variant([5 * scale, 9 * scale, 9 * scale], [5 * scale, 9 * scale, 9 * scale])
        ours = make_variant([5 * scale, 7 * scale, 7 * scale], [5 * scale, 11 * scale, 11 * scale], algorithm="hybrid")
        return EnvResults(name, name, [ppo, ours])

    found = performance_profiles([env("A", 1.0), env("B", 10.0)])
    assert found is not None
    assert (found.envs, found.seeds) == (["A", "B"], 2)
    # PPO's runs all score 1, ours 0.5 and 1.5
    shares = {level: index for index, level in enumerate(np.round(found.thresholds, 9).tolist())}
    assert found.thresholds[-1] == 1.5
    assert [found.shares["ppo"][shares[level]] for level in (0.0, 0.9, 1.1)] == [1.0, 1.0, 0.0]
    assert [found.shares["hybrid"][shares[level]] for level in (0.4, 0.6, 1.4, 1.5)] == [1.0, 0.5, 0.5, 0.0]
    assert performance_profiles([env("A", 1.0)]) is None
    assert performance_profiles([env("A", 1.0), EnvResults("C", "C", [make_variant([0, 1], algorithm="hybrid")])]) is None
    # -1: PPO ends below where it started, so there is nothing to normalise by
    assert performance_profiles([env("A", 1.0), env("B", -1.0)]) is None


def test_colours_stay_apart() -> None:
    styles = styles_of(["ppo", "ppo,n_epochs:4", "trpo", *(f"hybrid,n_samples:{n}" for n in range(2, 12))])
    assert len(set(styles.values())) == 13
    assert styles["ppo"][0] == styles["ppo,n_epochs:4"][0] == "#000000"


def test_names_that_people_understand() -> None:
    names = {
        "ppo": "PPO",
        "hybrid": "HybridGRPO",
        "hybrid,branch_horizon:auto": "HybridGRPO",
        "hybrid,branch_horizon:64": "HybridGRPO (K = 64)",
        "hybrid,branch_horizon:64,group_baseline:0": "HybridGRPO (K = 64, group_baseline = 0)",
    }
    assert {algorithm: label_of(algorithm) for algorithm in names} == names


def test_numbers_in_words() -> None:
    assert scores(-0.04, 12.345) == ["0.0", "12.3"]
    assert scores(1234.5) == ["1,234"]
    assert scores(0.12345) == ["0.123"]
    assert [steps(value) for value in (None, 2048.0, 61_440.0)] == ["not reached", "2,048", "61k"]
    low, high = Estimate(1.0, (0.0, 2.0)), Estimate(5.0, (4.0, 6.0))
    assert [verdict(*pair) for pair in ((low, high), (high, low), (low, low))] == ["PPO ahead", "ours ahead", "not separated"]
    assert verdict(low, Estimate(5.0, None)) == "no verdict, too few seeds"


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, "module:ours/Good-v0", GROWTH)
    fill(tmp_path, "Bad-v0", GROWTH | {"hybrid": 0.5})
    (tmp_path / "gradient_variance.csv").write_text("of,another,command\n")
    page = write_report(tmp_path, "--output", str(tmp_path / "new" / "report"))
    output = tmp_path / "new" / "report"
    names = ["Bad-v0.png", "Bad-v0-settings.png", "ours-Good-v0.png", "ours-Good-v0-settings.png", "profiles.png", "README.md"]
    assert str(output / "README.md") in capsys.readouterr().out
    assert sorted(path.name for path in output.iterdir()) == sorted(names)
    for name in names[:-1]:
        assert (output / name).read_bytes().startswith(PNG)
        assert f"]({name})" in page
    # PPO: 10 + k (1 + 0.02 seed), k to 5: over training 13.06, final 14.59; ours has that at the third evaluation
    ppo = table_row(page.partition("## ours/Good-v0")[2], "**PPO**", "**n_envs:4**")
    assert ppo[2] == "3"
    assert ppo[3].startswith("13.1 [13.0, 13.1]") and ppo[4].startswith("14.6 [")
    assert ppo[5:] == ["500k (100 % / 100 %)", "500k, 500k, 500k", "50,000 s", "13.0, 13.1, 13.1 (13.1)", "–"]
    ours = table_row(page.partition("## ours/Good-v0")[2], "**HybridGRPO**", "**n_envs:4**")
    assert ours[5:7] == ["300k (60 % / 60 %)", "300k, 300k, 300k"]
    slow = table_row(page.partition("## ours/Good-v0")[2], "HybridGRPO", "n_envs:16")
    assert slow[5] == "500k (100 % / 100 %)"
    good = table_row(page, "[ours/Good-v0](#oursgood-v0)")
    assert good[2].endswith(" HybridGRPO") and good[5:] == ["300k (60 % / 60 %)", "ours ahead"]
    assert table_row(page, "[Bad-v0](#bad-v0)")[5:] == ["not reached", "PPO ahead"]
    assert "Of 2 envs: ours ahead on 1, not separated on 0, PPO ahead on 1." in page
    assert (
        "budget 500,000; evaluations 5" not in page
        and "budget 500,000, evaluations 5, episodes 5, hyperparams gamma 0.98" in page
    )


def test_axes_on_request(tmp_path: Path) -> None:
    fill(tmp_path, "A-v0", GROWTH, settings=["n_envs:4"])
    widths = []
    for axes in (["simulator_steps"], ["simulator_steps", "executed_steps", "wall_seconds"]):
        write_report(tmp_path, "--axes", *axes)
        widths.append(int.from_bytes((tmp_path / "A-v0.png").read_bytes()[16:20], "big"))
    assert widths[1] == 3 * widths[0]


def test_reports_are_equal_byte_for_byte(tmp_path: Path) -> None:
    for env in ("A-v0", "B-v0"):
        fill(tmp_path, env, GROWTH, settings=["n_envs:4"])
    found: list[dict[str, bytes]] = []
    for name in ("first", "second"):
        np.random.seed(len(found))
        write_report(tmp_path, "--output", str(tmp_path / name))
        found.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert len(found[0]) == 4
    assert found[0] == found[1]


def test_single_env_with_a_single_seed(tmp_path: Path) -> None:
    fill(tmp_path, "A-v0", GROWTH, settings=["n_envs:4"], seeds=1)
    page = write_report(tmp_path)
    assert table_row(page, "**PPO**", "**n_envs:4**")[2:5] == ["1", "13.0 (too few seeds)", "14.5 (too few seeds)"]
    assert table_row(page, "[A-v0](#a-v0)")[-1] == "no verdict, too few seeds"
    assert "No performance profiles" in page
    assert not (tmp_path / "profiles.png").exists()
    assert not (tmp_path / "A-v0-settings.png").exists()


@pytest.mark.parametrize("algorithm, missing", [("hybrid", 0), ("ppo", 1)])
def test_without_one_side(tmp_path: Path, algorithm: str, missing: int) -> None:
    for env in ("A-v0", "B-v0"):
        fill(tmp_path, env, {algorithm: 1.0, "trpo": 1.0}, seeds=2)
    (tmp_path / "A-v0.json").unlink()
    page = write_report(tmp_path)
    cells = table_row(page, "[A-v0](#a-v0)")
    assert cells[1 + missing] == cells[3 + missing] == "not run"
    assert cells[-1] == "nothing to compare"
    assert ("No performance profiles" in page) == (algorithm == "hybrid")
    assert page.count("How it was made: not known") == 1


def test_runs_of_unequal_length_are_pointed_out(tmp_path: Path) -> None:
    fill(tmp_path, "A-v0", {"ppo": 1.0, "hybrid": 1.0}, settings=["n_envs:4"])
    results_of(tmp_path, "A-v0").add(make_run([10, 11, 12], 100_000, "A-v0", "hybrid", "n_envs:4", seed=7))
    page = write_report(tmp_path)
    assert "they end between 200,000 and 500,000 simulator steps" in page
    assert table_row(page, "**HybridGRPO**", "**n_envs:4**")[5] == "not reached"


def test_baselines_come_first_and_numbers_count_as_numbers(tmp_path: Path) -> None:
    fill(tmp_path, "A-v0", {"grpo": 1.0, "trpo": 1.0, "ppo": 1.0}, settings=["n_envs:16", "n_envs:4"], seeds=1)
    results = report.read_env(tmp_path / "A-v0.csv", {})
    assert [variant.algorithm for variant in results.variants] == ["ppo", "ppo", "trpo", "trpo", "grpo", "grpo"]
    assert [variant.settings for variant in results.variants] == ["n_envs:4", "n_envs:16"] * 3


def check_refusal(folder: Path, message: str) -> None:
    before = sorted(folder.iterdir())
    with pytest.raises(CommandError, match=message):
        write_report(folder)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    "name, text, message",
    [
        (
            "B-v0.csv",
            "env,reward\nB-v0,1\n",
            r"B-v0\.csv holds no results of this benchmark: its columns are \['env', 'reward'\]",
        ),
        ("B-v0.csv", ",".join(COLUMNS) + "\n", r"B-v0\.csv has rows of 0 envs"),
        ("A-v0.json", "{", r"A-v0\.json, which says how results were made, cannot be read"),
        ("A-v0.json", "[1]", r"A-v0\.json, which says how results were made, cannot be read"),
    ],
)
def test_files_that_hold_something_else(tmp_path: Path, name: str, text: str, message: str) -> None:
    fill(tmp_path, "A-v0", {"ppo": 1.0}, seeds=1)
    (tmp_path / name).write_text(text)
    check_refusal(tmp_path, message)


@pytest.mark.parametrize("rewards", [[0.0, float("nan")], [0.0]])
def test_runs_that_cannot_be(tmp_path: Path, rewards: list[float]) -> None:
    fill(tmp_path, "A-v0", {"ppo": 1.0}, seeds=1)
    results_of(tmp_path, "A-v0").add(make_run(rewards, env="A-v0", settings="n_envs:4", seed=9))
    check_refusal(tmp_path, r"the run \('ppo', 'n_envs:4', 9\) has a reward that is not finite, or no evaluation after")


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"nowhere has no results"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "gradient_variance_A-v0.csv").write_text("of,another,command\n")
    check_refusal(tmp_path, r"has no results \(no CSV\)")


def test_failed_runs_are_named_and_allow_no_verdict(tmp_path: Path) -> None:
    fill(tmp_path, "A-v0", {"ppo": 1.0, "hybrid": 9.0})
    path = tmp_path / "A-v0.json"
    failed = {"algorithm": "hybrid", "settings": SETTINGS[0], "seed": 7, "error": "exit code 1: ValueError: diverged"}
    write_notes(path, {**read_notes(path), "failed": [failed]})
    page = write_report(tmp_path)
    assert "no verdict, runs failed" in page
    assert f"HybridGRPO ({SETTINGS[0]}) seed 7" in page
    write_notes(path, {**read_notes(path), "failed": []})  # it worked at last
    assert "ours ahead on 1" in write_report(tmp_path)


def test_a_ppo_that_gets_worse_has_its_final_score_before_the_training(tmp_path: Path) -> None:
    fill(tmp_path, "A-v0", {"ppo": -1.0, "hybrid": 1.0}, settings=["n_envs:4"])
    assert table_row(write_report(tmp_path), "**HybridGRPO**", "**n_envs:4**")[5] == "0 (– / –)"
