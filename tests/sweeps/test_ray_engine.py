"""``RayEngine``: on a real cluster of three nodes on this machine, on one that it starts, and, for what would take
long to happen there, on a simulated one."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
import ray.cluster_utils
from sweeps.curricula import Crashing, Holding, Killing
from sweeps.simulated_ray import NodeDiedError, OutOfMemoryError, RayError, SimulatedRay, WorkerCrashedError
from training.small_runs import small_run
from training.test_train import contents

from sparsity_lab.settings import SettingError, canonical_json, from_text
from sparsity_lab.sweeps import Engine, RayEngine, Serial, Sweep, grid, run_sweep
from sparsity_lab.sweeps.ray_engine import execute_in_worker
from sparsity_lab.training import FixedLength, RunConfig, Status, status
from sparsity_lab.training.files import Writer

LONGEST_WAIT = 240.0
"""Seconds, for what takes five on an idle machine."""


ENVIRONMENT = {
    "RAY_raylet_start_wait_time_s": str(int(LONGEST_WAIT)),
    "RAY_USAGE_STATS_ENABLED": "0",
    # Else a local cluster would leave a token in the home of the user who runs the tests.
    "RAY_AUTH_MODE": "disabled",
}


@pytest.fixture(autouse=True)
def _patient_and_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


LEAST = {"object_store_memory": 80 * 2**20, "include_log_monitor": False}


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ray.cluster_utils.Cluster]]:
    """What ``cluster`` has started. Its nodes work in a folder of their own."""
    started: list[ray.cluster_utils.Cluster] = []
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.chdir(tmp_path_factory.mktemp("nodes"))
        try:
            yield started
        finally:
            for cluster in started:
                cluster.shutdown()


@pytest.fixture
def cluster(clusters: list[ray.cluster_utils.Cluster]) -> ray.cluster_utils.Cluster:
    """A head that runs nothing, and two nodes with one CPU each: those that the tests before have left, and new ones
    for the lost ones."""
    if not clusters or clusters[-1].head_node is None:
        head = {"num_cpus": 0, "include_dashboard": False, "no_monitor": True, **LEAST}
        clusters.append(ray.cluster_utils.Cluster(initialize_head=True, head_node_args=head))
    found = clusters[-1]
    while len(found.worker_nodes) < 2:
        found.add_node(num_cpus=1, wait=False, **LEAST)
    found.wait_for_nodes(timeout=LONGEST_WAIT)
    return found


def with_curriculum(curriculum: FixedLength, **changes: object) -> RunConfig:
    return small_run(training=small_run().training.replace(curriculum=curriculum), **changes)


def wait_until(condition, what: str) -> None:
    end = time.monotonic() + LONGEST_WAIT
    while not condition():
        assert time.monotonic() < end, f"{what}: not in {LONGEST_WAIT:.0f} s"
        time.sleep(0.05)


@pytest.mark.slow
def test_lost_node_and_lethal_runs_leave_the_files_of_the_serial_engine(
    cluster: ray.cluster_utils.Cluster, tmp_path: Path
) -> None:
    """Three runs are held at a step, at least one on each node; one node is removed; then they may go on."""
    places = {name: tmp_path / name for name in ("held", "tally", "out", "serial")}
    for place in places.values():
        place.mkdir()
    held = grid(with_curriculum(Holding(length=8, folder=str(places["held"]))), {"seed": [0, 1, 2]})
    crashing = with_curriculum(Crashing(length=8))
    hungry = with_curriculum(Crashing(length=8, for_memory=True))
    killing = with_curriculum(Killing(length=8, tally=str(places["tally"]), times=99))
    sweep = Sweep(name="cluster", runs=[*held, crashing, hungry, killing])
    engine = RayEngine(address=cluster.address, cpus=0.5, in_flight=3)

    def arrivals() -> set[str]:
        return {file.name for file in places["held"].iterdir()} - {"go"}

    def remove_a_node() -> int:
        wait_until(lambda: len(arrivals()) == 3, "all runs in progress")
        # There is room for a fourth run, but no more than three are in flight.
        begun = [run for run in sweep.runs if (places["out"] / run.id).exists()]
        numbers = workers(places["held"])
        cluster.remove_node(next(iter(cluster.worker_nodes)))
        # A node that is slow to die may outlive its removal; a worker of it that went on would end its run.
        wait_until(
            lambda: not all(Writer.numbered(number) for number in numbers), "a worker of the lost node to be gone"
        )
        (places["held"] / "go").touch()
        return len(begun)

    with ThreadPoolExecutor(1) as other:
        removal = other.submit(remove_a_node)
        results = run_sweep(sweep, places["out"], engine)
        assert removal.result() == 3
    assert not ray.is_initialized()
    # Two CPUs held three runs, so the lost one had one or two of them.
    assert len(arrivals()) >= 4
    assert {failure.run.id: failure.reason for failure in results.failures} == {
        crashing.id: "RuntimeError: no cure",
        hungry.id: "MemoryError: no room",
        killing.id: "its worker process died 2 times",
    }
    run_sweep(Sweep(name="cluster", runs=held), places["serial"], Serial())
    for run in held:
        assert contents(places["out"] / run.id) == contents(places["serial"] / run.id)
    with pytest.raises(SettingError, match="none with 1 CPUs and 0.5 GPUs"):
        run_sweep(sweep, places["out"], RayEngine(address=cluster.address, gpus=0.5))
    assert not ray.is_initialized()


def begun(sweep: Sweep, held: Path, out: Path, address: str) -> "subprocess.Popen[str]":
    """The command that sweeps on a cluster, when all its runs are held."""
    file = out.with_suffix(".json")
    file.write_text(canonical_json(sweep))
    command = ["-m", "sparsity_lab.cli", "sweep", str(file), "--out", str(out), "--import", "sweeps.curricula"]
    process = subprocess.Popen(
        [sys.executable, *command, "--engine", f"RayEngine(address={address!r}, cpus=0.5)"],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: len(list(held.iterdir())) == len(sweep.runs) or process.poll() is not None, "all runs")
    assert process.poll() is None, process.communicate()
    return process


def held_sweep(tmp_path: Path) -> tuple[Sweep, Path]:
    """Two runs that wait at their third step, after a checkpoint, and where they say so."""
    held = tmp_path / "held"
    held.mkdir()
    holding = with_curriculum(Holding(length=8, folder=str(held)))
    base = holding.replace(training=holding.training.replace(checkpoint_every=1))
    return Sweep(name="held", runs=grid(base, {"seed": [0, 1]})), held


@pytest.mark.slow
def test_a_sweep_goes_on_where_its_killed_command_was(cluster: ray.cluster_utils.Cluster, tmp_path: Path) -> None:
    sweep, held = held_sweep(tmp_path)
    process = begun(sweep, held, tmp_path / "out", cluster.address)
    process.kill()
    process.communicate()
    checkpoints = list((tmp_path / "out").glob("*/checkpoint.safetensors"))
    assert len(checkpoints) == 2
    (held / "go").touch()
    assert run_sweep(sweep, tmp_path / "out", RayEngine(address=cluster.address)).failures == ()
    run_sweep(sweep, tmp_path / "serial", Serial())
    assert contents(tmp_path / "out") == contents(tmp_path / "serial")


@pytest.mark.slow
def test_nodes_without_the_shared_folder_are_told_at_the_first_run(
    cluster: ray.cluster_utils.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of the store begins with a link that leads each process to its own working directory."""
    monkeypatch.chdir(tmp_path)
    out = Path("/proc/self/cwd/out")
    runs = grid(small_run(), {"seed": range(20)})
    with pytest.raises(SettingError) as error:
        run_sweep(Sweep(name="apart", runs=runs), out, RayEngine(address=cluster.address, in_flight=2))
    expected = f"engine: expected workers that write to {out}: check that all their machines see one shared folder"
    assert str(error.value).startswith(expected)
    assert not ray.is_initialized()
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["sweep.json"]


@pytest.mark.slow
def test_a_lost_head_ends_the_sweep_which_goes_on_elsewhere(
    cluster: ray.cluster_utils.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last test on the cluster, which is gone with its head."""
    # For so long the command looks for a head that it has lost; by default 60.
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "5")
    sweep, held = held_sweep(tmp_path)
    process = begun(sweep, held, tmp_path / "out", cluster.address)
    cluster.remove_node(cluster.head_node, allow_graceful=False)
    out, told = process.communicate(timeout=LONGEST_WAIT)
    assert process.returncode == 1, (out, told)
    assert "Traceback" not in told
    # They end with their nodes, which would take a minute.
    for worker in workers(held):
        os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not any(map(Writer.numbered, workers(held))), "the workers to be gone")
    (held / "go").touch()
    assert run_sweep(sweep, tmp_path / "out", Serial()).failures == ()
    run_sweep(sweep, tmp_path / "serial", Serial())
    assert contents(tmp_path / "out") == contents(tmp_path / "serial")


def workers(held: Path) -> list[int]:
    """Numbers of the processes that have held a run."""
    return [int(file.name.split("-")[-1]) for file in held.iterdir()]


@pytest.mark.slow
def test_local_cluster_is_started_and_stopped(tmp_path: Path) -> None:
    run = small_run()
    results = run_sweep(Sweep(name="local", runs=[run]), tmp_path / "ray", RayEngine())
    assert not ray.is_initialized()
    assert results.failures == ()
    run_sweep(Sweep(name="local", runs=[run]), tmp_path / "serial", Serial())
    assert contents(tmp_path / "ray") == contents(tmp_path / "serial")


def simulated(monkeypatch: pytest.MonkeyPatch, outcomes: dict[str, list[object]]) -> SimulatedRay:
    found = SimulatedRay(outcomes)
    monkeypatch.setitem(sys.modules, "ray", found)
    return found


def failures(engine: RayEngine, runs: dict[str, list[object]], out: Path) -> dict[str, str | None]:
    names = list(runs)
    return {names[ended.index]: ended.failure for ended in engine.run(names, out)}


def test_lost_nodes_and_dead_workers_are_counted_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lost, died, full = NodeDiedError("node"), WorkerCrashedError("worker"), OutOfMemoryError("memory")
    runs: dict[str, list[object]] = {
        "fine": [None],
        "failing": ["its reason"],
        "unlucky": [lost, died, lost, None],
        "homeless": [lost, lost, lost],
        "lethal": [lost, died, died],
        "hungry": [full, full],
        "unknown": [RayError("a long story\nno such module")],
    }
    cluster = simulated(monkeypatch, runs)
    assert failures(RayEngine(retries=2), runs, tmp_path) == {
        "fine": None,
        "failing": "its reason",
        "unlucky": None,
        "homeless": "its node was lost 3 times",
        "lethal": "its worker process died 2 times",
        "hungry": "its worker process died 2 times for lack of memory",
        "unknown": "no such module",
    }
    assert cluster.started.count("unlucky") == 4
    assert not cluster.connected


def test_tasks_in_flight_are_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs: dict[str, list[object]] = {f"{number}": [None] for number in range(9)}
    cluster = simulated(monkeypatch, runs)
    assert set(failures(RayEngine(in_flight=4), runs, tmp_path)) == set(runs)
    assert cluster.most_in_flight == 4
    assert len(cluster.started) == 9


def test_cluster_without_a_node_left_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cluster = simulated(monkeypatch, {"first": [None], "endless": [], "after": []})
    ended = RayEngine(in_flight=2, patience=0.01).run(["first", "endless", "after"], tmp_path)
    assert next(ended).index == 0
    cluster.alive = False
    assert [(one.index, one.failure) for one in ended] == [
        (index, "its cluster has lost its nodes: none with 1 CPUs and 0 GPUs") for index in (1, 2)
    ]
    assert not cluster.connected


def test_sweep_that_is_left_disconnects(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cluster = simulated(monkeypatch, {"first": [None], "second": []})
    ended = RayEngine().run(["first", "second"], tmp_path)
    next(ended)
    assert cluster.connected
    ended.close()  # type: ignore[attr-defined]
    assert not cluster.connected


def test_other_use_of_ray_in_the_process_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cluster = simulated(monkeypatch, {"first": [None]})
    cluster.connected = True
    with pytest.raises(SettingError, match=r"ray\.shutdown\(\)"):
        list(RayEngine().run(["first"], tmp_path))
    assert cluster.connected


def test_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    engine = from_text(Engine, "RayEngine(cpus=0.25, gpus=0.5)")
    assert engine == RayEngine(cpus=0.25, gpus=0.5)
    with pytest.raises(SettingError, match=r'pip install "sparsity-lab\[ray\]"') as error:
        run_sweep(Sweep(name="none", runs=[small_run()]), tmp_path, engine)
    assert "\n" not in str(error.value)
    assert status(small_run(), tmp_path) is Status.MISSING


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("cpus", 0.0),
        ("cpus", -1.0),
        ("cpus", float("inf")),
        ("gpus", -1.0),
        ("gpus", 1e-5),
        ("gpus", 1.5),
        ("gpus", float("nan")),
        ("retries", -1),
        ("in_flight", 0),
        ("patience", 0.0),
        ("address", "somewhere"),
        ("address", "ray://host:10001"),
    ],
)
def test_settings_that_cannot_be_are_refused(field: str, bad: object) -> None:
    with pytest.raises(SettingError) as error:
        RayEngine(**{field: bad})
    assert error.value.path == field


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_listener_that_is_not_ray_is_named_in_time(tmp_path: Path, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as other:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        accepted = other.submit(server.accept)
        refused = other.submit(lambda: accepted.result()[0].sendall(answer))
        with pytest.raises(SettingError, match=f"address: no Ray cluster answers at {address}"):
            list(RayEngine(address=address, patience=1.0).run(["a run"], tmp_path))
        refused.result()
        accepted.result()[0].close()


@pytest.mark.parametrize("named", [True, False])
def test_address_where_nobody_listens_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(SettingError, match=f"address: no Ray cluster answers at {address} .*refused"):
        list(RayEngine(address=address if named else "auto").run(["a run"], tmp_path))


def test_worker_gets_names_and_text() -> None:
    """What Ray's serialization makes of the function is where it can be found, and nothing of what it does."""
    assert len(ray.cloudpickle.dumps(execute_in_worker)) < 120
    assert pickle.loads(ray.cloudpickle.dumps(execute_in_worker)) is execute_in_worker


def test_worker_finds_modules_where_the_driver_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "module_of_a_user.py").write_text("")
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SettingError):
        execute_in_worker(json.dumps(1), str(tmp_path / "out"), ["module_of_a_user"], [str(tmp_path), *sys.path])
    assert "module_of_a_user" in sys.modules
