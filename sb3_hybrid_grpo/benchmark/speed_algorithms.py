"""The speed benchmark's sections that set algorithms beside PPO, pair by pair."""

from collections.abc import Callable, Sequence
from typing import Any

from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_hybrid_grpo import HybridGRPO, make_branchable
from sb3_hybrid_grpo.benchmark.speed_cases import (
    BATCH_SIZE,
    N_ENVS,
    Size,
    build,
    build_raw_loop,
    make_envs,
    sbx_ppo,
    short_name,
)
from sb3_hybrid_grpo.benchmark.speed_page import RAW_LOOP, SBX
from sb3_hybrid_grpo.benchmark.speed_report import Row
from sb3_hybrid_grpo.benchmark.speed_runner import Runner

GROUPS = [(n_samples, branch_horizon) for n_samples in (1, 4, 8, 16) for branch_horizon in (1, 64)]
STATES = (4, 8)
"""N, where updates are compared state by state."""
WORKERS = 2
Done = Callable[[str], None]


def labels_of(env_id: str, algorithm: str, n_samples: int | None = None, branch_horizon: int | None = None) -> dict[str, str]:
    """
    Name a case.

    :param env_id: The env's id.
    :param algorithm: What is measured.
    :param n_samples: Group size N, where the algorithm has one.
    :param branch_horizon: Branch horizon K, where the algorithm has one.
    :return: The labels.
    """
    groups = {"n_samples": str(n_samples or ""), "branch_horizon": str(branch_horizon or "")}
    return {"env": short_name(env_id), "algorithm": algorithm, **groups}


def measure_speed(env_id: str, size: Size, done: Done, groups: Sequence[tuple[int, int]] = tuple(GROUPS)) -> list[Row]:
    """
    Measure every algorithm in one env.

    :param env_id: The env's id.
    :param size: How much to measure.
    :param done: Called with a case's name after each measurement.
    :param groups: N and K of HybridGRPO.
    :return: The bare loop, PPO, TRPO, SBX's PPO where it is installed, then each group size and horizon.
    """
    n_envs = N_ENVS[env_id]

    def runner(algorithm: Any, **arguments: Any) -> Runner:
        return build(algorithm, make_envs(env_id, n_envs), size.samples, **arguments)

    def row(*case: Any) -> Row:
        return Row({**labels_of(env_id, *case), "n_envs": str(n_envs)}, size.settings())

    raw_loop, raw_row = build_raw_loop(env_id, n_envs, size.raw_seconds), row(RAW_LOOP)
    epochs = {"n_epochs": size.n_epochs}
    ppo, ppo_row = runner(PPO, **epochs), row("PPO")
    cases = [(row("TRPO"), runner(TRPO))]
    sbx = sbx_ppo()
    cases += [] if sbx is None else [(row(SBX), runner(sbx, **epochs))]
    for n_samples, horizon in groups:
        hybrid = runner(HybridGRPO, n_samples=n_samples, branch_horizon=horizon, **epochs)
        cases.append((row("HybridGRPO", n_samples, horizon), hybrid))
    for case in (ppo, *(case for _, case in cases)):
        case.warm_up(size.warm_up)
        done("warm-up")
    for _ in range(size.repeats):
        for own_row, case in cases:
            raw, peer, own = raw_loop(), ppo.measure(), case.measure()
            raw_row.add(rollout=raw)
            ppo_row.add(**peer.named(), rollout_to_raw=peer.rollout / raw)
            own_row.add(**own.beside(peer), rollout_to_raw=own.rollout / raw)
            done(own_row.case)
    return [raw_row, ppo_row, *(own_row for own_row, _ in cases)]


def measure_states(env_id: str, size: Size, done: Done, members: Sequence[int] = STATES) -> list[Row]:
    """
    Compare updates on the same number of states, where all samples of a state share one observation (K = 1).

    :param env_id: The env's id.
    :param size: How much to measure; its samples are the states.
    :param done: Called with a case's name after each measurement.
    :param members: Group sizes N.
    :return: PPO, then each group size with minibatches of as many states and of as many samples as PPO's.
    """

    def runner(algorithm: Any, samples_of_a_state: int, **groups: int) -> Runner:
        envs = make_envs(env_id, N_ENVS[env_id])
        built = build(algorithm, envs, size.samples * samples_of_a_state, n_epochs=size.n_epochs, **groups)
        built.warm_up(size.warm_up)
        done("warm-up")
        return built

    def row(states: int, *case: Any) -> Row:
        return Row({**labels_of(env_id, *case), "minibatch_states": str(states)}, size.settings())

    ppo, ppo_row = runner(PPO, 1), row(BATCH_SIZE, "PPO")
    cases = []
    for n_samples in members:
        for states in (BATCH_SIZE, BATCH_SIZE // n_samples):
            groups = {"n_samples": n_samples, "branch_horizon": 1, "batch_size": states * n_samples}
            cases.append((row(states, "HybridGRPO", n_samples, 1), n_samples, runner(HybridGRPO, n_samples, **groups)))
    for _ in range(size.repeats):
        for own_row, n_samples, case in cases:
            peer, own = 1e6 / ppo.update(), 1e6 * n_samples / case.update()
            ppo_row.add(update=peer)
            own_row.add(update=own, update_to_ppo=own / peer)
            done(own_row.case)
    return [ppo_row, *(own_row for own_row, _, _ in cases)]


def measure_workers(env_id: str, size: Size, done: Done) -> list[Row]:
    """
    Compare rollouts in processes: one env in each of two, one env in one, and two envs in none but this.

    :param env_id: The env's id.
    :param size: How much to measure.
    :param done: Called with a case's name after each measurement.
    :return: PPO, and HybridGRPO with N = 8 and either horizon, in each.
    """
    places = ((SubprocVecEnv, 1), (DummyVecEnv, WORKERS), (SubprocVecEnv, WORKERS))
    algorithms: list[tuple[Any, dict[str, int]]] = [(PPO, {})]
    algorithms += [(HybridGRPO, {"n_samples": 8, "branch_horizon": horizon}) for horizon in (1, 64)]
    rows = []
    for algorithm, groups in algorithms:
        runners, own_rows = [], []
        for vec_env, n_envs in places:
            branchable = {"wrapper_class": make_branchable} if groups else {}
            envs = make_envs(env_id, n_envs, vec_env_cls=vec_env, **branchable)
            runners.append(build(algorithm, envs, size.samples, n_epochs=size.n_epochs, **groups))
            where = {"vec_env": vec_env.__name__, "n_envs": str(n_envs)}
            own_rows.append(Row({**labels_of(env_id, algorithm.__name__, *groups.values()), **where}, size.settings()))
            runners[-1].warm_up(size.warm_up)
        for _ in range(size.repeats):
            one, dummy, two = (runner.collect() for runner in runners)
            own_rows[0].add(rollout=one)
            own_rows[1].add(rollout=dummy, to_one=dummy / one)
            own_rows[2].add(rollout=two, to_one=two / one, to_dummy=two / dummy)
            done(own_rows[-1].case)
        for runner in runners:
            runner.close()
        rows += own_rows
    return rows
