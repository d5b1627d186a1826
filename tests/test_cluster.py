"""Runs that live on clusters: signals, locks, worlds, watches, children, job scripts; the kill
table on a toy.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import accelerate
import accelerate.utils
import kill_table
import psutil
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from aclam.core import UserError
from aclam.data.loading import loader_settings
from aclam.train import cluster
from aclam.train.cluster import EXIT_GROUP, EXIT_REQUEUE, Event

HERE = Path(__file__).parent
TOY = (sys.executable, str(HERE / "toy_cluster.py"))
linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="needs signals at a parent's death"
)


def start(source: str, *words: object, **options) -> subprocess.Popen:
    """A Python process that runs `source` with the names of the module."""
    head = (
        "import json, os, signal, sys, threading, time\n"
        "from pathlib import Path\n"
        "from aclam.train.cluster import *\n"
    )
    command = [sys.executable, "-c", head + textwrap.dedent(source), *map(str, words)]
    return subprocess.Popen(command, stdout=-1, stderr=subprocess.STDOUT, text=True, **options)


def end(process: subprocess.Popen, seconds: float = 40.0) -> tuple[int, str]:
    said, _ = process.communicate(timeout=seconds)
    return process.returncode, said.strip()


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def all_gone(pids, seconds: float = 10.0) -> bool:
    return kill_table.wait_for(lambda: not any(map(alive, pids)), seconds)


# --- exit statuses and stop requests
# --------------------------------------------------------------------------------


def test_a_requeue_is_an_exit_status_and_not_an_error():
    status, said = end(
        start("from aclam.command_line import run_cli\ndef f(): raise Requeue('x')\nrun_cli(f, 'prog')")
    )
    assert (status, said) == (EXIT_REQUEUE, "") and EXIT_REQUEUE == os.EX_TEMPFAIL
    assert not isinstance(cluster.Requeue(), Exception) and EXIT_GROUP not in (
        0,
        1,
        2,
        EXIT_REQUEUE,
    )


STEPS = """
with StopRequest(float(sys.argv[1])) as stop:
    for s in range(100):
        print("step", s, flush=True)
        time.sleep(0.2)
        if stop: print(stop.signal); raise Requeue
"""


@pytest.mark.parametrize(
    "numbers", [[signal.SIGUSR1], [signal.SIGTERM], [signal.SIGTERM] * 3, [10, 15, 10]]
)
def test_signals_wait_for_the_end_of_the_step(numbers):
    process = start(STEPS, 3.0)
    process.stdout.readline()
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.01)  # else two of one kind become one
    status, said = end(process)
    assert (status, said) == (EXIT_REQUEUE, signal.Signals(numbers[0]).name)


def test_a_second_sigterm_after_some_time_ends_at_once():
    process = start(STEPS.replace("if stop:", "if False:"), 0.3)
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == -signal.SIGTERM


def test_handlers_are_put_back_and_other_threads_left_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []
    with cluster.StopRequest() as stop:
        assert signal.getsignal(signal.SIGTERM) == stop._note
        thread = threading.Thread(
            target=lambda: seen.append(bool(cluster.StopRequest().__enter__()))
        )
        thread.start(), thread.join()
        assert signal.getsignal(signal.SIGTERM) == stop._note
        signal.raise_signal(signal.SIGUSR1)
        assert stop and stop.signal == "SIGUSR1"
    assert seen == [False] and signal.getsignal(signal.SIGTERM) == before


# --- folders
# --------------------------------------------------------------------------------------------------------


def test_a_folder_has_one_run_and_is_free_when_it_is_dead(tmp_path):
    run = tmp_path / "new" / "run"
    holder = start(
        "with claim_folder(sys.argv[1]):\n"
        "    if os.fork() == 0: time.sleep(8); os._exit(0)\n"  # it must not hold the lock
        "    print('held', flush=True); time.sleep(60)",
        run,
    )
    holder.stdout.readline()
    with pytest.raises(
        UserError,
        match=rf"in use by process {holder.pid} on {socket.gethostname()}, since .*: wait",
    ):
        with cluster.claim_folder(run, wait_s=0.0):
            pass
    holder.kill(), holder.wait()
    with cluster.claim_folder(run, wait_s=0.0):
        with (
            pytest.raises(UserError, match=f"process {os.getpid()}"),
            cluster.claim_folder(run, wait_s=0.0),
        ):
            pass
    with cluster.claim_folder(run, wait_s=0.0) as lock:
        assert [p.name for p in run.iterdir()] == [lock.name]


def test_a_run_that_is_about_to_end_is_waited_for(tmp_path):
    holder = start(
        "with claim_folder(sys.argv[1]): print('held', flush=True); time.sleep(0.5)", tmp_path
    )
    holder.stdout.readline()
    with cluster.claim_folder(tmp_path, wait_s=10.0):
        assert end(holder)[0] == 0


def test_a_disk_without_locks_is_named_and_used(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(cluster.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(cluster.fcntl, "flock", refuse)
    with cluster.claim_folder(tmp_path):
        pass
    assert re.fullmatch(r".*\.lock: this disk has no locks.*\n", capsys.readouterr().err)


def test_turns(tmp_path):
    turn = (
        "with one_at_a_time(sys.argv[1]):\n"
        "    made = Path(sys.argv[1] + '.made')\n"
        "    print('read' if made.exists() else 'made'); time.sleep(0.2); made.touch()"
    )
    processes = [start(turn, tmp_path / "turn") for _ in range(3)]
    assert sorted(end(p) for p in processes) == [(0, "made"), (0, "read"), (0, "read")]


@pytest.fixture
def two_ranks(monkeypatch):
    """Rank 0 of two; what the other would add to what is gathered can be set."""
    other = SimpleNamespace(gathers=[], hears=None)
    state = SimpleNamespace(num_processes=2, process_index=0, is_main_process=True)
    monkeypatch.setattr(accelerate, "PartialState", lambda: state)
    monkeypatch.setattr(accelerate.utils, "gather_object", lambda mine: mine + other.gathers)
    monkeypatch.setattr(
        accelerate.utils, "broadcast_object_list", lambda values: other.hears or values
    )
    return state, other


def test_rank_0_names_who_cannot_see_the_folder(tmp_path, two_ranks):
    _, other = two_ranks
    start_at = tmp_path / "checkpoints" / "step_000500"
    start_at.mkdir(parents=True), (start_at / "progress.json").write_text("{}")
    assert cluster.agree_on_start(tmp_path, start_at) == start_at
    assert cluster.agree_on_start(tmp_path, None) is None
    other.gathers = ["rank 1 (node2)"]
    with pytest.raises(UserError, match=r"is not shared: rank 1 \(node2\) cannot see what rank 0"):
        cluster.agree_on_start(tmp_path, start_at)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoints"]


def test_other_ranks_take_what_rank_0_says(tmp_path, two_ranks):
    state, other = two_ranks
    state.process_index, state.is_main_process = 1, False
    (tmp_path / ".seen-1").touch()
    other.hears = [[".seen-1", ""]]
    assert cluster.agree_on_start(tmp_path, tmp_path / "what this rank would have found") is None
    other.hears = [[".seen-2", ""]]
    with pytest.raises(cluster.GroupError, match="not shared"):
        cluster.agree_on_start(tmp_path, None, within_s=0.0)


# --- worlds and time-outs
# -------------------------------------------------------------------------------------------

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
        cluster.check_world(processes, gpus, env)
    with pytest.raises(SystemExit):  # one line is enough
        cluster.check_world(processes, gpus, {**env, "SLURM_PROCID": "1"}, wait_s=0.0)


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
    cluster.check_world(processes, gpus, env)


def test_the_time_out_of_a_group():
    assert cluster.group_timeout(90).to_kwargs()["timeout"].total_seconds() == 90


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
    batches = cluster.loading(iter(loader), 1.0)
    with pytest.raises(UserError, match=says) as caught:
        list(batches)  # the first may have come, or have gone with the process that had it
    assert "\n" not in str(caught.value)


# --- the watch
# ------------------------------------------------------------------------------------------------------


def event(rank, kind, cause="x"):
    return Event(rank, "node", kind, cause)


@pytest.mark.parametrize(
    "events, rank, more",
    [
        ([event(0, "lost"), event(2, "gone"), event(1, "lost")], 2, 0),
        ([event(3, "gone"), event(2, "error"), event(1, "error")], 2, 1),
        ([event(2, "error"), event(0, "error")], 0, 1),
        ([event(4, "silent"), event(0, "lost")], 4, 0),
        ([event(4, "lost"), event(1, "lost")], 4, 1),
    ],
)
def test_the_true_cause(events, rank, more):
    found, others = cluster.true_cause(events)
    assert (found.rank, others) == (rank, more)


@pytest.mark.parametrize(
    "error, kind",
    [
        (torch.distributed.DistBackendError("NCCL error"), "lost"),
        (
            RuntimeError(
                "[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"
            ),
            "lost",
        ),
        (cluster.GroupError("another rank"), "lost"),
        (RuntimeError("CUDA error: out of memory"), "error"),
        (UserError("the loss is nan"), "error"),
        (KeyboardInterrupt(), "error"),
    ],
)
def test_what_only_says_that_others_do_not_answer(error, kind):
    assert cluster.kind_of(error) == kind


RANK = """
rank, world, told, timeout_s = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])
from aclam.core import UserError
def share(value):
    if rank == 0:
        told.with_suffix(".new").write_text(json.dumps(value))
        told.with_suffix(".new").rename(told)
    while not told.exists(): time.sleep(0.02)
    return json.loads(told.read_text())
with (Spoke if rank else Center)(rank, timeout_s, share) as watch:
    time.sleep(1.0)
    exec(sys.argv[5])
    time.sleep(float(sys.argv[6]))
print(threading.active_count())
"""


def ranks(
    folder: Path, deeds: dict[int, str], world: int = 3, stay: float = 60.0, timeout_s: float = 60.0
):
    """(status, words) of processes that watch over one another, some of which do something; and the
    seconds.
    """
    told = folder / "told"
    processes = [
        start(RANK, r, world, told, timeout_s, deeds.get(r, ""), stay) for r in range(world)
    ]
    begun = time.monotonic()
    ended = [end(p) for p in processes]
    return ended, time.monotonic() - begun


def test_a_good_end_leaves_no_thread_and_says_nothing(tmp_path):
    ended, _ = ranks(tmp_path, {}, stay=0.0)
    assert ended == [(0, "1")] * 3


def test_an_exception_on_any_rank_ends_all_with_its_cause_on_rank_0(tmp_path):
    ended, seconds = ranks(tmp_path, {2: "raise ValueError('bad\\ntriple')"})
    assert [status for status, _ in ended] == [EXIT_GROUP, EXIT_GROUP, 1] and seconds < 30
    assert (
        ended[0][1] == f"rank 2 ({socket.gethostname()}): ValueError: bad triple"
        and ended[1][1] == ""
    )
    assert ended[2][1].startswith("Traceback")


def test_an_exception_on_rank_0_speaks_for_itself(tmp_path):
    ended, _ = ranks(
        tmp_path, {0: "raise UserError('the disk is full')", 1: "raise GroupError('see rank 0')"}
    )
    assert [status for status, _ in ended] == [1, 2, EXIT_GROUP]
    assert ended[0][1].endswith("UserError: the disk is full") and [
        said for _, said in ended[1:]
    ] == ["", ""]


def test_the_same_error_on_all_ranks_is_said_once(tmp_path):
    same = "raise UserError('step 5: the loss is nan')"
    ended, _ = ranks(tmp_path, dict.fromkeys(range(3), same))
    assert "nan" in ended[0][1] and [e for e in ended[1:]] == [(2, "")] * 2


def test_a_killed_rank_is_named_even_if_its_children_live(tmp_path):
    deed = "if os.fork() == 0: os.close(1); os.close(2); time.sleep(8); os._exit(0)\nos.kill(os.getpid(), 9)"
    ended, seconds = ranks(tmp_path, {1: deed})
    assert [status for status, _ in ended] == [EXIT_GROUP, -9, EXIT_GROUP] and seconds < 30
    assert (
        re.match(r"rank 1 \(.*\): gone \(process \d+\): killed", ended[0][1]) and ended[2][1] == ""
    )


def test_others_end_when_rank_0_is_killed(tmp_path):
    ended, _ = ranks(tmp_path, {0: "os.kill(os.getpid(), 9)"})
    assert [status for status, _ in ended] == [-9, EXIT_GROUP, EXIT_GROUP]
    assert re.match(r"rank 0 \(.*\): gone", ended[1][1]) and ended[2][1] == ""  # once


def test_a_silent_rank_ends_all(tmp_path):
    stopped = "if os.fork() == 0: time.sleep(8); os.kill(os.getppid(), 9); os._exit(0)\nos.kill(os.getpid(), 19)"
    ended, seconds = ranks(tmp_path, {1: stopped}, timeout_s=3.0)
    assert [status for status, _ in ended] == [EXIT_GROUP, -9, EXIT_GROUP]
    assert "rank 1" in ended[0][1] and "no sign of life for 3 s" in ended[0][1]


def test_a_main_thread_that_hangs_is_found_by_where_it_was(tmp_path):
    lost = "watch.at = 'step 3'; raise RuntimeError('gloo: Timed out waiting 5000ms')"
    where = {
        0: lost,
        1: "watch.at = 'step 3'; time.sleep(60)",
        2: "watch.at = 'loading step 3'; time.sleep(60)",
    }
    late = {0: where[0].replace("raise", "time.sleep(2); raise"), 1: where[1], 2: where[2]}
    ended, _ = ranks(tmp_path, late)
    assert re.search(r"rank 0 .*Timed out.*; rank 2 was at loading step 3\n", ended[0][1])
    assert "Traceback" in ended[0][1] and [status for status, _ in ended] == [
        1,
        EXIT_GROUP,
        EXIT_GROUP,
    ]


def test_a_launcher_that_stops_the_others_too_soon_does_not_hide_the_cause(tmp_path):
    """torchrun sends SIGTERM within a tenth of a second; here the others have no handlers of their
    own.
    """
    ended, _ = ranks(
        tmp_path, {0: "os.kill(os.getpid(), 15)", 1: "os.kill(os.getpid(), 9)", 2: "time.sleep(60)"}
    )
    assert [status for status, _ in ended] == [EXIT_GROUP, -9, EXIT_GROUP]
    assert re.match(r"rank 1 \(.*\): gone", ended[0][1])


def test_sigterm_ends_a_rank_when_there_is_nothing_to_say(tmp_path):
    ended, seconds = ranks(tmp_path, {0: "os.kill(os.getpid(), 15)"}, world=2)
    assert ended[0][0] == -signal.SIGTERM and ended[1][0] == EXIT_GROUP and seconds < 30


def test_a_stranger_at_the_door_is_no_rank(tmp_path):
    call = (
        "import socket; where = share(None)\n"
        "for words in (b'GET / HTTP/1.1\\r\\n\\r\\n', b'{\"token\": \"guess\", \"event\": {}}\\n', b''):\n"
        "    with socket.create_connection(('localhost', where['port'])) as s: s.sendall(words)"
    )
    ended, _ = ranks(tmp_path, {1: call}, stay=1.0)
    assert ended == [(0, "1")] * 3


def test_a_rank_that_cannot_reach_rank_0_says_so_and_trains(capsys, monkeypatch):
    monkeypatch.setattr(cluster, "connect", lambda *_, **__: None)
    where = {"host": "node1", "hosts": ["node1"], "port": 1, "token": "x", "pid": 1}
    with cluster.Spoke(1, share=lambda _: where):
        pass
    assert "cannot reach ['node1']: it trains, but nobody watches" in capsys.readouterr().err


def test_a_process_that_is_alone_has_no_thread():
    before = threading.active_count()
    with cluster.watch_ranks() as watch:
        assert type(watch) is cluster.Watch and threading.active_count() == before


# --- children and the launcher
# --------------------------------------------------------------------------------------

PARENT = """
log = Path(sys.argv[1])
work = "import signal, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
with exit_on_signals():
    child = start_child([sys.executable, "-m", *sys.argv[2:]] if sys.argv[2:] else [sys.executable, "-c", work], log)
    try:
        while not log.read_text(): time.sleep(0.05)
        print(child.pid, flush=True); time.sleep(60)
    finally: stop_children([child])
"""


@linux
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_children_end_with_their_parent(tmp_path, number):
    (tmp_path / "stubborn.py").write_text(
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    )
    parent = start(
        PARENT, tmp_path / "log", "stubborn", env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    child = int(parent.stdout.readline())
    begun = time.monotonic()
    parent.send_signal(number)
    assert all_gone([parent.pid, child]) and time.monotonic() - begun < 6


def test_a_child_that_is_no_module_and_is_stubborn(tmp_path):
    parent = start(PARENT, tmp_path / "log")
    child = int(parent.stdout.readline())
    parent.terminate()
    assert all_gone([child]) and end(parent)[0] == 128 + signal.SIGTERM


def test_a_parent_that_was_gone_before_the_child_looked():
    """What the kernel cannot tell afterwards, the thread sees."""
    begun = time.monotonic()
    assert end(start("die_with_parent(parent=1 << 22)\ntime.sleep(60)"))[0] == -signal.SIGTERM
    assert time.monotonic() - begun < 10


@linux
@pytest.mark.parametrize("who", ["comparison", pytest.param("demo", marks=pytest.mark.slow)])
def test_the_commands_that_train_in_children_leave_none(tmp_path, who):
    """Killed in the middle of two trainings that would go on for a minute."""
    source = """
    out = sys.argv[1]
    work = [sys.executable, "-c", "import time; print('on', flush=True); time.sleep(60)"]
    if sys.argv[2] == "demo":
        from aclam.train import demo
        demo.train_command = lambda config, preset: work
        demo.train_both(demo.DemoConfig(out=out, steps=5), every=0.1)
    else:
        from aclam.structure import comparison as c
        c.start_training = lambda words, folder: start_child(work, folder / "train.log")
        list(c.train_all(c.CompareConfig(data=(Path(out),), out=Path(out), workers=2)))
    """
    parent = start(textwrap.dedent(source), tmp_path, who)

    def logs():
        return [
            f
            for f in (*tmp_path.rglob("log.txt"), *tmp_path.rglob("train.log"))
            if "on" in f.read_text()
        ]

    assert kill_table.wait_for(lambda: len(logs()) == 2, 60), end(parent)
    children = [p.pid for p in psutil.Process(parent.pid).children(recursive=True)]
    parent.kill()
    assert len(children) == 2 and all_gone(children)


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


# --- job scripts
# ----------------------------------------------------------------------------------------------------

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
from aclam.train.cluster import Requeue, StopRequest
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
        "PYTHONPATH": str(HERE),
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


# --- the kill table, on the toy
# -------------------------------------------------------------------------------------

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
