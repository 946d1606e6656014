"""Several processes: launching, failing, groups, collectives. Numbers are Detectron2's where its own are right."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch
from engine.distributed import distributed_workers as workers

from detkit.engine import launch
from detkit.engine.distributed import (
    all_gather,
    broadcast,
    find_free_port,
    gather,
    get_cpu_group,
    get_local_group,
    get_local_rank,
    get_local_size,
    get_rank,
    get_world_size,
    infer_launcher,
    init_distributed,
    is_main_process,
    reduce_dict,
    shared_random_seed,
    synchronize,
)
from detkit.engine.distributed.init import translate_environment
from detkit.engine.distributed.launch import ProcessError

CPU = {"device_type": "cpu", "start_method": "forkserver"}


@pytest.fixture(scope="module")
def of_four():
    """What four processes, two machines of two, saw of each collective."""
    return launch(workers.collectives, 4, args=(2,), **CPU)


def test_objects_reach_whom_they_are_for(of_four):
    assert [seen["all_gather"] for seen in of_four] == [[{"r": 0}, {"r": 1}, {"r": 2}, {"r": 3}]] * 4
    assert [seen["gather"] for seen in of_four] == [[0, 1, 2, 3], [], [], []]
    assert [seen["gather to 1"] for seen in of_four] == [[], [0, 1, 2, 3], [], []]
    assert [seen["broadcast"] for seen in of_four] == ["from 2"] * 4


def test_batch_norms_get_the_statistics_of_all_processes(of_four):
    # the values 1 to 9: mean 5, squares of the differences 2 * (16 + 9 + 4 + 1)
    assert [seen["statistics"] for seen in of_four] == [pytest.approx((5.0, 60 / 9))] * 4


def test_a_shared_seed_is_shared_and_leaves_the_generators_alone(of_four):
    seeds = {seen["seed"] for seen in of_four}
    assert len(seeds) == 1
    assert 0 <= seeds.pop() < 2**31
    assert all(seen["numpy is untouched"] for seen in of_four)


def test_dicts_are_reduced_on_every_process(of_four):
    """Means of r + 1 and r, here of four; Detectron2 leaves partial sums on all processes but the first."""
    assert [seen["mean"] for seen in of_four] == [{"a": 2.5, "b": [[1.5], [1.5]]}] * 4
    assert [seen["sum"] for seen in of_four] == [{"a": 10.0, "b": [[6.0], [6.0]]}] * 4
    assert [list(seen["mean"]) for seen in of_four] == [["a", "b"], *[["b", "a"]] * 3]


def test_machines_have_groups_of_their_own(of_four):
    """Sums of the ranks within two machines of two; mmengine's groups give 3 everywhere, or hang."""
    assert [seen["local"] for seen in of_four] == [1.0, 1.0, 5.0, 5.0]
    assert [seen["world"] for seen in of_four] == [6.0] * 4


def test_places_are_believed_or_counted(of_four):
    assert [seen["rank"] for seen in of_four] == [(rank, 4) for rank in range(4)]
    assert [seen["believed"] for seen in of_four] == [(rank, 4) for rank in range(4)]
    assert [seen["counted"] for seen in of_four] == [(0, 2), (1, 2), (0, 2), (1, 2)]
    assert len({seen["pid"] for seen in of_four} | {os.getpid()}) == 5


def test_alone_everything_returns_at_once():
    assert (get_rank(), get_world_size(), is_main_process()) == (0, 1, True)
    assert (get_local_rank(), get_local_size(), get_local_group(), get_cpu_group()) == (0, 1, None, None)
    assert all_gather("a") == gather("a") == ["a"]
    assert broadcast("a") == "a"
    value = torch.ones(2, requires_grad=True)
    reduced = reduce_dict({"a": value})["a"]
    assert torch.equal(reduced, value)
    assert not reduced.requires_grad
    assert shared_random_seed() != shared_random_seed()
    synchronize()
    assert init_distributed("none") is False


def test_launch_of_one_process_stays_in_this_one():
    assert launch(workers.process_id, 1) == os.getpid()


def test_launch_on_two_machines_meets_at_the_first():
    """Two calls, as two machines make them; here of one process each."""
    url = f"tcp://127.0.0.1:{find_free_port()}"
    found = {}

    def machine(number: int) -> None:
        found[number] = launch(workers.where_am_i, 1, 2, number, url, **CPU)

    threads = [threading.Thread(target=machine, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    place = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "backend": "gloo"}
    expected = [{"RANK": number, "GROUP_RANK": number, **place} for number in "01"]
    assert found == {0: expected, 1: expected}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("exception", r"^process 1 of 2: ArithmeticError: the second process cannot go on$"),
        ("exit", "process 1 of 2 ended with exit code 7 without"),
        ("kill", "process 1 of 2 was ended by signal 9 without"),
    ],
)
def test_a_process_that_fails_ends_all(tmp_path, capfd, how, message):
    """Within 60 seconds, said once; here without the time that starting takes."""
    launch(workers.process_id, 2, **CPU)  # the server of processes is warm
    start = time.monotonic()
    with pytest.raises(ProcessError, match=message) as caught:
        launch(workers.fail_together_with, 2, args=(how, str(tmp_path)), **CPU)
    assert time.monotonic() - start < 15
    for rank in "01":
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / rank).read_text()), 0)
    if how == "exception":
        trace = str(caught.value.__cause__)
        assert trace.count("Traceback (most recent call last)") == 1
        assert "in fail_together_with" in trace
    assert "Traceback" not in capfd.readouterr().err


def test_processes_that_exit_on_purpose_hand_their_status_on():
    """As after a signal of the cluster: who is later is waited for, as it may write a checkpoint."""
    with pytest.raises(SystemExit) as caught:
        launch(workers.leave, 2, args=(75,), **CPU)
    assert caught.value.code == 75


def test_processes_end_when_the_one_that_launched_them_is_killed():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        code = (
            "from engine.distributed import distributed_workers as workers; from detkit.engine import launch\n"
            "if __name__ == '__main__': launch(workers.wait_connected, 2, device_type='cpu', "
            f"start_method='forkserver', args=({server.getsockname()[1]},))"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with subprocess.Popen([sys.executable, "-c", code], env=environment) as parent:
            connections = [server.accept()[0] for _ in range(2)]
            parent.kill()
        for connection in connections:
            with connection:
                connection.settimeout(20)
                assert connection.recv(1) == b""  # closed


def test_a_result_that_cannot_be_handed_over_is_an_error():
    with pytest.raises(ProcessError, match=r"process 0 of 2.*pickle"):
        launch(workers.unpicklable, 2, **CPU)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_processes": 0}, "num_processes must be at least 1, got 0"),
        ({"num_processes": 1, "num_machines": 2, "dist_url": "auto"}, "dist_url 'tcp://HOST:PORT' of machine 0"),
        ({"num_processes": 1, "num_machines": 2}, "got None"),
        ({"num_processes": 2, "dist_url": "tcp://127.0.0.1:65536"}, "got 'tcp://127.0.0.1:65536'"),
        ({"num_processes": 1, "num_machines": 2, "machine_rank": 2}, r"machine_rank must be in \[0, 2\), got 2"),
        ({"num_processes": 2, "backend": "nccl"}, "2 processes were asked for, but there are 0 CUDA devices"),
    ],
)
def test_launches_that_cannot_work_are_refused(monkeypatch, options, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ValueError, match=message):
        launch(workers.process_id, **options)


SLURM = {"SLURM_PROCID": "3", "SLURM_NTASKS": "5", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "12345"}
OPEN_MPI = {
    f"OMPI_COMM_WORLD_{name}": value
    for name, value in (("RANK", "3"), ("SIZE", "4"), ("LOCAL_RANK", "1"), ("LOCAL_SIZE", "2"))
}
INTEL_MPI = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


@pytest.mark.parametrize(
    ("launcher", "given", "expected"),
    [
        (
            "slurm",
            {**SLURM, "SLURM_NODELIST": "gpu[03-05,9],cpu1", "SLURM_TASKS_PER_NODE": "2(x2),1", "SLURM_NODEID": "1"},
            {"RANK": "3", "WORLD_SIZE": "5", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "gpu03"},
        ),
        (
            "slurm",
            {**SLURM, "SLURM_NODELIST": "a1,a2", "SLURM_TASKS_PER_NODE": "2(x2),1", "SLURM_NODEID": "2"},
            {"LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "a1", "MASTER_PORT": str(20_000 + 12345 % 12_000)},
        ),
        ("slurm", {**SLURM, "MASTER_ADDR": "mine", "MASTER_PORT": "7"}, {"MASTER_ADDR": "mine", "MASTER_PORT": "7"}),
        (
            "mpi",
            {**OPEN_MPI, "MASTER_ADDR": "first"},
            {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "first"},
        ),
        ("mpi", INTEL_MPI, {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}),
        (
            "pytorch",
            {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"},
            {"LOCAL_RANK": "1"},
        ),
    ],
)
def test_launchers_are_understood(launcher, given, expected):
    env = dict(given)
    translate_environment(launcher, env)
    assert {name: env[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("launcher", "given", "message"),
    [
        ("slurm", {}, "SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID not set; start the processes with srun"),
        ("mpi", {}, "neither OMPI_COMM_WORLD_RANK nor PMI_RANK is set"),
        ("mpi", OPEN_MPI, "MASTER_ADDR must name the first machine"),
        ("pytorch", {"RANK": "0"}, "WORLD_SIZE, MASTER_ADDR, MASTER_PORT not set; start with 'torchrun"),
    ],
)
def test_a_process_that_its_launcher_did_not_start_says_so(launcher, given, message):
    with pytest.raises(ValueError, match=message):
        translate_environment(launcher, dict(given))


def test_the_launcher_is_inferred_from_torchrun_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "8")  # a shell of an allocation
    assert infer_launcher() == "none"
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    assert infer_launcher() == "pytorch"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"launcher": "slrum"}, "got 'slrum'; did you mean 'slurm'"),
        ({"backend": "ncll"}, "dist_cfg.backend: one of nccl, gloo, mpi, ucc was expected, got 'ncll'"),
        ({"timeout": 0}, "dist_cfg.timeout: seconds above 0 were expected, got 0"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        init_distributed(**options)


@pytest.mark.slow
def test_a_function_of_a_notebook_can_be_launched():
    """Of a module that no file has, here standard input."""
    program = """
from detkit.engine import launch
from detkit.engine.distributed import all_gather, get_rank
def work(word):
    return all_gather((word, get_rank()))
print(launch(work, 2, args=("here",), device_type="cpu"))
"""
    result = subprocess.run([sys.executable, "-"], input=program, capture_output=True, text=True, timeout=100)
    assert result.stdout.strip() == "[('here', 0), ('here', 1)]", result.stderr
