"""Processes that work for another one: they end with it, however it ends, and leave Ctrl-C to it."""

import os
import signal
import subprocess
import sys
import time

import kill_table
import psutil
import pytest
from processes import alive, all_gone, linux

from aclam.children import WorkerDied, share_out
from aclam.core import UserError, read_json


def test_many_tasks_and_few_workers():
    assert sorted(share_out(abs, range(-5, 0), workers=2)) == [1, 2, 3, 4, 5]
    assert list(share_out(abs, [], workers=2)) == []


def test_what_cannot_be_imported_stays_here(capfd):
    def here(word):
        return word, os.getpid()

    assert list(share_out(here, ["a", "b"], workers=2)) == [("a", os.getpid()), ("b", os.getpid())]
    assert "one process: what a script or notebook defines" in capfd.readouterr().err


def test_mistakes_of_workers_arrive():
    with pytest.raises(UserError, match="nowhere"):
        list(share_out(read_json, ["nowhere"], workers=2))
    with pytest.raises(ValueError, match="invalid literal") as found:
        list(share_out(int, ["x"], workers=1))
    assert "in _answer_tasks" in found.value.__notes__[0]  # where it happened
    with pytest.raises(WorkerDied, match="status 7"):
        list(share_out(os._exit, [7], workers=1))


def test_who_stops_listening_ends_the_workers():
    others = set(psutil.Process().children())  # those that other tests have left
    results = share_out(time.sleep, [0, 60, 60], workers=2)
    next(results)
    children = [p.pid for p in set(psutil.Process().children()) - others]
    begun = time.monotonic()
    results.close()
    assert len(children) == 2 and all_gone(children) and time.monotonic() - begun < 30


# from the signal to the end of the command; both stop at once, but on a busy machine Python takes
# seconds to take PyTorch down, which only rollouts have loaded
PATIENCE_S = 25.0  # alone on a machine: 1 to 3; all the work would take minutes
COMMANDS = {
    "prepare": "from aclam.commands.data import main; main()",
    "rollout": "from aclam.policy.rollout import main; main()",
}
WORDS = {
    "prepare": "prepare emoji --episodes 400 --size 32 --workers 2 --out",
    "rollout": "--policy expert --split train --episodes 400 --envs 2 --few --out",
}


def begin(command: str, out: str) -> tuple[subprocess.Popen, list[int]]:
    """A command with two workers, and their process ids."""
    words = [sys.executable, "-c", COMMANDS[command], *WORDS[command].split(), out]
    run = subprocess.Popen(words, stdout=-1, stderr=subprocess.STDOUT, text=True)

    def workers() -> list[int]:
        found = [p for p in psutil.Process(run.pid).children() if alive(p.pid)]
        return [p.pid for p in found if "aclam.children" in p.cmdline()]

    assert kill_table.wait_for(lambda: run.poll() is not None or len(workers()) == 2, 120)
    return run, workers()


@linux
@pytest.mark.timeout(400)
@pytest.mark.parametrize("late", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("command", list(COMMANDS))
def test_workers_end_with_their_command(tmp_path, command, number, late):
    """Stopped as they begin, and in the midst of work."""
    run, workers = begin(command, str(tmp_path / "out"))
    work = {"prepare": "frames/.part-*", "rollout": "episodes.jsonl"}[command]
    if late:
        assert kill_table.wait_for(lambda: list((tmp_path / "out").glob(work)), 120)
    begun = time.monotonic()
    run.send_signal(number)
    said, _ = run.communicate(timeout=30)
    seconds = time.monotonic() - begun
    assert len(workers) == 2 and all_gone(workers), said
    assert seconds < PATIENCE_S and "Traceback" not in said, (seconds, said)
    statuses = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
    assert run.returncode == statuses[number], said
