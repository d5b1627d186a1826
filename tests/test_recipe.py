"""aclam.data.recipe: 28 recipes that hold together, mixtures, and the plan that compares them with
a disk.
"""

import json
from dataclasses import fields

import numpy as np
import pytest

from aclam.commands import data as command
from aclam.core import UserError
from aclam.data.plan import plan, plan_text, survey
from aclam.data.recipe import (
    RECIPES,
    Part,
    Recipe,
    card,
    load_mixture,
    load_recipe,
    mixture_names,
    read_yaml,
    recipe_names,
)
from aclam.data.rotation import rotation_width
from aclam.data.store import write_store
from aclam.data.trajectory import synthetic_trajectory

PAPER = [n for n in recipe_names() if load_recipe(n).table6_row]
# Table 6 of the paper, in its order
PERCENT = [
    9.70,
    20.00,
    1.97,
    5.47,
    0.76,
    0.12,
    0.31,
    0.11,
    1.61,
    0.22,
    0.63,
    0.57,
    0.45,
    3.47,
    0.01,
    0.04,
    0.73,
    0.37,
    3.46,
    21.46,
    0.94,
    0.89,
    6.95,
    0.63,
    1.99,
    4.77,
    5.56,
    6.82,
]


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_follows_the_schema(name):
    """Every field of the dataclass is in the file: a recipe says what it does not know."""
    recipe, text = load_recipe(name), read_yaml(RECIPES / name / "recipe.yaml")
    assert recipe.name == name and set(text) == {f.name for f in fields(Recipe)}
    assert recipe.licence and recipe.access and recipe.homepage.startswith("https://")
    assert recipe.offset_s == ((0.1, 3.0) if recipe.kind == "robot" else (0.1, 2.0))
    assert recipe.span_s == recipe.offset_s[1]
    for state in filter(None, (recipe.proprio, recipe.lerobot_proprio)):
        assert state.keys and state.columns and isinstance(state.absolute, bool)
        assert (len(state.rotation) or None) == (
            state.rotation_repr and rotation_width(state.rotation_repr)
        )
        assert len(state.position) in (0, 2, 3) and all(
            isinstance(c, int) for c in state.position + state.gripper
        )
    if recipe.table6_row:
        assert recipe.unverified and (recipe.sources or recipe.confidence == "memory")
    if recipe.kind == "robot" and recipe.table6_row:
        assert (
            recipe.proprio
            and recipe.control_hz
            and recipe.commands
            and (recipe.rlds or name == "agibot")
        )
        assert recipe.embodiment not in ("", "hand") and recipe.camera.key


@pytest.mark.parametrize("name", recipe_names())
def test_the_readme_of_a_recipe_is_its_card(name):
    """Write it again with `(RECIPES / name / 'README.md').write_text(card(load_recipe(name)))`."""
    assert (RECIPES / name / "README.md").read_text() == card(load_recipe(name))


def test_there_is_one_recipe_for_each_row_of_the_paper():
    assert [load_recipe(n).table6_row for n in PAPER] == list(range(1, 29))
    assert [load_recipe(n).percent for n in PAPER] == PERCENT
    assert [load_recipe(n).kind for n in PAPER] == ["robot"] * 19 + ["human"] * 9
    assert set(p.name for p in RECIPES.iterdir()) == {*recipe_names(), "mixtures"}


def test_the_mixture_of_the_paper_is_normalised():
    mixture = load_mixture("mixtures/ac_lam.yaml")
    assert [p.weight for p in mixture.parts] == PERCENT and round(sum(PERCENT), 2) == 100.01
    np.testing.assert_allclose(mixture.shares, np.array(PERCENT) / 100.01, rtol=1e-12)
    assert "100.01" in mixture.about and "sampling weights" in mixture.about
    assert mixture_names() == ["ablation", "ac_lam", "cpu"]
    assert load_mixture("cpu").held_out == ("libero",)
    assert [p.recipe for p in load_mixture("ablation").parts] == ["bridge", "ssv2"]


def test_what_seven_common_configurations_have_wrong_is_right_here():
    state = {n: load_recipe(n).proprio for n in PAPER}
    quaternion = ("jaco_play", "fmb")
    assert all(
        state[n].rotation_repr == "quat_xyzw" and state[n].rotation == (3, 4, 5, 6)
        for n in quaternion
    )
    assert (
        state["austin_sirius"].keys[0] == "state_ee"
        and state["austin_sirius"].rotation_repr == "matrix"
    )
    assert [state[n].rotation_repr for n in ("bc_z", "dlr_edan", "droid")] == [
        "rotvec",
        "euler_zxy",
        "euler_xyz",
    ]
    assert state["taco_play"].gripper == (6,) and state["taco_play"].joints[0] == 7


def test_the_stored_matrix_of_sirius_is_read_column_by_column():
    turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn, (0.1, 0.2, 0.3)
    stored = np.concatenate([pose.T.ravel(), np.zeros(8)])
    layout = load_recipe("austin_sirius").proprio.layout(24)
    np.testing.assert_array_equal(stored[list(layout.rotation)].reshape(3, 3), turn)
    np.testing.assert_array_equal(stored[list(layout.position)], pose[:3, 3])


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, words",
    [
        (("kind: robot", "kind: robt"), 'kind is "robot" or "human", not "robt"'),
        (("embodiment:", "embodyment:"), "unknown field embodyment of Recipe"),
        (("rotation_repr: euler_xyz", "rotation_repr: quat_xyzw"), "quat_xyzw has 4 columns"),
        (("rotation_repr: euler_xyz", "rotation_repr: eular_xyz"), 'Did you mean "euler_xyz"?'),
        (("channels: rgb", "channels: grb"), '"grb" is not one of rgb, bgr'),
        (("title: Bridge", "title: Bridge\ntitle: again"), "title is there twice"),
        (("homepage:", "homepage"), "is not YAML"),
        (("licence: CC BY 4.0 (from memory)\n", ""), "needs licence"),
        (("offset_s: [0.1, 3.0]", "offset_s: [0.1, 4.0]"), "offsets must satisfy"),
        (("kind: robot", "kind: human"), "human video has no proprio"),
    ],
)
def test_mistakes_in_a_recipe_are_one_line(tmp_path, change, words):
    text = (RECIPES / "bridge" / "recipe.yaml").read_text()
    assert change[0] in text
    (tmp_path / "own.yaml").write_text(text.replace(*change, 1))
    with pytest.raises(UserError) as e:
        load_recipe(tmp_path / "own.yaml")
    assert words in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    "text, words",
    [
        ("name: x\nparts: []", "has a list of parts"),
        ("name: x\nparts:\n- {recipe: brigde, weight: 1}", 'Did you mean "bridge"?'),
        ("name: x\nparts:\n- {recipe: bridge, weight: 0}", "weight is positive"),
        ("name: x\nparts:\n- {recipe: bridge, wieght: 1}", 'Did you mean "weight"?'),
        ("name: x\nparts:\n- {recipe: bridge, weight: 1, folder: ../up}", "leaves the root"),
        (
            "name: x\nparts:\n- {recipe: bridge, weight: 1}\n- {recipe: bridge, weight: 1}",
            "used twice",
        ),
        (
            "name: x\nparts:\n- {recipe: bridge, weight: 1, max_rotation_deg: none}",
            '"default" or "off"',
        ),
        (
            "name: x\nparts:\n- {recipe: bridge, weight: 1}\nheldout: [rt1]",
            'Did you mean "held_out"?',
        ),
    ],
)
def test_mistakes_in_a_mixture_are_one_line(tmp_path, text, words):
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(UserError) as e:
        load_mixture(tmp_path / "m.yaml")
    assert words in str(e.value) and "\n" not in str(e.value)


def test_own_recipes_lie_beside_the_mixture(tmp_path):
    own = (
        (RECIPES / "bridge" / "recipe.yaml").read_text().replace("name: bridge", "name: kitchen", 1)
    )
    (tmp_path / "kitchen.yaml").write_text(own)
    parts = "- {recipe: kitchen.yaml, weight: 2}\n- {recipe: rt1, weight: 1}"
    (tmp_path / "m.yaml").write_text("name: mine\nparts:\n" + parts)
    mixture = load_mixture(tmp_path / "m.yaml")
    assert [r.name for r in mixture.recipes] == ["kitchen", "rt1"] and mixture.shares == [
        2 / 3,
        1 / 3,
    ]
    assert Part("bridge", 1, max_rotation_deg=20).max_rotation_deg == 20


# --- the plan -------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path):
    write_store(tmp_path / "bridge", [synthetic_trajectory(s, T=20, size=16) for s in range(3)])
    meta = tmp_path / "taco_play" / "port" / "meta"
    meta.mkdir(parents=True)
    (meta / "info.json").write_text(
        json.dumps(
            {"codebase_version": "v2.1", "total_episodes": 4, "total_frames": 600, "fps": 15}
        )
    )
    for version in ("a", "b"):
        (tmp_path / "rt1" / version).mkdir(parents=True)
        info = {"version": "0.1.0", "splits": [{"shardLengths": ["3", "4"]}]}
        (tmp_path / "rt1" / version / "dataset_info.json").write_text(json.dumps(info))
    (tmp_path / "kuka").mkdir()
    return tmp_path


def test_a_glance_counts_each_format(root):
    store, lerobot, rlds = (survey(root / n) for n in ("bridge", "taco_play", "rt1"))
    assert (store.format, store.episodes, store.frames, store.hours) == (
        "aclam-store",
        3,
        60,
        60 / 5 / 3600,
    )
    assert (lerobot.format, lerobot.episodes, lerobot.frames) == ("lerobot v2.1", 4, 600)
    assert (rlds.format, rlds.episodes, rlds.frames) == ("rlds 0.1.0", 14, None)
    assert (
        survey(root / "kuka") is None and survey(root / "nowhere") is None
    )  # an empty folder is missing too


def test_a_plan_adds_up(root):
    mixture = load_mixture("ac_lam")
    report = plan(mixture, root)
    rows = {r["source"]: r for r in report["rows"]}
    assert report["present"] == 3 and len(report["missing"]) == 25 and "kuka" in report["missing"]
    assert report["share_present"] == pytest.approx((9.70 + 5.47 + 0.76) / 100.01)
    assert rows["bridge"]["expected_epochs"] == pytest.approx(
        3 * mixture.draws * 5.47 / 100.01 / 60
    )
    assert rows["rt1"]["expected_epochs"] == pytest.approx(
        3 * mixture.draws * 9.70 / 100.01 / 3786400
    )
    assert rows["bridge"]["counted"] == "disk" and rows["rt1"]["counted"] == "recipe"
    assert rows["droid"]["hours"] == pytest.approx(27044326 / 15 / 3600)
    assert not any("ROOT" in c for r in report["rows"] for c in r["commands"])
    text = plan_text(report)
    assert all(load_recipe(n).title in text or rows[n]["present"] for n in PAPER)


def test_the_plan_of_the_paper_prints_every_row_missing_and_exits_with_3(tmp_path, outcome):
    """Must show 3 of the issue."""
    code, out, err = outcome(command.main, "plan", "mixtures/ac_lam.yaml", "--root", str(tmp_path))
    table = out.split("\n\n")[0].splitlines()[1:]
    assert (code, err, len(table)) == (3, "", 28)
    assert all(
        line.split()[0] == n and "missing" in line for line, n in zip(table, PAPER, strict=True)
    )
    assert (
        "0 of 28 sources present, 0.00 % of the draws" in out
        and "gsutil -m cp -r gs://gresearch" in out
    )
    code, out, err = outcome(command.main, "plan", "ac_lam", "--root", str(tmp_path), "--json")
    assert code == 3 and len(json.loads(out)["missing"]) == 28


def test_a_complete_plan_ends_well(root, tmp_path, capsys, outcome):
    (tmp_path / "m.yaml").write_text(
        "name: m\nparts:\n- {recipe: bridge, weight: 1}\n- {recipe: rt1, weight: 1}"
    )
    command.main(["plan", str(tmp_path / "m.yaml"), "--root", str(root)])  # does not exit
    assert "2 of 2 sources present, 100.00 %" in capsys.readouterr().out
    assert outcome(command.main, "plan", "ac_lma")[0] == 2
