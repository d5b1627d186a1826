"""Do trainings differ where nothing has to be seen? Writes rows of trials to a JSON file.

    python tools/study_noise.py data/demos --demonstrations 100 --out runs/noise_without_pictures.json

The policy of tools/study_policy.py: a small network is given where the hand, the cube and the right
card are, the last two with an error of 2 mm. First weights and draws are crossed, and the last rows
have other demonstrations. Each row is written as it is done; the same command goes on.
"""

import argparse
import time
from pathlib import Path

from study_policy import Student, Way, play, read

from aclam.core import read_json, write_json
from aclam.kept import code_commit
from aclam.sim.benchmark import EmojiTableTopEnv
from aclam.studies.policy_noise import NoiseConfig, Training, trainings
from aclam.studies.processes import hardware

WAY = Way("data")


def trial(t: Training, c: argparse.Namespace, env: EmojiTableTopEnv) -> dict:
    """Train and play once: a row as of `aclam.studies.policy_noise`."""
    start = time.monotonic()
    student = Student(
        WAY, read(c.data, t.part * c.demonstrations, c.demonstrations), t.weights, t.draws
    )
    student.fit(read(c.data, t.part * c.demonstrations, c.demonstrations))
    trained = time.monotonic()
    played = [play(env, student, 10 + n) for n in range(c.episodes)]
    marks = {key: "".join("01"[bool(e[key])] for e in played) for key in ("S", "S/A", "lifted")}
    about = {"step": WAY.steps, "kind": "last", "evaluation": 0}
    command = f"python tools/study_noise.py {c.data} --demonstrations {c.demonstrations}"
    return {
        **t._asdict(),
        **about,
        **marks,
        "command": f"{command} --episodes {c.episodes} --only {t.name}",
        "commit": code_commit(),
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(time.monotonic() - trained, 1),
        "trained": {"commit": code_commit(), "seconds": round(trained - start, 1)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--demonstrations", type=int, default=100)
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--weights", type=int, default=2)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--sets", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=9.0, help="begin nothing new after that")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=Path("runs/noise_without_pictures.json"))
    c = parser.parse_args()
    end = time.monotonic() + 60 * c.minutes
    rows = read_json(c.out, dict)["rows"] if c.out.exists() else []
    env = EmojiTableTopEnv(split="id", image_size=0)
    for t in trainings(NoiseConfig(weights=c.weights, draws=c.draws, sets=c.sets)):
        done = any((r["weights"], r["draws"], r["part"]) == t for r in rows)
        if done or (c.only and t.name not in c.only) or time.monotonic() > end:
            continue
        rows.append(trial(t, c, env))
        print(t.name, rows[-1]["S"].count("1"), rows[-1]["lifted"].count("1"), flush=True)
        c.out.parent.mkdir(parents=True, exist_ok=True)
        command = f"python tools/study_noise.py {c.data} --demonstrations {c.demonstrations}"
        write_json(c.out, {"command": command, "hardware": hardware(), "rows": rows})
    env.close()


if __name__ == "__main__":
    main()
