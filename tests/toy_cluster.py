"""A training without a model: what the tests start, stop and kill.

`python toy_cluster.py --out RUN --steps 60 ...`; it keeps the files of a real run: metrics.jsonl
and checkpoints/.
"""

import json
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState

from aclam.command_line import cli
from aclam.core import atomic_folder, read_json, say, write_json
from aclam.folders import hold
from aclam.train.group import agree_on_start, join_group, watch_ranks
from aclam.train.stop import Requeue, StopRequest


@dataclass(frozen=True)
class Config:
    """What the toy does."""

    out: str = "run"
    steps: int = 60
    wait: float = 0.05  # seconds of a step
    every: int = 20  # steps between checkpoints
    timeout: float = 60.0  # of the group
    fail_on: int = -1  # this rank raises ...
    fail_at: int = 5  # ... during this step
    hang_on: int = -1  # this rank hangs, but lives, during the same step


def checkpoints(folder: Path) -> list[Path]:
    return sorted(p.parent for p in folder.glob("checkpoints/step_*/progress.json"))


def total(state: PartialState, value: float) -> float:
    """The sum of a number over all ranks."""
    number = torch.tensor([value])
    if state.num_processes > 1:
        torch.distributed.all_reduce(number)
    return number.item()


def save(folder: Path, s: int) -> None:
    with atomic_folder(folder / "checkpoints" / f"step_{s:06d}") as temporary:
        write_json(temporary / "progress.json", {"step": s})


def train(config: Config, state: PartialState, watch) -> None:
    folder = Path(config.out)
    main = state.is_main_process
    found = checkpoints(folder)[-1:] if main else []
    start = agree_on_start(folder, found[0] if found else None, within_s=2.0)
    first = read_json(start / "progress.json")["step"] if start else 0
    if main and first:
        say(f"going on from {start.name}")
    with StopRequest() as stop:
        for s in range(first, config.steps):
            watch.at = f"loading step {s}"
            one_step(config, state, s)
            watch.at = f"step {s}"
            asked = total(state, float(bool(stop)))
            if main:
                with open(folder / "metrics.jsonl", "a") as log:
                    log.write(json.dumps({"step": s + 1}) + "\n")
                if asked or (s + 1) % config.every == 0 or s + 1 == config.steps:
                    save(folder, s + 1)
            if asked:
                total(state, 0.0)  # nobody leaves before the checkpoint is written
                raise Requeue(stop.signal)


def one_step(config: Config, state: PartialState, s: int) -> None:
    time.sleep(config.wait)
    if state.process_index == config.fail_on and s == config.fail_at:
        raise ValueError("bad triple")
    if state.process_index == config.hang_on and s == config.fail_at:
        time.sleep(600)


def run(config: Config) -> None:
    state = join_group(config.timeout)
    try:
        with (
            watch_ranks(config.timeout) as watch,
            hold(config.out) if state.is_main_process else nullcontext(),
        ):
            train(config, state, watch)
    except Requeue:
        state.destroy_process_group()
        raise
    state.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    cli(Config, run, prog="toy")
