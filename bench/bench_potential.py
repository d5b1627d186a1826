"""Labelling all pairs of a clip: the potential model reads each frame once, a pair IDM reads every
pair.

Both have the CPU preset's sizes and are continuous; the results of both are the latents of all T x
T pairs of T frames.
"""

import time
from collections.abc import Callable, Iterator

import torch

from aclam.lam import LatentActionModel
from aclam.lam.potential import all_pairs, encode_clip

T, BATCH = 100, 256


def seconds(work: Callable[[], object], rounds: int) -> float:
    """The median CPU time of a call; the first call is not counted."""
    times = []
    for _ in range(rounds + 1):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return sorted(times[1:])[rounds // 2]


@torch.no_grad()
def by_pairs(lam: LatentActionModel, o: torch.Tensor) -> torch.Tensor:
    """The latents (T, T, d) by encoding every pair, in batches."""
    first, second = torch.cartesian_prod(torch.arange(len(o)), torch.arange(len(o))).unbind(1)
    parts = [
        lam.encode(o[i], o[j]).z
        for i, j in zip(first.split(BATCH), second.split(BATCH), strict=True)
    ]
    return torch.cat(parts).view(len(o), len(o), -1)


def rows() -> Iterator[tuple[str, float, str]]:
    """Seconds of the pair IDM, of the potential model, their ratio, and the largest difference from
    pair by pair.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    o = torch.rand(T, 3, 32, 32)
    pair, potential = (
        LatentActionModel.from_preset(name).eval() for name in ("no_ac_cpu", "potential_lam_cpu")
    )
    slow = seconds(lambda: by_pairs(pair, o), 1)
    fast = seconds(lambda: all_pairs(potential, encode_clip(potential, o)), 9)
    yield f"pair IDM, {T * T} pairs of {T} frames", slow, "CPU s"
    yield "potential model, the same pairs", fast, "CPU s"
    yield "ratio", slow / fast, "x"
    gap = (
        (all_pairs(potential, encode_clip(potential, o)).z - by_pairs(potential, o))
        .abs()
        .max()
        .item()
    )
    yield "largest difference of the potential model's latents", gap, ""
