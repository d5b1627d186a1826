"""A trial on the table: a policy that answers for all tables at once against one table after the
other.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import torch

from aclam.policy.model import Policy
from aclam.policy.rollout import RolloutConfig, run

EPISODES, STEPS = 16, 60  # a policy that has learned nothing uses all its commands


def rows() -> Iterator[tuple[str, float, str]]:
    """Episodes a second with one table and with four, their ratio, and the shares of the work."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    policy, found = Policy.from_preset("policy_cpu").eval(), {}
    with tempfile.TemporaryDirectory() as name, redirect_stderr(StringIO()):
        policy.save_pretrained(Path(name) / "policy")
        trial = RolloutConfig(str(Path(name) / "policy"), ("val",), EPISODES, max_steps=STEPS)
        for envs in (1, 4):
            found[envs] = run(replace(trial, envs=envs, out=f"{name}/{envs}"), policy)
    for envs, r in found.items():
        yield (
            f"episodes of {STEPS} commands, tables at once: {envs}",
            r["episodes_per_second"],
            "episodes/s",
        )
    yield "ratio", found[4]["episodes_per_second"] / found[1]["episodes_per_second"], "times"
    for kind, share in found[4]["shares"].items():
        yield f"share of the work: {kind}", 100 * share, "%"
    yield from answers(policy)


def answers(policy: Policy, n: int = 8) -> Iterator[tuple[str, float, str]]:
    """Observations that the policy answers a second, one by one and as one batch."""

    S, rng = policy.config.vlm.image_size, np.random.default_rng(0)
    seen = list(rng.integers(0, 256, (n, S, S, 3), dtype=np.uint8))
    words, states, seconds = ["place it on the fox"] * n, list(np.zeros((n, 7), np.float32)), {}
    ways = {"one by one": [slice(k, k + 1) for k in range(n)], f"{n} in a batch": [slice(0, n)]}
    for way, parts in ways.items():
        policy.act(*(x[parts[0]] for x in (seen, words, states)), range(n)[parts[0]])  # warm
        start = time.process_time()
        for part in parts * 3:
            policy.act(*(x[part] for x in (seen, words, states)), range(n)[part])
        seconds[way] = (time.process_time() - start) / 3
        yield f"answers of the policy, {way}", n / seconds[way], "answers/s"
    one, batch = seconds.values()
    yield "ratio", one / batch, "times"
