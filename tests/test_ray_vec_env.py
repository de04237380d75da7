"""Envs in workers on a Ray cluster: two nodes on this machine."""

import contextlib
import csv
import functools
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecNormalize

from sb3_hybrid_grpo import HybridGRPO, MaskableHybridGRPO, RecurrentHybridGRPO, make_branchable
from sb3_hybrid_grpo.branching.wrapper import BranchingWrapper
from sb3_hybrid_grpo.errors import BranchingError, FleetError
from tests.test_maskable import NeverTwice
from tests.test_parity_with_ppo import assert_equal, parameters, trained
from tests.toy_envs import NoisyWalk, Unbranchable, walk
from tests.zoo import command, zoo_in

distributed: Any = pytest.importorskip(
    "sb3_hybrid_grpo.distributed", reason='needs Ray: pip install -e ".[ray]"', exc_type=ImportError
)
RayVecEnv = distributed.RayVecEnv
NODE = {"num_cpus": 2, "node_ip_address": "127.0.0.2"}  # on loopback; Ray takes no cluster on 127.0.0.1
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
"""Niceness 0, because Ray's workers, at 15, would hardly run beside other tests."""


class Breakable(NoisyWalk):
    """Breaks in the next step of the env, or of a sibling that is forked before, when it is told how."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.breaks, self.mark, self.seeds, self.options = "", 0, list[int | None](), list[Any]()
        self.render_mode, self.own_id = "rgb_array", id(self)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.seeds.append(seed)
        self.options.append(options)
        return super().reset(seed=seed, options=options)[0], {"resets": len(self.seeds)}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        breaks, self.breaks = self.breaks, ""
        if breaks == "killed" or (breaks == "killed, but no sibling" and id(self) == self.own_id):
            os.kill(os.getpid(), signal.SIGKILL)
        elif breaks == "hangs":
            time.sleep(600)
        elif breaks == "raises":
            raise ZeroDivisionError("told to")
        return super().step(action)

    def arm(self, breaks: str) -> None:
        self.breaks = breaks

    def pid(self) -> int:
        return os.getpid()

    def render(self) -> Any:
        return np.full((2, 2, 3), 7, dtype=np.uint8)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head with room for all workers, to which tests add a node."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        utils = importlib.import_module("ray.cluster_utils")
        made = utils.Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        patch.setenv("RAY_ADDRESS", made.address)
        made.add_node(**NODE)
        yield made
        made.shutdown()


def processes(env_fns: list[Any], **_: Any) -> SubprocVecEnv:
    return SubprocVecEnv(env_fns, start_method="fork")


def branchable_processes(env_fns: list[Any], **_: Any) -> SubprocVecEnv:
    return processes([functools.partial(_branchable, env_fn) for env_fn in env_fns])


def _branchable(env_fn: Any) -> gym.Env[Any, Any]:
    return make_branchable(env_fn())


def small_image() -> gym.Env[Any, Any]:
    # siblings' observations of two envs are more than Ray sends without its object store
    image = spaces.Box(0, 255, (72, 72, 3), np.uint8)
    return walk(observation_space=spaces.Dict({"image": image, "place": spaces.Box(-9, 9, (3,), np.float32)}))


NETWORK = {"net_arch": [8]}
CASES: dict[str, tuple[Any, Any, Any, dict[str, Any]]] = {
    "PPO": (PPO, walk, None, {}),
    "Dict, images, VecNormalize": (
        HybridGRPO,
        small_image,
        lambda env: VecNormalize(env, norm_obs_keys=["place"]),
        {"policy": "MultiInputPolicy", "policy_kwargs": {**NETWORK, "features_extractor_kwargs": {"cnn_output_dim": 8}}},
    ),
    "masks": (MaskableHybridGRPO, NeverTwice, VecNormalize, {}),
    "LSTM": (RecurrentHybridGRPO, walk, None, {"policy": "MlpLstmPolicy", "policy_kwargs": {"lstm_hidden_size": 8}}),
}


@pytest.mark.parametrize("case", CASES)
def test_it_trains_as_a_subproc_vec_env_to_the_last_bit(case: str, cluster: Any) -> None:
    algorithm, env_fn, wrapper, arguments = CASES[case]
    groups = {} if algorithm is PPO else {"n_samples": 3, "branch_horizon": 5}
    results = []
    for kind in (processes if algorithm is PPO else branchable_processes, RayVecEnv):

        def make(kind: Any = kind) -> VecEnv:
            env = kind([env_fn] * 3, envs_per_worker=2)
            env.seed(5)
            made: VecEnv = env if wrapper is None else wrapper(env)
            return made

        results.append(trained(algorithm, make, 24, batch_size=36, device="cpu", **groups, **arguments))
    assert_equal(results[0], results[1])


def test_methods_are_those_of_a_subproc_vec_env(cluster: Any) -> None:
    seen = []
    for kind in (processes, RayVecEnv):
        made: Any = kind
        env = make_vec_env(Breakable, n_envs=3, seed=4, vec_env_cls=made, vec_env_kwargs={"envs_per_worker": 2})
        env.set_options([{"a": 1}, {}, {"a": 2}])
        env.set_attr("mark", 3, indices=[0, 2])
        found: list[Any] = [env.reset(), env.reset_infos, env.get_attr("seeds"), env.get_attr("options", [1, 2])]
        found += [env.get_attr("mark"), env.has_attr("mark"), env.has_attr("nothing"), env.step(np.ones((3, 2)))]
        found += [env.env_is_wrapped(gym.wrappers.TimeLimit), env.env_is_wrapped(gym.Wrapper, 1), env.get_images()]
        found += [len(set(env.env_method("pid"))), env.render_mode, env.observation_space, env.action_space]
        found[11] -= kind is processes  # a process for each env, and for two
        seen.append(found)
        env.close()
    np.testing.assert_equal(seen[0], seen[1])


class Watch(BaseCallback):
    """Breaks env 3 of 4 after some steps, and keeps the rows of the steps in which a worker was lost."""

    def __init__(self, break_it: Any) -> None:
        super().__init__()
        self.break_it, self.lost, self.obs_after = break_it, list[dict[str, Any]](), list[Any]()

    def _on_step(self) -> bool:
        its = self.locals
        if self.n_calls == 30:  # of three members each
            self.break_it(self.training_env)
        if any("worker_restarted" in info for info in its["infos"]):
            names = ("obs_tensor", "rewards", "dones", "infos", "new_obs")
            self.lost.append({name: np.asarray(its[name]) for name in names})
        return True


def wait_for_the_end_of(pid: int) -> None:
    end = time.monotonic() + 60
    with contextlib.suppress(OSError):  # the process is gone
        while ") Z " not in Path(f"/proc/{pid}/stat").read_text():
            assert time.monotonic() < end
            time.sleep(0.05)


@pytest.mark.parametrize("fault", ["killed", "hangs", "node"])
def test_training_goes_on_without_a_worker_that_is_lost(fault: str, cluster: Any, tmp_path: Path) -> None:
    while len(cluster.list_all_nodes()) < 2:
        cluster.add_node(**NODE)
    lost_node = next(iter(cluster.worker_nodes))
    env = RayVecEnv([Breakable] * 4, envs_per_worker=2, step_timeout=2.0 if fault == "hangs" else None)
    try:
        env.set_attr("mark", 5)
        nodes = [worker.node for worker in env._workers]
        assert len(set(nodes)) == 2
        lost = next(e for e, node in enumerate(nodes) if lost_node.node_id[:8] in node)

        def break_it(training_env: VecEnv) -> None:
            if fault == "node":
                (pid,) = training_env.env_method("pid", indices=2 * lost)
                cluster.remove_node(lost_node, allow_graceful=False)
                wait_for_the_end_of(pid)  # a process outlives its node's by a moment, in which the training would end
            else:
                training_env.env_method("arm", fault, indices=2 * lost + 1)

        model = HybridGRPO("MlpPolicy", env, n_samples=3, branch_horizon=6, n_steps=60, batch_size=60, seed=8, device="cpu")
        model.set_logger(configure(str(tmp_path), ["csv"]))
        watch = Watch(break_it)
        with pytest.warns(UserWarning, match=rf"Worker {lost} \(envs {2 * lost} to {2 * lost + 1}\) on .* started again on"):
            model.learn(480, watch)
        assert model.num_timesteps == 480
        assert env.worker_restarts == 1
        *_, row = csv.DictReader((tmp_path / "progress.csv").read_text(encoding="utf-8").splitlines())
        assert float(row["rollout/worker_restarts"]) == 1

        of_lost = [e // 2 == lost for e in range(4)]
        assert len(watch.lost) == 3  # members, in one step
        for rows in watch.lost:
            assert ["worker_restarted" in info for info in rows["infos"]] == of_lost
            for e in np.flatnonzero(of_lost):
                info = rows["infos"][e]
                assert rows["dones"][e] and rows["rewards"][e] == 0.0 and info["TimeLimit.truncated"]
            assert (rows["rewards"][~np.array(of_lost)] != 0).all()
        # member 0's episode ends where it was when the policy acted; the siblings' do, too
        for rows in watch.lost:
            for e in np.flatnonzero(of_lost):
                np.testing.assert_array_equal(rows["infos"][e]["terminal_observation"], rows["obs_tensor"][e])
                np.testing.assert_array_equal(rows["new_obs"][e], watch.lost[0]["new_obs"][e])  # of the new episode

        for seeds, before, is_new in zip(env.get_attr("seeds"), range(8, 12), of_lost, strict=True):
            (made,) = np.random.SeedSequence([before, 1]).generate_state(1).tolist()
            assert seeds[0] == (made if is_new else before)
        assert env.get_attr("mark") == [5] * 4
    finally:
        env.close()


def test_an_executed_choice_that_is_lost_is_compared_with_nothing(cluster: Any) -> None:
    env = RayVecEnv([Breakable])
    try:
        model = HybridGRPO(
            "MlpPolicy", env, n_samples=2, branch_horizon=1, action_selection="greedy", n_steps=32, device="cpu"
        )
        model.learn(32)
        env.env_method("arm", "killed, but no sibling")
        with pytest.warns(UserWarning, match="Workers were lost"):
            model.learn(64, reset_num_timesteps=False)
        assert env.worker_restarts == 1
    finally:
        env.close()


def test_an_exception_is_an_error_and_one_restart_too_many_is(cluster: Any, tmp_path: Path) -> None:
    env = RayVecEnv([Breakable] * 2, max_restarts=0)
    try:
        model = PPO("MlpPolicy", env, n_steps=8, batch_size=16, n_epochs=1, device="cpu").learn(16)
        env.env_method("arm", "raises", indices=1)
        with pytest.raises(FleetError, match=r"Env 1 raised ZeroDivisionError\('told to'\) in 'step'"):
            model.learn(16)
        assert env.worker_restarts == 0
        model.learn(16, reset_num_timesteps=False)  # no answer is left over

        env.env_method("arm", "killed", indices=0)
        node = env._workers[0].node
        with pytest.raises(FleetError) as raised:
            model.learn(64)
        assert f"Worker 0 (env 0) on {node} is lost" in str(raised.value) and "max_restarts=0" in str(raised.value)
        assert "died" in str(raised.value)
        model.save(tmp_path / "model.zip")
        np.testing.assert_array_equal(PPO.load(tmp_path / "model.zip").predict(np.ones(2), deterministic=True)[0].shape, (2,))
    finally:
        env.close()


def unmade() -> gym.Env[Any, Any]:
    raise OSError("no licence")


def test_what_cannot_start_is_an_error(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FleetError, match=r"Env 1 could not be made: OSError\('no licence'\)"):
        RayVecEnv([walk, unmade], envs_per_worker=2)
    monkeypatch.setattr("sb3_hybrid_grpo.distributed.ray_vec_env._NOTICE_AFTER", 0.5)
    monkeypatch.setattr("sb3_hybrid_grpo.distributed.ray_vec_env._PLACED_WITHIN", 1.0)
    with (
        pytest.warns(
            UserWarning,
            match="1 of the workers did not start within 0.5 s. Each asks for {'CPU': 64}; the cluster has {'CPU': ",
        ),
        pytest.raises(FleetError, match=r"within 1 s.*worker_options={'num_cpus': 0.5}"),
    ):
        RayVecEnv([walk], worker_options={"num_cpus": 64})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"env_fns": []}, "no env_fns"),
        ({"envs_per_worker": 0}, "envs_per_worker=0"),
        ({"max_restarts": -1}, "max_restarts=-1"),
        ({"step_timeout": 0.0}, "step_timeout=0"),
        ({"worker_options": {"max_restarts": 2}}, r"RayVecEnv\(max_restarts=...\)"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RayVecEnv(**{"env_fns": [walk], **arguments})


def unbranchable() -> gym.Env[Any, Any]:
    return Unbranchable()


def test_envs_are_made_branchable_where_they_are_or_a_notice_says_why_not(cluster: Any) -> None:
    env = RayVecEnv([unbranchable])
    try:
        with pytest.raises(BranchingError, match="cannot be branched"):
            HybridGRPO("MlpPolicy", env, branch_horizon=16)
        with pytest.warns(UserWarning, match="trains without siblings, as PPO does"):
            HybridGRPO("MlpPolicy", env, n_steps=64, device="cpu").learn(64)
        assert env.env_is_wrapped(BranchingWrapper) == [False]
    finally:
        env.close()


ENTRY = {"n_envs": 2, "n_timesteps": 128, "policy": "MlpPolicy", "n_steps": 32, "n_samples": 2, "branch_horizon": 16}
IN_ZOO = ("train", "--env", "CartPole-v1", "-conf", "short.yml", "--device", "cpu", "--seed", 3)


def on_ray(cluster: Any) -> tuple[str, ...]:
    Path("short.yml").write_text(yaml.safe_dump({"CartPole-v1": ENTRY}), encoding="utf-8")
    return "--vec-env", "ray", "--vec-env-kwargs", "envs_per_worker:2", f"address:'{cluster.address}'"


def test_the_zoo_trains_on_the_cluster(cluster: Any, tmp_path: Path) -> None:
    with zoo_in(tmp_path):
        command(*IN_ZOO, "--eval-freq", -1, *on_ray(cluster))
        command(*IN_ZOO, "--eval-freq", -1, "--vec-env", "subproc", "--vec-env-kwargs", "start_method:'fork'")
        models = [HybridGRPO.load(f"logs/hybrid_grpo/CartPole-v1_{run}/CartPole-v1.zip", device="cpu") for run in (1, 2)]
        assert_equal(parameters(models[0]), parameters(models[1]))


@pytest.mark.slow
def test_the_zoo_tunes_on_the_cluster(cluster: Any, tmp_path: Path) -> None:
    with zoo_in(tmp_path):
        import optuna
        from optuna.storages.journal import JournalFileBackend

        fewer = ("--n-trials", 1, "--n-evaluations", 1, "--eval-episodes", 1, "--no-optim-plots", "--storage", "study.log")
        command(*IN_ZOO, "--optimize-hyperparameters", *fewer, "--study-name", "one", *on_ray(cluster))
        storage = optuna.storages.JournalStorage(JournalFileBackend("study.log"))
        (trial,) = optuna.load_study(study_name="one", storage=storage).trials
        assert trial.state.name == "COMPLETE"


INTERRUPTED = """
import signal, sys
from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.distributed import RayVecEnv
from tests.toy_envs import walk

signal.signal(signal.SIGINT, signal.default_int_handler)
env = RayVecEnv([walk] * 2)
model = HybridGRPO("MlpPolicy", env, n_samples=2, branch_horizon=8, n_steps=32, device="cpu", branching_check=False)
print("trains", flush=True)
try:
    model.learn(10**9)
except KeyboardInterrupt:
    print("interrupted", flush=True)
model.learn(64, reset_num_timesteps=False)
if sys.argv[1] == "closes":
    env.close()
print("goes on", env.worker_restarts, flush=True)
"""


def started_with(mark: str) -> list[str]:
    """Command lines of living processes that have this in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has ended, or is another user's
            continue
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
@pytest.mark.parametrize("end", ["closes", "ends"])
def test_ctrl_c_ends_the_training_and_nothing_is_left_behind(end: str, tmp_path: Path) -> None:
    mark = f"TEST_OF_FLEETS={tmp_path}"
    own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    shared = set(os.listdir("/dev/shm"))
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, end],
        env={**own, **SETTINGS, "PYTHONPATH": path, "TEST_OF_FLEETS": str(tmp_path), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    said = iter(process.stdout)
    assert "trains\n" in said  # reads up to that line
    time.sleep(2.0)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert [line for line in said if not line.startswith("(")] == ["interrupted\n", "goes on 0\n"]
    assert process.wait(60) == 0
    until = time.monotonic() + 30
    while (left := started_with(mark)) and time.monotonic() < until:
        time.sleep(0.2)
    assert not left
    assert not [name for name in set(os.listdir("/dev/shm")) - shared if "plasma" in name or "ray" in name]
