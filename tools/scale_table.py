"""One curve, whatever the world: train every family of models on 1, 2 and 4 processes, with
accumulation 1, 2 and 4.

    python tools/scale_table.py [--out nbs/results/scale.json] [--worlds 1 2 4] [--names ac_lam_cpu
    ...]

Real presets in small (tests/scale_runs.py), 30 float32 steps through the opening of the codes, on
CPU processes. For
each training: the largest relative difference of the loss to one process without accumulation, and
the step, if any, in which a token first chose another code; the difference before that step shows
what rounding alone does.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from scale_runs import FAMILIES, KINDS  # noqa: E402  (found through the line above)

from aclam.core import write_json  # noqa: E402

PARTS = [{}, {"accumulate": 2}, {"accumulate": 4}]
EXACT = [{"accumulate": n, "exact_accumulation": True} for n in (2, 4)]


def jobs(names: list[str]) -> list[dict]:
    return [{"name": n, **part} for n in names for part in PARTS + (EXACT if n != "policy" else [])]


def trained(world: int, todo: list[dict], port: int = 29_871) -> list[dict]:
    """The curves of all jobs on `world` processes."""
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }
    torchrun = str(Path(sys.executable).parent / "torchrun")
    launch = [torchrun, f"--nproc_per_node={world}", f"--master_port={port + world}"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        script = [str(ROOT / "tests" / "scale_runs.py"), str(out), json.dumps(todo)]
        done = subprocess.run(
            [*(launch if world > 1 else [sys.executable]), *script], env=env, stderr=subprocess.PIPE
        )
        if done.returncode:
            raise SystemExit(done.stderr.decode()[-3000:])
        return json.loads(out.read_text())


def compared(run: dict, base: dict) -> dict:
    """A row of the table."""
    away = [abs(a - b) / abs(b) for a, b in zip(run["losses"], base["losses"], strict=True)]
    moved = [
        abs(a - b) > 1e-6 * (abs(b) + 1)
        for a, b in zip(run["perplexity"], base["perplexity"], strict=True)
    ]
    other = moved.index(True) if any(moved) else None  # steps are counted from 0
    what = {k: run[k] for k in ("name", "world", "accumulate", "exact_accumulation") if k in run}
    return {
        **what,
        "largest": max(away),
        "other_code_at": other,
        "before": max(away[:other] if other else away),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument(
        "--names", nargs="+", default=[*FAMILIES, *(f"ac_lam_cpu/{k}" for k in KINDS), "policy"]
    )
    args = parser.parse_args()
    runs = [run for world in args.worlds for run in trained(world, jobs(args.names))]
    base = {
        run["name"]: run
        for run in runs
        if run["world"] == args.worlds[0] and "accumulate" not in run
    }
    rows = [compared(run, base[run["name"]]) for run in runs]
    for row in rows:
        how = f"{row['world']} x {row.get('accumulate', 1)}{' exact' if row.get('exact_accumulation') else ''}"
        other = (
            "" if row["other_code_at"] is None else f"  another code at step {row['other_code_at']}"
        )
        print(
            f"{row['name']:24s} {how:12s} {row['largest']:.1e}  before {row['before']:.1e}{other}"
        )
    if args.out:
        write_json(
            args.out,
            {"command": "python tools/scale_table.py --out nbs/results/scale.json", "rows": rows},
        )


if __name__ == "__main__":
    main()
