"""Films whose time stamps contradict the order of their frames: none is lost, none misplaced."""

import pickle
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from aclam.core import UserError
from aclam.data import video
from aclam.data.source import open_dataset
from aclam.data.video import VideoFile, VideoPool, VideoWriter, all_frames, frames_at, video_times
from aclam.data.video_order import first_displaced, learn_order

av = pytest.importorskip("av")
LENGTH = 90
FPS = 30


def pictures(count: int = LENGTH) -> np.ndarray:
    """A bar that wanders: each frame says which one it is, also after coding."""
    frames = np.full((count, 64, 128, 3), 40, np.uint8)
    for n in range(count):
        frames[n, :, n + 8 : n + 24] = 220
    return frames


def place(frames: np.ndarray) -> list[int]:
    """Which frames these are."""
    edges = np.diff(frames[:, 32, :, 0].astype(int), axis=1)
    return (edges.argmax(1) - 7).tolist()


def restamped(source: Path, path: Path, stamps) -> Path:
    """The same packets with other stamps, made of those that they have, in frames."""
    with av.open(str(source)) as sound, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(sound.streams.video[0])
        packets = [packet for packet in sound.demux(video=0) if packet.dts is not None]
        tick = int(1 / FPS / packets[0].time_base)
        own = [round((packet.pts - packets[0].dts) / tick) for packet in packets]
        for n, (packet, stamp) in enumerate(zip(packets, stamps(own), strict=True)):
            packet.dts = n * tick
            packet.pts = stamp * tick
            packet.stream = stream
            out.mux(packet)
    return path


def written(path: Path, g: int = 30, **options: str) -> Path:
    with VideoWriter(path, FPS, g=g, **options) as out:
        out.append(pictures())
    return path


def as_stored(own: list[int]) -> list[int]:
    """As in OpenCV's box.mp4: with B frames, the times of decoding."""
    return list(range(len(own)))


def swapped(own: list[int]) -> list[int]:
    """Without B frames, two of three stamps change places."""
    return [n + 2 + (0, 1, -1)[n % 3] for n in range(len(own))]


def later(own: list[int]) -> list[int]:
    """Right up to the last key frame, then as they are stored."""
    key = max(n for n in range(len(own)) if max(own[:n], default=-1) < min(own[n:]) and n < 59)
    return own[:key] + sorted(own[key:])


BAD = {
    "stored": ({"bf": "3"}, as_stored),
    "stored in mkv": ({"bf": "2"}, as_stored),
    "swapped": ({"bf": "0"}, swapped),
    "later": ({"bf": "2"}, later),
}


@pytest.fixture(scope="module", params=BAD)
def film(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("order")
    options, stamps = BAD[request.param]
    (folder / "set").mkdir()
    name = "bad.mkv" if "mkv" in request.param else "bad.mp4"
    return restamped(written(folder / "sound.mp4", **options), folder / "set" / name, stamps)


def test_the_fixture_is_bad(film):
    with av.open(str(film)) as container:
        stamps = [frame.pts for frame in container.decode(video=0)]
    assert stamps != sorted(stamps) and len(stamps) == LENGTH


def test_random_access_is_what_a_player_shows(film):
    truth, seconds = all_frames(film)
    assert place(truth) == list(range(LENGTH))  # the decoder's order is that of the bar
    times, height, width = video_times(film)
    assert len(times) == LENGTH and (height, width) == (64, 128)
    assert np.allclose(times, seconds)
    order = np.random.default_rng(0).permutation(LENGTH)
    one = VideoFile(film)
    for n in (*order[:20].tolist(), 0, LENGTH - 1, 0):
        assert place(frames_at(one, times[[n]], 1e-3)) == [n]
    assert np.array_equal(frames_at(one, times[order], 1e-3), truth[order])
    with pytest.raises(UserError, match="no frame within"):
        frames_at(one, [times[-1] + 1], 1e-3)
    assert place(frames_at(one, times[[5]], 1e-3)) == [5]
    one.close()


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="asks ffprobe")
def test_there_are_as_many_frames_as_ffprobe_counts(film):
    words = ["ffprobe", "-v", "error", "-count_frames", "-select_streams", "v:0"]
    words += ["-show_entries", "stream=nb_read_frames", "-of", "csv=p=0", str(film)]
    counted = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert int(counted.strip().strip(",")) == len(video_times(film)[0])


def test_the_readers_see_it(film):
    frames = open_dataset(film.parent).trajectories[0].frames
    assert place(frames[range(LENGTH)]) == list(range(LENGTH))
    again = pickle.loads(pickle.dumps(frames))
    assert place(again[[70, 3, 71]]) == [70, 3, 71]


SOUND = {
    "no B frames": {"bf": "0"},
    "B frames": {"bf": "3"},
    "a pyramid": {"bf": "5", "b-pyramid": "strict"},
    "mpeg4": {"codec": "mpeg4", "bf": "2"},
    "all key frames": {"g": 1},
}


@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_film_is_read_by_its_stamps(tmp_path, kind):
    path = written(tmp_path / "sound.mp4", **SOUND[kind])
    times = video_times(path)[0]
    one = VideoFile(path)
    assert place(frames_at(one, times[[80, 2, 41]], 1e-3)) == [80, 2, 41]
    assert one.is_judged and one.order is None and not one.is_disordered
    one.close()


def test_a_film_that_begins_late_and_an_uneven_one(tmp_path):
    with VideoWriter(tmp_path / "uneven.mp4", FPS, bf="2") as out:
        out.append(pictures(), ticks=[n + 7 + n // 10 for n in range(LENGTH)])
    late = restamped(
        written(tmp_path / "sound.mp4", bf="2"),
        tmp_path / "late.mp4",
        lambda own: [n + 50 for n in range(len(own))],
    )
    for path, is_bad in ((tmp_path / "uneven.mp4", False), (late, True)):
        one = VideoFile(path)
        times = video_times(path)[0]
        assert place(frames_at(one, times[[50, 1, 88, 0]], 1e-3)) == [50, 1, 88, 0]
        assert (one.order is not None) == is_bad
        one.close()


def test_torchcodec_leaves_such_a_film_to_pyav(film, monkeypatch):
    one = VideoFile(film)
    learn_order(one)
    one.close()
    if one.order is None:
        pytest.skip("it is right at first, which is all that is looked at here")
    monkeypatch.setattr(video, "torchcodec_works", lambda: True)
    with pytest.raises(UserError, match='contradict the order.*use the decoder "av"'):
        video.open_torchcodec(film)
    times = video_times(film)[0]
    assert place(VideoPool().at(film, times[[44, 43]], 1e-3)) == [44, 43]


def test_the_first_that_is_out_of_order():
    assert first_displaced([0, 4, 2, 1, 3]) == 2
    assert first_displaced([0, 1, 2]) == 3
    assert first_displaced([]) == 0
