"""The linear LAM: one batched program against one nn.Module at a time, on the settings of Figures 3
and 4
"""

import time
from collections.abc import Iterator

import numpy as np
import torch

STEPS, NAIVE_STEPS, ROUNDS = 60, 60, 4


def cpu_ms(run, model_steps: int) -> float:
    """CPU milliseconds a model-step of this process."""
    start = time.process_time()
    run()
    return (time.process_time() - start) / model_steps * 1e3


def measure() -> dict[str, float]:
    """All six panels, one seed. Batched: each job, one thread. Naive: some settings of every panel,
    weighted by its size, with as many threads as PyTorch starts with, and with one. Each is timed
    in ROUNDS rounds that take turns, and
    its least time counts: a busy machine only ever adds. What a process does once (kernels for a
    shape) is not counted.
    """
    from dataclasses import replace

    from aclam.linear.figures import figure_points, make_jobs
    from aclam.linear.trainer import Setting, machine_floor, theory, train, train_naive, train_sweep
    from aclam.linear.world import factors, make_world

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    points = [p for name in ("3", "4") for p in figure_points(name, Setting(steps=STEPS), 1)]
    jobs = [
        [p.setting for p in job]
        for name in ("3", "4")
        for job in make_jobs(figure_points(name, Setting(steps=STEPS), 1))
    ]
    some, weights = [], []
    for panel in dict.fromkeys(p.panel for p in points):
        members = [p.setting for p in points if p.panel == panel]
        some += [
            replace(members[i], steps=NAIVE_STEPS) for i in (0, len(members) // 2, len(members) - 1)
        ]
        weights += [len(members) / 3] * 3
    for job in jobs:
        train_sweep([replace(s, steps=2) for s in job])
    train_naive(Setting(steps=2))
    fast, slow, default = [], [], []
    for _ in range(ROUNDS):
        fast.append([cpu_ms(lambda j=j: train_sweep(j), len(j) * STEPS) for j in jobs])
        for n, found in ((threads, default), (1, slow)):
            torch.set_num_threads(n)
            found.append(
                [cpu_ms(lambda s=s: train_naive(s, same_batches=False), NAIVE_STEPS) for s in some]
            )
    one = jobs[0][7]
    pair = train([one])[0], train_naive(one)
    apart = max(np.abs(a - b).max() for a, b in zip(pair[0].lam, pair[1].lam, strict=True))
    start = time.process_time()
    for p in points:
        theory(
            p.setting, factors(make_world(p.setting.world), steps=2 if p.setting.lambda_ac else 1)
        )
    closed = time.process_time() - start
    return {
        "fast": float(np.average(np.min(fast, axis=0), weights=[len(j) for j in jobs])),
        "slow": float(np.average(np.min(slow, axis=0), weights=weights)),
        "default": float(np.average(np.min(default, axis=0), weights=weights)),
        "threads": threads,
        "apart": float(apart),
        "closed": closed,
        "models": len(points),
        **{f"floor_{k}": v for k, v in machine_floor([p.setting for p in points]).items()},
    }


def rows() -> Iterator[tuple[str, float, str]]:
    from aclam.linear.trainer import chosen_product

    m = measure()
    yield "batched, hand-derived gradients, per model-step", m["fast"], "CPU ms"
    yield (
        f"naive nn.Module + autograd + Adam, as started ({m['threads']} threads)",
        m["default"],
        "CPU ms",
    )
    yield "the same, one thread", m["slow"], "CPU ms"
    yield "naive as PyTorch starts it / batched (goal 8)", m["default"] / m["fast"], "x"
    yield "naive with one thread / batched", m["slow"] / m["fast"], "x"
    yield (
        f"matrix products of this size ({chosen_product().__name__})",
        m["floor_gflops"],
        "GFLOP/s",
    )
    yield "floor of a model-step: its products at that rate, and Adam", m["floor_ms"], "CPU ms"
    yield (
        "one thread / floor: no arrangement of these products beats it",
        m["slow"] / m["floor_ms"],
        "x",
    )
    yield "floor / batched: share of our time that is the floor", m["floor_ms"] / m["fast"], ""
    yield f"largest difference of matrices after {STEPS} equal steps", m["apart"], ""
    yield (
        "six panels, three seeds, 4,000 steps: CPU estimate",
        3 * 4000 * m["models"] * m["fast"] / 60e3,
        "min",
    )
    yield "closed forms of all six panels", m["closed"], "CPU s"


def bench() -> list[dict]:
    """The same as dictionaries: name, ours, baseline, ratio, unit."""
    m = measure()
    speed = {"name": "linear LAM training, per model-step", "ours": m["fast"], "unit": "CPU ms"}
    kinds = {
        f"naive, {m['threads']} threads (as started)": m["default"],
        "naive, one thread": m["slow"],
    }
    return [
        speed | {"against": name, "baseline": ms, "ratio": ms / m["fast"]}
        for name, ms in kinds.items()
    ]
