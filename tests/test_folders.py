"""One process at a time in a folder, and turns at a file."""

import errno
import os
import re
import socket
from functools import partial

import processes
import pytest
from processes import end

from aclam import folders
from aclam.core import UserError

start = partial(processes.start, "aclam.folders")


def test_a_folder_has_one_run_and_is_free_when_it_is_dead(tmp_path):
    run = tmp_path / "new" / "run"
    holder = start(
        "with hold(sys.argv[1]):\n"
        "    if os.fork() == 0: time.sleep(30); os._exit(0)\n"  # it must not hold the lock
        "    print('held', flush=True); time.sleep(60)",
        run,
    )
    holder.stdout.readline()
    with pytest.raises(
        UserError,
        match=rf"in use by process {holder.pid} on {socket.gethostname()}, since .*: wait",
    ):
        with folders.hold(run, wait_s=0.0):
            pass
    holder.kill(), holder.wait()
    # a child that has just been forked may not have run yet, and closes the file when it does
    with folders.hold(run, wait_s=20.0):
        with (
            pytest.raises(UserError, match=f"process {os.getpid()}"),
            folders.hold(run, wait_s=0.0),
        ):
            pass
    with folders.hold(run, wait_s=0.0) as lock:
        assert [p.name for p in run.iterdir()] == [lock.name]


def test_a_run_that_is_about_to_end_is_waited_for(tmp_path):
    holder = start("with hold(sys.argv[1]): print('held', flush=True); time.sleep(0.5)", tmp_path)
    holder.stdout.readline()
    with folders.hold(tmp_path, wait_s=10.0):
        assert end(holder)[0] == 0


def test_a_disk_without_locks_is_named_and_used(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folders.fcntl, "flock", refuse)
    with folders.hold(tmp_path):
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
