"""aclam.data: trajectories, rotations, the store, triples, and the command aclam-data."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import resized_crop

from aclam.commands import data as command
from aclam.core import UserError
from aclam.data import augment, store
from aclam.data.augment import (
    PARAMETERS,
    AugmentConfig,
    apply_augmentation,
    augment_frames,
    augment_triple,
    augmentation_parameters,
)
from aclam.data.cache import cache_frames, resize_frames
from aclam.data.jpeg import decode_jpeg, encode_jpeg
from aclam.data.loading import loader_settings
from aclam.data.quantiles import normalize, streamed_quantiles
from aclam.data.rotation import (
    check_relative_angle,
    check_rotation,
    check_rotation_filter,
    from_rotation,
    leg_angles,
    relative_angle,
    to_rotation,
)
from aclam.data.sampling import EPS, TripleConfig, check_draws, draw_triple, global_indices
from aclam.data.store import finish_store, read_store, start_store, write_shard, write_store
from aclam.data.trajectory import FrameArray, ProprioLayout, Trajectory, synthetic_trajectory
from aclam.data.triples import TripleDataset, collate
from aclam.sim.renderer import load_mujoco

quick = settings(max_examples=150, deadline=None, database=None, derandomize=True)


@pytest.fixture(scope="module")
def episodes():
    robots = [synthetic_trajectory(s, T=20 + 7 * s, size=32) for s in range(5)]
    return robots + [synthetic_trajectory(9, T=40, size=32, fps=12, kind="human")]


@pytest.fixture(scope="module")
def folder(episodes, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "squares"
    write_store(path, episodes, {"camera": "front", "seed": 3}, shard_size=2)
    return path


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 300
    return text


# ---------------------------------------------------------------- trajectories


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(timestamp=[0.0]), "at least two frames"),
        (dict(timestamp=[0, 1, 2, 1.5]), "frame 3 at 1.5 s follows frame 2 at 2 s"),
        (dict(timestamp=[0, 1, 1, 2]), "frame 2 at 1 s follows frame 1 at 1 s"),
        (dict(timestamp=[0, 1, np.nan, 2]), "time stamp of frame 2 is not finite"),
        (dict(timestamp=[0, 1, 2]), "4 frames but 3 time stamps"),
        (dict(proprio=np.zeros((3, 2))), "proprio has shape (3, 2)"),
        (
            dict(proprio=[[0.0], [0.0], [np.inf], [0.0]]),
            "proprio of frame 2, column 0, is not finite",
        ),
        (dict(action=np.zeros(4)), "action has shape (4,)"),
        (dict(kind="dog"), 'not "dog"'),
        (
            dict(proprio=np.zeros((4, 2)), layout=ProprioLayout(position=(0, 1, 2))),
            "names column 2",
        ),
    ],
)
def test_a_trajectory_that_does_not_fit_together_is_refused_by_name(changes, says):
    parts = dict(
        frames=FrameArray(np.zeros((4, 2, 2, 3), np.uint8)),
        timestamp=np.arange(4),
        name="set/000007",
    )
    with pytest.raises(UserError) as error:
        Trajectory(**{**parts, **changes})
    assert one_line(error).startswith("set/000007: ") and says in str(error.value)


def test_layouts_are_declared_and_checked():
    layout = ProprioLayout(
        position=[0, 1, 2], rotation=[3, 4, 5, 6], rotation_repr="quat_wxyz", gripper=[7]
    )
    assert ProprioLayout(**json.loads(json.dumps(layout.to_dict()))) == layout and layout.width == 8
    for wrong in (
        dict(rotation=(0, 1, 2)),
        dict(rotation_repr="rotvec"),
        dict(rotation=(0,), rotation_repr="rotvec"),
    ):
        with pytest.raises(UserError):
            ProprioLayout(**wrong)


def test_synthetic_trajectories_follow_from_their_seed():
    a, b, c = synthetic_trajectory(1), synthetic_trajectory(1), synthetic_trajectory(2)
    assert (a.frames.array == b.frames.array).all() and (a.proprio == b.proprio).all()
    assert (a.frames.array != c.frames.array).any()
    assert len(a) == 27 and a.frames.array.shape == (27, 64, 64, 3) and a.fps == pytest.approx(5)


# ---------------------------------------------------------------- rotations

SPELLINGS = [
    "euler_xyz",
    "euler_ZYX",
    "quat_xyzw",
    "quat_wxyz",
    "rotvec",
    "matrix",
    "rot6d",
    "rot6d_rows",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_names_the_same_rotation(spelling):
    r = Rotation.random(100, rng=np.random.default_rng(0))
    assert (r.inv() * to_rotation(from_rotation(r, spelling), spelling)).magnitude().max() < 1e-6


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("degrees", [0.0, 1e-4, 30.0, 179.0])
def test_relative_angle_of_a_known_turn(spelling, degrees):
    start = Rotation.from_euler("xyz", [0.3, 1.1, -2.0])
    end = start * Rotation.from_rotvec(np.radians(degrees) * np.array([2, -1, 2]) / 3)
    values = from_rotation(Rotation.concatenate([start, end]), spelling)
    layout = ProprioLayout(rotation=range(values.shape[1]), rotation_repr=spelling)
    assert np.degrees(relative_angle(values, layout, 0, 1)) == pytest.approx(degrees, abs=2e-6)
    assert np.degrees(
        relative_angle(values, layout, np.array([1]), np.array([0]))
    ) == pytest.approx(degrees, abs=2e-6)


def test_claims_about_angles_and_the_filter():
    check_relative_angle(500, seed=3)
    assert check_rotation_filter(30) < 2.0


def test_leg_angles_agree_with_the_array_version():
    q = Rotation.random(9, rng=np.random.default_rng(1)).as_quat()
    layout = ProprioLayout(rotation=range(4), rotation_repr="quat_xyzw")
    got = leg_angles([tuple(x) for x in q.tolist()], 2, 5, 7)
    assert got == pytest.approx(
        (relative_angle(q, layout, 2, 5), relative_angle(q, layout, 5, 7)), abs=1e-9
    )


def with_rotation(values, spelling) -> Trajectory:
    layout = ProprioLayout(rotation=range(values.shape[1]), rotation_repr=spelling)
    frames = FrameArray(np.zeros((len(values), 2, 2, 3), np.uint8))
    return Trajectory(frames, np.arange(len(values)) / 5, values, layout, name="arm/3")


@pytest.mark.parametrize("spelling", ["quat_xyzw", "matrix", "rot6d"])
def test_columns_that_are_no_rotation_are_noticed(spelling):
    values = from_rotation(
        Rotation.from_rotvec(np.linspace(0, 1, 12)[:, None] * [0.2, 0.5, 0.1]), spelling
    )
    assert check_rotation(with_rotation(values, spelling))["max_step_deg"] < 20
    values[4] *= 1.2
    with pytest.raises(UserError, match="arm/3: frame 4: .* no " + spelling):
        check_rotation(with_rotation(values, spelling))


def test_a_jump_is_noticed_and_a_wrapped_angle_is_not_a_jump():
    yaw = np.linspace(3.0, 3.3, 10)  # passes pi
    wrapped = np.stack([0 * yaw, 0 * yaw, (yaw + np.pi) % (2 * np.pi) - np.pi], 1)
    assert check_rotation(with_rotation(wrapped, "euler_xyz"))["max_step_deg"] < 3
    with pytest.raises(UserError, match="between frames 4 and 5 the rotation jumps"):
        check_rotation(with_rotation(np.repeat([[0, 0, 0], [0, 0, 1.0]], 5, axis=0), "rotvec"))


# ---------------------------------------------------------------- the store


def test_round_trip(episodes, folder):
    opened = read_store(folder)
    assert len(opened) == len(episodes) and opened.meta["frames"] == sum(map(len, episodes))
    for was, now in zip(episodes, opened.trajectories, strict=True):
        for name in ("name", "scene", "embodiment", "task", "kind", "layout", "success", "info"):
            assert getattr(now, name) == getattr(was, name)
        for name in ("timestamp", "proprio", "action"):
            a, b = getattr(now, name), getattr(was, name)
            assert (a is None and b is None) or (a.dtype == b.dtype and np.array_equal(a, b))
        order = [len(was) - 1, 0, len(was) // 2]
        assert (
            now.frames[order] == np.stack([decode_jpeg(encode_jpeg(f)) for f in was.frames[order]])
        ).all()
    assert opened.meta["camera"] == "front" and opened.meta["fps"] == 5
    assert opened.meta["embodiment"] == ["hand", "square"]


def test_plain_datasets_opens_it(episodes, folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset(
        "parquet",
        data_files=str(folder / "frames" / "*.parquet"),
        split="train",
        cache_dir=str(tmp_path),
    )
    assert rows.num_rows == sum(map(len, episodes))
    assert (
        np.asarray(rows[23]["image"]) == decode_jpeg(encode_jpeg(episodes[1].frames[[3]][0]))
    ).all()
    assert (
        rows[23]["episode_index"] == 1
        and rows[23]["frame_index"] == 3
        and rows[-1]["proprio"] is None
    )


def all_bytes(path: Path) -> dict:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*.parquet"))}


def test_same_bytes_from_any_order_of_parts(episodes, folder, tmp_path):
    recipe = {"seed": 3}
    assert start_store(tmp_path / "s", recipe) == set()
    for part in (2, 0, 1):
        write_shard(
            tmp_path / "s", part, iter(episodes[2 * part : 2 * part + 2]), first_episode=2 * part
        )
    assert start_store(tmp_path / "s", recipe) == {0, 1, 2}
    finish_store(tmp_path / "s")
    assert all_bytes(tmp_path / "s") == all_bytes(folder)


def test_resuming_with_other_settings_or_gaps_is_refused(episodes, tmp_path):
    start_store(tmp_path / "s", {"size": 32})
    with pytest.raises(UserError, match="size was 32 and is 64"):
        start_store(tmp_path / "s", {"size": 64})
    write_shard(tmp_path / "s", 1, episodes[:2], first_episode=2)
    with pytest.raises(UserError, match="part 0 is missing"):
        finish_store(tmp_path / "s")
    write_shard(tmp_path / "s", 0, episodes[:1])
    with pytest.raises(UserError, match="episode 1 is missing"):
        finish_store(tmp_path / "s")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="is not empty"):
        start_store(tmp_path / "other", {})


def test_a_failing_source_leaves_the_old_store(episodes, tmp_path):
    write_store(tmp_path / "s", episodes[:2])
    before = all_bytes(tmp_path / "s")

    def source():
        yield episodes[0]
        raise RuntimeError("the simulator crashed")

    with pytest.raises(RuntimeError):
        write_store(tmp_path / "s", source())
    assert all_bytes(tmp_path / "s") == before and [p.name for p in tmp_path.iterdir()] == ["s"]


def rewrite(path: Path, change) -> None:
    table = change(pq.read_table(path))
    pq.write_table(table, path)


def fix_sizes(path: Path) -> None:
    meta = json.loads((path / "meta.json").read_text())
    for part in meta["parts"]:
        part["bytes"] = (path / part["file"]).stat().st_size
    (path / "meta.json").write_text(json.dumps(meta))


def cut(path: Path) -> None:
    file = path / "frames" / "part-00001.parquet"
    file.write_bytes(file.read_bytes()[:-200])


def cut_unnoticed(path: Path) -> None:
    cut(path)
    fix_sizes(path)


def spoil(path: Path) -> None:
    file = path / "frames" / "part-00000.parquet"
    content = file.read_bytes()
    at = content.index(bytes(read_store(path).trajectories[1].frames.jpeg(5)))
    file.write_bytes(content[:at] + b"\0" * 40 + content[at + 40 :])


def shuffle_rows(path: Path) -> None:
    rewrite(
        path / "frames" / "part-00000.parquet", lambda t: t.take(pa.array(range(t.num_rows))[::-1])
    )
    fix_sizes(path)


def back_in_time(path: Path) -> None:
    def change(t):
        times = t.column("timestamp").to_numpy().copy()
        times[3] = 0.1
        return t.set_column(t.column_names.index("timestamp"), "timestamp", pa.array(times))

    rewrite(path / "frames" / "part-00000.parquet", change)
    fix_sizes(path)


def no_column(path: Path) -> None:
    rewrite(path / "frames" / "part-00000.parquet", lambda t: t.drop_columns(["proprio"]))
    fix_sizes(path)


@pytest.mark.parametrize(
    "spoiler, says",
    [
        (cut, "frames/part-00001.parquet is not a whole Parquet file"),
        (cut_unnoticed, "frames/part-00001.parquet is not a whole Parquet file"),
        (spoil, "synthetic/000001: the image of frame 5 cannot be read"),
        (shuffle_rows, "synthetic/000000: the frame table of part 0 does not agree"),
        (back_in_time, "synthetic/000000: time stamps must increase, but frame 3"),
        (no_column, "part-00000.parquet"),
        (lambda p: (p / "episodes" / "part-00001.parquet").unlink(), "no such file: "),
        (lambda p: (p / "frames" / "part-00002.parquet").unlink(), "no such file: "),
        (lambda p: (p / "meta.json").unlink(), "not a finished store"),
        (lambda p: (p / "meta.json").write_text("{"), "meta.json is not JSON"),
        (lambda p: (p / "meta.json").write_text("[]"), "does not describe a store"),
    ],
)
def test_a_broken_store_ends_in_one_line(episodes, tmp_path, spoiler, says):
    write_store(tmp_path / "s", episodes, shard_size=2)
    spoiler(tmp_path / "s")
    with pytest.raises(UserError) as error:
        for t in read_store(tmp_path / "s").trajectories:
            t.frames[range(len(t))]
    assert says in one_line(error)


def test_checksums_notice_a_flipped_bit(episodes, tmp_path):
    write_store(tmp_path / "s", episodes[:2])
    read_store(tmp_path / "s", verify=True)
    file = tmp_path / "s" / "frames" / "part-00000.parquet"
    content = bytearray(file.read_bytes())
    content[content.index(encode_jpeg(episodes[0].frames[[3]][0])) + 900] ^= 1
    file.write_bytes(bytes(content))
    read_store(tmp_path / "s")
    with pytest.raises(UserError, match="its checksum differs"):
        read_store(tmp_path / "s", verify=True)


def test_a_frame_of_another_size_is_noticed(episodes, tmp_path):
    odd = np.concatenate([episodes[0].frames.array[:4]] * 2, axis=2)
    with pytest.raises(UserError, match="one size is needed"):
        write_store(tmp_path / "s", [episodes[0], Trajectory(FrameArray(odd), np.arange(4) / 5)])
    with pytest.raises(UserError, match="no such folder"):
        read_store(tmp_path / "nowhere")


@quick
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60), st.integers(1, 9))
def test_streamed_quantiles_are_quantiles(values, pieces):
    column = np.array(values, np.float64)[:, None]
    got = streamed_quantiles(
        lambda: [c for c in np.array_split(column, pieces) if len(c)], (0.01, 0.5, 0.99)
    )
    exact = np.quantile(column, [0.01, 0.5, 0.99], axis=0, method="inverted_cdf")
    assert np.allclose(got, exact, atol=1e-9 * max(np.ptp(column), 1e-3), rtol=1e-12)


def test_open_files_and_remembered_row_groups_are_bounded(episodes, tmp_path):
    write_store(tmp_path / "s", episodes, shard_size=1)
    opened = read_store(tmp_path / "s")
    reader = store.ImageReader(tmp_path / "s", open_files=2, row_groups=3)
    descriptors = set()
    for n in range(60):
        frames = opened.trajectories[n % 6].frames
        frames.reader = reader
        frames[[n % 20]]
        assert len(reader.files.items) <= 2 and len(reader.groups.items) <= 3
        descriptors.add(len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0)
    assert max(descriptors) - min(descriptors) <= 2


def test_the_cache_is_used_again_and_never_stale(episodes, tmp_path):
    write_store(tmp_path / "s", episodes)
    first = cache_frames(read_store(tmp_path / "s"), 16)
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "s" / "cache").iterdir()}
    again = cache_frames(read_store(tmp_path / "s"), 16)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "s" / "cache").iterdir()} == files and len(
        files
    ) == 1
    assert (again[2].frames[[3]] == first[2].frames[[3]]).all() and again[2].frames[[3]].shape == (
        1,
        16,
        16,
        3,
    )
    assert len(pickle.dumps(again)) < 100_000  # the pixels stay in the file
    shifted = [replace(t, frames=FrameArray(255 - t.frames.array)) for t in episodes]
    write_store(tmp_path / "t", shifted)
    other = cache_frames(read_store(tmp_path / "t"), 16, folder=tmp_path / "s" / "cache")
    assert len(list((tmp_path / "s" / "cache").iterdir())) == 2
    assert (other[2].frames[[3]] != first[2].frames[[3]]).any()


def test_writing_and_inspecting_import_no_torch():
    code = "import aclam.commands.data, sys; sys.exit(bool({'torch', 'datasets'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


WITHOUT = """
import importlib, sys
for name in "av datasets fastai simplejpeg mujoco gymnasium xgboost emoji transformers".split():
    sys.modules[name] = None  # as if it were not installed
for module in sys.argv[1:]:
    importlib.import_module(module)
import numpy as np
from aclam.core import UserError
from aclam.data.video import VideoFile
from aclam.policy.rollout import write_video
frames = [np.zeros((4, 4, 3), np.uint8)]
for work in (lambda: VideoFile("film.mp4"), lambda: write_video("film.mp4", frames, 5)):
    try: work()
    except UserError as e: print(e)
"""
MODULES = [
    "aclam.train.lam",
    "aclam.train.policy",
    "aclam.policy.rollout",
    "aclam.studies.demo",
    "aclam.train.label",
    "aclam.train.grounding",
    "aclam.data.lerobot_reader",
    "aclam.data.lerobot_writer",
    "aclam.data.rlds",
]


def test_training_needs_no_library_for_video_simulators_or_language(tmp_path):
    import aclam.structure as structure

    modules = [f"aclam.structure.{p.stem}" for p in Path(structure.__path__[0]).glob("[a-z]*.py")]
    words = [sys.executable, "-c", WITHOUT, *MODULES, *modules]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-600:]
    missing = 'needs the library av, which is not installed: pip install "aclam[video]"'
    assert done.stdout.splitlines() == [
        f"a video file {missing}",
        f"a video {missing}",
    ] and not list(tmp_path.iterdir())


# ---------------------------------------------------------------- triples

cameras = st.lists(st.floats(0.01, 0.7), min_size=2, max_size=60).map(
    lambda steps: np.cumsum([0.0, *steps]).tolist()
)
configs = st.builds(
    TripleConfig,
    rule=st.sampled_from(["span", "offsets"]),
    order=st.sampled_from(["unordered", "ordered"]),
    offset_s=st.tuples(st.floats(0.05, 0.5), st.floats(0.6, 3.0)),
    span_s=st.floats(0.5, 4.0),
)


@quick
@given(cameras, configs, st.sampled_from(["robot", "human"]), st.integers(0, 10**6))
def test_every_draw_keeps_the_bounds(t, config, kind, seed):
    low, high, span = config.bounds(kind)
    for n in range(5):
        i, j, k, clamped = draw_triple(t, kind, config, np.random.default_rng([seed, n]))
        assert (i, j, k, clamped) == draw_triple(t, kind, config, np.random.default_rng([seed, n]))
        assert len({i, j, k}) == 3 and min(i, j, k) >= 0 and max(i, j, k) < len(t)
        assert config.order == "unordered" or i < j < k
        times = sorted((t[i], t[j], t[k]))
        if not clamped and config.rule == "span":
            assert times[2] - times[0] <= min(high, span) + 2 * EPS
            assert min(np.diff(times)) >= low - 2 * EPS
        if not clamped and config.rule == "offsets":
            for leg in (abs(t[j] - t[i]), abs(t[k] - t[j])):
                assert low - 2 * EPS <= leg <= high + 2 * EPS


@pytest.mark.parametrize("rule", ["span", "offsets"])
@pytest.mark.parametrize("fps, seconds, uneven", [(3, 12, False), (5, 5.4, True), (30, 4, False)])
def test_orders(rule, fps, seconds, uneven):
    assert check_draws(TripleConfig(rule=rule), fps, seconds, uneven, n=300)["orders"] == 6
    assert (
        check_draws(TripleConfig(rule=rule, order="ordered"), fps, seconds, uneven, "human", n=100)[
            "orders"
        ]
        == 1
    )


@pytest.mark.parametrize("rule", ["span", "offsets"])
def test_long_videos_hardly_clamp_and_offsets_fill_their_range(rule):
    config, t = TripleConfig(rule=rule, order="ordered"), [n / 30 for n in range(900)]
    draws = [draw_triple(t, "robot", config, np.random.default_rng(n)) for n in range(1500)]
    assert sum(d.clamped for d in draws) < 15
    reach = np.array([t[d.k] - t[d.i] for d in draws])
    assert (
        reach.max() > (2.9 if rule == "span" else 5)
        and reach.max() <= (3 if rule == "span" else 6) + EPS
    )
    first = np.array([t[d.j] - t[d.i] for d in draws])
    assert first.min() < 0.2 and first.max() > 2.7


def test_two_frames_give_triples_with_a_repeat():
    for order in ("ordered", "unordered"):
        config, rng = TripleConfig(order=order), np.random.default_rng(0)
        seen = {draw_triple([0.0, 0.5], "robot", config, rng)[:3] for _ in range(200)}
        assert all(len(set(s)) == 2 for s in seen)
        assert seen == (
            {(0, 0, 1), (0, 1, 1)}
            if order == "ordered"
            else {(0, 0, 1), (0, 1, 1), (0, 1, 0), (1, 1, 0), (1, 0, 0), (1, 0, 1)}
        )


def test_repeats_occur_as_often_as_asked():
    t, config = [n / 5 for n in range(27)], TripleConfig(p_repeat=0.25)
    draws = [draw_triple(t, "robot", config, np.random.default_rng(n)) for n in range(2000)]
    assert 0.21 < np.mean([len({d.i, d.j, d.k}) == 2 for d in draws]) < 0.29


@pytest.mark.parametrize(
    "wrong",
    [
        dict(rule="x"),
        dict(order="x"),
        dict(offset_s=(2, 1)),
        dict(p_repeat=2),
        dict(max_tries=0),
        dict(span_s=0),
        dict(human_offset_s=(0, 1)),
        dict(seed=-1),
        dict(max_rotation_deg=-5),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(UserError) as error:
        TripleConfig(**wrong)
    one_line(error)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[n].nan_to_num(), b[n].nan_to_num()) for n in a
    )


@pytest.fixture(scope="module")
def dataset(episodes):
    return TripleDataset(episodes, TripleConfig(seed=5), 16, augment=AugmentConfig(), length=40)


def test_items_are_a_pure_function_of_seed_epoch_and_index(episodes, dataset):
    again = TripleDataset(episodes, TripleConfig(seed=5), 16, augment=AugmentConfig(), length=40)
    again[7]
    assert same(dataset[31], again[31]) and same(
        collate([again[n] for n in range(6)]), dataset.batch(range(6))
    )
    again.set_epoch(1)
    assert not same(dataset.batch(range(6)), again.batch(range(6)))
    again.set_epoch(0)
    assert same(dataset.batch(range(6)), again.batch(range(6)))
    other = TripleDataset(episodes, TripleConfig(seed=6), 16, augment=AugmentConfig(), length=40)
    assert not same(dataset.batch(range(6)), other.batch(range(6)))
    with pytest.raises(IndexError):
        dataset[40]


def test_what_an_item_holds(episodes, dataset):
    plain = TripleDataset(episodes, TripleConfig(seed=5), 16, length=40)
    batch = plain.batch(range(40))
    assert batch["frames"].shape == (40, 3, 3, 16, 16) and batch["frames"].dtype == torch.uint8
    for row in range(40):
        e, *frames = batch["index"][row].tolist()
        t = episodes[e]
        assert batch["times"][row].tolist() == t.timestamp[frames].tolist()
        assert torch.equal(batch["frames"][row], resize_frames(t.frames[frames], 16))
        assert bool(batch["has_proprio"][row]) == (t.kind == "robot")
        assert plain.embodiments[int(batch["embodiment"][row])] == t.embodiment
        if t.proprio is None:
            assert not batch["proprio"][row].any() and torch.isnan(batch["angle"][row])
        else:
            q = plain.quantiles["square"]["proprio"]
            assert np.allclose(
                batch["proprio"][row], normalize(t.proprio[frames], q["q01"], q["q99"])
            )
            legs = relative_angle(t.proprio, t.layout, frames[0], frames[1]) + relative_angle(
                t.proprio, t.layout, frames[1], frames[2]
            )
            assert float(batch["angle"][row]) == pytest.approx(float(legs), abs=1e-6)
            assert bool(batch["kept"][row]) == (np.degrees(legs) <= 30)


def test_cached_frames_give_the_same_batches(episodes, folder):
    opened = read_store(folder)
    slow = TripleDataset(
        opened.trajectories, TripleConfig(), 16, quantiles=opened.meta["quantiles"]
    )
    fast = TripleDataset(
        cache_frames(opened, 16), TripleConfig(), 16, quantiles=opened.meta["quantiles"]
    )
    assert fast.in_memory and not slow.in_memory
    assert same(slow.batch(range(20)), fast.batch(range(20)))
    held_out = TripleDataset(cache_frames(opened, 16)[3:], TripleConfig(), 16)
    assert same(
        held_out.batch(range(9)),
        TripleDataset(opened.trajectories[3:], TripleConfig(), 16).batch(range(9)),
    )


def test_forked_workers_give_the_same_batches(folder):
    opened = read_store(folder)
    data = TripleDataset(opened.trajectories, TripleConfig(), 16, length=24)
    data.batch([0])  # the parent has files open
    loader = DataLoader(
        data, batch_size=6, num_workers=2, collate_fn=collate, multiprocessing_context="fork"
    )
    for n, batch in enumerate(loader):
        assert same(batch, data.batch(range(6 * n, 6 * n + 6)))


@pytest.mark.slow
def test_spawned_workers_give_the_same_batches(folder):
    data = TripleDataset(cache_frames(read_store(folder), 16), TripleConfig(), 16, length=24)
    loader = DataLoader(
        data, batch_size=6, num_workers=2, collate_fn=collate, multiprocessing_context="spawn"
    )
    for n, batch in enumerate(loader):
        assert same(batch, data.batch(range(6 * n, 6 * n + 6)))


@pytest.mark.parametrize("limit", [5.0, 30.0, None])
def test_filter_counts_agree_with_the_items(episodes, limit):
    data = TripleDataset(episodes, TripleConfig(max_rotation_deg=limit, max_tries=4), 16)
    counts, batch = data.filter_counts(60, start=10), data.batch(range(10, 70))
    turning = ~torch.isnan(batch["angle"])
    assert counts["no_rotation"] == int((~turning).sum()) and counts["dropped"] == int(
        batch["dropped"].sum()
    )
    assert counts["kept"] == int((batch["kept"] & turning).sum())
    assert counts["kept"] + counts["exhausted"] + counts["no_rotation"] == counts["items"] == 60
    over = torch.rad2deg(batch["angle"][turning]) > (limit or 1e9)
    assert torch.equal(over, ~batch["kept"][turning]) and (limit is None or counts["dropped"] > 0)


def test_weights_choose_trajectories(episodes):
    data = TripleDataset(episodes, TripleConfig(), 16, weights=[0, 0, 1, 0, 0, 3])
    chosen = np.array([data.draw(n).trajectory for n in range(400)])
    assert set(chosen) == {2, 5} and 0.66 < (chosen == 5).mean() < 0.84
    for wrong in ([1], [0] * 6, [-1] * 6):
        with pytest.raises(UserError):
            TripleDataset(episodes, TripleConfig(), 16, weights=wrong)


def test_datasets_of_different_widths_share_a_batch(episodes):
    narrow = replace(
        episodes[0],
        proprio=episodes[0].proprio[:, :3],
        layout=ProprioLayout(position=(0, 1, 2)),
        embodiment="gantry",
        action=None,
    )
    batch = TripleDataset([narrow, episodes[1]], TripleConfig(), 16).batch(range(30))
    first = batch["index"][:, 0] == 0
    assert batch["proprio"].shape == (30, 3, 7) and not batch["proprio"][first][..., 3:].any()
    assert (
        not batch["has_action"][first].any()
        and batch["has_action"][~first].all()
        and 0 < first.sum() < 30
    )
    with pytest.raises(UserError, match="not among"):
        TripleDataset([narrow], TripleConfig(), 16, embodiments=["widowx"])


def test_augmentation_is_shared_by_the_three_frames(episodes):
    still = resize_frames(episodes[0].frames[[4, 4, 4]], 24)
    for seed in range(10):
        lit = augment_triple(still, AugmentConfig(), np.random.default_rng(seed))
        assert (
            (lit == lit[:1]).all()
            and lit.shape == still.shape
            and lit.dtype == torch.uint8
            and (lit != still).any()
        )
    off = AugmentConfig(0, 0, 0, 0, crop=1.0)
    assert torch.equal(augment_triple(still, off, np.random.default_rng(0)), still)


def by_torchvision(
    frames: torch.Tensor, config: AugmentConfig, rng: np.random.Generator
) -> torch.Tensor:
    """One triple as it was augmented before there were batches: torchvision's crop, float32 sums, a
    matrix of its own.
    """
    *u, side, top, left = rng.random(7).tolist()
    height, width = frames.shape[-2:]
    side = config.crop + (1 - config.crop) * side
    rows, columns = max(round(side * height), 1), max(round(side * width), 1)
    place = round(top * (height - rows)), round(left * (width - columns))
    x = resized_crop(frames, *place, rows, columns, [height, width], antialias=True).float()
    strengths = config.brightness, config.contrast, config.saturation, 2 * np.pi * config.hue
    brightness, contrast, saturation, turn = (
        s * (2 * v - 1) for s, v in zip(strengths, u, strict=True)
    )
    c, s = np.cos(turn), np.sin(turn) / np.sqrt(3)
    same, before, after = c + (1 - c) / 3, (1 - c) / 3 - s, (1 - c) / 3 + s
    hue = torch.tensor(
        [[same, before, after], [after, same, before], [before, after, same]], dtype=torch.float32
    )
    luma = torch.tensor(augment.LUMA)
    blend = (1 + saturation) * torch.eye(3) - saturation * luma.expand(3, 3)
    matrix = (1 + brightness) * ((1 + contrast) * blend @ hue)
    gray = float((x.mean((0, 2, 3)) * luma).sum())
    y = sum(x[:, n : n + 1] * matrix[:, n].view(1, 3, 1, 1) for n in range(3))
    return (y - (1 + brightness) * contrast * gray).round().clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("size", [16, 64, 97])
def test_augmentation_equals_the_old_one_triple_by_triple(size):
    """At most one step of 255 apart, in a few of a million bytes: the old sums were rounded in
    float32.
    """
    rng = np.random.default_rng(size)
    frames = torch.from_numpy(rng.integers(0, 256, (40, 3, 3, size, size), dtype=np.uint8))
    numbers = augmentation_parameters(
        AugmentConfig(), size, size, seed=3, epoch=1, indices=range(100, 140)
    )
    ours = augment_frames(frames, numbers)
    streams = [np.random.default_rng([3, 1, n, 1]) for n in range(100, 140)]
    theirs = torch.stack(
        [by_torchvision(f, AugmentConfig(), s) for f, s in zip(frames, streams, strict=True)]
    )
    off = (ours.int() - theirs.int()).abs()
    assert off.max() <= 1 and (off > 0).double().mean() < 5e-5, (off.max(), (off > 0).sum())


def test_augmentation_is_the_same_for_any_batch_device_and_compiler():
    assert augment.check_augmentation(40, 9, seed=2) == 9 * 9 * 40 * 40
    for height, width in ((1, 1), (2, 3), (17, 31), (120, 64)):
        augment.check_crop(height, width)
    frames = torch.randint(0, 256, (3, 3, 3, 20, 20), dtype=torch.uint8).permute(
        0, 1, 2, 4, 3
    )  # any strides
    batch = {
        "frames": frames,
        "augment": augmentation_parameters(AugmentConfig(), 20, 20, 0, 0, range(3)),
        "x": 1,
    }
    compiled = torch.compile(apply_augmentation, backend="aot_eager", fullgraph=True)(batch)
    assert torch.equal(compiled["frames"], apply_augmentation(batch)["frames"])
    assert set(compiled) == {"frames", "x"} and apply_augmentation({"x": 1}) == {"x": 1}
    meta = apply_augmentation({"frames": frames.to("meta"), "augment": batch["augment"].to("meta")})
    assert meta["frames"].shape == frames.shape  # no number was looked at


def test_a_dataset_leaves_augmentation_to_whoever_takes_the_batch(episodes, dataset):
    later = TripleDataset(
        episodes, TripleConfig(seed=5), 16, AugmentConfig(), length=40, defer_augmentation=True
    )
    plain = TripleDataset(episodes, TripleConfig(seed=5), 16, length=40)
    batch = later.batch(range(9, 15))
    assert batch["augment"].shape == (6, PARAMETERS)
    assert torch.equal(batch["frames"], plain.batch(range(9, 15))["frames"])
    assert same(apply_augmentation(batch), dataset.batch(range(9, 15)))
    assert same(collate([later[n] for n in range(9, 15)]), batch)
    ranks = [later.batch([n])["augment"][0] for n in range(9, 15)]  # any division among ranks
    assert torch.equal(torch.stack(ranks), batch["augment"])
    later.set_epoch(1)
    assert not torch.equal(later.batch([9])["augment"], batch["augment"][:1])


@quick
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 200), st.integers(0, 40))
def test_ranks_share_the_work_without_overlap(world, batch, length, resume):
    ranks = [list(global_indices(length, batch, r, world)) for r in range(world)]
    single = list(global_indices(length, batch * world))
    assert len({len(r) for r in ranks}) == 1 and len(ranks[0]) == len(single) == length // (
        batch * world
    )
    for step, whole in enumerate(single):
        parts = [set(r[step]) for r in ranks]
        assert set.union(*parts) == set(whole) and sum(map(len, parts)) == batch * world
    steps = min(resume, len(single))
    for r in range(world):
        assert (
            list(global_indices(length, batch, r, world, start=steps * batch * world))
            == ranks[r][steps:]
        )


# ---------------------------------------------------------------- loading


@pytest.mark.parametrize(
    "device, cores, ranks, in_memory, workers",
    [
        ("cuda", 208, 8, False, 16),
        ("cuda", 16, 1, False, 15),
        ("cuda", 4, 8, False, 1),
        ("cuda:3", 16, 4, True, 2),
        ("cpu", 8, 1, True, 0),
        ("cpu", 8, 1, False, 2),
        ("cpu", 1, 1, False, 0),
        ("cpu", 2, 2, False, 0),
    ],
)
def test_workers_follow_from_the_machine(device, cores, ranks, in_memory, workers):
    settings = loader_settings(
        -1, device, cores, ranks, in_memory=in_memory, prefetch=3, timeout_s=7
    )
    assert settings["num_workers"] == workers and settings["pin_memory"] == device.startswith(
        "cuda"
    )
    assert ("prefetch_factor" in settings) == (workers > 0)


def test_ranks_of_a_node_share_its_cores(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert loader_settings(device="cuda", cores=16)["num_workers"] == 3
    assert loader_settings(5, "cuda", cores=16)["num_workers"] == 5  # who asks gets it
    for wrong in (dict(num_workers=-2), dict(prefetch=0), dict(timeout_s=-1)):
        with pytest.raises(UserError, match="at least -1, 1 and 0"):
            loader_settings(**wrong)


WORKERS = """
import subprocess, sys, time
import torch
from torch.utils.data import DataLoader
from aclam.data.loading import loader_settings
from aclam.data.store import read_store
from aclam.data.triples import TripleConfig, TripleDataset

class Batches(torch.utils.data.Dataset):
    def __init__(self, data): self.data = data
    def __len__(self): return 50
    def __getitem__(self, n): return {**self.data.batch([n]), "threads": torch.get_num_threads()}

if __name__ == "__main__":
    data = TripleDataset(read_store(sys.argv[1]).trajectories, TripleConfig(), 32)
    for device in ("cuda", "cpu"):
        settings = {**loader_settings(1, device), "pin_memory": False}
        batches = iter(DataLoader(Batches(data), batch_size=None, **settings))
        first, (worker,) = next(batches), batches._workers
        assert torch.equal(first["frames"], data.batch([0])["frames"]) and first["threads"] == 1
        for name in ("TERM", "USR1"):
            subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
        time.sleep(0.2)
        rest = [next(batches) for _ in range(20)]  # it goes on
        assert torch.equal(rest[-1]["frames"], data.batch([20])["frames"])
        worker.terminate()
        worker.join(10)
        context = settings["multiprocessing_context"]
        print(worker.exitcode, context and context.get_start_method())
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="signals of Linux")
def test_a_worker_has_one_thread_and_ends_when_its_run_says_so(folder, tmp_path):
    (tmp_path / "run.py").write_text(WORKERS)  # a file: workers that are not forked import it
    done = subprocess.run(
        [sys.executable, tmp_path / "run.py", folder], capture_output=True, text=True, timeout=200
    )
    assert done.stdout.splitlines() == ["0 forkserver", "0 None"], done.stderr[-800:]


# ---------------------------------------------------------------- aclam-data


def test_inspect(outcome, folder, episodes):
    status, out, err = outcome(command.main, "inspect", folder, "--json")
    answer = json.loads(out)
    assert (status, err) == (0, "") and answer["lengths"] == [len(t) for t in episodes]
    assert (
        answer["format"] == "aclam-store"
        and answer["episodes"] == 6
        and answer["frames"] == sum(answer["lengths"])
    )
    assert (
        answer["fps"] == 5
        and answer["cameras"] == ["front"]
        and answer["embodiment"] == "hand, square"
    )
    assert answer["proprio"]["columns"] == 7 and answer["proprio"]["rotation_repr"] == "rotvec"
    status, out, err = outcome(command.main, "inspect", folder)
    assert status == 0 and "aclam-store" in out


def test_frame_is_exact(outcome, folder, tmp_path):
    image = pytest.importorskip("PIL.Image")
    status, out, err = outcome(
        command.main, "frame", folder, "--episode", 4, "--index", 11, "--out", tmp_path / "f.png"
    )
    assert (status, out) == (0, "")
    assert (
        np.asarray(image.open(tmp_path / "f.png"))
        == read_store(folder).trajectories[4].frames[[11]][0]
    ).all()


def test_triples_say_what_training_draws(outcome, folder, tmp_path):
    picture = tmp_path / "t.png"
    words = ["triples", folder, "--n", 5, "--seed", 2, "--json", "--png", picture]
    status, out, err = outcome(command.main, *words)
    rows, opened = json.loads(out)["triples"], read_store(folder)
    data = TripleDataset(opened.trajectories, TripleConfig(seed=2), 32)
    for n, row in enumerate(rows):
        d = data.draw(n)
        assert (
            row["frames"] == [d.i, d.j, d.k]
            and row["trajectory"] == opened.trajectories[d.trajectory].name
        )
        assert (row["angle_deg"] is None) == (opened.trajectories[d.trajectory].kind == "human")
    assert picture.read_bytes()[:4] == b"\x89PNG" and status == 0


@pytest.mark.parametrize(
    "words, says",
    [
        (["inspect", "nowhere"], "no such dataset"),
        (["inspect"], ""),
        (
            ["frame", "STORE", "--episode", 6, "--index", 0, "--out", "x.png"],
            "there is no episode 6",
        ),
        (
            ["frame", "STORE", "--episode", 0, "--index", 99, "--out", "x.png"],
            "there is no frame 99",
        ),
        (
            ["frame", "STORE", "--episode", 0, "--index", 0, "--camera", "wrist", "--out", "x.png"],
            'no camera "wrist"',
        ),
        (["triples", "STORE", "--n", -1], "--n: int >= 1 expected, found -1"),
        (["triples", "STORE", "--seed", -1], "seed is 0 or more, not -1"),
        (["triples", "STORE", "--max-rotation", 3], "--max-rotation-deg"),
        (["prepare", "emoji", "--out", "x", "--quality", 0], "--quality"),
        (["prepare", "emojis", "--out", "x"], ""),
        (["plot", "STORE"], "unknown subcommand"),
    ],
)
def test_wrong_command_lines_end_in_one_line(outcome, folder, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    status, out, err = outcome(command.main, *[folder if w == "STORE" else w for w in words])
    assert (
        (status, out) == (2, "")
        and err.count("\n") == 1
        and err.startswith("aclam-data")
        and says in err
    )
    assert not list(tmp_path.iterdir())


def test_prepare_without_the_simulator_says_what_to_install(outcome, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)  # importing it now fails
    # what an earlier test imported is remembered
    monkeypatch.setattr("aclam.sim.prepare.load_mujoco", load_mujoco.__wrapped__)
    status, out, err = outcome(
        command.main, "prepare", "emoji", "--episodes", 1, "--out", tmp_path / "e"
    )
    assert status == 2 and 'pip install "aclam[sim]"' in err and err.count("\n") == 1


@pytest.mark.parametrize("words", [[], *[[name] for name in command.SUBCOMMANDS]])
def test_help(outcome, words):
    status, out, err = outcome(command.main, *words, "--help")
    assert status == 0 and "usage: aclam-data" in out
