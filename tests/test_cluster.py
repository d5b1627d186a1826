"""The launcher, job scripts for Slurm, and the kill table on a toy."""

import json
import os
import re
import signal
import subprocess
from functools import partial
from pathlib import Path

import kill_table
import processes
import psutil
import pytest
from processes import TOY, end, linux

from aclam.train import cluster
from aclam.train.stop import EXIT_REQUEUE

start = partial(processes.start, "aclam.train.cluster")


@pytest.mark.parametrize(
    "statuses, stopped, status",
    [
        ([0, 0], False, 0),
        ([75, 75], False, 75),
        ([75, -15], True, 75),
        ([69, 1], False, 1),
        ([69, 2, 1], False, 2),
        ([69, -9, -15], False, 137),
        ([69, 69], False, 69),
        ([-10, -10], True, 75),
        ([-10, -10], False, 138),
        ([-15, 69], True, 75),
        ([1, 75], True, 75),
    ],
)
def test_the_status_of_a_group(statuses, stopped, status):
    assert cluster.status_of(statuses, stopped) == status


def test_the_launcher_passes_signals_on_and_keeps_the_status(tmp_path):
    (tmp_path / "work.py").write_text(
        "import os, signal, sys, time\n"
        "def leave(number, frame): sys.exit(75)\n"
        "signal.signal(signal.SIGUSR1, leave)\n"
        "open(f'on_{os.environ[\"RANK\"]}', 'w'); time.sleep(60)"
    )
    words = ["--standalone", "--nproc_per_node", "2", "work.py"]
    launcher = start("main(['torchrun', *sys.argv[1:]])", *words, cwd=tmp_path)
    assert kill_table.wait_for(lambda: len([*tmp_path.glob("on_*")]) == 2, 60)
    launcher.send_signal(signal.SIGUSR1)
    assert end(launcher) == (EXIT_REQUEUE, "")


SCRIPTS = ("one_gpu", "eight_gpus", "four_nodes")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_job_script(name):
    text = cluster.slurm_script(name).read_text()
    assert subprocess.run(["bash", "-n", cluster.slurm_script(name)]).returncode == 0
    for line in ("--requeue", "--signal=B:USR1@", "--open-mode=append", "--ntasks-per-node=1"):
        assert f"#SBATCH {line}" in text
    assert f'"$status" = {EXIT_REQUEUE} ]' in text and "scontrol requeue" in text
    assert "TERM" not in text.replace("trap 'cancelled=yes' TERM", "")  # srun makes SIGKILL of it
    assert max(map(len, text.splitlines())) <= 120


TRAINING = """
import json, sys, time
from pathlib import Path
from aclam.command_line import run_cli
from aclam.train.stop import Requeue, StopRequest
def train(log):
    first = len(log.read_text().splitlines()) if log.exists() else 0
    with StopRequest() as stop, open(log, "a", buffering=1) as f:
        for s in range(first, 30):
            print(s, file=f)
            time.sleep(0.05)
            if stop: raise Requeue
    if "fail" in sys.argv: raise ValueError("a bug")
run_cli(lambda: train(Path(sys.argv[1])), "work")
"""


def sitting(
    room: Path, job: dict, *words: str, number: int | None = None, whom: str = "script"
) -> int:
    """One start of the one-GPU script; signalled after some steps. The script's status."""
    log = room / "log"
    before = log.read_text().count("\n") if log.exists() else 0
    command = ["bash", cluster.slurm_script("one_gpu"), log, *words]
    script = subprocess.Popen(
        command, env={**os.environ, **job, "PYTHONPATH": str(room)}, stderr=subprocess.DEVNULL
    )
    if number:
        assert kill_table.wait_for(
            lambda: log.exists() and log.read_text().count("\n") >= before + 4, 30
        )
        tasks = [
            p for p in psutil.Process(script.pid).children(recursive=True) if "python" in p.name()
        ]
        for process in [psutil.Process(script.pid), *(tasks if whom == "all" else [])]:
            process.send_signal(number)
    return script.wait(timeout=60)


def test_a_job_that_is_requeued_goes_on_and_one_that_is_cancelled_is_left(tmp_path):
    (tmp_path / "work.py").write_text(TRAINING)
    job = cluster.fake_slurm(tmp_path / "bin", job=17) | {"TRAIN": "work"}
    requeued = tmp_path / "bin" / "requeued"
    assert sitting(tmp_path, job, number=signal.SIGUSR1) == 0 and requeued.read_text() == "17\n"
    assert sitting(tmp_path, job, number=signal.SIGTERM, whom="all") == EXIT_REQUEUE  # scancel
    assert sitting(tmp_path, job) == 0 and requeued.read_text() == "17\n"
    assert (tmp_path / "log").read_text().split() == [str(s) for s in range(30)]
    assert (
        sitting(tmp_path, job, "fail") == 1 and requeued.read_text() == "17\n"
    )  # a bug would only come back


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, nodes, gpus", [("one_gpu", 1, 1), ("eight_gpus", 1, 2), ("four_nodes", 2, 1)]
)
def test_a_round_of_requeueing_with_real_groups(tmp_path, name, nodes, gpus):
    job = cluster.fake_slurm(tmp_path / "bin", nodes, gpus, job=os.getpid()) | {
        "TRAIN": "toy_cluster",
        "PYTHONPATH": str(Path(__file__).parent),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    run = tmp_path / "run"
    command = ["bash", cluster.slurm_script(name), "--out", run, "--steps", "40", "--wait", "0.1"]
    first = subprocess.Popen(command, env={**os.environ, **job})
    assert kill_table.wait_for(
        lambda: kill_table.steps_done(run) >= 3 or first.poll() is not None, 120
    )
    first.send_signal(signal.SIGUSR1)
    assert first.wait(timeout=120) == 0
    assert (
        subprocess.run(
            command, env={**os.environ, **job, "SLURM_RESTART_COUNT": "1"}, timeout=120
        ).returncode
        == 0
    )
    assert (tmp_path / "bin" / "requeued").read_text().split() == [str(os.getpid())]
    rows = [json.loads(row)["step"] for row in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows == list(range(1, 41))  # none lost, none twice


# row: (status with one process, with two, what the line says, whether no step may be lost)
EXPECTED = {
    "sigterm": (75, 75, "", True),
    "sigusr1": (75, 75, "", True),
    "launcher": (None, 75, "", True),
    "launcher_usr1": (None, 75, "", True),
    "torchrun": (None, 1, "", True),
    "sigkill": (-9, 137, "rank 1 .*: gone", False),
    "sigkill_0": (None, 137, "rank 0 .*: gone", False),
    "sigkill_torchrun": (None, -9, "", True),
    "sigstop": (None, 137, "rank 1 .*: no sign of life for 8 s", False),
    "exception": (1, 1, "rank 1 .*: RuntimeError: an exception made", False),
    "two_runs": (2, 2, "is in use by process", True),
    "unshared": (None, 2, r"is not shared: rank 1 .* cannot see", True),
}


QUICK = {("exception", 2)}


CASES = [
    (row, n)
    for row, (one, _, _, _) in EXPECTED.items()
    for n in (1, 2)
    if n == 2 or one is not None
]


@linux
@pytest.mark.parametrize(
    "name, n",
    [pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in CASES],
)
def test_the_kill_table(tmp_path, name, n):
    command = (*TOY, "--steps", "2000", "--timeout", "8", "--every", "3")
    setup = kill_table.Setup(command, tmp_path, n, again=(name, n) not in QUICK)
    row = kill_table.ROWS[name][1](setup)
    one, two, says, nothing_lost = EXPECTED[name]
    assert row.status == (one if n == 1 else two), row.said
    assert n == 1 or re.search(says, row.line), row.said
    assert row.done - row.kept <= (0 if nothing_lost else 3) and row.goes_on is not False, row
    assert row.seconds < 90
    if name not in ("torchrun", "exception"):
        assert not any("Traceback" in line for line in row.said), row.said


def test_the_kill_table_knows_what_to_expect():
    assert EXPECTED.keys() == kill_table.ROWS.keys()
    assert {row for row, (one, *_) in EXPECTED.items() if one is not None} == {
        row for row, (least, _) in kill_table.ROWS.items() if least == 1
    }
