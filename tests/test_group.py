"""The group that was launched: its size, its time-outs, and one start for all its ranks."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from kill_table import wait_for
from processes import TOY, all_gone, linux
from torch.utils.data import DataLoader, Dataset

from aclam.core import UserError
from aclam.data.loading import loader_settings
from aclam.data.store import write_store
from aclam.data.trajectory import synthetic_trajectory
from aclam.train import group
from aclam.train.ranks import RankWatch
from aclam.train.stop import GroupError


@pytest.fixture
def two_ranks(monkeypatch):
    """Rank 0 of two; what the other would add to what is gathered can be set."""
    other = SimpleNamespace(gathers=[], hears=None)
    state = SimpleNamespace(num_processes=2, process_index=0, is_main_process=True)
    monkeypatch.setattr(group, "PartialState", lambda: state)
    monkeypatch.setattr(group, "gather_object", lambda mine: mine + other.gathers)
    monkeypatch.setattr(group, "broadcast_object_list", lambda values: other.hears or values)
    return state, other


def test_rank_0_names_who_cannot_see_the_folder(tmp_path, two_ranks):
    _, other = two_ranks
    start_at = tmp_path / "checkpoints" / "step_000500"
    start_at.mkdir(parents=True), (start_at / "progress.json").write_text("{}")
    assert group.agree_on_start(tmp_path, start_at) == start_at
    assert group.agree_on_start(tmp_path, None) is None
    other.gathers = ["rank 1 (node2)"]
    with pytest.raises(UserError, match=r"is not shared: rank 1 \(node2\) cannot see what rank 0"):
        group.agree_on_start(tmp_path, start_at)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoints"]


def test_other_ranks_take_what_rank_0_says(tmp_path, two_ranks):
    state, other = two_ranks
    state.process_index = 1
    state.is_main_process = False
    (tmp_path / ".seen-1").touch()
    other.hears = [[".seen-1", ""]]
    assert group.agree_on_start(tmp_path, tmp_path / "what this rank would have found") is None
    other.hears = [[".seen-2", ""]]
    with pytest.raises(GroupError, match="not shared"):
        group.agree_on_start(tmp_path, None, within_s=0.0)


TWO = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}


ACCELERATE = {"ACCELERATE_DYNAMO_BACKEND": "no"}


@pytest.mark.parametrize(
    "env, processes, gpus, says",
    [
        (TWO, 1, 0, "torchrun started 2 processes, .* ACCELERATE_USE_CPU=true"),
        ({**TWO, **ACCELERATE}, 1, 0, "accelerate launch started 2"),
        (
            {**ACCELERATE, "MASTER_PORT": "29500"},
            1,
            0,
            "asked for several processes and started one",
        ),
        (
            {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "0"},
            1,
            8,
            "srun started 8 .*--ntasks-per-node=1",
        ),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, 1, 0, "mpirun started 4"),
        (
            {**TWO, "LOCAL_WORLD_SIZE": "8", "WORLD_SIZE": "8"},
            8,
            4,
            "with 4 GPUs: .* --nproc_per_node 4",
        ),
    ],
)
def test_a_world_that_is_too_small_is_refused_with_the_cure(env, processes, gpus, says):
    with pytest.raises(UserError, match=says):
        group.check_world(processes, gpus, env)
    with pytest.raises(SystemExit):  # one line is enough
        group.check_world(processes, gpus, {**env, "SLURM_PROCID": "1"}, wait_s=0.0)


@pytest.mark.parametrize(
    "env, processes, gpus",
    [
        ({}, 1, 8),
        (TWO, 2, 2),
        ({**TWO, "ACCELERATE_USE_CPU": "true"}, 2, 0),
        ({**TWO, "ACCELERATE_USE_CPU": "true"}, 2, 1),
        (ACCELERATE, 1, 0),
        ({"SLURM_NTASKS": "8"}, 1, 0),  # a shell inside salloc: nothing was launched
        ({**TWO, "WORLD_SIZE": "32", "SLURM_STEP_NUM_TASKS": "4", "GROUP_WORLD_SIZE": "4"}, 32, 8),
    ],
)
def test_a_world_that_is_as_it_was_launched(env, processes, gpus):
    group.check_world(processes, gpus, env)


def test_the_time_out_of_a_group():
    assert group.group_timeout(90).to_kwargs()["timeout"].total_seconds() == 90


class Hanging(Dataset):
    def __init__(self, deed):
        self.deed = deed

    def __getitem__(self, g):
        if g:
            self.deed()
        return g


@pytest.mark.parametrize(
    "deed, says",
    [
        (lambda: time.sleep(60), "no batch came .* for 1 s"),
        (lambda: os._exit(3), "a loading process died"),
    ],
)
def test_a_loader_that_hangs_or_dies_is_one_line(deed, says):
    loader = DataLoader(
        Hanging(deed), sampler=range(3), batch_size=None, **loader_settings(1, "cpu", timeout_s=1)
    )
    batches = group.loading(loader, 1.0)
    with pytest.raises(UserError, match=says) as caught:
        list(batches)  # the first may have come, or have gone with the process that had it
    assert "\n" not in str(caught.value)


KILLED = """
import os, signal, sys, time
import torch
from torch.utils.data import DataLoader, Dataset
from aclam.core import UserError
from aclam.data.loading import loader_settings
from aclam.data.store import write_store
from aclam.data.trajectory import synthetic_trajectory
from aclam.train.group import loading

class Slow(Dataset):
    def __getitem__(self, n):
        time.sleep(2.5 if n == 3 else 0.0)  # longer than between two looks
        if n >= 8: time.sleep(120)
        return torch.full((1000,), n), os.getpid()

if __name__ == "__main__":
    device, pin = sys.argv[1], sys.argv[2] == "pin"
    settings = {**loader_settings(2, device, timeout_s=300), "pin_memory": pin}
    batches = loading(DataLoader(Slow(), sampler=range(99), batch_size=None, **settings), 300)
    came = [next(batches) for _ in range(8)]
    print([int(x[0]) for x, _ in came])
    os.kill(came[0][1], signal.SIGKILL)
    killed = time.monotonic()
    try:
        next(batches)
    except UserError as e:
        print(e)
    print(time.monotonic() - killed < 60)  # not 300; a few seconds on a quiet machine
"""


# forked, and of a fork server
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.slow)])
def test_a_loading_process_that_is_killed_is_noticed_at_once(device, tmp_path):
    (tmp_path / "run.py").write_text(KILLED)  # a file: workers that are not forked import it
    pin = "pin" if torch.cuda.is_available() else "pageable"
    done = subprocess.run(
        [sys.executable, tmp_path / "run.py", device, pin],
        capture_output=True,
        text=True,
        timeout=280,
    )
    order, line, soon = done.stdout.splitlines()
    assert order == str(list(range(8)))  # a batch that takes longer than a look is waited for
    assert line.startswith("a loading process died") and "--train.num-workers" in line
    assert soon == "True"


STOPPED = """
import sys
from aclam.data import loading

as_on_a_gpu = loading._context  # there, loading processes are those of a fork server
loading._context = lambda device: as_on_a_gpu(sys.argv[1])
if __name__ == "__main__":
    from aclam.train.lam import main
    main(sys.argv[2:])
"""
TRAINING = (
    "--preset ac_lam_cpu --train.steps 100000 --train.batch-size 4 --train.num-workers 2 "
    "--train.log-every 2 --train.probe-every 100000 --train.checkpoint-every 100000 --probe-n 16"
)


def begun(run: Path, process: subprocess.Popen) -> bool:
    """Whether a training has logged two lines; an error where it has ended before."""
    assert process.poll() is None, process.communicate()
    file = run / "metrics.jsonl"
    return file.exists() and file.read_text().count("\n") >= 2


@linux
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("device", ["cpu", "cuda"])  # forked, and of a fork server
@pytest.mark.parametrize(
    "number, whom, status",
    [
        (signal.SIGTERM, "run", 75),
        (signal.SIGTERM, "all", 75),
        (signal.SIGINT, "run", 130),
        (signal.SIGINT, "all", 130),
        (signal.SIGKILL, "run", -9),
    ],
)
def test_a_training_leaves_no_loading_process_behind(tmp_path, device, number, whom, status):
    write_store(tmp_path / "data", (synthetic_trajectory(s, T=16, size=32) for s in range(12)))
    (tmp_path / "run.py").write_text(STOPPED)
    words = [*TRAINING.split(), "--data", tmp_path / "data", "--out", tmp_path / "run"]
    shared = set(os.listdir("/dev/shm"))
    process = subprocess.Popen(
        [sys.executable, tmp_path / "run.py", device, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert wait_for(lambda: begun(tmp_path / "run", process), 200)
    children = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    assert len(children) >= 2
    os.kill(process.pid, number) if whom == "run" else os.killpg(process.pid, number)
    assert process.wait(60) == status
    assert all_gone(children, 30)
    assert wait_for(lambda: set(os.listdir("/dev/shm")) <= shared, 10)
    assert status < 0 or any((tmp_path / "run" / "checkpoints").glob("step_*"))


SMALL = """
import sys
import torch
from torch.utils.data import DataLoader
from aclam.core import UserError
from aclam.data.loading import fit_settings, loader_settings
from aclam.train.draws import Batches
from aclam.train.group import loading

class Data:
    def batch(self, indices):
        return {"frames": torch.zeros(len(indices), 1 << 20)}

if __name__ == "__main__":
    for parts in ([[0] * 64] * 4, [[0]] * 32):
        settings = loader_settings(1, sys.argv[1], timeout_s=60) | {"pin_memory": False}
        print(fit_settings(settings, 4 << 20 if len(parts[0]) == 1 else 0))
        loader = DataLoader(Batches(Data()), sampler=parts, batch_size=None, **settings)
        try:
            print(sum(len(batch["frames"]) for batch in loading(loader, 60)))
        except UserError as e:
            print(str(e).strip().splitlines()[-1])
"""


def may_mount() -> bool:
    mount = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/dev/shm"]
    try:
        return subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not may_mount(), reason="a small /dev/shm needs the right to mount one")
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.slow)])
def test_shared_memory_that_is_full_is_one_line(device, tmp_path):
    (tmp_path / "run.py").write_text(SMALL)
    mount = 'mount -t tmpfs -o size=16m none /dev/shm && exec "$0" "$@"'
    command = ["unshare", "-m", "sh", "-c", mount, sys.executable, tmp_path / "run.py", device]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    nothing, line, note, total = done.stdout.splitlines()
    assert nothing == "" and "no shared memory for a batch of 256 MiB" in line
    assert "--shm-size" in line and "--train.prefetch" in line
    # 12 of 16 MiB hold three of 4 MiB: one ahead, one in the step and one between the two
    assert "16 MiB free" in note and "1 process, 1 batch ahead each" in note and total == "32"


def test_a_process_that_is_alone_has_no_thread():
    before = set(threading.enumerate())
    with group.watch_ranks() as watch:
        assert type(watch) is RankWatch and set(threading.enumerate()) <= before


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher, says",
    [
        (
            ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
            "torchrun started 2 processes",
        ),
        (
            ["accelerate.commands.launch", "--cpu", "--num_processes", "2"],
            "asked for several processes and started one",
        ),
        (
            ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"],
            "accelerate launch started 2 processes",
        ),
    ],
)
def test_launchers_that_start_too_few(tmp_path, launcher, says):
    if torch.cuda.is_available():
        pytest.skip("with a GPU the group is a group")
    env = {k: v for k, v in os.environ.items() if k not in ("ACCELERATE_USE_CPU", "MASTER_PORT")}
    words = [sys.executable, "-m", *launcher, TOY[1], "--out", str(tmp_path / "run")]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode != 0 and done.stderr.count(says) == 1, done.stderr
    assert not (tmp_path / "run").exists()
