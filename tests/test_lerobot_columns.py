"""LeRobot out is LeRobot in, plus columns: names, cameras, other columns and the bytes of videos
stay, for datasets of both layouts.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from aclam.commands.data import main as data_command
from aclam.core import UserError
from aclam.data import lerobot_columns
from aclam.data.declared import Declared
from aclam.data.files import Broken
from aclam.data.lerobot_columns import add_columns, check_same_but
from aclam.data.lerobot_statistics import episode_statistics
from aclam.data.source import open_dataset
from aclam.lam import LatentActionModel
from aclam.train import label_files
from aclam.train.label import label, main
from aclam.train.label_job import LabelConfig

FIXTURES = Path(__file__).parent / "fixtures"
sys.path.insert(0, str(FIXTURES))
from pattern import LENGTHS, action, numbers  # noqa: E402

NEW = ["latent_action_1", "latent_action_1_is_pad"]
NAMES = {"action": ["x", "y", "z"], "observation.state": ["episode", "frame", "c", "d", "e"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    LatentActionModel.from_preset("ac_lam_cpu").save_pretrained(folder / "run" / "model")
    return folder / "run" / "model"


def edit_info(root: Path, **features) -> None:
    file = root / "meta" / "info.json"
    info = json.loads(file.read_text())
    info["features"] |= features
    file.write_text(json.dumps(info, indent=4))


@pytest.fixture(params=("v2.1", "v3.0"))
def root(request, tmp_path) -> Path:
    """A dataset by lerobot, with what recorded ones have besides: rewards, words, a card."""
    root = tmp_path / "set"
    shutil.copytree(FIXTURES / f"lerobot_{request.param.replace('.', '')}", root)
    for file in sorted((root / "data").rglob("*.parquet")):
        table = pq.read_table(file)
        words = pa.array([f"row {n}" for n in range(len(table))])
        rewards = pa.array(np.linspace(0, 1, len(table), dtype=np.float32))
        table = table.append_column("next.reward", rewards).append_column("language", words)
        pq.write_table(table, file, row_group_size=9, compression="zstd")
    reward = {"dtype": "float32", "shape": [1], "names": None}
    edit_info(root, **{"next.reward": reward, "language": reward | {"dtype": "string"}})
    (root / "README.md").write_text("# A card\n")
    (root / ".cache").mkdir()
    (root / ".cache" / "CACHEDIR.TAG").write_text("of a client\n")
    return root


def is_v3(root: Path) -> bool:
    return (root / "meta" / "episodes").is_dir()


def config(root: Path, model: Path, **changes) -> LabelConfig:
    given = {"model": model, "data": root, "lerobot": root.parent / "vla", "piece_frames": 30}
    return LabelConfig(**given | changes)


def videos(root: Path) -> list[Path]:
    return sorted(p.relative_to(root) for p in root.rglob("*.mp4"))


def bytes_of(root: Path) -> dict:
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}


# --- the same, plus columns -----------------------------------------------------------------------


def test_labels_are_added_and_all_else_stays(root, model, capsys):
    before = bytes_of(root)
    found = label(config(root, model))
    vla = root.parent / "vla"
    assert found["lerobot"] == NEW
    assert check_same_but(root, vla, NEW) >= len(videos(root)) + 2  # the tasks and the card
    assert bytes_of(root) == before  # nothing is written into the source
    assert all((vla / name).samefile(root / name) for name in videos(root))
    assert not (vla / ".cache").exists() and not (vla / "labels").exists()

    info = json.loads((vla / "meta" / "info.json").read_text())
    assert {key: info["features"][key]["names"] for key in NAMES} == NAMES
    labels = label_files.read_labels(root.parent / "vla.labels" / "run")
    z = label_files.rows_of(labels, NEW[0], range(len(labels)))
    got = open_dataset(vla, Declared(action=(NEW[0],), camera="wrist"), verify=True)
    assert np.array_equal(np.concatenate([t.action for t in got.trajectories]), np.nan_to_num(z))
    assert numbers(got.trajectories[1].frames[[5]][0]) == (1, 1, 5)
    assert np.array_equal(open_dataset(vla).trajectories[2].action[3], action(2, 3))


def test_statistics_of_the_whole_and_of_episodes(root, model):
    label(config(root, model))
    vla = root.parent / "vla"
    if is_v3(root):
        stats = json.loads((vla / "meta" / "stats.json").read_text())
        assert stats[NEW[0]]["count"] == [sum(LENGTHS) - len(LENGTHS)]
        assert stats[NEW[0]].keys() == stats["action"].keys()
        rows = pq.read_table(vla / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
        of_each = [
            {name: row[f"stats/{NEW[0]}/{name}"] for name in stats["action"]}
            for row in rows.to_pylist()
        ]
    else:
        lines = (vla / "meta" / "episodes_stats.jsonl").read_text().splitlines()
        of_each = [json.loads(line)["stats"][NEW[0]] for line in lines]
        assert of_each[0].keys() == json.loads(lines[0])["stats"]["action"].keys()
    got = open_dataset(vla, Declared(action=(NEW[0],))).trajectories
    assert [e["count"] for e in of_each] == [[n - 1] for n in LENGTHS]
    for found, t in zip(of_each, got, strict=True):
        assert np.allclose(found["mean"], t.action[:-1].mean(0), atol=1e-6)
        assert np.allclose(found["max"], t.action[:-1].max(0), atol=1e-6)


def test_types_of_datasets_row_groups_and_compression_stay(root, model):
    label(config(root, model))
    for file in sorted((root / "data").rglob("*.parquet")):
        old, new = (pq.ParquetFile(base / file.relative_to(root)) for base in (root, root.parent / "vla"))  # fmt: skip
        groups = range(old.metadata.num_row_groups)
        for n in groups:
            one, two = old.metadata.row_group(n), new.metadata.row_group(n)
            assert (one.num_rows, "ZSTD") == (two.num_rows, two.column(0).compression)
        about = json.loads(new.schema_arrow.metadata[b"huggingface"])["info"]["features"]
        assert about[NEW[0]]["_type"] == about["action"]["_type"]
        assert about[NEW[0]]["length"] == new.schema_arrow.field(NEW[0]).type.list_size
        assert about[NEW[1]] == {"dtype": "bool", "_type": "Value"}


def test_labels_that_lie_beside_the_source_are_taken(root, model):
    label(config(root, model, lerobot=None))
    before = bytes_of(root / "labels")
    found = label(config(root, model))
    assert found["lerobot"] == NEW and bytes_of(root / "labels") == before
    assert not (root.parent / "vla.labels").exists()


def test_again_it_is_the_same_and_other_labels_are_refused(root, model):
    label(config(root, model))
    vla = root.parent / "vla"
    before = bytes_of(vla)
    for path in [*vla.glob("data/*/*"), vla / "meta" / "info.json", vla / videos(vla)[0]]:
        path.unlink()  # as if it had been killed
    label(config(root, model))
    assert bytes_of(vla) == before
    with pytest.raises(UserError, match=r"vla holds another dataset \(extra"):
        label(config(root, model, offsets=(2,), out=root.parent / "other"))


def test_it_is_killed_at_any_file(root, monkeypatch):
    """Each file that is not there yet is written by the next call."""
    out, whole = root.parent / "out", root.parent / "whole"
    z = [{"z": np.full((n, 2), n, np.float32)} for n in LENGTHS]
    add_columns(whole, root, z)
    real, left = lerobot_columns.atomic_file, [0]

    def dying(path):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(lerobot_columns, "atomic_file", dying)
    for allowed in range(1, 99):
        left[0] = allowed
        try:
            add_columns(out, root, z)
        except KeyboardInterrupt:
            continue
        break
    assert 2 < allowed < 99
    marks = {Path(".aclam"), Path(".lock")}
    one, two = ({k: v for k, v in bytes_of(f).items() if k not in marks} for f in (whole, out))
    assert one == two


def test_where_no_links_can_be_made_videos_are_copied(root, monkeypatch):
    def refuse(*names):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    add_columns(root.parent / "out", root, [{"z": np.zeros((n, 2), np.float32)} for n in LENGTHS])
    check_same_but(root, root.parent / "out", ["z"])
    name = videos(root)[0]
    assert not (root.parent / "out" / name).samefile(root / name)


def test_a_snapshot_of_the_hub_is_links_and_becomes_files(root):
    blobs = root.parent / "blobs"
    shutil.move(root, blobs)
    for path in sorted(p for p in blobs.rglob("*") if p.is_file()):
        link = root / path.relative_to(blobs)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    out = root.parent / "out"
    add_columns(out, root, [{"z": np.zeros((n, 2), np.float32)} for n in LENGTHS])
    check_same_but(root, out, ["z"])
    assert not any(path.is_symlink() for path in out.rglob("*"))


def test_images_in_the_table_stay_in_the_table(root, model):
    if not is_v3(root):
        pytest.skip("the same code")
    file = root / "data" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(file)
    cells = pa.array([{"bytes": bytes([n]), "path": f"{n}.png"} for n in range(len(table))])
    pq.write_table(table.append_column("observation.images.face", cells), file)
    size = {"dtype": "image", "shape": [48, 64, 3], "names": ["height", "width", "channels"]}
    edit_info(root, **{"observation.images.face": size})
    label(config(root, model))
    check_same_but(root, root.parent / "vla", NEW)


def test_frames_that_a_recipe_skips_are_padding(root):
    z = [{"z": np.ones((n - 2, 1), np.float32), "z_is_pad": np.zeros((n - 2, 1), bool)} for n in LENGTHS]  # fmt: skip
    add_columns(root.parent / "out", root, z, first=2)
    for file in (root.parent / "out" / "data").rglob("*.parquet"):
        rows = pq.read_table(file).to_pydict()
        expected = [frame < 2 for frame in rows["frame_index"]]
        assert rows["z_is_pad"] == expected and rows["z"] == [1.0 - pad for pad in expected]


def test_an_episode_without_a_pair_has_statistics_that_count_nothing():
    columns = {"z": np.zeros((3, 2), np.float32), "z_is_pad": np.ones((3, 1), bool)}
    assert episode_statistics(columns)["z"]["count"] == [0]
    assert episode_statistics(columns)["z"]["mean"] == [0.0, 0.0]


# --- refused, or written anew ---------------------------------------------------------------------


def test_a_column_that_is_there_is_one_line_before_any_work(root, model, outcome):
    label(config(root, model))
    vla = root.parent / "vla"
    words = ["--model", model, "--data", vla, "--lerobot", root.parent / "twice"]
    status, out, err = outcome(main, *words)
    told, refusal = err.splitlines()  # which of two cameras; then what is wrong
    assert (status, out) == (2, "") and "frames are of camera" in told
    assert f"{vla} has the column latent_action_1 already" in refusal and "other offsets" in refusal
    assert not (vla / "labels").exists() and not (root.parent / "twice").exists()
    label(config(vla, model, offsets=(2,), lerobot=root.parent / "twice"))
    two = ["latent_action_2", "latent_action_2_is_pad"]
    check_same_but(root, root.parent / "twice", NEW + two)


@pytest.mark.parametrize("where", ("itself", "inside"))
def test_nothing_is_written_into_the_dataset(root, where):
    out = root if where == "itself" else root / "out"
    before = bytes_of(root)
    with pytest.raises(UserError):
        add_columns(out, root, [{"z": np.zeros((n, 2), np.float32)} for n in LENGTHS])
    assert bytes_of(root) == before


def test_columns_that_do_not_fit_are_one_line(root):
    good = [{"z": np.zeros((n, 2), np.float32)} for n in LENGTHS]
    wide = [*good[:-1], {"z": np.zeros((LENGTHS[-1], 3), np.float32)}]
    long = [*good[:-1], {"z": np.zeros((99, 2), np.float32)}]
    text = [{"z": np.zeros((n, 2), float)} for n in LENGTHS]
    cases = ((wide, "episode 3"), (long, "17 frames"), (text, "float64"), (good[1:], "3 of 4"))
    for columns, words in cases:
        with pytest.raises(UserError, match=words):
            add_columns(root.parent / "out", root, columns)
    assert not (root.parent / "out").exists()


@pytest.mark.parametrize("content", ("[1, 2]", "{", '{"episode_index": 0}'))
def test_broken_statistics_are_one_line_before_any_work(root, content):
    name = "stats.json" if is_v3(root) else "episodes_stats.jsonl"
    if is_v3(root) and "episode" in content:
        pytest.skip("statistics of no column are statistics")
    (root / "meta" / name).write_text(content)
    with pytest.raises(UserError, match=name):
        add_columns(
            root.parent / "out", root, [{"z": np.zeros((n, 2), np.float32)} for n in LENGTHS]
        )
    assert not (root.parent / "out").exists()


def test_where_an_episode_is_left_out_the_rest_is_written_anew(root, model, capsys):
    broken = sorted((root / "data").rglob("*.parquet"))[0]
    table = pq.read_table(broken)
    place = table.schema.get_field_index("frame_index")
    rows = table["frame_index"].to_pylist()
    rows[3] = 77
    pq.write_table(table.set_column(place, "frame_index", pa.array(rows)), broken)
    label(config(root, model, skip_broken=1))
    assert "written again, with one camera" in capsys.readouterr().err
    vla = root.parent / "vla"
    info = json.loads((vla / "meta" / "info.json").read_text())
    assert info["total_episodes"] == len(LENGTHS) - 1
    assert {key: info["features"][key]["names"] for key in NAMES} == NAMES
    assert len(open_dataset(vla, broken=Broken())) == len(LENGTHS) - 1


# --- convert and inspect --------------------------------------------------------------------------


def test_convert_keeps_what_is_v3_and_writes_v3_of_older_ones(root, outcome):
    out = root.parent / "out"
    status, _, err = outcome(data_command, "convert", root, "--to", "lerobot", "--out", out)
    assert status == 0 and "4 episodes, 58 frames" in err
    info = json.loads((out / "meta" / "info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert {key: info["features"][key]["names"] for key in NAMES} == NAMES
    if is_v3(root):
        check_same_but(root, out, [])
        rows = "data/chunk-000/file-000.parquet"
        assert (out / rows).read_bytes() == (root / rows).read_bytes()


@pytest.mark.parametrize("words", (["--fps", 5], ["--camera", "top"], ["--fit", "pad"]))
def test_convert_writes_anew_what_an_option_changes(root, outcome, words):
    out = root.parent / "out"
    words = ["convert", root, "--to", "lerobot", "--out", out, *words]
    assert outcome(data_command, *words)[0] == 0
    info = json.loads((out / "meta" / "info.json").read_text())
    cameras = [key for key, about in info["features"].items() if about["dtype"] == "video"]
    assert cameras == ["observation.images.top"] and "next.reward" not in info["features"]
    assert info["features"]["action"]["names"] == NAMES["action"]


def test_inspect_shows_latents_names_and_widths(root, model, outcome):
    label(config(root, model, lerobot=None))
    label(config(root, model))
    _, out, _ = outcome(data_command, "inspect", root.parent / "vla", "--json")
    report = json.loads(out)
    assert report["latents"] == NEW and report["action"] == {"columns": 3}
    assert report["features"]["action"]["names"] == NAMES["action"]
    assert report["features"]["next.reward"]["shape"] == [1]
    _, out, _ = outcome(data_command, "inspect", root.parent / "vla")
    assert '["x", "y", "z"]' in out and "latent_action_1_is_pad" in out
    _, out, _ = outcome(data_command, "inspect", root, "--json")
    labels = {"offsets": [1], "values": "float32", "done": True}
    assert json.loads(out)["labels"] == {"run": labels} and not json.loads(out)["latents"]


# --- a film ---------------------------------------------------------------------------------------


def test_a_film_is_labelled_beside_itself_and_named_by_inspect(root, model, outcome):
    film = root.parent / "films" / "my film.mp4"
    film.parent.mkdir()
    shutil.copy(root / videos(root)[0], film)
    status, out, err = outcome(main, "--model", model, "--data", film, "--device", "cpu")
    labels = film.parent / "my film.labels" / "run"
    assert status == 0 and str(labels) in out, err
    assert label_files.read_labels(labels).about["done"]
    _, out, _ = outcome(data_command, "inspect", film, "--json")
    report = json.loads(out)
    assert report["path"] == str(film)
    assert report["labels"] == {"run": {"offsets": [1], "values": "float32", "done": True}}
    assert sorted(p.name for p in film.parent.iterdir()) == ["my film.labels", "my film.mp4"]
    assert len(open_dataset(film.parent)) == 1  # the labels are no film


# --- the peer -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_lerobot_itself_reads_and_edits_it(root, model):
    """Set ACLAM_LEROBOT_PYTHON to a python that has lerobot (0.6.1 was used). It reads v3.0 alone,
    and brings what is older to that form itself.
    """
    python = os.environ.get("ACLAM_LEROBOT_PYTHON")
    if not python:
        pytest.skip("ACLAM_LEROBOT_PYTHON is not set")
    label(config(root, model))
    vla = root.parent / "vla"
    if not is_v3(root):
        options = ["--repo-id", "aclam/pattern", "--root", vla, "--push-to-hub", "false"]
        by_peer(python, "-m", "lerobot.scripts.convert_dataset_v21_to_v30", *options)
    print(by_peer(python, FIXTURES / "edit_with_lerobot.py", vla, root.parent / "edited"))


@pytest.mark.slow
def test_a_policy_of_lerobot_learns_latents_beside_actions(root, model):
    """The example, for two steps; as above."""
    python = os.environ.get("ACLAM_LEROBOT_PYTHON")
    if not python or not is_v3(root):
        pytest.skip("ACLAM_LEROBOT_PYTHON is not set, or the layout is older")
    add_columns(root.parent / "small", root, small_latents())
    example = FIXTURES.parents[1] / "examples" / "lerobot_auxiliary.py"
    options = ["--steps", 2, "--held-out", 1, "--seeds", 0, "--chunk", 4, "--latent", "z"]
    out = root.parent / "found.json"
    by_peer(python, example, root.parent / "small", *options, "--json", out)
    found = json.loads(out.read_text())
    assert found["frames"] == {"labeled": sum(LENGTHS[:3]), "all": sum(LENGTHS[:3]), "held_out": 17}
    assert 0 < found["rows"][0]["act"] < 3 and 0 < found["rows"][0]["latent_act"] < 3


def test_the_kept_numbers_of_the_example_say_how_they_were_made():
    file = FIXTURES.parents[1] / "nbs" / "results" / "lerobot_auxiliary.json"
    kept = json.loads(file.read_text())
    assert sum("lerobot_auxiliary.py" in command for command in kept["commands"]) == len(
        kept["runs"]
    )
    for run in kept["runs"]:
        assert [row["seed"] for row in run["rows"]] == run["settings"]["seeds"]
        for name in ("act", "latent_act"):
            errors = [row[name] for row in run["rows"]]
            assert run[name]["mean"] == pytest.approx(np.mean(errors), abs=1e-4)
            assert max(errors) < run["mean_action"]  # both learned something


def small_latents() -> list[dict]:
    draw = np.random.default_rng(0)
    episodes = []
    for n in LENGTHS:
        z = draw.standard_normal((n, 3)).astype(np.float32)
        episodes.append({"z": z, "z_is_pad": np.arange(n)[:, None] == n - 1})
    return episodes


def by_peer(*words) -> str:
    """What a program in the other environment prints."""
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
