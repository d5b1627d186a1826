"""The linear LAM: gradients by hand, a stack with autograd, and one nn.Module at a time

The settings are those of Figures 3 and 4. The appendix of Part 1 (linear.streams and
linear.batched) is kept as long as the stack takes more than 1.5 times as long.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.optim.adam import adam

STEPS = 60
ROUNDS = 4


def cpu_ms(run: Callable[[], object], model_steps: int) -> float:
    """CPU milliseconds a model-step of this process."""
    start = time.process_time()
    run()
    return (time.process_time() - start) / model_steps * 1e3


def best_seconds(run: Callable[[], object], rounds: int = 5, repeats: int = 20) -> float:
    """Least CPU seconds of a call, over rounds: a busy machine only ever adds."""
    return (
        min(cpu_ms(lambda: [run() for _ in range(repeats)], repeats) for _ in range(rounds)) / 1e3
    )


def step_flops(s) -> int:
    """Floating-point operations of one model-step by hand: products only, no drawing, no Adam."""
    from aclam.linear.streams import make_streams

    streams = make_streams([s])
    d = s.d_o
    terms = 2 if s.lambda_ac > 0 else 1
    frames = sum(name in "uo" for name in streams.wide)  # each has a product of its own
    seen = len(range(streams.width)[streams.encoder])
    through_A = frames * (2 * d**3 + 4 * d * d * s.d_z + 2 * d * d * sum(streams.thin.values()))
    through_B = terms * 2 * d * d * s.d_z
    moments = terms * 4 * s.d_z * seen * streams.width  # of z and of the error at z
    return through_A + through_B + moments


def machine_floor(settings: list, models: int = 20) -> dict[str, float]:
    """The least CPU time a model-step can take here.

    'gflops' of the large product, 'adam_ns' a parameter, and 'ms' = operations / gflops +
    parameters * adam_ns, averaged over the settings.
    """
    from aclam.linear.batched import ADAM

    d = settings[0].d_o
    E = torch.randn(models * d, d)
    G = torch.randn(d, d)
    state = [[v] for v in torch.rand(4, models * d * d)]
    count = [torch.tensor(1.0)]
    multiply = best_seconds(lambda: E @ G)
    update = best_seconds(
        lambda: adam(*state, [], count, foreach=False, fused=True, lr=1e-6, **ADAM)
    )
    gflops = 2e-9 * models * d**3 / multiply
    adam_ns = 1e9 * update / E.numel()
    ms = []
    for s in settings:
        parameters = s.d_o**2 + 3 * s.d_o * s.d_z
        ms.append(step_flops(s) / gflops * 1e-6 + parameters * adam_ns * 1e-6)
    return {"gflops": gflops, "adam_ns": adam_ns, "ms": float(np.mean(ms))}


@dataclass
class Timed:
    """A way to train, on parts of the work, and the CPU ms a model-step of each part and round."""

    run: Callable[[list], object]
    parts: list[list]  # of settings
    weights: list[float]
    threads: int = 1

    def __post_init__(self) -> None:
        self.rounds: list[list[float]] = []
        for part in self.parts:  # kernels for a shape are made once in a process: not counted
            self.run([replace(s, steps=2) for s in part])

    def time(self) -> None:
        """One round."""
        torch.set_num_threads(self.threads)
        found = [cpu_ms(lambda p=p: self.run(p), len(p) * STEPS) for p in self.parts]
        self.rounds.append(found)
        torch.set_num_threads(1)

    @property
    def ms(self) -> float:
        """Each part's best round, averaged."""
        return float(np.average(np.min(self.rounds, axis=0), weights=self.weights))


def figure_jobs() -> list[list]:
    """The settings of Figures 3 and 4, one seed, as the jobs of `aclam-linear figure`."""
    from aclam.linear.figures import figure_points, make_jobs
    from aclam.linear.setting import Setting

    base = Setting(steps=STEPS)
    jobs = [job for name in ("3", "4") for job in make_jobs(figure_points(name, base, 1))]
    return [[point.setting for point in job] for job in jobs]


def some_of_each_panel() -> tuple[list, list[float]]:
    """First, middle and last setting of each panel, and how many settings each stands for."""
    from aclam.linear.figures import figure_points
    from aclam.linear.setting import Setting

    points = [p for name in ("3", "4") for p in figure_points(name, Setting(steps=STEPS), 1)]
    some = []
    weights = []
    for panel in dict.fromkeys(p.panel for p in points):
        members = [p.setting for p in points if p.panel == panel]
        some += [members[0], members[len(members) // 2], members[-1]]
        weights += [len(members) / 3] * 3
    return some, weights


def apart(first: list, second: list) -> float:
    """Largest difference between matrices of models that were trained two ways."""
    worst = 0.0
    for one, other in zip(first, second, strict=True):
        pairs = zip(one.lam, other.lam, strict=True)
        worst = max(worst, *(float(np.abs(a - b).max()) for a, b in pairs))
    return worst


def closed_forms(settings: list) -> None:
    """The exact optimum of each setting."""
    from aclam.linear.evaluate import theory
    from aclam.linear.world import factors, make_world

    for s in settings:
        theory(s, factors(make_world(s.world), steps=2 if s.lambda_ac else 1))


def measure() -> dict[str, float]:
    """Three ways to train, timed in ROUNDS rounds that take turns; the least time counts.

    By hand and stacked: all settings, one thread. Naive: some of every panel, weighted by its
    size, with as many threads as PyTorch starts with, and with one.
    """
    from aclam.linear import batched, trainer

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    jobs = figure_jobs()
    settings = [s for job in jobs for s in job]
    some, weights = some_of_each_panel()
    singles = [[s] for s in some]
    sizes = [float(len(job)) for job in jobs]

    def naive(part):
        return trainer.train_naive(part[0])

    ways = {
        "by_hand": Timed(batched.train, jobs, sizes),
        "stacked": Timed(trainer.train, jobs, sizes),
        "naive": Timed(naive, singles, weights),
        "as_started": Timed(naive, singles, weights, threads),
    }
    for _ in range(ROUNDS):
        for way in ways.values():
            way.time()
    found = {name: way.ms for name, way in ways.items()}
    found["models"] = len(settings)
    found["threads"] = threads
    found["apart"] = apart(batched.train(jobs[0]), trainer.train(jobs[0]))
    found["closed"] = cpu_ms(lambda: closed_forms(settings), 1) / 1e3
    return found | {f"floor_{k}": v for k, v in machine_floor(settings).items()}


def rows() -> Iterator[tuple[str, float, str]]:
    m = measure()
    figures = 3 * 4000 * m["models"] / 60e3  # model-steps of three seeds, from ms to minutes
    yield "gradients by hand (linear.batched), per model-step", m["by_hand"], "CPU ms"
    yield "stack with autograd (linear.trainer), per model-step", m["stacked"], "CPU ms"
    yield "stack / by hand (the appendix is kept above 1.5)", m["stacked"] / m["by_hand"], "x"
    yield "naive nn.Module + autograd + Adam, one thread", m["naive"], "CPU ms"
    yield f"the same as PyTorch starts it ({m['threads']} threads)", m["as_started"], "CPU ms"
    yield "naive as PyTorch starts it / by hand (goal 8)", m["as_started"] / m["by_hand"], "x"
    yield "naive with one thread / by hand", m["naive"] / m["by_hand"], "x"
    yield "naive with one thread / stack", m["naive"] / m["stacked"], "x"
    yield "matrix products of this size", m["floor_gflops"], "GFLOP/s"
    yield "floor by hand: its products at that rate, and Adam", m["floor_ms"], "CPU ms"
    yield "floor / by hand: share of the time that is the floor", m["floor_ms"] / m["by_hand"], ""
    yield f"largest difference of matrices after {STEPS} equal steps", m["apart"], ""
    yield "six panels, three seeds, 4,000 steps, by hand", figures * m["by_hand"], "min"
    yield "the same, stacked", figures * m["stacked"], "min"
    yield "closed forms of all six panels", m["closed"], "CPU s"
