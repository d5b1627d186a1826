"""A rollout on the table: a policy that answers for all environments at once against one after the
other.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO

import numpy as np
import torch

from aclam.policy.model import Policy
from aclam.policy.rollout import RolloutConfig, evaluate

EPISODES = 16
STEPS = 60  # a policy that has learned nothing uses all its commands

Rows = Iterator[tuple[str, float, str]]


def rows() -> Rows:
    """Episodes a second with one environment and with four, their ratio, and the shares of work."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    policy = Policy.from_preset("policy_cpu").eval()
    results = {}
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
        policy.save_pretrained(f"{folder}/policy")
        config = RolloutConfig(f"{folder}/policy", ("val",), EPISODES, max_steps=STEPS)
        for envs in (1, 4):
            here = replace(config, envs=envs, out=f"{folder}/{envs}")
            results[envs] = evaluate(here, policy)
    speed = {envs: result["episodes_per_second"] for envs, result in results.items()}
    for envs in speed:
        yield f"episodes of {STEPS} commands, tables at once: {envs}", speed[envs], "episodes/s"
    yield "ratio", speed[4] / speed[1], "times"
    for kind, share in results[4]["shares"].items():
        yield f"share of the work: {kind}", 100 * share, "%"
    yield from answers(policy)


def answers(policy: Policy, n: int = 8) -> Rows:
    """Observations that the policy answers a second, one by one and as one batch."""
    S = policy.config.vlm.image_size
    images = list(np.random.default_rng(0).integers(0, 256, (n, S, S, 3), dtype=np.uint8))
    states = list(np.zeros((n, 7), np.float32))

    def act(part: slice) -> None:
        seeds = range(n)[part]
        policy.act(images[part], ["place it on the fox"] * len(seeds), states[part], seeds)

    ways = {"one by one": [slice(k, k + 1) for k in range(n)], f"{n} in a batch": [slice(0, n)]}
    seconds = []
    for way, parts in ways.items():
        act(parts[0])  # warm
        start = time.process_time()
        for part in parts * 3:
            act(part)
        seconds.append((time.process_time() - start) / 3)
        yield f"answers of the policy, {way}", n / seconds[-1], "answers/s"
    one, batch = seconds
    yield "ratio", one / batch, "times"
