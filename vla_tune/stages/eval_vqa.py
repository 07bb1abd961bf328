"""VQA before and after: the base VLM and the policy's, on the same questions."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from vla_tune.anchors.artifact import Anchor, load_anchor
from vla_tune.anchors.passes import drift, stock_moments
from vla_tune.artifacts.folder import Artifact, Draft, write_json
from vla_tune.config import Config
from vla_tune.console import say, table
from vla_tune.errors import UserError
from vla_tune.policies import adapt, adapter_class
from vla_tune.policies.devices import check_device, on_device
from vla_tune.policies.loading import grafted_vlm, load_policy, policy_config, policy_vlm
from vla_tune.policies.weights import MovedGroup, moved_groups, weights_digest
from vla_tune.reports.tables import p_value
from vla_tune.stages import stream
from vla_tune.stages.subject import subject
from vla_tune.stats.paired import mcnemar
from vla_tune.vlm.answering import answer
from vla_tune.vlm.loading import load_vlm, vlm_source
from vla_tune.vqa.answering import cached_answers
from vla_tune.vqa.dataset import metric_of, vqa_questions
from vla_tune.vqa.ranking import MOST, candidates, rank
from vla_tune.vqa.scorers import options, scores, yes_no_figures
from vla_tune.vqa.scoring import Floats, Scored, accuracy_by_type, blind_answers, summarise

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, ProcessorMixin


def run(config: Config, run: Path, *, overwrite: bool = False) -> Artifact:
    """Score `train.path`, by default `RUN/train`, on `vqa.questions` questions and write `RUN/eval-vqa`.

    Raises:
        UserError: the policy, its base VLM or the anchor is missing, damaged or does not fit; or the base VLM knows no
            more than a guesser.

    """
    config = on_device(config)
    if config.stream.tasks:
        return stream.evaluate(config, run, overwrite=overwrite)
    with Draft(run / "eval-vqa", "eval-vqa", overwrite=overwrite) as draft:
        return _evaluate(config, run, draft)


@dataclass
class Pair:
    """The VLM before and after, and what the artifact says about them.

    base: Hub id or folder of the base VLM; base_digest: of its weights.
    """

    base: str
    before: PreTrainedModel
    after: PreTrainedModel
    processor: ProcessorMixin
    base_digest: str
    groups: list[MovedGroup]
    inputs: list[dict[str, str]]


def open_pair(config: Config, run: Path) -> Pair:
    """Open the policy to score and the VLM to compare it with, and compare their weights."""
    check_device(config.device)
    path, artifact = subject(config, run)
    named = _named_base(artifact) if artifact else None
    policy = load_policy(path)
    tuned = adapt(policy).vlm.state_dict()
    base = vlm_source(config.policy.base_vlm or named or adapt(policy).vlm_name(policy.config))
    if artifact is None and base == str(Path(path).resolve().parent / "vlm"):
        raise UserError(f"{base} lies beside the policy and is the tuned VLM itself; set policy.base_vlm to the VLM it was made from")
    after, processor = grafted_vlm(policy, base)
    before, _ = load_vlm(base)
    state = before.state_dict()
    scored = artifact.as_input() if artifact else {"stage": "policy", "path": path, "digest": weights_digest(policy.state_dict())}
    for vlm in (before, after):
        nn.Module.to(vlm, config.device)
    return Pair(base, before, after, processor, weights_digest(state), moved_groups(state, tuned), [scored])


def _named_base(artifact: Artifact) -> str | None:
    """The VLM that a training started from, by its own words or by those of the policy that it started from."""
    recorded = artifact.config.get("policy", {})
    start = recorded.get("path")
    return recorded.get("base_vlm") or (_own_vlm(start) if start else None)


def _own_vlm(path: str) -> str:
    """The VLM that a policy says it was made from."""
    try:
        config = policy_config(path)
    except UserError as error:
        raise UserError(f"{error}; training started from it: set policy.base_vlm") from None
    return policy_vlm(path, adapter_class(config.type).vlm_name(config))


def _evaluate(config: Config, run: Path, draft: Draft) -> Artifact:
    anchor = _open_anchor(config, run)
    questions = vqa_questions(config.vqa.manifest, "test", config.vqa.questions)  # what is wrong with them is told before a VLM is opened
    seen = vqa_questions(config.vqa.manifest, "anchor")
    pair = open_pair(config, run)
    if anchor is not None and anchor.artifact.metrics.get("base") != pair.base_digest:
        raise UserError(
            f"the anchor {anchor.artifact.path} was taken from another VLM than the base '{pair.base}'; "
            f"make one with `vla-tune anchor {config.pipeline}`, or give another anchor.path"
        )
    _show_weights(pair)
    metric = metric_of(config.vqa.manifest)
    blind = scores(metric, _blind_answers(seen, questions), questions)
    settings: dict[str, Any] = {"batch_size": config.vqa.batch_size, "max_new_tokens": config.vqa.max_new_tokens}
    predictions = {
        "base_prediction": cached_answers(
            pair.before, pair.processor, questions, backbone=pair.base_digest, description="base VLM", **settings
        )
    }
    base_score = scores(metric, predictions["base_prediction"], questions)
    _refuse_guesser(config, pair.base, questions, base_score, blind)
    began = time.perf_counter()
    predictions["prediction"] = answer(pair.after, pair.processor, questions, description="tuned VLM", **settings)
    seconds = time.perf_counter() - began
    score = scores(metric, predictions["prediction"], questions)
    report = _report(config, questions, base_score, score, blind, metric)
    report["ranked"] = _ranked(config, pair, questions, seen, metric) if config.vqa.ranked else None
    if metric == "yes_no":
        names = {"base": "base_prediction", "tuned": "prediction"}
        report["yes_no"] = {name: yes_no_figures(predictions[column], questions["answers"]) for name, column in names.items()}
    layers = None if anchor is None else _drift(anchor, pair, config.anchor.batch_size)
    report |= {
        "drift": None if layers is None else float(np.mean(layers)),
        "drift_by_layer": layers,
        "weights": [dataclasses.asdict(group) for group in pair.groups],
    }
    _write_predictions(draft.path / "predictions.parquet", questions, {**predictions, "base_score": base_score, "score": score})
    write_json(draft.path / "report.json", report)
    _show(report)
    points = {name: report[name] and report[name]["value"] for name in ("base_accuracy", "accuracy", "retention")}
    metrics = {**points, "n": report["n"], "questions_per_s": round(len(questions) / seconds, 1)}
    metrics |= {name: report[name] for name in ("blind", "drift", "drift_by_layer")}
    inputs = pair.inputs + ([] if anchor is None else [anchor.artifact.as_input()])
    return draft.publish(config=config.to_dict(), inputs=inputs, metrics=metrics, device=config.device)


def _open_anchor(config: Config, run: Path) -> Anchor | None:
    """The anchor that drift is measured from, if there is one."""
    path = Path(config.anchor.path) if config.anchor.path else run / "anchor"
    if config.anchor.path is None and not path.exists():
        say(f"no anchor at {path}: drift is not measured")
        return None
    return load_anchor(path)


def _drift(anchor: Anchor, pair: Pair, batch_size: int) -> list[float]:
    taken = anchor.artifact.config
    asked = vqa_questions(taken["anchor"].get("manifest") or taken["vqa"]["manifest"], "anchor", anchor.artifact.metrics["samples"])
    moments = stock_moments(pair.after, pair.processor, asked, batch_size, "drift")
    return drift(moments, anchor.stock_mean, anchor.stock_std)


def _blind_answers(seen: Dataset, questions: Dataset) -> list[str]:
    """What the guesser without a picture says, who has learnt from the whole anchor split."""
    known = zip(seen["type"], seen["question"], seen["answers"], strict=True)
    return blind_answers(known, zip(questions["type"], questions["question"], strict=True), options(questions))


def _ranked(config: Config, pair: Pair, questions: Dataset, seen: Dataset, metric: str) -> dict[str, Any]:
    """Before and after by the most likely of some candidate answers, on the first `vqa.ranked` questions.

    `best`: the accuracy of whoever always picks the best candidate.
    """
    asked = questions.select(range(min(config.vqa.ranked, len(questions))))
    among = candidates(metric, asked, seen)
    base, tuned = (
        scores(metric, rank(vlm, pair.processor, asked, among, batch_size=config.vqa.batch_size, description=words), asked)
        for vlm, words in ((pair.before, "base VLM, ranking"), (pair.after, "tuned VLM, ranking"))
    )
    best = np.max([scores(metric, [answers[min(place, len(answers) - 1)] for answers in among], asked) for place in range(MOST)], axis=0)
    figures = summarise(Scored(asked["image_id"], asked["type"], base, tuned), resamples=config.vqa.bootstrap, seed=config.seed)
    return {**{name: figures[name] for name in ("n", "base_accuracy", "accuracy", "retention")}, "best": float(best.mean())}


def _refuse_guesser(config: Config, base: str, questions: Dataset, base_score: Floats, blind: Floats) -> None:
    """Stop where the interval of the base VLM's accuracy does not lie above the blind guesser's accuracy."""
    scored = Scored(questions["image_id"], questions["type"], base_score, base_score)
    figure = summarise(scored, resamples=config.vqa.bootstrap, seed=config.seed)["base_accuracy"]
    if figure["low"] is None or figure["low"] <= blind.mean():
        raise UserError(
            f"the base VLM '{base}' answers {_percent(figure)} of {len(questions)} questions rightly, not clearly more than "
            f"a guesser who sees no picture ({blind.mean():.1%}): there is no skill to lose; "
            "set policy.base_vlm to a VLM that can answer them, or raise vqa.questions"
        )


def _report(config: Config, questions: Dataset, base: Floats, tuned: Floats, blind: Floats, metric: str) -> dict[str, Any]:
    scored = Scored(questions["image_id"], questions["type"], base, tuned)
    report = summarise(scored, resamples=config.vqa.bootstrap, seed=config.seed)
    report["blind"] = float(blind.mean())
    for kind, accuracy in accuracy_by_type(questions["type"], blind).items():
        report["by_type"][kind]["blind"] = accuracy
    soft = metric == "vqa"  # McNemar's test is one of right and wrong
    changed = {"lost": int((tuned < base).sum()), "gained": int((tuned > base).sum())}
    return {**report, "metric": metric, **changed, "mcnemar_p": None if soft else mcnemar(base, tuned)["p"]}


def _write_predictions(file: Path, questions: Dataset, columns: dict[str, Any]) -> None:
    """A row a question, as the contract lists the columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    asked = {name: list(questions[name]) for name in ("question_id", "image_id", "type", "question", "answers")}
    order = ("base_prediction", "prediction", "base_score", "score")
    pq.write_table(pa.table({**asked, **{name: columns[name] for name in order}}), file)


def _show_weights(pair: Pair) -> None:
    rows = [
        [group.group, f"{group.parameters:,}", f"{group.moved} of {group.tensors}", f"{group.relative:.2e}", f"{group.largest:.2e}"]
        for group in pair.groups
    ]
    table("the VLM's weights, base against tuned", ["group", "parameters", "tensors moved", "relative change", "largest change"], rows)
    if not any(group.moved for group in pair.groups):
        say("your VLM was frozen: nothing is lost")


def _show(report: dict[str, Any]) -> None:
    rows = [
        [name, str(row["n"]), _percent(row["base_accuracy"]), _percent(row["accuracy"]), _percent(row["retention"]), f"{row['blind']:.1%}"]
        for name, row in [*report["by_type"].items(), ("all", report)]
    ]
    table("VQA, with 95 % intervals", ["type", "n", "base", "tuned", "retention", "blind guesser"], rows)
    lost, gained, p = (report[name] for name in ("lost", "gained", "mcnemar_p"))
    say(f"{lost} answers lost, {gained} gained" + ("" if p is None else f" (McNemar's exact test: {p_value(p)})"))
    if ranked := report["ranked"]:
        rates = f"base {_percent(ranked['base_accuracy'])}, tuned {_percent(ranked['accuracy'])}"
        say(f"by likelihood of candidate answers, {ranked['n']} questions: {rates} (at best {ranked['best']:.1%})")
    for name, figures in report.get("yes_no", {}).items():
        say(f"{name}: " + ", ".join(f"{what} {'-' if value is None else f'{value:.1%}'}" for what, value in figures.items()))
    if report["drift"] is not None:
        say(f"drift from the anchor: {report['drift']:.3g} (mean over layers of W2^2 / width)")


def _percent(figure: dict[str, float | None] | None) -> str:
    if figure is None:
        return "-"
    low, high = figure["low"], figure["high"]
    between = "" if low is None or high is None else f" [{low:.1%}, {high:.1%}]"
    return f"{figure['value']:.1%}{between}"
