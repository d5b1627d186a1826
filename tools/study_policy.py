"""What stands in the way of a policy that sees everything? Writes nbs/results/policy_study.json.

    python tools/study_policy.py data/demos

The folder is made by aclam-data prepare emoji --use policy --size 96. No pictures: a small network
gets where the hand, the cube and the right card are, the last two with an error of 2 mm, and
imitates the demonstrations of the folder. Only the loss and the units differ. So what fails here
fails for a reason that has nothing to do with seeing.
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
from aclam.studies.processes import hardware

KEPT = Path(__file__).resolve().parent.parent / "nbs/results/policy_study.json"
# as the preset policy_cpu, but for the batch
CHUNK = 8
EXECUTE = 4
SIGMA = 0.001
BATCH = 256


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


@dataclass
class Demonstrations:
    """All moments of the demonstrations."""

    states: np.ndarray  # (n, 7)
    places: np.ndarray  # (n, 5): cube x y yaw, card x y
    chunks: np.ndarray  # (n, CHUNK, 7) delta_pose commands


def read(folder: str, first: int = 0, count: int | None = None) -> Demonstrations:
    """The demonstrations of a folder: `count` of them from number `first` on, or all."""
    states, places, chunks = [], [], []
    end = None if count is None else first + count
    for t in list(read_store(folder).trajectories)[first:end]:
        start = t.info["start"]
        card = start["cards_xy"][start["target"]]
        place = [*start["cube_xy"], start["cube_yaw"], *card]
        commands = delta_actions(t.proprio.astype(np.float64), t.action.astype(np.float64))
        rows = np.arange(len(t))[:, None] + np.arange(CHUNK)
        states.append(t.proprio)
        places.append(np.tile(place, (len(t), 1)))
        chunks.append(commands[rows.clip(max=len(t) - 1)])
    return Demonstrations(np.concatenate(states), np.concatenate(places), np.concatenate(chunks))


def inputs(state: np.ndarray, place: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What the network gets, (n, 12): the state, and cube and card from the hand, with some error."""
    error = rng.standard_normal(place.shape) * [0.002, 0.002, 0.05, 0.002, 0.002]  # m, m, rad, m, m
    hand = np.concatenate([state[:, :2], 0 * state[:, :1], state[:, :2]], 1)
    return np.concatenate([state, place + error - hand], 1)


class Student:
    """A network, its units, and how it is trained and asked."""

    def __init__(self, way: Way, data: Demonstrations, weights: int = 0, draws: int | None = None):
        """weights, draws: seeds; without one of draws they follow the weights."""
        torch.manual_seed(weights)
        self.way = way
        self.rng = np.random.default_rng(0)
        commands = data.chunks.reshape(-1, 7)
        if way.units == "spread":
            self.middle = commands.mean(0)
            self.half = commands.std(0)
            self.limit = 4.0
        else:
            low, high = np.quantile(commands, [0.01, 0.99], axis=0)
            self.middle = (low + high) / 2
            self.half = (high - low) / 2
            self.limit = 1.0
        given = inputs(data.states, data.places, self.rng)
        self.mean = given.mean(0)
        self.spread = given.std(0)
        numbers = CHUNK * 7
        noisy = numbers + 16 if way.loss != "regression" else 0  # the point and its time
        self.net = nn.Sequential(
            nn.Linear(12 + noisy, 256),
            nn.SiLU(),
            nn.Linear(256, 256),
            nn.SiLU(),
            nn.Linear(256, 256),
            nn.SiLU(),
            nn.Linear(256, numbers),
        )
        if draws is not None:
            torch.manual_seed(1000 + draws)
            self.rng = np.random.default_rng(1000 + draws)

    def given(self, states: np.ndarray, places: np.ndarray) -> Tensor:
        """Normalized inputs (n, 12)."""
        x = (inputs(states, places, self.rng) - self.mean) / self.spread
        return torch.from_numpy(x).float()

    def field(self, given: Tensor, x: Tensor, t: Tensor) -> Tensor:
        angle = torch.pi * t[:, None] * 2.0 ** torch.arange(-1, 7)  # (B, 8)
        out = self.net(torch.cat([given, x, angle.sin(), angle.cos()], 1))
        return to_velocity(out, x, t, SIGMA) if self.way.loss == "data" else out

    def loss(self, given: Tensor, x1: Tensor) -> Tensor:
        if self.way.loss == "regression":
            return nn.functional.smooth_l1_loss(self.net(given), x1)
        x0 = torch.randn_like(x1)
        t = draw_times(len(x1))
        error = self.field(given, path(x0, x1, t, SIGMA), t) - velocity(x0, x1, SIGMA)
        if self.way.loss == "data":
            error = remaining(t, SIGMA)[:, None] * error
        return error.square().mean()

    def fit(self, data: Demonstrations) -> None:
        chunks = ((data.chunks - self.middle) / self.half).clip(-self.limit, self.limit)
        target = torch.from_numpy(chunks).float().flatten(1)
        adam = torch.optim.AdamW(self.net.parameters(), 2e-3)
        rate = torch.optim.lr_scheduler.OneCycleLR(adam, 2e-3, total_steps=self.way.steps)
        for _ in range(self.way.steps):
            i = self.rng.integers(len(data.states), size=BATCH)
            adam.zero_grad()
            self.loss(self.given(data.states[i], data.places[i]), target[i]).backward()
            adam.step()
            rate.step()

    @torch.no_grad()
    def act(self, state: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Commands (CHUNK, 7) for one moment."""
        given = self.given(state[None], place[None])
        noise = torch.randn(1, CHUNK * 7)
        if self.way.loss == "regression":
            x = self.net(given)
        else:
            x = euler(lambda x, t: self.field(given, x, t), noise, self.way.euler)
        return x.view(CHUNK, 7).clamp(-self.limit, self.limit).numpy() * self.half + self.middle


def play(env: EmojiTableTopEnv, student: Student, seed: int) -> dict:
    """One episode: S, S/A, whether the cube was lifted, the number of commands."""
    env.reset(seed=seed)
    scene = env.world.scene
    place = np.array([*scene.cube_xy, scene.cube_yaw, *scene.cards_xy[scene.target]])
    top = 0.0
    ended = False
    while not ended:
        for row in student.act(env.world.proprio(), place)[:EXECUTE]:
            _, terminated, truncated, info = env.apply(row)
            top = max(top, env.world.physics.data.body("cube").xpos[2])
            ended = terminated or truncated
            if ended:
                break
    return {**info, "lifted": bool(top > 0.06), "commands": env.steps}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--episodes", type=int, default=40)
    c = parser.parse_args()
    data = read(c.data)
    env = EmojiTableTopEnv(split="id", image_size=0)
    rows = []
    for way in WAYS:
        student = Student(way, data)
        student.fit(data)
        played = [play(env, student, 10 + n) for n in range(c.episodes)]
        row = asdict(way)
        for key in ("S", "S/A", "lifted"):
            row[key] = sum(episode[key] for episode in played)
        row["commands"] = float(np.mean([episode["commands"] for episode in played]))
        rows.append(row)
        print(row, flush=True)
    env.close()
    command = f"python tools/study_policy.py data/demos --episodes {c.episodes}"
    study = {"command": command, "episodes": c.episodes, "rows": rows, "hardware": hardware()}
    write_json(KEPT, study)


if __name__ == "__main__":
    main()
