"""What tools/keep_policy.py keeps of policies whose seeds were trained in several folders."""

import keep_policy
import pytest

from aclam.core import UserError, write_json


def folder(tmp_path, name: str, first: int, seeds: int, **changes) -> object:
    """A comparison's folder with a policy of each seed."""
    settings = {"steps": 5, "first_seed": first, "seeds": seeds, "out": f"runs/{name}"} | changes
    policies = [
        {"method": "ac_lam", "demonstrations": 20, "seed": seed}
        for seed in range(first, first + seeds)
    ]
    about = {"settings": settings, "command": f"train {name}", "policies": policies}
    write_json(tmp_path / name / "results.json", about)
    return tmp_path / name


def test_the_settings_of_several_folders_name_all_seeds(tmp_path):
    one = folder(tmp_path, "one", 3, 2)
    two = folder(tmp_path, "two", 5, 1)
    kept = keep_policy.comparison([one, two])
    assert kept["settings"] == {"steps": 5, "seeds": [3, 4, 5], "out": ["runs/one", "runs/two"]}
    assert kept["command"] == "train one; train two" and len(kept["policies"]) == 3
    alone = keep_policy.comparison([one])
    assert (alone["settings"]["first_seed"], alone["settings"]["seeds"]) == (3, 2)


def test_folders_of_other_settings_or_the_same_seeds_are_refused(tmp_path):
    one = folder(tmp_path, "one", 3, 2)
    with pytest.raises(UserError, match="steps is 5"):
        keep_policy.comparison([one, folder(tmp_path, "two", 5, 1, steps=6)])
    with pytest.raises(UserError, match="in two of these folders"):
        keep_policy.comparison([one, folder(tmp_path, "three", 4, 1)])
