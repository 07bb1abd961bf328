"""A sample of a robot's pictures: what is read otherwise than it was stored, and what cannot be read, by camera, episode and frame."""

import io
import json
import re
import shutil

import numpy as np
import pytest
from odd import CAMERA, FRONT, rewrite_column, vector
from PIL import Image

from vla_tune.data.demonstrations import open_metadata
from vla_tune.preflight.pictures import pictures, sample

VIDEO = {**CAMERA, "dtype": "video", "shape": (64, 96, 3)}


@pytest.fixture(scope="module")
def stored(written, plain, tmp_path_factory):
    """Three episodes of four pictures that nothing is wrong with."""
    return written(tmp_path_factory.mktemp("stored") / "dataset", plain)


@pytest.fixture(scope="module")
def filmed(written, tmp_path_factory):
    """The same in a video."""
    features = {FRONT: VIDEO, "observation.state": vector(4), "action": vector(4)}
    return written(tmp_path_factory.mktemp("filmed") / "dataset", features)


@pytest.fixture
def copied(tmp_path):
    return lambda root: shutil.copytree(root, tmp_path / "dataset")


@pytest.fixture
def changed(stored, copied):
    """A function that stores every picture again as `make(picture, row)` has it, in some format; the dataset's folder."""

    def change(make, kind="PNG"):
        root = copied(stored)

        def again(rows):
            for number, row in enumerate(rows):
                content = io.BytesIO()
                make(Image.open(io.BytesIO(row["bytes"])), number).save(content, kind)
                row["bytes"] = content.getvalue()
            return rows

        rewrite_column(root, FRONT, again)
        return root

    return change


def looked(root, episodes=range(3)):
    """What stops and what is told of a dataset."""
    found = list(pictures(open_metadata("local/odd", root), list(episodes)))
    return [one.text for one in found if one.stops], [one.text for one in found if not one.stops]


def declared(root, shape):
    file = root / "meta" / "info.json"
    info = json.loads(file.read_text())
    info["features"][FRONT]["shape"] = shape
    file.write_text(json.dumps(info))
    return root


def test_sound_pictures_are_silent(stored, filmed):
    assert looked(stored) == ([], [])
    assert looked(filmed) == ([], [])


KINDS = {
    "opaque": lambda picture, _: picture.convert("RGBA"),
    "palette": lambda picture, _: picture.convert("P"),
    "greyscale": lambda picture, _: picture.convert("L"),
    "one in greyscale": lambda picture, row: picture.convert("L") if row == 7 else picture,
}


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_with_one_reading_are_silent(changed, kind):
    assert looked(changed(KINDS[kind])) == ([], [])


def test_what_is_read_otherwise_is_told_once(changed):
    sixteen = changed(lambda picture, _: Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 40))
    stops, told = looked(sixteen)
    assert not stops
    assert len(told) == 1
    assert told[0].startswith(f"{FRONT}, episode 0, frame 0 ")
    assert "16 bits" in told[0]
    assert "(and 11 more of 12 that were looked at)" in told[0]


def test_another_size_than_info_says_is_told(changed):
    stops, told = looked(declared(changed(lambda picture, _: picture), [480, 640, 3]))
    assert not stops
    assert told == [f"{FRONT}: its pictures have 24 x 16 pixels, meta/info.json says 640 x 480; they are read as they are"]


def test_two_sizes_of_one_camera_stop(changed):
    root = changed(lambda picture, row: picture.resize((20, 10)) if row == 6 else picture)
    stops, _ = looked(root)
    assert len(stops) == 1
    assert stops[0].startswith(f"{FRONT}, episode 1, frame 2: 20 x 10 pixels, and the camera's first picture has 24 x 16")
    assert looked(root, episodes=[0, 2]) == ([], [])  # as the message says


SPOILED = {
    "cut": lambda content: content[:200],
    "empty": lambda _: b"",
    "no picture": lambda _: b"<html>not found</html>",
    "nothing": lambda _: None,
}


@pytest.mark.parametrize("kind", SPOILED)
def test_a_damaged_picture_names_camera_episode_and_frame(stored, copied, kind):
    root = copied(stored)

    def spoil(rows):
        rows[5] = {"bytes": SPOILED[kind](rows[5]["bytes"]), "path": None}
        return rows

    rewrite_column(root, FRONT, spoil)
    stops, _ = looked(root)
    assert len(stops) == 1
    assert stops[0].startswith(f"{FRONT}, episode 1, frame 1: ")
    assert looked(root, episodes=[0, 2]) == ([], [])


def test_files_beside_the_table_are_read_from_the_datasets_folder_alone(stored, copied, tmp_path):
    root = copied(stored)
    (root / "beside").mkdir()

    def beside(rows):
        for number, row in enumerate(rows):
            (root / "beside" / f"{number}.png").write_bytes(row["bytes"])
        return [{"bytes": None, "path": f"beside/{number}.png"} for number in range(len(rows))]

    rewrite_column(root, FRONT, beside)
    assert looked(root) == ([], [])
    shutil.move(root / "beside" / "5.png", tmp_path / "5.png")
    stops, _ = looked(root)
    assert stops[0].startswith(f"{FRONT}, episode 1, frame 1: ")
    rewrite_column(root, FRONT, lambda rows: [*rows[:5], {"bytes": None, "path": str(tmp_path / "5.png")}, *rows[6:]])
    stops, _ = looked(root)
    assert stops[0].startswith(f"{FRONT}, episode 1, frame 1: ")


VIDEOS = {
    "empty": (lambda _: b"", "it is empty"),
    "cut": (lambda content: content[: len(content) // 2], ""),
    "pointer": (lambda _: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "no video": (lambda _: b"<html>not found</html>", "Invalid data"),
}


@pytest.mark.parametrize("kind", VIDEOS)
def test_a_video_that_cannot_be_decoded_is_named(filmed, copied, kind):
    root, (spoil, words) = copied(filmed), VIDEOS[kind]
    (file,) = root.rglob("*.mp4")
    file.write_bytes(spoil(file.read_bytes()))
    stops, told = looked(root)
    assert len(stops) == 1
    assert re.match(rf"{FRONT}, episode \d, frame \d: .*{re.escape(file.name)}", stops[0])
    assert words in stops[0]
    assert "\n" not in stops[0]
    assert not told


def test_a_missing_video_is_named(filmed, copied):
    root = copied(filmed)
    (file,) = root.rglob("*.mp4")
    file.unlink()
    stops, _ = looked(root)
    assert stops == [f"{FRONT}, episode 0, frame 0: there is no file {file}"]


def test_times_that_no_frame_of_the_video_has_are_named(filmed, copied):
    root = copied(filmed)
    rewrite_column(root, "timestamp", lambda times: [time + 0.07 * (row == 6) for row, time in enumerate(times)])
    stops, _ = looked(root)
    assert len(stops) == 1
    assert stops[0].startswith(f"{FRONT}, episode 1, frame 2: ")
    assert "no frame at" in stops[0]
    assert 6 in [row.row for row in sample(open_metadata("local/odd", root), [0, 1, 2], 2)]  # looked at for its time


def test_the_sample_is_spread_and_small(written, plain, tmp_path):
    root = written(tmp_path / "long", plain, episodes=30, frames=5)
    meta = open_metadata("local/odd", root)
    rows = sample(meta, list(range(30)), 48)
    assert len(rows) == 48
    assert len({row.episode for row in rows}) == 24
    assert {rows[0].episode, rows[-1].episode} == {0, 29}
    assert {row.episode for row in rows if row.frame == 4} == {row.episode for row in rows}  # the last of each
    assert len({row.frame for row in rows}) > 2
    assert len(sample(meta, [3], 48)) == 5
    assert {row.episode for row in sample(meta, [3, 4, 9], 4)} == {3, 9}
