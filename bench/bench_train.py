"""The training loop: what it adds to a bare PyTorch loop, what a checkpoint costs, how long a batch
of triples takes

Ours and a baseline side by side where there is one: a plain loop without promises, and torch.save
(which pickles).
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch

from aclam.core import say
from aclam.data.cache import cache_frames
from aclam.data.sampling import TripleConfig
from aclam.data.trajectory import synthetic_trajectory
from aclam.data.triples import TripleDataset
from aclam.lam import LatentActionModel
from aclam.train.checkpoint import save_checkpoint
from aclam.train.draws import Batches, Draws
from aclam.train.lam import settings_for
from aclam.train.loop import train
from aclam.train.optimizer import make_optimizer, set_schedule
from aclam.train.step import seed_step

STEPS = 15


def model() -> LatentActionModel:
    torch.manual_seed(0)
    return LatentActionModel.from_preset("ac_lam_cpu", proprio_dim=7)


def bare(lam: torch.nn.Module, data: TripleDataset, config) -> None:
    """What the loop would be without logs, checks, checkpoints, precision and processes."""
    optimizer, batches = make_optimizer(lam, config), Batches(data)
    for s, part in enumerate(Draws(config)):
        seed_step(config.seed, s)
        set_schedule(optimizer, s, config)
        loss, _ = lam.loss(batches[part])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lam.parameters(), config.clip_norm)
        optimizer.step()
        optimizer.zero_grad()


def seconds(
    work: Callable[[], object], repeats: int = 3, clock: Callable[[], float] = time.process_time
) -> float:
    """Processor time (one thread) of the shortest of some runs: other programs disturb it least."""
    times = []
    for _ in range(repeats):
        start = clock()
        work()
        times.append(clock() - start)
    return min(times)


def setting() -> SimpleNamespace:
    """The CPU preset on synthetic episodes, frames in memory."""
    episodes = cache_frames(
        [synthetic_trajectory(seed=n, size=32) for n in range(20)], 32, in_memory=True
    )
    usual = settings_for("ac_lam_cpu").train
    config = replace(usual, steps=STEPS, probe_every=0, checkpoint_every=0, log_every=10)
    return SimpleNamespace(data=TripleDataset(episodes, TripleConfig(), 32), config=config)


def row(name: str, ours: float, baseline: float, unit: str) -> dict:
    return {
        "name": name,
        "ours": ours,
        "baseline": baseline,
        "ratio": ours / baseline,
        "unit": unit,
    }


def bench() -> list[dict]:
    """Rows of name, ours, baseline, ratio and unit; lower is better."""
    torch.set_num_threads(1)
    s, folder = setting(), Path(tempfile.mkdtemp())
    count = iter(range(99))
    train(model(), s.data, replace(s.config, steps=2), folder / "warm")  # imports and allocations
    ours = seconds(lambda: train(model(), s.data, s.config, folder / str(next(count)))) / STEPS
    plain = seconds(lambda: bare(model(), s.data, s.config)) / STEPS
    lam = model()
    optimizer = make_optimizer(lam, s.config)
    lam.loss(s.data.batch(range(4)))[0].backward()
    optimizer.step()
    both = {"model": lam.state_dict(), "optimizer": optimizer.state_dict()}
    saved = seconds(
        lambda: save_checkpoint(folder / "c", lam, optimizer, next(count)), 5, time.perf_counter
    )
    pickled = seconds(lambda: torch.save(both, folder / "c" / "pickled"), 5, time.perf_counter)
    batch = seconds(lambda: s.data.batch(range(s.config.batch_size)), 20)
    return [
        row("a step of ac_lam_cpu, against a bare loop", 1000 * ours, 1000 * plain, "ms"),
        row("a checkpoint, against torch.save", 1000 * saved, 1000 * pickled, "ms"),
        row("a batch of triples, against the step it feeds", 1000 * batch, 1000 * plain, "ms"),
    ]


def rows() -> Iterator[tuple[str, float, str]]:
    for r in bench():
        yield r["name"].split(", ")[0], r["ours"], r["unit"]
        yield (
            "  " + r["name"].split(", ")[1] + f" ({r['baseline']:.3g} {r['unit']})",
            r["ratio"],
            "x",
        )


if __name__ == "__main__":
    for r in bench():
        say(r)
