"""Processes that the tests start, wait for and look at."""

import subprocess
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

import kill_table
import psutil
import pytest

# a training without a model, see there
TOY = (sys.executable, str(Path(__file__).parent / "toy_cluster.py"))
linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="needs signals at a parent's death"
)


def start(module: str, source: str, *words: object, **options) -> subprocess.Popen:
    """A Python process that runs `source` with the names of a module."""
    head = (
        "import json, os, signal, sys, threading, time\n"
        "from pathlib import Path\n"
        f"from {module} import *\n"
    )
    command = [sys.executable, "-c", head + textwrap.dedent(source), *map(str, words)]
    return subprocess.Popen(command, stdout=-1, stderr=subprocess.STDOUT, text=True, **options)


def end(process: subprocess.Popen, seconds: float = 40.0) -> tuple[int, str]:
    """How it ended: its status and what it said."""
    said, _ = process.communicate(timeout=seconds)
    return process.returncode, said.strip()


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def all_gone(pids: Iterable[int], seconds: float = 20.0) -> bool:
    return kill_table.wait_for(lambda: not any(map(alive, pids)), seconds)
