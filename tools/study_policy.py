"""What stands in the way of a policy that sees everything? Writes nbs/results/policy_study.json.

    python tools/study_policy.py data/demos          # made by aclam-data prepare emoji --use policy
    --size 96

No pictures: a small network is told where the hand, the cube and the right card are, the last two
with an error of 2 mm, and imitates the demonstrations of the folder. Only the loss and the units
differ. So what fails here fails for a reason that has nothing to do with seeing.
"""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from aclam.core import write_json
from aclam.data.store import read_store
from aclam.policy.flow import draw_times, euler, path, remaining, to_velocity, velocity
from aclam.sim.benchmark import EmojiTableTopEnv
from aclam.sim.control import delta_actions
from aclam.studies.report import hardware

KEPT = Path(__file__).resolve().parent.parent / "nbs/results/policy_study.json"
CHUNK, EXECUTE, SIGMA, BATCH = 8, 4, 0.001, 256  # as the preset policy_cpu, but for the batch


@dataclass(frozen=True)
class Way:
    """One way to train."""

    loss: str  # regression, velocity or data: what the network says
    units: str = "spread"  # or percentiles, see `PolicyConfig.units`
    steps: int = 2000
    euler: int = 10  # Euler steps; regression has none


WAYS = (
    Way("regression"),
    Way("velocity", "percentiles"),
    Way("velocity"),
    Way("velocity", steps=12_000),
    Way("data", "percentiles"),
    Way("data"),
    Way("data", euler=5),
)


def read(folder: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States (n, 7), places (n, 5: cube x y yaw, card x y) and chunks of delta_pose commands (n,
    CHUNK, 7).
    """
    states, places, chunks = [], [], []
    for t in read_store(folder).trajectories:
        start, rows = t.info["start"], np.arange(len(t))[:, None] + np.arange(CHUNK)
        commands = delta_actions(t.proprio.astype(np.float64), t.action.astype(np.float64))
        place = [*start["cube_xy"], start["cube_yaw"], *start["cards_xy"][start["target"]]]
        states.append(t.proprio), places.append(np.tile(place, (len(t), 1)))
        chunks.append(commands[rows.clip(max=len(t) - 1)])
    return np.concatenate(states), np.concatenate(places), np.concatenate(chunks)


def sight(state: np.ndarray, place: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What the network is told, (n, 12): the state, cube and card as seen from the hand, with some
    error.
    """
    off = rng.standard_normal(place.shape) * [0.002, 0.002, 0.05, 0.002, 0.002]  # m, m, rad, m, m
    seen = place + off - np.concatenate([state[:, :2], 0 * state[:, :1], state[:, :2]], 1)
    return np.concatenate([state, seen], 1)


class Student:
    """A network, its units, and how it is trained and asked."""

    def __init__(self, way: Way, states: np.ndarray, places: np.ndarray, chunks: np.ndarray):
        torch.manual_seed(0)
        self.way, self.dice, flat = way, np.random.default_rng(0), chunks.reshape(-1, 7)
        low, high = np.quantile(flat, [0.01, 0.99], axis=0)
        spread = way.units == "spread"
        self.middle, self.half = (
            (flat.mean(0), flat.std(0)) if spread else ((low + high) / 2, (high - low) / 2)
        )
        self.limit = 4.0 if spread else 1.0
        told = sight(states, places, self.dice)
        self.mean, self.spread, n, flows = (
            told.mean(0),
            told.std(0),
            CHUNK * 7,
            way.loss != "regression",
        )
        self.net = nn.Sequential(
            nn.Linear(12 + (n + 16) * flows, 256),
            nn.SiLU(),
            nn.Linear(256, 256),
            nn.SiLU(),
            nn.Linear(256, 256),
            nn.SiLU(),
            nn.Linear(256, n),
        )

    def told(self, states: np.ndarray, places: np.ndarray) -> Tensor:
        return torch.from_numpy(
            (sight(states, places, self.dice) - self.mean) / self.spread
        ).float()

    def field(self, told: Tensor, x: Tensor, t: Tensor) -> Tensor:
        angle = torch.pi * t[:, None] * 2.0 ** torch.arange(-1, 7)  # (B, 8)
        said = self.net(torch.cat([told, x, angle.sin(), angle.cos()], 1))
        return to_velocity(said, x, t, SIGMA) if self.way.loss == "data" else said

    def loss(self, told: Tensor, x1: Tensor) -> Tensor:
        if self.way.loss == "regression":
            return nn.functional.smooth_l1_loss(self.net(told), x1)
        x0, t = torch.randn_like(x1), draw_times(len(x1))
        error = self.field(told, path(x0, x1, t, SIGMA), t) - velocity(x0, x1, SIGMA)
        weight = remaining(t, SIGMA)[:, None] if self.way.loss == "data" else 1.0
        return (weight * error).square().mean()

    def fit(self, states: np.ndarray, places: np.ndarray, chunks: np.ndarray) -> None:
        inside = ((chunks - self.middle) / self.half).clip(-self.limit, self.limit)
        target = torch.from_numpy(inside).float().flatten(1)
        adam = torch.optim.AdamW(self.net.parameters(), 2e-3)
        rate = torch.optim.lr_scheduler.OneCycleLR(adam, 2e-3, total_steps=self.way.steps)
        for _ in range(self.way.steps):
            i = self.dice.integers(len(states), size=BATCH)
            adam.zero_grad(), self.loss(self.told(states[i], places[i]), target[i]).backward()
            adam.step(), rate.step()

    @torch.no_grad()
    def act(self, state: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Commands (CHUNK, 7) for one moment."""
        told, noise = self.told(state[None], place[None]), torch.randn(1, CHUNK * 7)
        drawn = self.way.loss != "regression"
        x = (
            euler(lambda x, t: self.field(told, x, t), noise, self.way.euler)
            if drawn
            else self.net(told)
        )
        return x.view(CHUNK, 7).clamp(-self.limit, self.limit).numpy() * self.half + self.middle


def play(env: EmojiTableTopEnv, student: Student, seed: int) -> dict:
    """One episode: S, S/A, whether the cube was lifted, the number of commands."""
    seen, _ = env.reset(seed=seed)
    scene, top, ended = env.world.scene, 0.0, False
    place = np.array([*scene.cube_xy, scene.cube_yaw, *scene.cards_xy[scene.target]])
    while not ended:
        for row in student.act(env.world.proprio(), place)[:EXECUTE]:
            _, terminated, truncated, info = env.apply(row)
            top, ended = max(top, env.world.physics.data.body("cube").xpos[2]), terminated or truncated
            if ended:
                break
    return {**info, "lifted": bool(top > 0.06), "commands": env.steps}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data"), parser.add_argument("--episodes", type=int, default=40)
    c = parser.parse_args()
    data, env, rows = read(c.data), EmojiTableTopEnv(split="id", image_size=0), []
    for way in WAYS:
        student = Student(way, *data)
        student.fit(*data)
        played = [play(env, student, 10 + n) for n in range(c.episodes)]
        found = {k: sum(p[k] for p in played) for k in ("S", "S/A", "lifted")}
        rows.append(
            {**asdict(way), **found, "commands": float(np.mean([p["commands"] for p in played]))}
        )
        print(rows[-1], flush=True)
    env.close()
    command = f"python tools/study_policy.py data/demos --episodes {c.episodes}"
    write_json(
        KEPT, {"command": command, "episodes": c.episodes, "rows": rows, "hardware": hardware()}
    )


if __name__ == "__main__":
    main()
