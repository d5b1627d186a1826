"""What is no dataset is told what it is, on one line, and what to do with it."""

import os
import sqlite3
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aclam.commands import data as command
from aclam.core import UserError
from aclam.data.source import open_dataset


def write(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def _zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "set.zip", "w") as archive:
        archive.writestr("a", "b")


def _bag(folder: Path) -> None:
    bag = sqlite3.connect(folder / "bag_0.db3")
    bag.execute("create table topics (id integer)")
    bag.commit()
    bag.close()


MADE = {
    "set.zip": (_zip, "a zip archive.*unpack it"),
    "a.npz": (lambda f: np.savez(f / "a.npz", a=np.zeros(3)), "arrays of NumPy.*write_store"),
    "a.npy": (lambda f: np.save(f / "a.npy", np.zeros(3)), "an array of NumPy"),
    "a.pkl": (write("a.pkl", b"\x80\x05K\x01."), "a pickle.*runs code"),
    "old.bag": (write("old.bag", b"#ROSBAG V2.0\n" * 4), "a bag of ROS 1.*export the topic"),
    "bag_0.db3": (_bag, "SQLite.*ROS 2.*as a film"),
    "a.log": (write("a.log", b"\x89MCAP0\r\n" + bytes(9)), "MCAP.*the ending .mcap"),
    "a.png": (lambda f: Image.new("RGB", (20, 20)).save(f / "a.png"), "one picture.*folder"),
    "moving": (
        lambda f: Image.new("RGB", (20, 20)).save(f / "moving", "GIF"),
        "a GIF.*ends in .gif",
    ),
    "a.flv": (write("a.flv", b"FLV\x01" + bytes(50)), "another container.*ffmpeg"),
    "a.csv": (write("a.csv", b"a,b\n1,2\n"), "a table"),
    "notes.md": (write("notes.md", b"# Notes\n"), "text, and no dataset"),
    "a.xyz": (write("a.xyz", b"\x00\x01\x02\x03"), "no kind of file that is known here"),
    "nothing": (write("nothing", b""), "an empty file"),
    "x.tfrecord-00000-of-00002": (
        write("x.tfrecord-00000-of-00002", bytes(90)),
        "one shard of RLDS.*give its folder",
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_a_file_is_named(tmp_path, name):
    make, said = MADE[name]
    make(tmp_path)
    with pytest.raises(UserError, match=f"{name} is .*{said}") as caught:
        open_dataset(tmp_path / name)
    assert "\n" not in str(caught.value) and "no such dataset" not in str(caught.value)


@pytest.mark.parametrize("name", [n for n in MADE if n not in ("a.png", "nothing")])
def test_a_folder_of_them_is_named(tmp_path, name):
    MADE[name][0](tmp_path)
    if ".tfrecord" in name:  # that is RLDS
        return
    with pytest.raises(UserError, match=f"is not a dataset.*1 files like .?{name}"):
        open_dataset(tmp_path)


def test_what_is_not_there_is_not_there(tmp_path):
    (tmp_path / "so100").mkdir()
    with pytest.raises(UserError, match='no such dataset: .*so101. Did you mean "so100"'):
        open_dataset(tmp_path / "so101")
    with pytest.raises(UserError, match="no such dataset: .*nowhere/at/all$"):
        open_dataset(tmp_path / "nowhere" / "at" / "all")
    (tmp_path / "gone").symlink_to("nowhere")
    with pytest.raises(UserError, match="is a link to what is not there"):
        open_dataset(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is neither file nor folder"):
        open_dataset(tmp_path / "pipe")


def test_the_command_says_it_with_status_2(tmp_path, capsys):
    write("demos.pkl", b"\x80\x04K\x01.")(tmp_path)
    with pytest.raises(SystemExit) as stop:
        command.main(["inspect", str(tmp_path / "demos.pkl")])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "is a pickle, and no dataset" in said and said.count("\n") == 1
