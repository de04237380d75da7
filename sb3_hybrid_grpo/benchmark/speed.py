"""
Speed and memory of HybridGRPO beside SB3's PPO, sb3-contrib's TRPO, SBX's PPO and a bare ``env.step`` loop.

``python -m sb3_hybrid_grpo.benchmark.speed --output speed_benchmark``

A busy machine changes its speed from second to second. So every measurement of HybridGRPO is taken right after one of PPO and
one of the bare loop, ratios are formed pair by pair, and the tables show their median with the lowest and the highest.
The learning rate is 0: every repeat measures the same policy (but TRPO's, whose steps need none), and an
update costs the same as any other.

Results are saved env by env. What is measured again takes the place of what was there, the rest stays.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch as th

from sb3_hybrid_grpo.benchmark.speed_algorithms import measure_speed, measure_states, measure_workers
from sb3_hybrid_grpo.benchmark.speed_branching import measure_branching
from sb3_hybrid_grpo.benchmark.speed_cases import BREAKOUT, FULL, N_ENVS, QUICK, Sizes, is_atari, short_name
from sb3_hybrid_grpo.benchmark.speed_memory import measure_memory
from sb3_hybrid_grpo.benchmark.speed_page import TABLES, save_page
from sb3_hybrid_grpo.benchmark.speed_plot import save_plots
from sb3_hybrid_grpo.benchmark.speed_report import Row, add_rows, read_rows
from sb3_hybrid_grpo.benchmark.speed_runner import one_core
from sb3_hybrid_grpo.benchmark.speed_scaling import measure_scaling
from sb3_hybrid_grpo.cli import CommandError, output_folder, require_modules

Done = Callable[[str], None]
Measure = Callable[[str, Sizes, Done], list[Row]]


class Section(NamedTuple):
    """
    A part of the benchmark.

    :param envs: Ids of its envs.
    :param measure: Measures one of them: gets its id, the sizes, and a function to call after each measurement.
    :param processes: Whether it needs a core for each of its processes.
    """

    envs: Sequence[str]
    measure: Measure
    processes: bool = False


SECTIONS = {
    "speed": Section(tuple(N_ENVS), lambda env, sizes, done: measure_speed(env, sizes.of(env), done)),
    "states": Section(
        ("CartPole-v1", "HalfCheetah-v5", BREAKOUT),
        lambda env, sizes, done: measure_states(env, sizes.images if is_atari(env) else sizes.brief, done),
    ),
    "branching": Section(
        (
            *("CartPole-v1", "Pendulum-v1", "HalfCheetah-v5", "Hopper-v5", "LunarLander-v3", "BipedalWalker-v3"),
            *("Ant-v5", "Humanoid-v5", BREAKOUT),
        ),
        lambda env, sizes, done: measure_branching(env, sizes.brief.repeats, done),
    ),
    "scaling": Section(("HalfCheetah-v5",), lambda env, sizes, done: measure_scaling(env, sizes.brief, done)),
    "memory": Section(
        ("CartPole-v1", "HalfCheetah-v5", BREAKOUT),
        lambda env, sizes, done: measure_memory(env, sizes.states, 1, done),
    ),
    "workers": Section(("Ant-v5",), lambda env, sizes, done: measure_workers(env, sizes.brief, done), processes=True),
}
ENVS = tuple(dict.fromkeys(env for section in SECTIONS.values() for env in section.envs))
# What envs need besides gymnasium: modules by extra.
EXTRAS = {
    "mujoco": (("mujoco", "imageio"), {"HalfCheetah-v5", "Hopper-v5", "Ant-v5", "Humanoid-v5"}),
    "box2d": (("Box2D",), {"LunarLander-v3", "BipedalWalker-v3"}),
    "atari": (("ale_py", "cv2"), {BREAKOUT}),
}


@contextmanager
def progress(total: int) -> Iterator[tuple[Done, Callable[[], None]]]:
    """
    Show how far the benchmark is: a bar, or lines where tqdm is not installed.

    :param total: Number of sections' envs.
    :return: A context manager that yields two functions, to call with a measurement's name, and after each env.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        start = time.monotonic()
        yield lambda name: print(f"{time.monotonic() - start:.0f} s: {name}", file=sys.stderr), lambda: None
        return
    with tqdm(total=total, unit="env", dynamic_ncols=True) as bar:
        yield bar.set_description, bar.update


def chosen(sections: Sequence[str], envs: Sequence[str]) -> list[tuple[str, str]]:
    """
    Choose what to measure.

    :param sections: Names of sections.
    :param envs: Names of envs.
    :return: Section and env id, in the order in which they are measured.
    :raises CommandError: if none of the sections has one of the envs, or packages are missing
    """
    found = [
        (name, env)
        for name, section in SECTIONS.items()
        for env in section.envs
        if name in sections and short_name(env) in envs
    ]
    if not found:
        has = "; ".join(f"{name}: {', '.join(map(short_name, SECTIONS[name].envs))}" for name in sections)
        raise CommandError(f"received --envs {' '.join(envs)}, needs an env that a chosen section has: {has}")
    for extra, (modules, needed_by) in EXTRAS.items():
        if needed_by & {env for _, env in found}:
            require_modules(modules, extra)
    require_modules(["matplotlib"], "speed")
    return found


def run(output: Path, sizes: Sizes, sections: Sequence[str], envs: Sequence[str]) -> None:
    """
    Measure, save what is known env by env, print the page.

    :param output: Folder for the page ``speed.md``, a CSV for each section, and pictures.
    :param sizes: How much to measure.
    :param sections: Names of sections.
    :param envs: Names of envs.
    """
    to_measure = chosen(sections, envs)
    output_folder(output)
    for table in TABLES.values():
        read_rows(output, table)  # what is no table is refused now rather than in half an hour
    th.set_num_threads(1)
    with progress(len(to_measure)) as (done, env_done):
        for name, env in to_measure:
            where = f"{name} {short_name(env)}"
            done(where)
            with nullcontext() if SECTIONS[name].processes else one_core():
                rows = SECTIONS[name].measure(env, sizes, partial(_say, done, where))
            add_rows(output, TABLES[name], rows)
            save_plots(output)
            page = save_page(output)
            env_done()
    print(f"{page}\nSaved: {', '.join(str(path) for path in sorted(output.iterdir()))}")


def _say(done: Done, where: str, case: str) -> None:
    done(f"{where}: {case}")


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command.

    :param arguments: The command line without the program's name; ``sys.argv`` by default.
    :return: The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m sb3_hybrid_grpo.benchmark.speed",
        description="Speed and memory of HybridGRPO beside PPO, TRPO, SBX's PPO and a bare env.step loop, on one core "
        "(all of it: about half an hour on a machine with nothing else to do).",
    )
    parser.add_argument("--output", type=Path, default=Path("speed_benchmark"), help="folder for speed.md, CSVs and pictures")
    parser.add_argument(
        "--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="what to measure (default: all)"
    )
    names = [short_name(env) for env in ENVS]
    parser.add_argument("--envs", nargs="+", choices=names, default=names, help="in which envs (default: all)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, the numbers mean nothing")
    options = parser.parse_args(arguments)
    try:
        run(options.output, QUICK if options.quick else FULL, options.sections, options.envs)
    except CommandError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
