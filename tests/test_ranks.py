"""A watch over ranks: all end soon when one fails, and rank 0 says which one and why."""

import re
import signal
import socket
import time
from functools import partial
from pathlib import Path

import processes
import pytest
import torch
from processes import end

from aclam.core import UserError
from aclam.train import ranks
from aclam.train.ranks import Event
from aclam.train.stop import EXIT_GROUP, GroupError

start = partial(processes.start, "aclam.train.ranks")


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
    found, others = ranks.true_cause(events)
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
        (GroupError("another rank"), "lost"),
        (RuntimeError("CUDA error: out of memory"), "error"),
        (UserError("the loss is nan"), "error"),
        (KeyboardInterrupt(), "error"),
    ],
)
def test_what_only_says_that_others_do_not_answer(error, kind):
    assert ranks.kind_of(error) == kind


RANK = """
rank, world, told, timeout_s = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])
from aclam.core import UserError
from aclam.train.stop import GroupError
def share(value):
    if rank == 0:
        told.with_suffix(".new").write_text(json.dumps(value))
        told.with_suffix(".new").rename(told)
    while not told.exists(): time.sleep(0.02)
    return json.loads(told.read_text())
with (Spoke if rank else Center)(rank, share, timeout_s) as watch:
    time.sleep(1.0)
    exec(sys.argv[5])
    time.sleep(float(sys.argv[6]))
print(threading.active_count())
"""


def watched(
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
    ended, _ = watched(tmp_path, {}, stay=0.0)
    assert ended == [(0, "1")] * 3


def test_an_exception_on_any_rank_ends_all_with_its_cause_on_rank_0(tmp_path):
    ended, seconds = watched(tmp_path, {2: "raise ValueError('bad\\ntriple')"})
    assert [status for status, _ in ended] == [EXIT_GROUP, EXIT_GROUP, 1] and seconds < 30
    assert (
        ended[0][1] == f"rank 2 ({socket.gethostname()}): ValueError: bad triple"
        and ended[1][1] == ""
    )
    assert ended[2][1].startswith("Traceback")


def test_an_exception_on_rank_0_speaks_for_itself(tmp_path):
    ended, _ = watched(
        tmp_path, {0: "raise UserError('the disk is full')", 1: "raise GroupError('see rank 0')"}
    )
    assert [status for status, _ in ended] == [1, 2, EXIT_GROUP]
    assert ended[0][1].endswith("UserError: the disk is full") and [
        said for _, said in ended[1:]
    ] == ["", ""]


def test_the_same_error_on_all_ranks_is_said_once(tmp_path):
    same = "raise UserError('step 5: the loss is nan')"
    ended, _ = watched(tmp_path, dict.fromkeys(range(3), same))
    assert "nan" in ended[0][1] and [e for e in ended[1:]] == [(2, "")] * 2


def test_a_killed_rank_is_named_even_if_its_children_live(tmp_path):
    deed = "if os.fork() == 0: os.close(1); os.close(2); time.sleep(8); os._exit(0)\nos.kill(os.getpid(), 9)"
    ended, seconds = watched(tmp_path, {1: deed})
    assert [status for status, _ in ended] == [EXIT_GROUP, -9, EXIT_GROUP] and seconds < 30
    assert (
        re.match(r"rank 1 \(.*\): gone \(process \d+\): killed", ended[0][1]) and ended[2][1] == ""
    )


def test_others_end_when_rank_0_is_killed(tmp_path):
    ended, _ = watched(tmp_path, {0: "os.kill(os.getpid(), 9)"})
    assert [status for status, _ in ended] == [-9, EXIT_GROUP, EXIT_GROUP]
    assert re.match(r"rank 0 \(.*\): gone", ended[1][1]) and ended[2][1] == ""  # once


def test_a_silent_rank_ends_all(tmp_path):
    stopped = "if os.fork() == 0: time.sleep(8); os.kill(os.getppid(), 9); os._exit(0)\nos.kill(os.getpid(), 19)"
    ended, seconds = watched(tmp_path, {1: stopped}, timeout_s=3.0)
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
    ended, _ = watched(tmp_path, late)
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
    ended, _ = watched(
        tmp_path, {0: "os.kill(os.getpid(), 15)", 1: "os.kill(os.getpid(), 9)", 2: "time.sleep(60)"}
    )
    assert [status for status, _ in ended] == [EXIT_GROUP, -9, EXIT_GROUP]
    assert re.match(r"rank 1 \(.*\): gone", ended[0][1])


def test_sigterm_ends_a_rank_when_there_is_nothing_to_say(tmp_path):
    ended, seconds = watched(tmp_path, {0: "os.kill(os.getpid(), 15)"}, world=2)
    assert ended[0][0] == -signal.SIGTERM and ended[1][0] == EXIT_GROUP and seconds < 30


def test_a_stranger_at_the_door_is_no_rank(tmp_path):
    call = (
        "import socket; where = share(None)\n"
        "for words in (b'GET / HTTP/1.1\\r\\n\\r\\n', b'{\"token\": \"guess\", \"event\": {}}\\n', b''):\n"
        "    with socket.create_connection(('localhost', where['port'])) as s: s.sendall(words)"
    )
    ended, _ = watched(tmp_path, {1: call}, stay=1.0)
    assert ended == [(0, "1")] * 3


def test_a_rank_that_cannot_reach_rank_0_says_so_and_trains(capsys, monkeypatch):
    monkeypatch.setattr(ranks, "connect", lambda *_, **__: None)
    where = {"host": "node1", "hosts": ["node1"], "port": 1, "token": "x", "pid": 1}
    with ranks.Spoke(1, share=lambda _: where):
        pass
    assert "cannot reach ['node1']: it trains, but nobody watches" in capsys.readouterr().err
