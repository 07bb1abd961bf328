"""Anchors and evaluations on data that nobody here made: VQA-RAD and CLEVR, as folders with `qa.jsonl`."""

import itertools
import json
import shutil
import sys
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from vla_tune.config import load_config
from vla_tune.errors import UserError
from vla_tune.resources import demo_vlm
from vla_tune.stages import anchor, eval_vqa, evaluate, train
from vla_tune.vlm.answering import answer
from vla_tune.vlm.loading import load_vlm
from vla_tune.vqa.dataset import vqa_questions
from vla_tune.vqa.ranking import candidates
from vla_tune.vqa.scorers import scores
from vla_tune.vqa.scoring import blind_answers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from vlas import teach

COUNTS = {"vqa_rad": (1797, 451), "vqa_clevr267": (1200, 402)}


@pytest.fixture(scope="module", params=COUNTS)
def folder(request, third_party_data, tmp_path_factory):
    file = third_party_data / f"{request.param}.zip"
    if not file.is_file():
        pytest.skip(f"{file} is missing")
    target = tmp_path_factory.mktemp(request.param) / request.param
    zipfile.ZipFile(file).extractall(target)
    return target


def config(folder, *overrides):
    return load_config("demo", [f"vqa.manifest={folder}", "anchor.samples=10", "anchor.batch_size=4", "anchor.frames=0", *overrides])


def test_all_questions_of_both_splits_can_be_read(folder):
    anchors, test = vqa_questions(str(folder), "anchor"), vqa_questions(str(folder), "test")
    assert (len(anchors), len(test)) == COUNTS[folder.name]
    rows = [json.loads(line) for line in (folder / "qa.jsonl").read_text().splitlines()]
    expected = sorted((row["question"], row["answer"].strip(), row["type"]) for row in rows if row["split"] == "test")
    assert sorted((row["question"], row["answers"][0], row["type"]) for row in test.remove_columns("image")) == expected
    assert len(set(test[:100]["image_id"])) > 30
    assert {picture.mode for picture in test[:20]["image"]} == {"RGB"}


def test_an_anchor_is_made_of_them(folder, tmp_path):
    artifact = anchor.run(config(folder), tmp_path)
    assert artifact.metrics["samples"] == 10
    for name, tensor in load_file(artifact.path / "anchor.safetensors").items():
        assert tensor.double().isfinite().all(), name
    one_by_one = load_file(anchor.run(config(folder, "anchor.batch_size=1"), tmp_path / "alone").path / "anchor.safetensors")
    for name, tensor in load_file(artifact.path / "anchor.safetensors").items():  # whichever pictures share a batch
        torch.testing.assert_close(one_by_one[name], tensor, rtol=2e-4, atol=2e-4)


def test_they_are_asked_and_scored(folder):
    vlm, processor = load_vlm(str(demo_vlm()))
    asked, seen = vqa_questions(str(folder), "test", 8), vqa_questions(str(folder), "anchor")
    given = answer(vlm, processor, asked, batch_size=3, max_new_tokens=6, description="test")
    assert given == answer(vlm, processor, asked, batch_size=1, max_new_tokens=6, description="test")
    assert set(scores("exact", given, asked)) <= {0.0, 1.0}
    guesses = blind_answers(
        zip(seen["type"], seen["question"], seen["answers"], strict=True), zip(asked["type"], asked["question"], strict=True)
    )
    assert len(guesses) == 8
    among = candidates("exact", asked, seen)
    assert all(2 <= len(answers) <= 16 and len(set(answers)) == len(answers) for answers in among)  # "Yes" and "yes" are one


def test_a_vlm_that_knows_nothing_of_them_is_refused(folder, policy_folder, tmp_path):
    with pytest.raises(UserError, match=r"sees no picture.*there is no skill to lose"):
        eval_vqa.run(config(folder, f"train.path={policy_folder}", "vqa.questions=24", "vqa.bootstrap=100"), tmp_path / "run")


@pytest.mark.parametrize("folder", ["vqa_rad"], indirect=True, scope="module")
def test_a_vlm_that_knows_them_goes_through_all_stages(folder, small_dataset, tmp_path):
    """Of the test questions those that are answered by yes or no: so small a VLM learns sixteen of them by heart."""
    vlm, closed = tmp_path / "vlm", tmp_path / "closed"
    shutil.copytree(demo_vlm(), vlm)
    shutil.copytree(folder, closed)
    rows = [json.loads(line) for line in (folder / "qa.jsonl").read_text().splitlines()]
    kept = [row for row in rows if row["split"] != "test" or row["answer"].lower() in ("yes", "no")]
    (closed / "qa.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in kept))
    teach(vlm, vqa_questions(str(closed), "test", 16), steps=60)
    data = ["data.manifest=null", "data.repo_id=local/small", f"data.root={small_dataset}", "data.heldout=0.4", "rollout.tasks=[]"]
    small = ["train.steps=2", "train.batch_size=2", "train.log_every=1", "rollout.n_action_steps=2", "anchor.gradients=4"]
    asked = ["vqa.questions=16", "vqa.ranked=8", "vqa.bootstrap=100"]
    settings = config(closed, f"policy.base_vlm={vlm}", *data, *small, *asked)
    anchor.run(settings, tmp_path / "run")
    train.run(settings, tmp_path / "run")
    evaluate.run(settings, tmp_path / "run")
    report = json.loads((tmp_path / "run" / "eval-vqa" / "report.json").read_text())
    assert (report["n"], report["base_accuracy"]["value"] > 0.7) == (16, True)
    assert (tmp_path / "run" / "report" / "report.html").is_file()


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory):
    from lerobot.configs import FeatureType, PolicyFeature

    from vla_tune.policies.loading import load_processors, new_policy, save_policy
    from vla_tune.policies.smolvla import SmolVLAAdapter

    state, action = PolicyFeature(FeatureType.STATE, (4,)), PolicyFeature(FeatureType.ACTION, (4,))
    inputs = {"observation.image": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)), "observation.state": state}
    policy = new_policy(SmolVLAAdapter, str(demo_vlm()), load_config("demo").policy.settings, (inputs, {"action": action}))
    stats = {key: {"mean": torch.zeros(4), "std": torch.ones(4)} for key in ("observation.state", "action")}
    target = tmp_path_factory.mktemp("policy")
    save_policy(policy, load_processors(policy, stats=stats), target, str(demo_vlm()))
    return target


def benchmark_of_shapes(root, metric, answers):
    """The drawn questions as somebody else's benchmark, each answer turned into what `answers` makes of it."""
    (root / "pictures").mkdir(parents=True)
    rows = []
    for split, count in (("anchor", 60), ("test", 36)):
        for row in vqa_questions("shapes", split, count):
            row["image"].save(root / "pictures" / f"{row['image_id']}.png")
            words = {"image": f"pictures/{row['image_id']}.png", "question": row["question"], "type": row["type"]}
            rows.append({**words, "answers": answers(row["answers"][0]), "split": split, "question_id": row["question_id"]})
    (root / "qa.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (root / "mine.yaml").write_text(f"kind: vqa-benchmark\ndataset: {root}\nmetric: {metric}\nlicense: Apache-2.0\n")
    return root / "mine.yaml"


def test_soft_scores_have_no_mcnemar(policy_folder, tmp_path, capsys):
    numbers = itertools.count()  # the other eight annotators agree with nobody
    manifest = benchmark_of_shapes(tmp_path / "mine", "vqa", lambda right: [right] * 2 + [f"no {next(numbers)}" for _ in range(8)])
    run = config(manifest, f"train.path={policy_folder}", "vqa.questions=36", "vqa.ranked=20", "vqa.bootstrap=100")
    artifact = eval_vqa.run(run, tmp_path / "run")
    report = json.loads((artifact.path / "report.json").read_text())
    assert (report["metric"], report["mcnemar_p"], report["lost"]) == ("vqa", None, 0)
    assert report["retention"]["value"] == 1
    assert report["ranked"]["n"] == 20
    assert report["ranked"]["base_accuracy"] == report["ranked"]["accuracy"]
    assert report["ranked"]["accuracy"]["value"] <= report["ranked"]["best"] <= 0.6 + 1e-9
    predictions = pq.read_table(artifact.path / "predictions.parquet").to_pylist()
    assert {round(row["score"], 6) for row in predictions} <= {0.0, 0.6}  # two of ten: (8 * 2/3 + 2 * 1/3) / 10
    assert all(len(row["answers"]) == 10 for row in predictions)
    assert "McNemar" not in capsys.readouterr().out


def test_popes_figures_are_reported(policy_folder, tmp_path, capsys, monkeypatch):
    manifest = benchmark_of_shapes(tmp_path / "mine", "yes_no", lambda right: right if right in ("yes", "no") else "no")
    overrides = [f"train.path={policy_folder}", "vqa.questions=36", "vqa.ranked=0", "vqa.bootstrap=100"]
    monkeypatch.setattr(eval_vqa, "_refuse_guesser", lambda *_: None)  # two thirds of the answers are made up
    artifact = eval_vqa.run(config(manifest, *overrides), tmp_path / "run")
    report = json.loads((artifact.path / "report.json").read_text())
    assert report["ranked"] is None
    assert report["yes_no"]["base"] == report["yes_no"]["tuned"]
    assert set(report["yes_no"]["base"]) == {"accuracy", "precision", "recall", "f1", "yes_ratio"}
    assert report["yes_no"]["base"]["accuracy"] == pytest.approx(report["base_accuracy"]["value"])
    assert report["yes_no"]["base"]["precision"] > 0.8
    assert "f1" in capsys.readouterr().out
