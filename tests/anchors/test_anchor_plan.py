"""What an anchor is planned to take, against what passes over a real question take."""

import dataclasses

import pytest
from transformers import AutoConfig

from vla_tune.anchors.inputs import LinearInputs
from vla_tune.anchors.memory import Footprint
from vla_tune.anchors.outputs import OutputGradients
from vla_tune.anchors.passes import answer_gradients, stock_moments
from vla_tune.anchors.plan import QuestionSize, planned_bytes
from vla_tune.anchors.taking import Layers
from vla_tune.config import AnchorConfig
from vla_tune.resources import demo_vlm
from vla_tune.vlm.batches import answered_inputs
from vla_tune.vlm.loading import load_vlm
from vla_tune.vlm.parts import linears
from vla_tune.vqa.dataset import vqa_questions


@pytest.mark.parametrize("width", [4096, 200])
def test_a_pass_takes_what_was_planned(width):
    """With second moments of all layers, and with sketches of the wider ones."""
    vlm, processor = load_vlm(str(demo_vlm()))
    question = vqa_questions("shapes", "anchor", 1)
    size = QuestionSize.of(vlm.config, answered_inputs(processor, question, [0]))
    assert (size.tiles, size.patches) == (1, 64)
    names = [name for name in linears(vlm) if not name.startswith("lm_head")]
    settings = AnchorConfig(exact_width=width, rank=40, frames=0)
    planned = planned_bytes(AutoConfig.from_pretrained(demo_vlm()), Layers(names, names), settings, size, policy_bytes=1000)

    weights = sum(parameter.nbytes for parameter in vlm.parameters())
    read, felt = LinearInputs(width, 40), OutputGradients(width, 40)
    with Footprint("cpu") as seen, read.watching(vlm, names):
        stock_moments(vlm, processor, question, 1, "a pass", read)
    assert planned["questions"] == pytest.approx(1000 + weights + seen.kept + seen.peak, rel=0.05)
    with Footprint("cpu") as seen, felt.watching(vlm, names):
        answer_gradients(vlm, processor, question, 1, felt)
    widths = [(moment.total if hasattr(moment, "total") else moment.rows).shape[1] for moment in read.moments.values()]
    stored = sum(4 * one * (min(one, 40) + 1) for one in widths)
    assert planned["gradients of the answers"] == pytest.approx(1000 + weights + stored + seen.kept + seen.peak, rel=0.05)
    assert "robot frames" not in planned


def test_each_pass_is_planned_where_it_is_made():
    config, size = AutoConfig.from_pretrained(demo_vlm()), QuestionSize(1, 64, 30)
    names = ["model.text_model.layers.0.mlp.down_proj"]
    settings = AnchorConfig(gradients=0)
    plan = planned_bytes(config, Layers(names, names), settings, size, policy_bytes=0)
    assert set(plan) == {"questions", "robot frames"}
    larger = planned_bytes(config, Layers(names, names), settings, dataclasses.replace(size, tiles=9), policy_bytes=0)
    assert larger["questions"] > plan["questions"]
