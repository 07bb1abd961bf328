"""VQA before and after, for our own artifacts and for anybody's policy folder, and what is refused."""

import json
import shutil
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature

from vla_tune.artifacts.folder import Draft
from vla_tune.config import load_config
from vla_tune.errors import UserError
from vla_tune.policies import adapt
from vla_tune.policies.loading import load_policy, load_processors, new_policy, save_policy
from vla_tune.policies.smolvla import SmolVLAAdapter
from vla_tune.resources import demo_vlm
from vla_tune.stages import anchor, eval_vqa
from vla_tune.vlm.loading import load_vlm, save_vlm

QUESTIONS = 60
FROZEN = "your VLM was frozen: nothing is lost"
COLUMNS = ["question_id", "image_id", "type", "question", "answers", "base_prediction", "prediction", "base_score", "score"]


def config(*overrides):
    return load_config("demo", [f"vqa.questions={QUESTIONS}", "vqa.bootstrap=200", "anchor.samples=12", "anchor.frames=0", *overrides])


def write(policy, folder):
    stats = {key: {"mean": torch.zeros(4), "std": torch.ones(4)} for key in ("observation.state", "action")}
    save_policy(policy, load_processors(policy, stats=stats), folder, str(demo_vlm()))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two policy folders as lerobot writes them: one whose VLM is the demo's, one whose layer 1 was moved."""
    state, action = PolicyFeature(FeatureType.STATE, (4,)), PolicyFeature(FeatureType.ACTION, (4,))
    inputs = {"observation.image": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)), "observation.state": state}
    policy = new_policy(SmolVLAAdapter, str(demo_vlm()), config().policy.settings, (inputs, {"action": action}))
    root = tmp_path_factory.mktemp("policies")
    frozen = write(policy, root / "frozen")
    with torch.no_grad():
        for parameter in adapt(policy).groups()["vlm.layers.1"].values():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return frozen, write(policy, root / "moved")


@pytest.fixture(scope="module")
def train_run(tmp_path_factory, folders):
    """A run whose `train` artifact holds the moved policy, and whose `anchor` was taken before."""
    run = tmp_path_factory.mktemp("run")
    anchor.run(config(), run)
    draft = Draft(run / "train", "train")
    shutil.copytree(folders[1], draft.path / "policy")
    save_vlm(adapt(load_policy(str(folders[1]))).vlm, load_vlm(str(demo_vlm()))[1], draft.path / "vlm")
    draft.publish(config=config().to_dict(), inputs=[], metrics={})
    return run


def report_of(artifact):
    return json.loads((artifact.path / "report.json").read_text())


def test_a_foreign_policy_whose_vlm_was_frozen(folders, tmp_path, capsys):
    artifact = eval_vqa.run(config(f"train.path={folders[0]}"), tmp_path)
    out = capsys.readouterr().out
    assert FROZEN in out
    assert "drift is not measured" in out
    report = report_of(artifact)
    assert report["retention"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert report["base_accuracy"] == report["accuracy"]
    assert (report["n"], report["images"], report["drift"], report["mcnemar_p"]) == (QUESTIONS, QUESTIONS // 3, None, 1.0)
    assert {kind: row["n"] for kind, row in report["by_type"].items()} == dict.fromkeys(report["by_type"], QUESTIONS // 6)
    assert len(report["by_type"]) == 6
    assert all(0 <= row["blind"] <= 1 for row in report["by_type"].values())
    predictions = pq.read_table(artifact.path / "predictions.parquet")
    assert predictions.column_names == COLUMNS
    assert sum(predictions["score"].to_pylist()) / QUESTIONS == pytest.approx(report["accuracy"]["value"])
    assert predictions["prediction"].to_pylist() == predictions["base_prediction"].to_pylist()
    assert artifact.metrics["n"] == QUESTIONS
    assert artifact.metrics["questions_per_s"] > 0
    (entry,) = artifact.manifest["inputs"]
    assert (entry["stage"], entry["path"]) == ("policy", str(folders[0]))


def test_a_train_artifact_with_its_anchor(train_run, capsys):
    artifact = eval_vqa.run(config("policy.base_vlm=null"), train_run, overwrite=True)  # the base is the one training named
    report = report_of(artifact)
    assert FROZEN not in capsys.readouterr().out
    assert [group["group"] for group in report["weights"] if group["moved"]] == ["layers.1"]
    assert report["accuracy"]["value"] < report["base_accuracy"]["value"]
    assert report["lost"] > report["gained"]
    drift = report["drift_by_layer"]
    assert drift[0] < 1e-9 < drift[1]
    assert report["drift"] == pytest.approx(sum(drift) / len(drift)) == artifact.metrics["drift"]
    assert [entry["stage"] for entry in artifact.manifest["inputs"]] == ["train", "anchor"]


def test_the_policy_folder_of_a_train_artifact_is_compared_with_the_base_not_with_itself(train_run):
    pair = eval_vqa.open_pair(config("device=cpu", "policy.base_vlm=null", f"train.path={train_run / 'train' / 'policy'}"), train_run)
    assert pair.base == str(demo_vlm())
    assert pair.inputs[0]["stage"] == "train"


def test_a_tuned_vlm_is_never_taken_for_its_own_base(train_run, tmp_path):
    for part in ("policy", "vlm"):
        shutil.copytree(train_run / "train" / part, tmp_path / part)
    with pytest.raises(UserError, match=r"tuned VLM itself; set policy\.base_vlm"):
        eval_vqa.open_pair(config("device=cpu", "policy.base_vlm=null", f"train.path={tmp_path / 'policy'}"), tmp_path)


def test_a_base_at_chance_is_refused(folders, tmp_path):
    vlm, processor = load_vlm(str(demo_vlm()))
    for parameter in vlm.parameters():
        torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(0))
    save_vlm(vlm, processor, tmp_path / "vlm")
    run = tmp_path / "run"
    with pytest.raises(UserError, match=r"sees no picture.*policy\.base_vlm"):
        eval_vqa.run(config(f"train.path={folders[0]}", f"policy.base_vlm={tmp_path / 'vlm'}"), run)
    assert not list(run.iterdir())


def test_nothing_trained_yet(tmp_path):
    with pytest.raises(UserError, match=r"train artifact .*train is missing.*vla-tune train demo --out"):
        eval_vqa.run(config(), tmp_path)
    with pytest.raises(UserError, match=r"vla-tune train mine\.yaml --out"):
        eval_vqa.run(replace(config(), name="mine"), tmp_path)


def test_a_damaged_train_artifact_names_the_file(train_run, tmp_path):
    shutil.copytree(train_run / "train", tmp_path / "train")
    file = tmp_path / "train" / "policy" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"model\.safetensors.*vla-tune train"):
        eval_vqa.run(config(), tmp_path)
    (tmp_path / "train" / "artifact.json").unlink()
    with pytest.raises(UserError, match=r"unfinished.*vla-tune train"):
        eval_vqa.run(config(), tmp_path)


def test_a_folder_that_is_no_policy(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty is not a lerobot policy folder"):
        eval_vqa.run(config(f"train.path={tmp_path / 'empty'}"), tmp_path / "run")


def test_an_anchor_that_is_missing_or_of_another_vlm(folders, train_run, tmp_path):
    policy = f"train.path={folders[0]}"
    with pytest.raises(UserError, match=r"anchor artifact .*nowhere is missing.*vla-tune anchor"):
        eval_vqa.run(config(policy, f"anchor.path={tmp_path / 'nowhere'}"), tmp_path)
    vlm, processor = load_vlm(str(demo_vlm()))
    with torch.no_grad():
        vlm.lm_head.weight[0, 0] += 1
    save_vlm(vlm, processor, tmp_path / "vlm")
    with pytest.raises(UserError, match=r"taken from another VLM.*vla-tune anchor"):
        eval_vqa.run(config(policy, f"policy.base_vlm={tmp_path / 'vlm'}", f"anchor.path={train_run / 'anchor'}"), tmp_path)


def test_a_finished_evaluation_is_not_overwritten(train_run):
    (train_run / "eval-vqa").mkdir(exist_ok=True)
    with pytest.raises(UserError, match="--overwrite"):
        eval_vqa.run(config(), train_run)
