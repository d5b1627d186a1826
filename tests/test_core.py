"""aclam.core: errors in one line, whole-or-absent files and folders, command lines."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import namedtuple
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from aclam.command_line import cli, option_names, parse
from aclam.core import (
    UserError,
    atomic_file,
    atomic_folder,
    from_dict,
    json_lines,
    plain,
    print_json,
    read_json,
    short,
    suggest,
    sweep,
    write_json,
)

Usage = namedtuple("Usage", "total used free")


@dataclass(frozen=True)
class Optim:
    lr: float = 1e-3  # learning rate at its peak


@dataclass(frozen=True)
class Config:
    """Train something."""

    data: str  # the folder to learn from
    steps: int = 10  # how many steps to take
    order: Literal["ordered", "unordered"] = "unordered"
    limit: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    verbose: bool = False
    optim: Optim = field(default_factory=Optim)


# --- suggestions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "options", "found"),
    [
        ("ac_lam_cp", ["ac_lam_cpu", "no_ac_cpu"], "ac_lam_cpu"),
        ("--lr", ["--steps", "--optim.lr"], "--optim.lr"),
        ("stepz", ["steps"], "steps"),
        ("anything", [], None),
        ("xyz", ["steps", "optim.lr"], None),
    ],
)
def test_suggest(word, options, found):
    assert suggest(word, options) == (f' Did you mean "{found}"?' if found else "")


# --- files and folders ----------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_atomic_file_makes_folders_and_leaves_nothing_else(tmp_path):
    with atomic_file(tmp_path / "a" / "b" / "c.txt") as p:
        assert p.parent == tmp_path / "a" / "b" and not (tmp_path / "a" / "b" / "c.txt").exists()
        p.write_text("whole")
    assert names(tmp_path / "a" / "b") == ["c.txt"]
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "whole"


def test_atomic_file_keeps_the_suffix_for_libraries_that_look_at_it(tmp_path):
    with atomic_file(tmp_path / "latents.npz") as p:
        np.savez(p, z=np.arange(3))
    assert names(tmp_path) == ["latents.npz"]
    assert np.load(tmp_path / "latents.npz")["z"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("error", [KeyError("bug"), KeyboardInterrupt()])
def test_atomic_file_keeps_the_old_one_when_the_block_fails(tmp_path, error):
    (tmp_path / "x").write_text("old")
    with pytest.raises(type(error)), atomic_file(tmp_path / "x") as p:
        p.write_text("half")
        raise error
    assert names(tmp_path) == ["x"] and (tmp_path / "x").read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("atomic", [atomic_file, atomic_folder])
def test_a_full_disk_names_the_path(tmp_path, atomic):
    with (
        pytest.raises(UserError, match="no space left.*checkpoint"),
        atomic(tmp_path / "checkpoint"),
    ):
        with open("/dev/full", "w") as f:  # the kernel's own ENOSPC
            f.write("x")
    assert names(tmp_path) == []


def test_a_disk_that_fills_up_at_the_rename(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "x").write_text("old")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="no space left"), atomic_file(tmp_path / "x") as p:
        p.write_text("new")
    assert names(tmp_path) == ["x"] and (tmp_path / "x").read_text() == "old"


@pytest.mark.parametrize(
    ("error", "free"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 1 << 40),
        (
            ValueError("I/O error: No space left on device (os error 28)"),
            1 << 40,
        ),  # as a Rust library puts it
        (
            RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
            100,
        ),  # C++
    ],
)
def test_the_many_words_for_a_full_disk(tmp_path, monkeypatch, error, free):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, free))
    with pytest.raises(UserError, match="no space left"), atomic_folder(tmp_path / "model"):
        raise error


def test_other_errors_are_not_called_a_full_disk(tmp_path):
    with pytest.raises(RuntimeError, match="shape"), atomic_file(tmp_path / "x"):
        raise RuntimeError("shape mismatch")


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="cannot make the folder"),
        atomic_file(tmp_path / "file" / "x"),
    ):
        pass


def test_atomic_folder_replaces_whole(tmp_path):
    for word in ("old", "new"):
        with atomic_folder(tmp_path / "step") as p:
            (p / word).write_text(word)
    assert names(tmp_path) == ["step"] and names(tmp_path / "step") == [".aclam", "new"]


def test_atomic_folder_puts_back_what_a_killed_process_set_aside(tmp_path):
    (tmp_path / ".step-old-abcd1234").mkdir()
    (tmp_path / ".step-old-abcd1234" / "weights").write_text("good")
    with pytest.raises(KeyError), atomic_folder(tmp_path / "step", marks=("weights",)):
        raise KeyError("fails again")
    assert (tmp_path / "step" / "weights").read_text() == "good"


def test_sigkill_in_the_middle_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "progress.json", {"step": 1})
    code = f"""
        import time
        from aclam.core import atomic_file
        with atomic_file({str(tmp_path / "progress.json")!r}) as p:
            p.write_text('{{"step":')
            print("half", flush=True)
            time.sleep(60)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert read_json(tmp_path / "progress.json") == {"step": 1}


# --- JSON -----------------------------------------------------------------------------------------


def test_plain_is_json():
    given = {
        1: np.float32(0.5),
        "nan": float("nan"),
        "inf": [np.inf, -np.inf],
        "array": np.array([[1.0, np.nan]]),
        "path": Path("a/b"),
        "config": Optim(),
        "bool": np.bool_(True),
    }
    want = {
        "1": 0.5,
        "nan": None,
        "inf": [None, None],
        "array": [[1.0, None]],
        "path": "a/b",
        "config": {"lr": 0.001},
    }
    assert plain(given) == {**want, "bool": True}
    json.dumps(plain(given), allow_nan=False)


def test_write_json_is_small_in_diffs(tmp_path):
    write_json(tmp_path / "x.json", {"b": 1, "a": [2]})
    assert (tmp_path / "x.json").read_text() == '{\n "a": [\n  2\n ],\n "b": 1\n}\n'


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"{", "not JSON"), (b"", "not JSON"), (b"\xff\xfe{}", "not text in UTF-8")],
)
def test_broken_json_names_the_file(tmp_path, content, says):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"x\.json is {says}"):
        read_json(tmp_path / "x.json")


def test_missing_json_suggests_a_neighbour(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match='Did you mean "config.json"'):
        read_json(tmp_path / "confg.json")
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path / "nowhere" / "config.json")


def test_print_json_is_one_object(capsys):
    print_json({"loss": float("nan")})
    assert capsys.readouterr() == ('{"loss": null}\n', "")


# --- configurations -------------------------------------------------------------------------------


def test_option_names_are_dotted():
    assert (
        option_names(Config)[:2] == ["--data", "--steps"]
        and option_names(Config)[-1] == "--optim.lr"
    )


def test_from_dict_takes_what_json_and_yaml_give():
    config = from_dict(
        Config,
        {"data": "d", "limit": 3, "betas": [0.5, 0.6], "optim": {"lr": "1e-4"}, "steps": 1e3},
    )
    assert config == Config("d", limit=3.0, betas=(0.5, 0.6), optim=Optim(1e-4), steps=1000)
    assert from_dict(Config, json.loads(json.dumps(plain(config)))) == config


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"data": "d", "stepz": 1},
            'unknown field stepz of Config in c.yaml. Did you mean "steps"?',
        ),
        ({"data": "d", "optim": {"learning": 1}}, "unknown field learning of Optim in c.yaml."),
        (
            {"data": "d", "steps": "ten"},
            'field steps of Config in c.yaml: int expected, found "ten"',
        ),
        ({"data": "d", "steps": 2.5}, "field steps of Config in c.yaml: int expected, found 2.5"),
        (
            {"data": "d", "verbose": "no"},
            'field verbose of Config in c.yaml: bool expected, found "no"',
        ),
        ({"data": "d", "order": "orderd"}, 'Did you mean "ordered"?'),
        ({"data": "d", "optim": None}, "Optim in c.yaml: fields and values expected, found None"),
        ({}, "Config in c.yaml needs data"),
        ([], "fields and values expected"),
    ],
)
def test_from_dict_refuses(values, says):
    with pytest.raises(UserError) as e:
        from_dict(Config, values, where="c.yaml")
    assert says in str(e.value)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--stepz", "3"], 'unknown option --stepz. Did you mean "--steps"?'),
        (["--stepz=3"], 'unknown option --stepz. Did you mean "--steps"?'),
        (["--lr", "3"], 'unknown option --lr. Did you mean "--optim.lr"?'),
        (["--wholly-other", "3"], "unknown option --wholly-other."),
        (["--steps", "ten"], "--steps: invalid literal for int() with base 10: 'ten'"),
        (["--steps"], "--steps"),
        (["--order", "sideways"], "('ordered', 'unordered')"),
        (["--betas", "0.9"], "--betas"),
        (["stray"], 'unexpected word "stray"'),
        ([], "--data"),
    ],
)
def test_a_wrong_command_line_is_one_line(argv, says):
    data = ["--data", "d"] if argv else []
    with pytest.raises(UserError) as e:
        parse(Config, [*data, *argv], "toy")
    assert says in str(e.value) and "\n" not in str(e.value) and "│" not in str(e.value)


def test_defaults_from_a_file_and_options_on_top():
    assert parse(Config, ["--steps", "3"], "toy", default=Config("d", verbose=True)) == Config(
        "d", 3, verbose=True
    )


# --- commands in processes of their own -----------------------------------------------------------

COMMAND = """
from dataclasses import dataclass
from aclam.command_line import cli
from aclam.core import UserError, print_json, say

@dataclass(frozen=True)
class Count:
    "Count to a number."
    steps: int = 3  # how far to count
    json: bool = False  # one JSON object on standard output
    fail: str = ""

def count(config):
    say("counting")
    if config.fail == "user":
        raise UserError("the cube is\\nmissing")
    if config.fail == "bug":
        raise KeyError("bug")
    if config.fail == "interrupt":
        raise KeyboardInterrupt
    if config.fail == "status":
        return 3
    print_json({"counted": config.steps})

def main(argv=None):
    cli({"count": Count}, {"count": count}, argv, prog="toy")

main()
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    script = tmp_path_factory.mktemp("toy") / "toy.py"
    script.write_text(COMMAND)

    def run(*argv):
        done = subprocess.run(
            [sys.executable, script, *argv], capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.parametrize(
    ("argv", "status", "out", "err"),
    [
        (["count", "--steps", "4", "--json"], 0, '{"counted": 4}\n', "counting\n"),
        (["count", "--fail", "user"], 2, "", "counting\ntoy: the cube is missing\n"),
        (["count", "--fail", "interrupt"], 130, "", "counting\ntoy: stopped\n"),
        (["count", "--fail", "status"], 3, "", "counting\n"),
        (
            ["count", "--stepz", "4"],
            2,
            "",
            'toy: unknown option --stepz. Did you mean "--steps"?\n',
        ),
        (["cuont"], 2, "", 'toy: unknown subcommand "cuont". Did you mean "count"?\n'),
        ([], 2, "", "toy: which subcommand? One of count; see --help\n"),
    ],
)
def test_a_command(toy, argv, status, out, err):
    assert toy(*argv) == (status, out, err)


def test_a_bug_keeps_its_traceback(toy):
    status, out, err = toy("count", "--fail", "bug")
    assert status == 1 and "Traceback" in err and "KeyError" in err


@pytest.mark.parametrize(
    "work", ["[print(n) for n in range(10**5)]", "print_json({'n': list(range(10**5))})"]
)
def test_a_reader_that_goes_away_ends_the_command_quietly(work):
    """`command --json | head`: no traceback, the status that a shell gives for SIGPIPE."""
    code = (
        "from aclam.command_line import run_cli\n"
        "from aclam.core import print_json\n"
        f"run_cli(lambda: {work} and None, 'toy')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_help_shows_the_comments_beside_the_fields(toy):
    status, out, err = toy("count", "--help")
    assert (status, err) == (0, "") and "how far to count" in out and "Count to a number." in out
    status, out, err = toy("--help")
    assert (status, err) == (0, "") and "count" in out


def test_cli_of_one_dataclass_returns_when_all_is_well(capsys):
    cli(Optim, lambda config: print_json(config), ["--lr", "2"], prog="toy")
    assert capsys.readouterr().out == '{"lr": 2.0}\n'


def test_import_is_quick_and_light():
    heavy = ("torch", "numpy", "tyro", "nbdev", "mujoco")
    code = (
        "import sys, time; start = time.process_time(); import aclam.core; "
        f"print(time.process_time() - start < 1, [m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True []"


# --- what a person may give, and what may come in between -----------------------------------------


def test_short_is_short():
    for value in ("x" * 10**7, [0] * 10**7, {n: n for n in range(10**5)}, 7**9999):
        assert len(short(value)) <= 80 and "\n" not in short(value)


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(bytes(3 << 20))
    for path, says in [
        (tmp_path / "pipe", "a pipe"),
        (tmp_path, "a folder"),
        (Path("/dev/zero"), "a device"),
        (tmp_path / "large", "at most 2 MiB"),
        (tmp_path / "large" / "x", "no such file"),
        (tmp_path / ("x" * 5000), "cannot read"),
    ]:
        with pytest.raises(UserError, match=says):
            read_json(path, limit_mib=2)


def test_lines_of_json_end_at_newlines_only():
    text = '{"task": "up\u2028\x0bdown"}\r\n{}\n'
    assert json_lines(text) == ['{"task": "up\u2028\x0bdown"}', "{}"]
    assert json_lines("") == [] and json_lines("a") == ["a"] and json_lines("a\n\n") == ["a", ""]


HALF = """
import os, sys
from aclam.core import atomic_file, atomic_folder
how = {"file": atomic_file, "folder": atomic_folder}[sys.argv[1]]
with how(sys.argv[2]) as path:
    (path / "half" if path.is_dir() else path).write_text("half")
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_is_swept_by_the_next(tmp_path, kind):
    for _ in range(2):
        subprocess.run([sys.executable, "-c", HALF, kind, str(tmp_path / "x")])
    alive = {"file": atomic_file, "folder": atomic_folder}[kind]
    assert names(tmp_path)  # the second swept what the first had left
    assert len(names(tmp_path)) == 1
    with alive(tmp_path / "y") as path:
        sweep(tmp_path)
        assert names(tmp_path) == [path.name] or not path.exists()
        (path / "z" if path.is_dir() else path).write_text("whole")
    assert names(tmp_path) == ["y"]


def ending(source: str, **environment: str) -> subprocess.Popen:
    source = "import os, signal, time\nfrom aclam.command_line import run_cli\n" + source
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(source)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )


def test_sigterm_runs_what_has_to_be_run():
    process = ending(
        "def work():\n"
        "    try: print('at work', flush=True); time.sleep(60)\n"
        "    finally: print('tidy', flush=True)\n"
        "run_cli(work, 'toy')"
    )
    assert process.stdout.readline() == b"at work\n"
    process.terminate()
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (143, b"tidy\n", b"toy: stopped\n")


def test_a_handler_of_a_training_stays_in_force():
    process = ending(
        "signal.signal(signal.SIGTERM, lambda *_: print('mine'))\n"
        "run_cli(lambda: os.kill(os.getpid(), signal.SIGTERM), 'toy')"
    )
    assert process.communicate(timeout=20) == (b"mine\n", b"") and process.returncode == 0


NET = [
    ("open('/nowhere')", "No such file or directory: /nowhere"),
    ("bytearray(1 << 62)", "not enough memory"),
    ("(lambda f: f(f))(lambda f: f(f))", "nested too deeply"),
    ("__import__('numpy').zeros((1 << 40, 1 << 18))", "not enough memory"),
    ("__import__('numpy').linalg.inv([[0.0]])", "LinAlgError"),
    ("__import__('pyarrow.parquet').parquet.read_table('/dev/null')", "toy: "),
]


@pytest.mark.parametrize("work, says", NET)
def test_the_last_net_is_one_line(work, says):
    process = ending(f"run_cli(lambda: {work}, 'toy')", ACLAM_DEBUG="")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.count(b"\n")) == (2, b"", 1) and says in err.decode()


def test_the_traceback_is_there_for_those_who_ask():
    process = ending("run_cli(lambda: open('/nowhere'), 'toy')", ACLAM_DEBUG="1")
    _, err = process.communicate(timeout=20)
    assert process.returncode == 2 and b"Traceback" in err and err.endswith(b"/nowhere\n")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_what_a_terminal_cannot_show_is_replaced(encoding):
    process = ending("run_cli(lambda: print('\\u7bb1.mp4'), 'toy')", PYTHONIOENCODING=encoding)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, b"?.mp4\n", b"")


@pytest.mark.parametrize("content", ["", " \n"])
def test_an_empty_json_file_is_called_empty(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="config.json is not JSON: the file is empty"):
        read_json(tmp_path / "config.json")
