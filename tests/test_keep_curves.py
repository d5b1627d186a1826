"""Curves that are kept as a reference: each run has a name of its own."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import keep_curves  # noqa: E402
import keep_odd  # noqa: E402


def run(folder: Path, preset: str, seed: int) -> Path:
    config = {
        "preset": preset,
        "data": "data",
        "train": {"steps": 200, "seed": seed},
        "model": {"bottleneck": {"continuous_steps": 50}},
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    rows = [{"step": 100, "loss": 0.5}, {"step": 200, "loss": 0.25}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_two_runs_of_a_preset_are_both_kept(tmp_path):
    runs = [run(tmp_path / str(seed), "ac_lam_cpu", seed) for seed in range(2)]
    other = run(tmp_path / "other", "no_ac_cpu", 0)
    kept = keep_curves.named([*runs, other])
    assert list(kept) == ["ac_lam_cpu, seed 0", "ac_lam_cpu, seed 1", "no_ac_cpu"]
    assert len(kept["no_ac_cpu"]["training"]) == 2
    with pytest.raises(SystemExit, match="there is a run of ac_lam_cpu, seed 0 already"):
        keep_curves.named([runs[0], runs[0]])


def test_a_training_is_one_row_and_the_others_stay():
    rows = []
    for preset, seed in (("odd_cpu", 1), ("odd_cpu", 0), ("alam_cpu", 0)):
        row = {"preset": preset, "demonstrations": 0, "seed": seed, "steps": 200}
        rows.append(row | {"measured": {"inverse": 0.5}})
    kept = {"rows": []}
    for row in rows:
        kept = keep_odd.with_row(kept, row)
    assert [(r["preset"], r["seed"]) for r in kept["rows"]] == [
        ("alam_cpu", 0),
        ("odd_cpu", 0),
        ("odd_cpu", 1),
    ]

    again = keep_odd.with_row(kept, rows[0] | {"measured": {"inverse": 0.25}})
    assert len(again["rows"]) == 3 and again["rows"][2]["measured"]["inverse"] == 0.25
    shorter = keep_odd.with_row(kept, rows[0] | {"steps": 100})
    assert len(shorter["rows"]) == 4, "other steps are another training"


def test_a_run_that_is_not_finished_is_no_row(tmp_path):
    folder = run(tmp_path / "run", "odd_cpu", 0)
    with pytest.raises(SystemExit, match="is not finished"):
        keep_odd.row_of(folder, tmp_path, "abc", "")
