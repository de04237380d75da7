"""
Parts of the speed benchmark that answer one question each: what an update of a state costs, what branching costs without a
policy, how cost grows with members, envs and width, how much memory a rollout takes, and how rollouts do in processes.

    python benchmarks/speed_parts.py                    # measures all, half an hour; writes benchmarks/speed/parts.md
    python benchmarks/speed_parts.py --parts states     # measures one part, and writes the page of all
    python benchmarks/speed_parts.py --parts            # writes the page alone

Memory is measured in a process of its own for each case: the script calls itself with ``--memory``.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_hybrid_grpo import HybridGRPO, check_branching, make_branchable
from sb3_hybrid_grpo.benchmark.plots import BLACK, OUR_COLORS, new_panels, save
from sb3_hybrid_grpo.benchmark.speed import GROUP_LABELS, PER_SECOND, Section, section_text
from sb3_hybrid_grpo.benchmark.speed_cases import BATCH_SIZE, BREAKOUT, N_ENVS, Measurement, Runner, Size, labels, make_envs
from sb3_hybrid_grpo.commands.cli import write_text
from sb3_hybrid_grpo.commands.evaluation import make_env
from sb3_hybrid_grpo.errors import BranchingError

FOLDER = Path(__file__).parent / "speed"
WORKERS = 2
MEBI = 2**20
STATES = 1024
"""Of a rollout whose memory is measured, all envs' together."""
BASE = {"n_samples": 4, "n_envs": 4, "width": 64}
"""What growth does not vary."""
POINTS = {"n_samples": (1, 2, 4, 8, 16, 32), "n_envs": (1, 2, 4, 8, 16), "width": (64, 128, 256, 512)}
VARIED = {"n_samples": "N, members of a group", "n_envs": "E, envs", "width": "width of both hidden layers"}


class Part(NamedTuple):
    """A table, the envs in it, and what measures one of them."""

    section: Section
    envs: Sequence[str]
    measure: Callable[[str, Size], list[Measurement]]


def measure_states(env_id: str, size: Size, members: Sequence[int] = (4, 8)) -> list[Measurement]:
    """Compare updates on the same number of states (``size.samples``), with minibatches of as many states and samples."""
    ppo, cases, found = Runner(PPO, make_envs(env_id), size.samples, n_epochs=size.n_epochs), [], []
    for n_samples in members:
        for states in (BATCH_SIZE, BATCH_SIZE // n_samples):
            shape = {"n_samples": n_samples, "branch_horizon": 1, "batch_size": states * n_samples, "n_epochs": size.n_epochs}
            runner = Runner(HybridGRPO, make_envs(env_id), size.samples * n_samples, **shape)
            cases.append(({**labels(env_id, "HybridGRPO", n_samples, 1), "minibatch_states": str(states)}, n_samples, runner))
    for runner in (ppo, *(runner for _, _, runner in cases)):
        runner.warm_up(size.warm_up)
    for _ in range(size.repeats):
        for case, n_samples, runner in cases:
            peer, own = 1e6 / ppo.measure().update, 1e6 * n_samples / runner.measure().update
            found.append({**labels(env_id, "PPO"), "minibatch_states": str(BATCH_SIZE), "update": peer})
            found.append({**case, "update": own, "update_to_ppo": own / peer})
    return found


def measure_branching(env_id: str, size: Size) -> list[Measurement]:
    """Measure what branching costs without a policy; BranchingError if the env cannot be branched."""
    made: Any = make_env(env_id, 1, 0)
    found = []
    for horizon in (1, 64):
        for _ in range(size.repeats):
            report = check_branching(made.envs[0], 8, horizon)
            if not report.is_exact:
                raise BranchingError(report.refusal)
            # plain steps that a sibling's step takes, forks included: the executed member's step is one
            sibling = (report.slow_down * report.n_samples - 1) / (report.n_samples - 1)
            kind = {"copied": "copies", "forked": "forks"}.get(report.engine, report.engine)
            case = {"env": env_id.rpartition(":")[2], "n_samples": "8", "branch_horizon": str(horizon), "siblings": kind}
            times = {"step": report.step, "group_step": report.group_step}
            found.append({**case, **times, "slow_down": report.slow_down, "sibling": sibling})
    made.close()
    return found


def measure_growth(env_id: str, size: Size) -> list[Measurement]:
    """Vary one thing at a time: for every point, PPO with the same envs and network, and HybridGRPO with each horizon."""

    def runner(algorithm: Any, n_envs: int, width: int, **groups: int) -> Runner:
        arguments: dict[str, Any] = {"n_epochs": size.n_epochs, "policy_kwargs": {"net_arch": [width, width]}, **groups}
        built = Runner(algorithm, make_envs(env_id, n_envs), size.samples, **arguments)
        built.warm_up(size.warm_up)
        return built

    ppo, found = cache(lambda n_envs, width: runner(PPO, n_envs, width)), []
    for varied, value in ((varied, value) for varied, values in POINTS.items() for value in values):
        at, case = BASE | {varied: value}, {"env": env_id, "varied": varied, "value": str(value)}
        peer = ppo(at["n_envs"], at["width"])
        for horizon in (1, 64):
            own = runner(HybridGRPO, **at, branch_horizon=horizon)
            for _ in range(size.repeats):
                other = peer.measure()
                found.append({**case, "algorithm": "PPO", "branch_horizon": "", **other._asdict()})
                known = {"algorithm": "HybridGRPO", "branch_horizon": str(horizon)}
                found.append({**case, **known, **own.measure().beside(other)})
    return found


def peak_memory() -> int | None:
    """Bytes that this process held at most; None where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def memory_here(env_id: str, states: int, **groups: int) -> dict[str, float]:
    """Collect one rollout and update for one epoch; mebibytes of the buffer, and what the peak has risen by."""
    th.set_num_threads(1)
    envs = make_envs(env_id)
    envs.reset()
    before = peak_memory()
    algorithm: Any = HybridGRPO if groups else PPO
    runner = Runner(algorithm, envs, states * groups.get("n_samples", 1), n_epochs=1, **groups)
    runner.measure()
    after = peak_memory()
    parts: list[Any] = []
    for value in vars(runner.model.rollout_buffer).values():
        parts += value.values() if isinstance(value, dict) else [value]
    found = {"buffer": sum(part.nbytes for part in parts if isinstance(part, np.ndarray)) / MEBI}
    return found if before is None or after is None else {**found, "peak": (after - before) / MEBI}


def measure_memory(env_id: str, size: Size) -> list[Measurement]:
    """Measure memory, each case in a process of its own."""
    found: list[Measurement] = []
    for groups in ({}, *({"n_samples": n, "branch_horizon": k} for n in (1, 4, 8) for k in (1, 64))):
        case = json.dumps({"env_id": env_id, "states": STATES, **groups})
        process = subprocess.run([sys.executable, __file__, "--memory", case], capture_output=True, text=True, check=True)
        known = labels(env_id, "HybridGRPO" if groups else "PPO", *groups.values())
        known["n_envs"] = str(N_ENVS.get(env_id, 4))
        found.append({**known, **json.loads(process.stdout.splitlines()[-1])})
        if groups:
            found[-1] |= {
                f"{name}_to_ppo": found[-1][name] / found[0][name] for name in ("buffer", "peak") if name in found[0]
            }
    return found


def measure_workers(env_id: str, size: Size) -> list[Measurement]:
    """Compare rollouts in processes: one env in one, two envs in this one, and one env in each of two."""
    places = ((SubprocVecEnv, 1), (DummyVecEnv, WORKERS), (SubprocVecEnv, WORKERS))
    algorithms: list[tuple[Any, dict[str, int]]] = [(PPO, {})]
    algorithms += [(HybridGRPO, {"n_samples": 8, "branch_horizon": horizon}) for horizon in (1, 64)]
    found: list[Measurement] = []
    for algorithm, groups in algorithms:
        branchable = {"wrapper_class": make_branchable} if groups else {}
        envs = [make_envs(env_id, n_envs, vec_env_cls=vec_env, **branchable) for vec_env, n_envs in places]
        runners = [Runner(algorithm, one, size.samples, n_epochs=1, **groups) for one in envs]
        for runner in runners:
            runner.warm_up(size.warm_up)
        for _ in range(size.repeats):
            one, dummy, two = (runner.measure().rollout for runner in runners)
            ratios = ({}, {"to_one": dummy / one}, {"to_one": two / one, "to_dummy": two / dummy})
            for (vec_env, n_envs), rollout, more in zip(places, (one, dummy, two), ratios, strict=True):
                where = {"vec_env": vec_env.__name__, "n_envs": str(n_envs)}
                found.append({**labels(env_id, algorithm.__name__, *groups.values()), **where, "rollout": rollout, **more})
        for vec in envs:
            vec.close()
    return found


PARTS = {
    "states": Part(
        Section(
            "states",
            "The update of a state",
            "PPO and HybridGRPO with K = 1 on the same number of states: what N samples of a state cost, over what PPO pays "
            "for one. Minibatches of 64 states, as PPO's, and of 64 samples. `samples` are PPO's.",
            {"env": "env", "algorithm": "algorithm", **GROUP_LABELS, "minibatch_states": "states in a minibatch"},
            {"update": ("update: µs a state", 1), "update_to_ppo": ("time × PPO's", 2)},
        ),
        ("CartPole-v1", "HalfCheetah-v5", BREAKOUT),
        measure_states,
    ),
    "branching": Part(
        Section(
            "branching",
            "Branching alone",
            "A step of the whole group, with random actions, over N plain steps of the env; and what that leaves for "
            "a sibling, forks included, over one plain step. Both in turn, block by block, in one process. K = 1: all "
            "siblings branch at every step. K = 64: they live on.",
            {"env": "env", **GROUP_LABELS, "siblings": "siblings are"},
            {
                **{"step": ("plain step: µs", 1), "group_step": ("group's step: µs", 1)},
                **{"slow_down": ("× N plain steps", 2), "sibling": ("a sibling's step × a plain one", 2)},
            },
            settings=("repeats",),
        ),
        (
            *("CartPole-v1", "Pendulum-v1", "HalfCheetah-v5", "Hopper-v5", "LunarLander-v3", "BipedalWalker-v3"),
            *("Ant-v5", "Humanoid-v5", BREAKOUT),
        ),
        measure_branching,
    ),
    "scaling": Part(
        Section(
            "scaling",
            "How cost grows",
            "With the group N (`n_samples`), the number of envs, and the width of both hidden layers; what is not varied is "
            "4, 4 and 64. Samples in a rollout are the same everywhere, minibatches 64. PPO has the same envs and width.",
            {"env": "env", "varied": "varied", "value": "to", "algorithm": "algorithm", "branch_horizon": "K"},
            PER_SECOND,
        ),
        ("HalfCheetah-v5",),
        measure_growth,
    ),
    "memory": Part(
        Section(
            "memory",
            "Memory",
            f"Of the rollout buffer, on the same number of states, {STATES}; and how far a rollout and an update raise the "
            "peak of a process of their own above its peak with libraries and envs (on Linux).",
            {"env": "env", "n_envs": "envs", "algorithm": "algorithm", **GROUP_LABELS},
            {
                **{"buffer": ("buffer: MiB", 2), "buffer_to_ppo": ("× PPO", 2)},
                **{"peak": ("peak: MiB", 0), "peak_to_ppo": ("× PPO", 2)},
            },
            settings=(),
        ),
        ("CartPole-v1", "HalfCheetah-v5", BREAKOUT),
        measure_memory,
    ),
    "workers": Part(
        Section(
            "workers",
            "Workers",
            "Rollouts in a SubprocVecEnv, one env in each of its processes, which run beside this one.",
            {"env": "env", "algorithm": "algorithm", **GROUP_LABELS, "vec_env": "envs in", "n_envs": "envs"},
            {
                "rollout": ("rollout: simulator steps/s", 0),
                **{"to_one": ("× one worker", 2), "to_dummy": ("× DummyVecEnv of as many", 2)},
            },
        ),
        ("Ant-v5",),
        measure_workers,
    ),
}


def save_growth(path: Path, rows: pd.DataFrame) -> None:
    """Save how the time of a sample grows."""
    kinds = {"rollout": "rollout: µs a simulator step", "update": "update: µs a sample"}
    figure, panels = new_panels(len(kinds) * len(VARIED), 3.8, 3.2, len(VARIED))
    cases = ((kind, varied) for kind in kinds for varied in VARIED)
    for (kind, varied), axes in zip(cases, panels, strict=True):
        for number, ((algorithm, horizon), line) in enumerate(
            rows[rows.varied == varied].groupby(["algorithm", "branch_horizon"])
        ):
            color = OUR_COLORS[number] if horizon else BLACK
            label = f"{algorithm}, K = {horizon}" if horizon else algorithm
            axes.plot(line.value.astype(int), 1e6 / line[f"{kind}_median"], "o-", color=color, markersize=4, label=label)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set(xlabel=VARIED[varied], ylabel=kinds[kind], ylim=(0.0, None))
        axes.grid(alpha=0.3)
    panels[0].legend(frameon=False)
    save(figure, path)


def save_page(folder: Path) -> None:
    """Save ``parts.md`` and its picture, of all parts that were measured."""
    texts = [
        "# Parts of speed",
        "Medians over repeats (lowest–highest). A ratio is formed of two measurements of one round, seconds apart, so a busy "
        "machine favours neither. One thread a process. Made by `python benchmarks/speed_parts.py`. [Algorithms](speed.md).",
    ]
    for name, part in PARTS.items():
        rows = part.section.results(folder).frame
        if len(rows):
            texts += section_text(part.section, rows)
            if name == "scaling":
                save_growth(folder / "scaling.png", rows)
                texts.append("![How cost grows](scaling.png)")
    write_text(folder / "parts.md", "\n\n".join(texts) + "\n")


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder for parts.md and CSVs (default: %(default)s)")
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS), help="what to measure (default: all)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, the numbers mean nothing")
    parser.add_argument("--memory", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(memory_here(**options.memory)))
        return
    th.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.parts:
        part = PARTS[name]
        for env in part.envs[:1] if options.quick else part.envs:
            print(f"{name}: {env}", flush=True)
            size = (
                Size(256, 1, 1, warm_up=0)
                if options.quick
                else Size(2048, 2, 5, warm_up=0 if env == BREAKOUT else Size().warm_up)
            )
            part.section.results(options.output).add(part.section.summarise(part.measure(env, size), size))
    save_page(options.output)


if __name__ == "__main__":
    main()
