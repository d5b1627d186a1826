"""Pixels as they are meant, which files are data, and what is done about broken ones."""

import json
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from av.stream import Disposition
from PIL import Image

from aclam.commands import data as commands
from aclam.core import UserError
from aclam.data import video, video_folder
from aclam.data.declared import Declared
from aclam.data.files import Broken, data_files
from aclam.data.pixels import ORIENTATION, ORIENTATIONS, fit_frames, one_size, read_image
from aclam.data.source import declared_for, open_dataset
from aclam.data.store import write_store
from aclam.data.trajectory import synthetic_trajectory
from aclam.data.video import VideoFile, VideoPool, VideoWriter, all_frames, check_exact, video_times
from aclam.data.video_folder import Index

STILLS = Declared(kind="human", fps=5)


@pytest.fixture(autouse=True)
def own_caches(tmp_path_factory, monkeypatch) -> Path:
    """Each test has its own."""
    folder = tmp_path_factory.mktemp("caches")
    monkeypatch.setenv("ACLAM_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def picture() -> np.ndarray:  # uint8 (64, 96, 3), of which no turn is like another
    colors = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200], [240, 240, 240]], np.uint8)
    blocks = np.zeros((2, 3, 3), np.uint8)
    blocks.reshape(-1, 3)[:4] = colors
    return blocks.repeat(32, 0).repeat(32, 1)


def film(path: Path, size=(64, 48), frames: int = 10, fps: float = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    t = synthetic_trajectory(0, T=30, size=96)
    with VideoWriter(path, fps) as out:
        out.append(t.frames[range(frames)][:, : size[1], : size[0]])
    return path


def turned_film(path: Path, picture: np.ndarray, degrees: int, mirror: bool) -> Path:
    """A film that is stored as `picture` and asks to be shown turned, and then mirrored."""
    height, width = picture.shape[:2]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1", "g": "2"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        stream.set_display_rotation(degrees, hflip=mirror)
        for _ in range(6):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def status(*argv) -> int:
    try:
        commands.main([str(a) for a in argv])
    except SystemExit as e:
        return e.code
    return 0


# --- turned (case 03) -----------------------------------------------------------------------------


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_film_is_shown_upright(tmp_path, picture, degrees, mirror):
    path = turned_film(tmp_path / "clip.mp4", picture, degrees, mirror)
    expected = np.rot90(picture, degrees // 90)  # counterclockwise
    if mirror:  # the matrix mirrors what was turned
        expected = expected[:, ::-1]
    store = open_dataset(tmp_path)
    frame = store.trajectories[0].frames[[3]][0]
    assert np.abs(frame.astype(int) - expected).max() < 8
    assert tuple(store.meta["image_size"]) == expected.shape[:2]
    assert video_times(path)[1:] == VideoFile(path).size == expected.shape[:2]
    assert check_exact(path, queries=5) == 15
    assert np.array_equal(all_frames(path)[0][3], frame)


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="no ffmpeg on the path")
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_upright_is_what_ffmpeg_shows(tmp_path, picture, degrees, mirror):
    path = turned_film(tmp_path / "clip.mp4", picture, degrees, mirror)
    out = tmp_path / "shown.png"
    command = ["ffmpeg", "-v", "error", "-i", path, "-frames:v", "1", "-pix_fmt", "rgb24", out]
    subprocess.run(command, check=True)
    shown = np.asarray(Image.open(out)).astype(int)
    assert np.abs(shown - VideoPool(decoder="av").at(path, [0], 0.01)[0]).max() <= 1


def test_a_film_that_is_turned_by_other_angles_is_refused(tmp_path, picture):
    turned_film(tmp_path / "clip.mp4", picture, 45, False)
    with pytest.raises(UserError, match="clip.mp4: to be shown turned by 45 degrees"):
        open_dataset(tmp_path)


def test_torchcodec_does_not_read_what_is_to_be_turned(tmp_path, picture, monkeypatch):
    opened = []
    fake = SimpleNamespace(VideoDecoder=lambda path, **_: opened.append(path))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", fake)
    monkeypatch.setattr(video, "torchcodec_works", lambda: True)
    path = turned_film(tmp_path / "clip.mp4", picture, 90, False)
    assert VideoPool().at(path, [0.1], 0.01).shape == (1, 96, 64, 3)
    with pytest.raises(UserError, match="displayed rotated or mirrored"):
        VideoPool(decoder="torchcodec").at(path, [0.1], 0.01)
    assert not opened


@pytest.mark.parametrize("number", ORIENTATIONS)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_photograph_is_shown_upright(tmp_path, picture, number, suffix):
    exif = Image.Exif()
    exif[ORIENTATION] = number
    for n in range(2):
        Image.fromarray(picture).save(tmp_path / f"{n}.{suffix}", exif=exif)
    store = open_dataset(tmp_path, STILLS)
    frame = store.trajectories[0].frames[[1]][0]
    stored = np.asarray(Image.open(tmp_path / f"1.{suffix}"))
    assert np.array_equal(frame, ORIENTATIONS[number](stored))
    assert tuple(store.meta["image_size"]) == frame.shape[:2]
    as_bytes = read_image((tmp_path / f"1.{suffix}").read_bytes(), "a table")
    assert np.array_equal(as_bytes, frame)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\0" * 40]
)
def test_broken_exif_data_says_nothing(tmp_path, picture, exif):
    Image.fromarray(picture).save(tmp_path / "0.jpg", exif=exif)
    assert read_image(tmp_path / "0.jpg", "photo").shape == (64, 96, 3)


def test_the_picture_of_a_cover_is_no_film(tmp_path, picture):
    whole = turned_film(tmp_path / "whole.mp4", picture, 0, False)
    path = tmp_path / "v" / "clip.mp4"
    path.parent.mkdir()
    with av.open(str(path), "w") as out, av.open(str(whole)) as source:
        cover = out.add_stream("mjpeg", rate=10)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj444p"
        cover.disposition = Disposition.attached_pic
        film = out.add_stream_from_template(source.streams.video[0])
        for packet in jpeg_packets(32, 32, range(1)):
            packet.stream = cover
            out.mux(packet)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = film
                out.mux(packet)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 2
    assert open_dataset(path.parent).trajectories[0].frames[[2]].shape == (1, 64, 96, 3)


# --- colors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("matrix", "tag"), [("ITU601", 6), ("ITU709", 1), ("BT2020", 9)])
def test_matrix_and_range_of_colors_are_undone(tmp_path, picture, matrix, tag, full):
    path = tmp_path / "clip.mp4"
    spread = 2 if full else 1
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv444p"
        stream.codec_context.color_range = spread
        stream.codec_context.colorspace = tag
        for _ in range(2):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(
                format="yuv444p", dst_colorspace=matrix, dst_color_range=spread, src_color_range=2
            )
            frame.pts = None
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frame = VideoPool(decoder="av").at(path, [0], 0.01)[0]
    assert np.abs(frame.astype(int) - picture).max() <= 4


@pytest.mark.skipif(not video.torchcodec_works(), reason="no torchcodec that works")
@pytest.mark.parametrize("full", [False, True])
def test_both_decoders_see_the_same_colors(tmp_path, picture, full):
    path = tmp_path / "take 2: clip.mp4"
    with av.open(video.local(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuvj444p" if full else "yuv444p"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    seen = [VideoPool(decoder=name).at(path, [0, 0.2], 0.01) for name in video.DECODERS]
    assert np.array_equal(*seen) and np.abs(seen[0][0].astype(int) - picture).max() <= 4


# --- depth (case 04) ------------------------------------------------------------------------------


def depth_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    millimeters = np.linspace(300, 4000, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(millimeters).save(path)


def test_a_depth_map_is_no_picture(tmp_path):
    for n in range(3):
        depth_image(tmp_path / f"{n:04d}.png")
    with pytest.raises(UserError, match="16 or more bits a pixel and no colors"):
        open_dataset(tmp_path, STILLS)
    with pytest.raises(UserError, match="row 3: 16 or more bits"):
        read_image((tmp_path / "0000.png").read_bytes(), "row 3")


def test_a_depth_film_is_no_film(tmp_path):
    with av.open(str(tmp_path / "depth.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "gray16le"
        for n in range(3):
            depth = np.full((48, 64), 1000 * n, np.uint16)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(depth, format="gray16le")))
        container.mux(stream.encode())
    with pytest.raises(UserError, match="more than 8 bits a pixel and no colors"):
        open_dataset(tmp_path)


def test_color_and_depth_in_one_folder_are_no_film(tmp_path):
    for n in range(3):
        depth_image(tmp_path / f"depth_{n}.png")
        Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / f"rgb_{n}.png")
    with pytest.raises(UserError, match="3 like rgb_0.png, 3 like depth_0.png"):
        open_dataset(tmp_path, STILLS)


@pytest.mark.parametrize(
    "names",
    [
        ["0.png", "1.png", "10.png"],
        ["img.png", "img1.png", "img (2).png"],
        ["a.png", "b.png", "c.png"],
        ["frame_01_left.png", "frame_02_left.png"],
        ["1.jpg", "2.JPEG", "3.jpg"],
        ["2024-01-02 10.20.59.png", "2024-01-02 10.21.00.png"],
    ],
)
def test_names_of_one_film(tmp_path, names):
    for name in names:
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / name)
    assert [len(t) for t in open_dataset(tmp_path, STILLS).trajectories] == [len(names)]


# --- sizes (case 07) ------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["store", "lerobot"])
def test_sizes_that_differ_are_refused_before_a_frame_is_encoded(tmp_path, capsys, to):
    film(tmp_path / "clips" / "1.mp4", (96, 60))
    film(tmp_path / "clips" / "2.mp4", (84, 60))
    argv = ["convert", tmp_path / "clips", "--out", tmp_path / "out", "--to", to]
    assert status(*argv) == 2
    line = "2 has frames of 84 x 60 pixels, 1 of 96 x 60: one size is needed"
    assert line in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

    assert status(*argv, "--fit", "crop", "--size", 32) == 0
    assert "frames are cropped, to 32 x 32 pixels" in capsys.readouterr().err
    sizes = {t.frames[[0]].shape[1:3] for t in open_dataset(tmp_path / "out").trajectories}
    assert sizes == {(32, 32)}


def test_writers_refuse_sizes_that_differ(tmp_path):
    episodes = [synthetic_trajectory(n, T=6, size=size) for n, size in enumerate((64, 48))]
    with pytest.raises(UserError, match="one size is needed"):
        one_size(episodes)
    with pytest.raises(UserError, match="one size is needed"):
        write_store(tmp_path / "store", episodes)


def test_images_of_one_film_have_one_size(tmp_path):
    for n, side in enumerate((32, 32, 48)):
        Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(tmp_path / f"{n}.png")
    t = open_dataset(tmp_path, STILLS).trajectories[0]
    with pytest.raises(UserError, match="48 x 48 pixels, the first image has 32 x 32"):
        t.frames[[2]]


def jpeg_packets(width: int, height: int, times: range) -> list[av.Packet]:
    """Frames as Motion JPEG, of which each says its own size."""
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuvj444p"
    encoder.time_base = Fraction(1, 10)
    packets = []
    for n in times:
        black = np.zeros((height, width, 3), np.uint8)
        frame = av.VideoFrame.from_ndarray(black, format="rgb24").reformat(format="yuvj444p")
        frame.pts = n
        frame.time_base = Fraction(1, 10)
        packets += encoder.encode(frame)
    return packets + encoder.encode()


def test_a_film_whose_size_changes_is_one_line(tmp_path):
    path = tmp_path / "both.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj444p"
        for packet in jpeg_packets(64, 48, range(3)) + jpeg_packets(96, 48, range(3, 6)):
            packet.stream = stream
            container.mux(packet)
    times = video_times(path)[0]
    assert VideoPool(decoder="av").at(path, times[:3], 0.01).shape == (3, 48, 64, 3)
    with pytest.raises(UserError, match="at 0.300 s the frames are 96 x 48 pixels, before 64 x 48"):
        VideoPool(decoder="av").at(path, times, 0.01)


@pytest.mark.parametrize("fit", ["crop", "pad", "squeeze"])
def test_every_reader_makes_squares_where_that_is_declared(tmp_path, fit):
    film(tmp_path / "film" / "1.mp4", (96, 48))
    (tmp_path / "stills").mkdir()
    for n in range(2):
        Image.fromarray(np.zeros((48, 96, 3), np.uint8)).save(tmp_path / "stills" / f"{n}.png")
    write_store(tmp_path / "store", open_dataset(tmp_path / "film").trajectories)
    for name in ("film", "stills", "store"):
        rate = 5 if name == "stills" else None
        whole = open_dataset(tmp_path / name, declared_for(tmp_path / name, rate=rate))
        told = declared_for(tmp_path / name, rate=rate, fit=fit, size=32)
        store = open_dataset(tmp_path / name, told)
        assert store.meta["image_size"] == [32, 32]
        frames = store.trajectories[0].frames[[1, 0]]
        assert np.array_equal(frames, fit_frames(whole.trajectories[0].frames[[1, 0]], fit, 32))


# --- names (case 05) ------------------------------------------------------------------------------

MAC = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "


def test_hidden_and_unfinished_files_are_no_data(tmp_path):
    clip = film(tmp_path / "v" / "clip.mp4")
    for name in (
        "._clip.mp4",
        "b.mp4.part",
        "c.mp4_.gstmp",
        ".trash/d.mp4",
        "e.tmp/f.mp4",
        "g.mp4~",
    ):
        path = tmp_path / "v" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(MAC)
    os.mkfifo(tmp_path / "v" / "pipe.mp4")
    assert data_files(tmp_path / "v", (".mp4",)) == [clip]
    assert [t.name for t in open_dataset(tmp_path / "v").trajectories] == ["clip"]


@pytest.mark.parametrize(
    "name",
    ["take 2: door", "http:door", "concat:a|b", "data:,x", "x%03d", "-i", "caf\udce9", "?a=b#c"],
)
def test_names_that_ffmpeg_takes_for_something_else(tmp_path, name, monkeypatch):
    film(tmp_path / "v" / f"{name}.mp4")
    monkeypatch.chdir(tmp_path / "v")
    assert VideoFile(f"{name}.mp4").size == (48, 64)
    store = open_dataset(".")
    assert store.trajectories[0].frames[[3]].shape == (1, 48, 64, 3)
    write_store(tmp_path / "store", store.trajectories)  # the name goes into a table


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:{port}/s.ts\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nseg.mp4\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile 'seg.mp4'\n",
        "ffconcat version 1.0\nfile 'http://127.0.0.1:{port}/s.ts'\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n",
    ],
)
def test_playlists_are_no_videos_and_nobody_is_called(tmp_path, text):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        film(tmp_path / "seg.mp4")
        path = tmp_path / "film.mp4"
        path.write_text(text.replace("{port}", str(server.getsockname()[1])))
        with pytest.raises(UserError, match="film.mp4 is not a whole video file"):
            VideoFile(path)
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_pipe_does_not_keep_a_reader_waiting(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UserError, match="is a pipe"):
        VideoFile(tmp_path / "a.mp4")
    with pytest.raises(UserError, match="is a pipe"):
        read_image(tmp_path / "a.png", "a.png")


def test_links_are_followed_and_circles_are_not(tmp_path):
    film(tmp_path / "far" / "a.mp4")
    v = tmp_path / "v"
    film(v / "b.mp4")
    (v / "far").symlink_to(tmp_path / "far")
    (v / "up").symlink_to(tmp_path)
    (v / "self").symlink_to(v)
    (tmp_path / "far" / "back").symlink_to(v)
    assert [t.name for t in open_dataset(v).trajectories] == ["b", "far/a"]
    (v / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    with pytest.raises(UserError, match="gone.mp4 is a link to"):
        open_dataset(v)


# --- the index (case 11) --------------------------------------------------------------------------


def count_reads(monkeypatch) -> list:
    read = []

    def counted(path):
        read.append(Path(path).name)
        return video_times(path)

    monkeypatch.setattr(video_folder, "video_times", counted)
    return read


def test_nothing_is_written_into_the_folder_and_nothing_read_twice(tmp_path, monkeypatch):
    film(tmp_path / "v" / "a.mp4")
    film(tmp_path / "v" / "b.mp4")
    read = count_reads(monkeypatch)
    for _ in range(2):
        assert len(open_dataset(tmp_path / "v")) == 2
    assert read == ["a.mp4", "b.mp4"]
    film(tmp_path / "v" / "b.mp4", frames=8)
    open_dataset(tmp_path / "v")
    assert read == ["a.mp4", "b.mp4", "b.mp4"]
    assert sorted(os.listdir(tmp_path / "v")) == ["a.mp4", "b.mp4"]


FOREIGN = pa.table({"file": ["a.mp4"]})
EMPTY_ROW = pa.Table.from_pylist([{"file": "a.mp4"}], video_folder.INDEX)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"nonsense" * 99, FOREIGN, EMPTY_ROW])
def test_a_broken_or_foreign_index_is_made_anew(tmp_path, content):
    film(tmp_path / "v" / "a.mp4")
    index = Index(tmp_path / "v").path
    for path in (index, tmp_path / "v" / "aclam_index.parquet"):
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            pq.write_table(content, path)
    assert len(open_dataset(tmp_path / "v")) == 1
    assert pq.read_table(index)["file"].to_pylist() == ["a.mp4"]


def test_an_interruption_keeps_what_was_read(tmp_path, monkeypatch):
    for name in "abc":
        film(tmp_path / "v" / f"{name}.mp4")
    read = []

    def interrupted(path):
        read.append(Path(path).name)
        if len(read) == 3:
            raise KeyboardInterrupt
        return video_times(path)

    monkeypatch.setattr(video_folder, "video_times", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_dataset(tmp_path / "v")
    read = count_reads(monkeypatch)
    assert len(open_dataset(tmp_path / "v")) == 3 and read == ["c.mp4"]


def test_no_place_for_an_index_is_no_reason_to_stop(tmp_path, monkeypatch):
    film(tmp_path / "v" / "a.mp4")
    monkeypatch.setenv("ACLAM_CACHE", "/proc/nowhere")
    assert len(open_dataset(tmp_path / "v")) == 1
    monkeypatch.delenv("ACLAM_CACHE")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert len(open_dataset(tmp_path / "v")) == 1


# --- one bad item (case 15) -----------------------------------------------------------------------


def broken_clips(folder: Path) -> Path:
    film(folder / "good.mp4")
    whole = film(folder / "cut.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[:900])
    film(folder / "short.mp4", frames=1)
    return folder


def test_broken_clips_are_left_out_up_to_a_limit(tmp_path, capsys):
    folder = broken_clips(tmp_path / "v")
    with pytest.raises(UserError, match="cut.mp4 is not a whole video file"):
        open_dataset(folder)
    with pytest.raises(UserError, match="short.mp4.*skip-broken 1 is used up"):
        open_dataset(folder, broken=Broken(1))
    broken = Broken(2)
    store = open_dataset(folder, broken=broken)
    assert [t.name for t in store.trajectories] == ["good"]
    assert [Path(name).name for name in broken.names] == ["cut.mp4", "short.mp4"]
    assert [part["file"] for part in store.meta["parts"]] == ["good.mp4"]
    said = capsys.readouterr().err
    assert "left out, as broken: 2" in said and "cut.mp4" in said and "short.mp4" in said


def test_everything_broken_is_no_dataset(tmp_path):
    folder = broken_clips(tmp_path / "v")
    (folder / "good.mp4").unlink()
    with pytest.raises(UserError, match="holds no episodes"):
        open_dataset(folder, broken=Broken(9))


def test_folders_of_images_are_left_out_too(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for n in range(3):
            Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / name / f"{n}.png")
    (tmp_path / "a" / "0.png").write_bytes(b"no picture")
    (tmp_path / "b" / "2.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="not a whole JPEG or PNG"):
        open_dataset(tmp_path, STILLS)
    assert len(open_dataset(tmp_path, STILLS, broken=Broken(1))) == 1  # its first image is whole
    with pytest.raises(UserError, match="holds no episodes"):
        open_dataset(tmp_path, STILLS, verify=True, broken=Broken(2))


@pytest.mark.parametrize("command", ["inspect", "convert", "frame", "triples"])
def test_every_command_of_data_can_leave_out(tmp_path, capsys, command):
    folder = broken_clips(tmp_path / "v")
    more = {
        "convert": ["--out", tmp_path / "out"],
        "frame": ["--episode", 0, "--index", 1, "--out", tmp_path / "out.png"],
        "triples": ["--rule", "anywhere"],
    }.get(command, [])
    assert status(command, folder, *more) == 2
    assert status(command, folder, *more, "--skip-broken", 1) == 2
    assert status(command, folder, *more, "--skip-broken", 2) == 0
    assert "left out, as broken: 2 (--skip-broken 2)" in capsys.readouterr().err


def test_a_clip_that_is_damaged_in_the_middle_is_left_out_of_a_conversion(tmp_path, capsys):
    film(tmp_path / "v" / "good.mp4", frames=30)
    damaged = film(tmp_path / "v" / "bad.mp4", frames=30)
    data = bytearray(damaged.read_bytes())
    begin = data.index(b"mdat") + 4
    data[begin + 1000 : begin + 6000] = bytes(5000)
    damaged.write_bytes(data)
    argv = ["convert", tmp_path / "v", "--out", tmp_path / "out", "--json"]
    first = status(*argv)
    capsys.readouterr()
    assert status(*argv, "--skip-broken", 1) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["episodes"] == (1 if first == 2 else 2)


def test_broken_counts(tmp_path):
    for limit in (-1, True, 1.5, "3"):
        with pytest.raises(UserError, match="skip-broken"):
            Broken(limit)
