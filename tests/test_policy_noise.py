"""The study of the noise between trainings, from demonstrations to rows: what its chapter pretends."""

import pytest
from safetensors.torch import load_file

from aclam.commands import data
from aclam.core import read_json
from aclam.studies.policy_noise import NoiseConfig, study


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_trainings_are_played_and_nothing_is_done_twice(tmp_path):
    demos = tmp_path / "demos"
    data.main(
        ["prepare", "emoji", "--use", "policy", "--episodes", "4", "--size", "96"]
        + ["--workers", "1", "--out", str(demos)]
    )
    config = NoiseConfig(
        data=(str(demos),),
        demonstrations=1,
        weights=1,
        draws=1,
        sets=2,
        steps=12,
        batch_size=2,
        ema=0.5,
        late=1,
        episodes=2,
        evaluations=1,
        out=str(tmp_path / "out"),
    )
    report = study(config)
    rows = report["rows"]
    assert [(row["part"], row["step"], row["kind"]) for row in rows] == [
        (part, step, kind) for part in (0, 1) for step in (12, 11) for kind in ("last", "average")
    ]
    assert all(len(row["S"]) == 2 and row["seconds"] > 0 for row in rows)
    assert read_json(tmp_path / "out" / "results.json", dict)["rows"] == rows

    folder = tmp_path / "out" / "w0_d0_s0"
    last, average = (
        load_file(folder / f"{kind}_000012" / "model.safetensors") for kind in ("last", "average")
    )
    model = load_file(folder / "run" / "model" / "model.safetensors")
    assert all((average[name] == model[name]).all() for name in model)
    assert any((last[name] != average[name]).any() for name in last)

    def nothing(*_):
        raise AssertionError("this was done already")

    assert study(config, nothing, nothing)["rows"] == rows
