"""The trained models that the repository keeps: they load, they are what the chapter says, on
episodes made here.
"""

from pathlib import Path

import pytest
import torch

from aclam.core import read_json
from aclam.data.sampling import TripleConfig
from aclam.data.source import open_dataset
from aclam.data.triples import TripleDataset
from aclam.lam import LatentActionModel
from aclam.sim.prepare import prepare_emoji
from aclam.structure.measure import collect_latents, structure_metrics

KEPT = Path(__file__).resolve().parent.parent / "nbs/results/models"
NAMES = (
    *("ac_lam_cpu", "no_ac_cpu", "villa_x_cpu", "univla_cpu", "lapa_cpu"),
    *("odd_cpu", "potential_lam_cpu", "potential_vq_cpu"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_kept_model_labels_and_decodes(name):
    lam = LatentActionModel.from_pretrained(KEPT / name / "model")
    o_i, o_j = torch.rand(2, 2, 3, lam.config.image_size, lam.config.image_size)
    a = lam.encode(o_i, o_j)
    assert (
        len(a.z) == 2 and torch.isfinite(a.z).all() and torch.isfinite(lam.decode(o_i, a.z)).all()
    )
    folders = read_json(KEPT / name / "data.json")["folders"]
    assert [f["folder"] for f in folders] == ["data/emoji", "data/metaworld", "data/robosuite"]


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept") / "emoji"
    prepare_emoji(
        folder, episodes=6, seed=4321, workers=1, progress=False
    )  # a seed that no kept model was trained on
    return open_dataset(folder)


def measured(name: str, store) -> dict:
    lam = LatentActionModel.from_pretrained(KEPT / name / "model")
    data = TripleDataset(
        store.trajectories,
        TripleConfig(seed=1),
        lam.config.image_size,
        quantiles=store.meta["quantiles"],
    )
    return structure_metrics(collect_latents(lam, data, 192))


def test_the_constraint_does_what_the_tables_say(episodes):
    """AC-LAM against its twin, both as shipped, on new episodes: it adds up, and it follows the
    motion.
    """
    ours, twin, potential = (
        measured(n, episodes) for n in ("ac_lam_cpu", "no_ac_cpu", "potential_lam_cpu")
    )
    assert ours["additivity"] < 0.5 * twin["additivity"] and ours["inverse"] < 0.7 * twin["inverse"]
    assert ours["norm_correlation"] > twin["norm_correlation"] + 0.2
    assert max(potential[k] for k in ("additivity", "identity", "inverse")) < 1e-5
    assert all(
        row["reconstruction"] < 0.5 for row in (ours, twin, potential)
    )  # of the error of copying the frame


def test_structure_by_construction_goes_beyond_the_constraint(episodes):
    """The odd and the potential form, both behind a codebook, against AC-LAM, on new episodes."""
    ours = measured("ac_lam_cpu", episodes)
    for name in ("odd_cpu", "potential_vq_cpu"):
        built = measured(name, episodes)
        assert built["additivity"] < 0.7 * ours["additivity"], name
        assert built["inverse"] < 0.5 * ours["inverse"], name
        assert built["reconstruction"] < 1.05 * ours["reconstruction"], name
