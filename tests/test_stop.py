"""What ends a training: exit statuses, signals, children that end with their parent."""

import os
import signal
import textwrap
import threading
import time
from functools import partial

import kill_table
import processes
import psutil
import pytest
from processes import all_gone, end, linux

from aclam.train import stop
from aclam.train.stop import EXIT_GROUP, EXIT_REQUEUE

start = partial(processes.start, "aclam.train.stop")


def test_a_requeue_is_an_exit_status_and_not_an_error():
    status, said = end(
        start(
            "from aclam.command_line import run_cli\ndef f(): raise Requeue('x')\nrun_cli(f, 'prog')"
        )
    )
    assert (status, said) == (EXIT_REQUEUE, "") and EXIT_REQUEUE == os.EX_TEMPFAIL
    assert not any(map(stop.is_failure, (stop.Requeue(), stop.Interrupted())))
    assert stop.is_failure(KeyboardInterrupt())
    assert not isinstance(stop.Requeue(), Exception) and EXIT_GROUP not in (
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


def test_ctrl_c_waits_for_the_end_of_the_step_and_a_second_one_does_not():
    steps = "signal.signal(signal.SIGINT, signal.default_int_handler)" + STEPS
    process = start(steps.replace("raise Requeue", "sys.exit(13 * stop.flags[1])"), 3.0)
    process.stdout.readline()
    for _ in range(2):  # a launcher passes on what its workers have had already
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    status, said = end(process)
    assert status == 13 and said.endswith("SIGINT")

    process = start(steps.replace("if stop:", "if False:"), 3.0)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    time.sleep(2 * stop.INTERRUPT_S)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    status, said = end(process)
    assert status == -signal.SIGINT and said.endswith("KeyboardInterrupt")


def test_ctrl_c_that_is_ignored_stays_ignored():
    """As of a training that a script started with `&`, or behind nohup."""
    process = start("signal.signal(signal.SIGINT, signal.SIG_IGN)" + STEPS, 3.0)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGUSR1)
    status, said = end(process)
    assert status == EXIT_REQUEUE and said.endswith("SIGUSR1")


def test_handlers_are_put_back_and_other_threads_left_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []
    with stop.StopRequest() as request:
        assert signal.getsignal(signal.SIGTERM) == request._note
        thread = threading.Thread(target=lambda: seen.append(bool(stop.StopRequest().__enter__())))
        thread.start(), thread.join()
        assert signal.getsignal(signal.SIGTERM) == request._note
        signal.raise_signal(signal.SIGUSR1)
        assert request and request.signal == "SIGUSR1"
    assert seen == [False] and signal.getsignal(signal.SIGTERM) == before


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
    assert all_gone([parent.pid, child]) and time.monotonic() - begun < 30


def test_a_child_that_is_no_module_and_is_stubborn(tmp_path):
    parent = start(PARENT, tmp_path / "log")
    child = int(parent.stdout.readline())
    parent.terminate()
    assert all_gone([child]) and end(parent)[0] == 128 + signal.SIGTERM


def test_a_parent_that_was_gone_before_the_child_looked():
    """What the kernel cannot tell afterwards, the thread sees."""
    begun = time.monotonic()
    child = processes.start("aclam.children", "die_with_parent(parent=1 << 22)\ntime.sleep(60)")
    assert end(child)[0] == -signal.SIGTERM
    assert time.monotonic() - begun < 30


@linux
@pytest.mark.parametrize("who", ["comparison", pytest.param("demo", marks=pytest.mark.slow)])
def test_the_commands_that_train_in_children_leave_none(tmp_path, who):
    """Killed in the middle of two trainings that would go on for a minute."""
    source = """
    out = sys.argv[1]
    work = [sys.executable, "-c", "import time; print('on', flush=True); time.sleep(60)"]
    if sys.argv[2] == "demo":
        from aclam.studies import demo
        demo.train_command = lambda words: work
        demo.train_both(demo.DemoConfig(out=out, steps=5), every=0.1)
    else:
        from aclam.studies import comparison as c
        c.start_training = lambda command, log: start_child(work, log)
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
