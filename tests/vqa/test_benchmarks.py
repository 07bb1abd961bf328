"""Other people's questions in our columns: local folders, and parquet files laid out as on the Hub (no network: the Hub is a folder)."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from vla_tune.data.manifests import load_manifest
from vla_tune.errors import UserError
from vla_tune.resources import available
from vla_tune.stages.current import sources
from vla_tune.vqa.dataset import metric_of, questions_digest, vqa_questions

COLUMNS = {"question_id", "image_id", "image", "type", "question", "prompt", "answers", "choices"}


def picture(number, mode="RGB", size=(8, 6)):
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


def png(number, mode="RGB"):
    stream = io.BytesIO()
    picture(number, mode).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def folder_of(root, rows, pictures=20):
    (root / "images").mkdir(parents=True)
    for number in range(pictures):
        picture(number, ("RGB", "L", "RGBA", "P")[number % 4], (8 + number, 6)).save(root / "images" / f"{number}.png")
    (root / "qa.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(root)


def rows_of(**more):
    return [{"image": f"images/{n // 3}.png", "question": f"what is {n}?", "answer": str(n), **more} for n in range(60)]


def manifest_of(root, **changes):
    """A benchmark of 40 questions about 10 pictures in two parquet files."""
    (root / "data").mkdir(parents=True)
    rows = [
        {
            "image": png(n // 4),
            "question": f"which is {n}?",
            "answers": [{"answer": "two"}, {"answer": "one"}, {"answer": "one"}],
            "options": ["red", "blue", "green"],
            "right": str(n % 3),
            "image_id": n // 4,
            "question_id": n,
            "kinds": {"semantic": ("object", "attribute")[n % 2]},
        }
        for n in range(40)
    ]
    for number in range(2):
        pq.write_table(pa.Table.from_pylist(rows[20 * number : 20 * number + 20]), root / "data" / f"test-{number}.parquet")
    columns = {"answers": "answers", "image_id": "image_id", "question_id": "question_id", "type": "kinds.semantic"}
    values = {
        "kind": "vqa-benchmark",
        "dataset": str(root),
        "anchor": "data/test-*.parquet",
        "test": "data/test-*.parquet",
        "columns": columns,
        "metric": "vqa",
        "prompt": "{question}\nAnswer briefly.",
        "license": "MIT",
    }
    values |= {key: value for key, value in changes.items() if key != "columns"}
    values["columns"] = {key: value for key, value in {**columns, **changes.get("columns", {})}.items() if value is not None}
    (root / "mine.yaml").write_text(yaml.safe_dump(values))
    return str(root / "mine.yaml")


def test_the_shipped_benchmarks_say_what_they_are_and_what_they_take():
    benchmarks = {name: load_manifest(name) for name in available("data_manifests") if load_manifest(name).kind == "vqa-benchmark"}
    assert set(benchmarks) == {"vqav2", "ok-vqa", "textvqa", "gqa", "pope", "ai2d", "realworldqa"}
    for name, manifest in benchmarks.items():
        assert manifest.download_mb > 50, name
        assert manifest.revision == "main" or len(manifest.revision) == 40, name
        assert manifest.dataset.startswith("lmms-lab/"), name
    assert {name: manifest.metric for name, manifest in benchmarks.items() if manifest.metric != "vqa"} == {
        "gqa": "exact",
        "pope": "yes_no",
        "ai2d": "choice",
        "realworldqa": "choice",
    }


def test_without_network_a_benchmark_says_what_it_would_fetch(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"lmms-lab/ai2d .*cannot be fetched.*139 MB.*data/test-\*\.parquet"):
        vqa_questions("ai2d", "test", 5)


def test_from_the_hub_only_the_files_of_the_split_are_fetched(monkeypatch, tmp_path):
    asked = []
    name = manifest_of(tmp_path, dataset="some/body", revision="abc", anchor="data/test-0.parquet", test="data/test-1.parquet")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *given, **named: asked.append((given, named)) or str(tmp_path))
    assert len(vqa_questions(name, "test")) == 20
    assert asked == [(("some/body",), {"repo_type": "dataset", "revision": "abc", "allow_patterns": ["data/test-1.parquet"]})]


def test_a_folder_with_splits(tmp_path):
    rows = rows_of(type="number")
    for number, row in enumerate(rows):
        row["split"] = "train" if number < 45 else "test"
    name = folder_of(tmp_path / "mine", rows)
    anchor, test = vqa_questions(name, "anchor"), vqa_questions(name, "test")
    assert set(anchor.column_names) == COLUMNS
    assert (len(anchor), len(test)) == (45, 15)
    assert {row["question"] for row in test} == {f"what is {n}?" for n in range(45, 60)}
    assert set(test["type"]) == {"number"}
    assert all(row["question"] == row["prompt"] == f"what is {row['answers'][0]}?" for row in test)
    assert len(set(anchor["question_id"])) == 45
    assert metric_of(name) == "exact"


def test_pictures_of_any_mode_are_rgb_and_those_of_the_question(tmp_path):
    name = folder_of(tmp_path / "mine", rows_of())
    for row in vqa_questions(name, "test"):
        number = int(row["answers"][0]) // 3
        assert row["image"].mode == "RGB"
        expected = Image.open(tmp_path / "mine" / "images" / f"{number}.png").convert("RGB")
        np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(expected))


def test_a_folder_without_splits_is_cut_by_picture(tmp_path):
    name = folder_of(tmp_path / "mine", rows_of())
    anchor, test = vqa_questions(name, "anchor"), vqa_questions(name, "test")
    assert len(anchor) + len(test) == 60
    assert min(len(anchor), len(test)) >= 15
    assert not set(anchor["image_id"]) & set(test["image_id"])
    assert questions_digest(test) == questions_digest(vqa_questions(name, "test"))
    assert set(test["type"]) == {"question"}


def test_the_first_questions_are_not_about_one_picture(tmp_path):
    name = folder_of(tmp_path / "mine", rows_of(split="test"))
    whole, part = vqa_questions(name, "test"), vqa_questions(name, "test", 15)
    assert part["question_id"] == whole["question_id"][:15]
    assert len(set(part["image_id"])) >= 10


def test_annotators_answers_come_with_the_most_frequent_first(tmp_path):
    row = {"image": "images/0.png", "question": "what?", "answers": ["no", "yes", "yes"], "split": "test", "question_id": "q1"}
    (only,) = vqa_questions(folder_of(tmp_path / "mine", [row]), "test")
    assert (only["question_id"], only["answers"]) == ("q1", ["yes", "yes", "no"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"qa\.jsonl:1: not a JSON object"),
        ('{"image": "images/0.png", "question": "what?"}', r"qa\.jsonl:1.*answer"),
        ('{"image": "images/99.png", "question": "what?", "answer": "x"}', r"qa\.jsonl:1: image: there is no file .*99\.png"),
        ('{"image": "images/0.png", "question": "what?", "answer": "x", "split": "dev"}', r"split: 'dev' is neither of train and test"),
        ('{"image": "images/0.png", "question": "what?", "answers": []}', r"qa\.jsonl:1: answers: there is none"),
        ('{"image": "images/0.png", "question": "what?", "answer": "x", "split": "train"}', r"no question for the test split"),
        ("", r"qa\.jsonl: no question in it"),
    ],
)
def test_a_wrong_folder_says_where(tmp_path, line, message):
    name = folder_of(tmp_path / "mine", [])
    (tmp_path / "mine" / "qa.jsonl").write_text(line)
    with pytest.raises(UserError, match=message):
        vqa_questions(name, "test")


def test_a_split_in_some_rows_only_and_an_id_twice(tmp_path):
    rows = rows_of()
    rows[3]["split"] = "test"
    with pytest.raises(UserError, match="split: give it in every row, or in none"):
        vqa_questions(folder_of(tmp_path / "one", rows), "test")
    with pytest.raises(UserError, match="question_id: 7 stands for several"):
        vqa_questions(folder_of(tmp_path / "two", rows_of(question_id="7")), "test")


def test_a_stage_is_made_again_where_a_folders_questions_changed(tmp_path):
    name = folder_of(tmp_path / "mine", rows_of())
    config = {"vqa": {"manifest": name}, "policy": {}}
    before = sources("eval-vqa", config)
    assert before == sources("eval-vqa", config)
    (tmp_path / "mine" / "images" / "0.png").write_bytes(png(99)["bytes"])
    assert before != sources("eval-vqa", config)


def test_too_many_questions_and_a_folder_without_questions(tmp_path):
    name = folder_of(tmp_path / "mine", rows_of(split="test"))
    with pytest.raises(UserError, match=r"vqa\.questions=61: the test split of '.*mine' has 60"):
        vqa_questions(name, "test", 61)
    with pytest.raises(UserError, match=r"holds no qa\.jsonl"):
        load_manifest(str(tmp_path / "mine" / "images"))
    with pytest.raises(UserError, match="there is no file or folder"):
        load_manifest(str(tmp_path / "nowhere.yaml"))


def test_a_parquet_benchmark_with_one_split(tmp_path):
    name = manifest_of(tmp_path)
    anchor, test = vqa_questions(name, "anchor"), vqa_questions(name, "test")
    assert set(test.column_names) == COLUMNS
    assert len(anchor) + len(test) == 40
    assert not set(anchor["image_id"]) & set(test["image_id"])
    for row in test:
        number = int(row["question_id"])
        assert row["question"] == f"which is {number}?"
        assert row["prompt"] == f"which is {number}?\nAnswer briefly."
        assert row["answers"] == ["one", "one", "two"]
        assert row["type"] == ("object", "attribute")[number % 2]
        assert row["image_id"] == str(number // 4)
        np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(picture(number // 4)))
    assert metric_of(name) == "vqa"


def test_a_parquet_benchmark_with_two_splits_and_no_ids(tmp_path):
    columns = {"image_id": None, "question_id": None, "type": None}
    name = manifest_of(tmp_path, anchor="data/test-0.parquet", test="data/test-1.parquet", columns=columns)
    anchor, test = vqa_questions(name, "anchor"), vqa_questions(name, "test")
    assert (len(anchor), len(test)) == (20, 20)
    assert len(set(test["question_id"])) == 20
    assert len(set(test["image_id"])) == 5  # by the pictures' content
    assert not set(anchor["image_id"]) & set(test["image_id"])


def test_a_multiple_choice(tmp_path):
    prompt = "{question}\n{choices}\nThe letter."
    name = manifest_of(tmp_path, metric="choice", prompt=prompt, columns={"answers": "right", "choices": "options"})
    for row in vqa_questions(name, "test"):
        number = int(row["question_id"])
        assert row["choices"] == ["red", "blue", "green"]
        assert row["answers"] == [["A", "red"], ["B", "blue"], ["C", "green"]][number % 3]
        assert row["prompt"] == f"which is {number}?\nA. red\nB. blue\nC. green\nThe letter."


def test_pictures_in_files_of_their_own(tmp_path):
    """As GQA has them: the questions name pictures by id, and other files hold each picture once."""
    (tmp_path / "pictures").mkdir()
    stored = [{"id": str(n), "image": png(n)} for n in range(10)]
    pq.write_table(pa.Table.from_pylist(stored), tmp_path / "pictures" / "all.parquet")
    name = manifest_of(tmp_path, pictures="pictures/*.parquet")
    for _ in range(2):  # extracted, then found
        for row in vqa_questions(name, "anchor"):
            np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(picture(int(row["image_id"]))))
    pq.write_table(pa.Table.from_pylist(stored[:3]), tmp_path / "pictures" / "all.parquet")
    with pytest.raises(UserError, match=r"holds no picture '\d', which columns\.image_id names"):
        vqa_questions(name, "anchor")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": {"question": "text"}}, r"columns\.question: .* has no column 'text'; it has .*question_id"),
        ({"columns": {"type": "category"}}, r"columns\.type"),
        ({"test": "data/val-*.parquet"}, r"no file fits data/val-\*\.parquet"),
        ({"columns": {"answers": "question"}}, r"row 0: answers: there are fewer than the 2 that metric=vqa takes"),
        ({"columns": {"question_id": "image_id"}}, r"question_id: 0 stands for several"),
        (
            {"metric": "choice", "prompt": "{question} {choices}", "columns": {"answers": "question", "choices": "options"}},
            "row 0: answers: it is not the number of one of the 3 options, counted from 0; here it is 'which is 0\\?'",
        ),
    ],
)
def test_a_wrong_parquet_benchmark_names_the_key(tmp_path, changes, message):
    name = manifest_of(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        vqa_questions(name, "test")
