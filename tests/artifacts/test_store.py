"""What is kept between runs is used again only where it is whole and of the same basis."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_tune.artifacts.store import KeptFiles, KeptRows, find_damage, made_once

BASIS = {"policy": "runs/a", "seeds": (1, 2)}
ROWS = [{"task": "reach", "seed": seed, "success": seed % 2 == 0} for seed in range(4)]


def write_file(path):
    path.write_text("made")


def write_folder(path):
    (path / "meta").mkdir(parents=True)
    (path / "meta" / "info.json").write_text("{}")
    (path / "data.bin").write_bytes(b"made")


MADE = {"one.bin": write_file, "many": write_folder}
kinds = pytest.mark.parametrize("name", MADE)


def content(path):
    return {file.name: file.read_bytes() for file in [path, *path.rglob("*")] if file.is_file()}


@kinds
def test_what_is_whole_is_made_once(tmp_path, name):
    path = made_once(tmp_path / "cache" / "key" / name, MADE[name])
    before = content(path)
    assert before
    assert made_once(path, pytest.fail) == path
    assert content(path) == before
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["key"]


@kinds
@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "no table", "broken table", "another table", "empty table"])
def test_damage_is_told_and_made_again(tmp_path, capsys, name, damage):
    path = made_once(tmp_path / "key" / name, MADE[name])
    before, table = content(path), path.with_name("files.json")
    file = path if path.is_file() else path / "data.bin"
    {
        "changed": lambda: file.write_bytes(b"madE"),
        "cut": lambda: file.write_bytes(b"mad"),
        "gone": file.unlink,
        "no table": table.unlink,
        "broken table": lambda: table.write_text("{"),
        "another table": lambda: table.write_text('{"data.bin": 3}'),
        "empty table": lambda: (table.write_text("{}"), path.rename(path.with_name("elsewhere"))),
    }[damage]()
    assert find_damage(path)
    made_once(path, MADE[name])
    told = capsys.readouterr().err
    assert "made again" in told
    assert told.count("warning") == 1
    assert find_damage(path) is None
    assert content(path) == before


@kinds
def test_a_failure_leaves_nothing_and_what_was_there(tmp_path, name):
    def fail(path):
        MADE[name](path)
        raise KeyboardInterrupt

    path = tmp_path / "key" / name
    with pytest.raises(KeyboardInterrupt):
        made_once(path, fail)
    assert not list(tmp_path.iterdir())
    made_once(path, MADE[name])
    path.with_name("files.json").unlink()
    with pytest.raises(KeyboardInterrupt):
        made_once(path, fail)
    assert content(path)
    assert [file.name for file in tmp_path.iterdir()] == ["key"]


@kinds
def test_another_process_that_was_faster_is_not_disturbed(tmp_path, name):
    path = tmp_path / "key" / name

    def late(fresh):
        MADE[name](fresh)
        made_once(path, MADE[name])
        path.with_name("theirs").touch()

    made_once(path, late)
    assert path.with_name("theirs").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["key"]


def test_a_full_disk_is_told(tmp_path):
    def full(_path):
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        made_once(tmp_path / "key" / "one.bin", full)


@pytest.fixture(params=[KeptFiles, KeptRows])
def left(request, tmp_path):
    """A folder that an interrupted run has left one result in, and how to open it."""
    folder = tmp_path / "work"
    folder.mkdir()

    def reopen(basis):
        return request.param(folder, basis, "episodes")

    kept = reopen(BASIS)
    kept.put("0.bin", write_file) if request.param is KeptFiles else kept.add(ROWS[0])
    return folder, reopen


def results(folder):
    return sorted(file.name for file in folder.iterdir() if file.name != "basis.json")


def test_the_same_basis_goes_on(left, capsys):
    folder, reopen = left
    before = results(folder)
    reopen({"seeds": [1, 2], "policy": "runs/a"})  # as JSON has it
    assert results(folder) == before
    assert before
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", [None, "{", "unlink"])
def test_another_basis_or_one_that_is_not_known_is_dropped_with_one_warning(left, capsys, damage):
    folder, reopen = left
    if damage == "unlink":
        (folder / "basis.json").unlink()
    elif damage:
        (folder / "basis.json").write_text(damage)
    kept = reopen(BASIS if damage else {**BASIS, "seeds": [1]})
    assert not list(folder.iterdir())
    told = capsys.readouterr().err
    assert "episodes of another model or of other settings; they are dropped" in told
    assert told.count("warning") == 1
    if isinstance(kept, KeptRows):
        assert kept.rows() == []
        kept.add(ROWS[1])
        assert reopen({**BASIS, "seeds": [1]} if not damage else BASIS).rows() == [ROWS[1]]


def test_a_file_that_is_half_written_does_not_count(tmp_path):
    kept = KeptFiles(tmp_path / "scored", BASIS, "scores")
    assert len(kept) == 0

    def fail(path):
        path.write_text("ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept.put("0.bin", fail)
    assert len(kept) == 0
    assert not (kept.folder / "0.bin").exists()
    kept.put("0.bin", write_file)
    assert len(KeptFiles(tmp_path / "scored", BASIS, "scores")) == 1


@given(cut=st.integers(0, 10_000))
def test_rows_cut_anywhere_are_the_whole_ones(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("rows")
    kept = KeptRows(folder, BASIS, "episodes")
    for row in ROWS:
        kept.add(row)
    file = folder / "episodes.jsonl"
    text = file.read_text()
    file.write_text(text[: cut % (len(text) + 1)])
    whole = file.read_text().count("\n")
    again = KeptRows(folder, BASIS, "episodes")
    assert again.rows() == ROWS[:whole]
    again.add(ROWS[0])
    assert again.rows() == [*ROWS[:whole], ROWS[0]]


@pytest.mark.parametrize("damage", ["\0\0\0\0\n", "[1]\n", "{\n"])
def test_a_damaged_row_is_told_and_the_others_stay(tmp_path, capsys, damage):
    kept = KeptRows(tmp_path, BASIS, "episodes")
    for row in ROWS:
        kept.add(row)
    file = tmp_path / "episodes.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([lines[0], damage, *lines[2:]]))
    assert kept.rows() == [ROWS[0], *ROWS[2:]]
    assert "damaged rows are dropped" in capsys.readouterr().err
    assert [json.loads(line) for line in file.read_text().splitlines()] == [ROWS[0], *ROWS[2:]]
