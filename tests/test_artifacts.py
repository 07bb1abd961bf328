"""Artifacts are whole or absent, and a reader refuses everything else by name."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_tune.artifacts import folder as artifacts
from vla_tune.artifacts.folder import SCHEMA, Draft, file_digest, read_artifact, table_digest, write_json
from vla_tune.errors import UserError

COMMAND = "vla-tune anchor demo --out runs/demo"


def write(target, content=b"hello", **options):
    with Draft(target, "anchor", **options) as draft:
        (draft.path / "deep").mkdir(exist_ok=True)
        (draft.path / "deep" / "data.bin").write_bytes(content)
        (draft.path / "checkpoints").mkdir(exist_ok=True)
        (draft.path / "checkpoints" / "state.bin").write_bytes(os.urandom(8))
        return draft.publish(config={"seed": 1}, inputs=[], metrics={"layers": 2})


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "run" / "anchor")
    return tmp_path / "run" / "anchor"


def refused(folder, stage="anchor"):
    with pytest.raises(UserError) as caught:
        read_artifact(folder, stage, COMMAND)
    message = str(caught.value)
    assert COMMAND in message
    assert "\n" not in message
    return message


def edit(folder, change):
    manifest = json.loads((folder / "artifact.json").read_text())
    change(manifest)
    (folder / "artifact.json").write_text(json.dumps(manifest))


def test_what_is_written_is_read_back(folder):
    artifact = read_artifact(folder, "anchor", COMMAND)
    manifest = artifact.manifest
    assert list(manifest) == ["schema", "stage", "version", "created_at", "config", "inputs", "files", "environment", "metrics", "content"]
    assert manifest["schema"] == SCHEMA
    assert manifest["created_at"].endswith("+00:00")
    assert manifest["files"] == {"deep/data.bin": {"sha256": file_digest(folder / "deep" / "data.bin"), "bytes": 5}}
    assert set(manifest["environment"]) == {"python", "torch", "lerobot", "git", "device"}
    assert (artifact.config, artifact.metrics) == ({"seed": 1}, {"layers": 2})
    assert artifact.as_input() == {"stage": "anchor", "path": str(folder), "digest": artifact.digest}


def test_the_digest_belongs_to_the_content_not_to_the_place_or_the_time(tmp_path):
    first, same = write(tmp_path / "a" / "anchor"), write(tmp_path / "b" / "anchor")
    shutil.move(tmp_path / "a", tmp_path / "c")
    assert read_artifact(tmp_path / "c" / "anchor", "anchor", COMMAND).digest == first.digest == same.digest
    assert write(tmp_path / "d" / "anchor", b"other").digest != first.digest


@given(st.dictionaries(st.text(), st.integers()))
def test_a_table_digest_does_not_depend_on_the_order(table):
    assert table_digest(dict(reversed(table.items()))) == table_digest(table)


def test_checkpoints_may_change_or_go(folder):
    shutil.rmtree(folder / "checkpoints")
    read_artifact(folder, "anchor", COMMAND)


def test_a_missing_artifact_is_named(tmp_path):
    message = refused(tmp_path / "anchor")
    assert str(tmp_path / "anchor") in message
    assert "is missing" in message


@pytest.mark.parametrize("name", ["anchor", "anchor.partial"])
def test_a_half_written_artifact_is_called_unfinished(tmp_path, name):
    (tmp_path / name).mkdir()
    assert "is unfinished" in refused(tmp_path / "anchor")


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda file: file.unlink(), "is missing"),
        (lambda file: file.write_bytes(b"hel"), "is truncated: 3 bytes of 5"),
        (lambda file: file.write_bytes(b"hellO"), "was changed"),
    ],
)
def test_a_damaged_file_is_named(folder, damage, what):
    file = folder / "deep" / "data.bin"
    damage(file)
    message = refused(folder)
    assert str(file) in message
    assert what in message


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"schema": "vla-tune/artifact/1"}', "\0\0\0"])
def test_a_damaged_manifest_is_named(folder, text):
    (folder / "artifact.json").write_text(text)
    assert f"{folder / 'artifact.json'} is damaged" in refused(folder)


def test_a_manifest_cut_anywhere_is_refused(folder):
    file = folder / "artifact.json"
    whole = file.read_bytes()
    for length in range(0, len(whole) - 2, 13):
        file.write_bytes(whole[:length])
        assert "is damaged" in refused(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("metrics"),
        lambda m: m.update(config=None),
        lambda m: m.update(files=[]),
        lambda m: m.update(files={"deep/data.bin": {}}),
        lambda m: m.update(files={"deep/data.bin": "5"}),
    ],
)
def test_a_manifest_of_another_form_is_damaged(folder, change):
    edit(folder, change)
    assert "is damaged" in refused(folder)


def test_another_stage_or_schema_is_named(folder):
    assert "'anchor' artifact" in refused(folder, "train")
    edit(folder, lambda m: m.update(schema="vla-tune/artifact/9"))
    assert "vla-tune/artifact/9" in refused(folder)


def test_a_finished_folder_is_kept_unless_told_otherwise(folder):
    before = (folder / "artifact.json").read_bytes()
    with pytest.raises(UserError, match="--overwrite"):
        Draft(folder, "anchor")
    assert (folder / "artifact.json").read_bytes() == before
    assert sorted(folder.parent.iterdir()) == [folder]


def test_overwriting_keeps_the_old_until_the_new_is_whole(folder):
    old = read_artifact(folder, "anchor", COMMAND)
    with Draft(folder, "anchor", overwrite=True) as draft:
        (draft.path / "new.bin").write_bytes(b"new")
        assert read_artifact(folder, "anchor", COMMAND) == old
        draft.publish(config={}, inputs=[], metrics={})
    assert set(read_artifact(folder, "anchor", COMMAND).manifest["files"]) == {"new.bin"}
    assert sorted(folder.parent.iterdir()) == [folder]


def test_a_failure_leaves_nothing_half_written_and_the_old_as_it_was(folder):
    def fail():
        with Draft(folder, "anchor", overwrite=True) as draft:
            (draft.path / "new.bin").write_bytes(b"new")
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        fail()
    read_artifact(folder, "anchor", COMMAND)
    assert sorted(folder.parent.iterdir()) == [folder]


def test_what_an_interrupted_run_left_is_dropped_or_kept(tmp_path):
    target = tmp_path / "train"
    left = Draft(target, "train").path / "metrics.jsonl"
    left.write_bytes(b"left")
    (left.parent / "vlm").mkdir()
    (left.parent / "vlm" / ".tmp1234").touch()
    assert Draft(target, "train", keep=["metrics.jsonl"]).path == left.parent
    assert list(left.parent.iterdir()) == [left]
    Draft(target, "train")
    assert not list(left.parent.iterdir())


def finish(target, config, content="{}"):
    """Go on with a draft that keeps rows, as an evaluation does."""
    with Draft(target, "eval-rollout", keep=["episodes.jsonl"], drop=["episodes.jsonl"]) as draft:
        if (done := draft.finished(config, [])) is not None:
            return done
        (draft.path / "episodes.jsonl").touch()
        (draft.path / "report.json").write_text(content)
        return draft.publish(config=config, inputs=[], metrics={"made": config["seed"]})


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("killed_at", ["episodes.jsonl", "eval-rollout.partial"])
def test_what_was_killed_while_it_was_published_is_only_published(tmp_path, monkeypatch, seed, killed_at):
    def killed(self, *_, **__):
        if self.name == killed_at:
            raise SystemExit
        return original(self, *_, **__)

    name = "rename" if killed_at.endswith("partial") else "unlink"
    original = getattr(Path, name)
    target = tmp_path / "eval-rollout"
    with monkeypatch.context() as patch:
        patch.setattr(Path, name, killed)
        with pytest.raises(SystemExit):
            finish(target, {"seed": 1})
    assert (tmp_path / "eval-rollout.partial" / "artifact.json").is_file()
    assert finish(target, {"seed": seed}, "[]").metrics == {"made": seed}
    assert sorted(file.name for file in target.iterdir()) == ["artifact.json", "report.json"]
    assert (target / "report.json").read_text() == ("{}" if seed == 1 else "[]")
    assert [path.name for path in tmp_path.iterdir()] == ["eval-rollout"]


def test_a_draft_that_is_published_leaves_the_next_one_alone(tmp_path):
    with Draft(tmp_path / "anchor", "anchor") as draft:
        draft.publish(config={}, inputs=[], metrics={})
        other = tmp_path / "anchor.partial"
        other.mkdir()
    assert other.is_dir()


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_folder_appears_by_one_rename_with_everything_in_it(tmp_path, monkeypatch, overwrite):
    target = tmp_path / "anchor"
    if overwrite:
        write(target)
    renamed = []
    rename = Path.rename

    def watched(self, to):
        if Path(to) == target:
            assert not target.exists()
            renamed.append(sorted(file.name for file in self.rglob("*") if file.is_file()))
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", watched)
    write(target, overwrite=overwrite)
    assert renamed == [["artifact.json", "data.bin", "state.bin"]]


def test_a_rename_that_fails_brings_the_old_folder_back(folder, monkeypatch):
    old = read_artifact(folder, "anchor", COMMAND)
    rename = Path.rename

    def failing(self, to):
        if self.name == "anchor.partial":
            raise OSError("no")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no"):
        write(folder, b"new", overwrite=True)
    assert read_artifact(folder, "anchor", COMMAND) == old


def test_a_kill_between_the_two_renames_loses_nothing(folder):
    old = read_artifact(folder, "anchor", COMMAND)
    folder.rename(folder.with_name(".anchor.replaced"))
    with pytest.raises(UserError, match="--overwrite"):
        Draft(folder, "anchor")
    assert read_artifact(folder, "anchor", COMMAND) == old


def test_what_was_replaced_goes_though_the_run_was_killed(folder):
    shutil.copytree(folder, folder.with_name(".anchor.replaced"))
    with pytest.raises(UserError, match="--overwrite"):
        Draft(folder, "anchor")
    assert list(folder.parent.iterdir()) == [folder]


def test_a_folder_that_somebody_calls_old_is_theirs(folder):
    for name in ("anchor.old", "anchor.bak"):
        (folder.with_name(name)).mkdir()
        (folder.with_name(name) / "mine").write_text("mine")
    write(folder, b"new", overwrite=True)
    assert all((folder.with_name(name) / "mine").is_file() for name in ("anchor.old", "anchor.bak"))


def test_two_processes_do_not_work_in_one_folder(tmp_path):
    holding = "import sys, time; from pathlib import Path; from vla_tune.artifacts.folder import Draft; "
    holding += "draft = Draft(Path(sys.argv[1]), 'anchor'); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", holding, str(tmp_path / "anchor")], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "held\n"
            with pytest.raises(UserError, match=r"another run is at work in .*anchor\.partial"):
                Draft(tmp_path / "anchor", "anchor")
        finally:
            other.kill()
    Draft(tmp_path / "anchor", "anchor")  # what was killed holds nothing


def test_a_full_disk_while_json_is_written_keeps_the_file_there_was(tmp_path, monkeypatch):
    file = tmp_path / "report.json"
    write_json(file, {"a": 1})

    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifacts.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 1}


def test_overwrite_replaces_a_stage_and_never_what_else_lies_there(tmp_path):
    runs = tmp_path / "runs"
    (runs / "demo").mkdir(parents=True)
    (runs / "demo" / "kept.txt").write_text("a user's")
    with pytest.raises(UserError, match="is not a 'report' artifact"):
        Draft(runs, "report", overwrite=True)
    with pytest.raises(UserError, match="exists already"):
        Draft(runs, "report")
    assert (runs / "demo" / "kept.txt").read_text() == "a user's"


def test_an_out_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        Draft(tmp_path / "file" / "anchor", "anchor")


def test_a_working_folder_that_is_a_link_is_refused_and_its_target_is_whole(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "train.partial").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="is a link"):
        Draft(tmp_path / "train", "train", overwrite=True)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
