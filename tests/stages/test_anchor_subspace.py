"""What the anchor stores of the linear layers' inputs, against features gathered one question at a time."""

import json

import pytest
import torch
from safetensors import safe_open

from vla_tune.anchors.artifact import load_anchor
from vla_tune.anchors.outputs import OutputGradients
from vla_tune.anchors.passes import answer_gradients
from vla_tune.resources import demo_vlm
from vla_tune.stages import anchor
from vla_tune.vlm.batches import answered_inputs
from vla_tune.vlm.loading import load_vlm
from vla_tune.vqa.dataset import vqa_questions

SAMPLES = 8
LAYER = "model.text_model.layers.2."


@pytest.fixture(scope="module")
def made(tmp_path_factory, small_dataset):
    from vla_tune.config import load_config

    data = ["data.manifest=null", "data.repo_id=local/small", f"data.root={small_dataset}"]
    settings = ["policy.settings.chunk_size=4", "policy.settings.n_action_steps=2", "anchor.frames=12"]
    run = tmp_path_factory.mktemp("run")
    config = load_config("demo", [f"anchor.samples={SAMPLES}", "anchor.batch_size=5", "anchor.energy=1", *data, *settings])
    return anchor.run(config, run)


def test_directions_are_those_of_every_token_the_answer_depends_on(made):
    model, processor = load_vlm(str(demo_vlm()))
    tokenizer, seen = processor.tokenizer, []
    model.get_submodule(f"{LAYER}mlp.down_proj").register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0][0]))
    ids = []
    for row in vqa_questions("shapes", "anchor", SAMPLES):
        turn = [{"type": "image"}, {"type": "text", "text": row["question"]}]
        prompt = processor.apply_chat_template([{"role": "user", "content": turn}], add_generation_prompt=True)
        inputs = processor(text=prompt, images=[row["image"]], return_tensors="pt")
        answer = tokenizer(f" {row['answers'][0]}{processor.end_of_utterance_token}", add_special_tokens=False, return_tensors="pt")
        inputs["input_ids"] = torch.cat([inputs["input_ids"], answer["input_ids"]], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        ids.append(inputs["input_ids"][0])
        with torch.no_grad():
            model(**inputs)
    read = torch.cat(seen).double()
    subspace = load_anchor(made.path).subspace
    known = subspace.inputs[subspace.reads[f"{LAYER}mlp.down_proj"]]
    expected = torch.linalg.svdvals(read).square() / len(read)
    assert torch.allclose(known.values.double()[:50], expected[:50], rtol=1e-3)
    basis = known.basis.double()
    assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64), atol=1e-5)
    left = read - (read @ basis) @ basis.T
    assert left.norm() <= 1e-2 * read.norm()
    assert torch.equal(subspace.tokens, torch.bincount(torch.cat(ids), minlength=len(subspace.tokens)))


def test_gradients_are_a_sketch_of_the_answers_jacobian():
    """Against the Jacobian itself, a logit at a time; many draws on one question."""
    model, processor = load_vlm(str(demo_vlm()))
    name = f"{LAYER}mlp.down_proj"
    question = vqa_questions("shapes", "anchor", 1)
    inputs = answered_inputs(processor, question, [0])
    labels, outputs = inputs.pop("labels"), []
    handle = model.get_submodule(name).register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    said = labels[:, 1:] >= 0
    logits = model(**inputs).logits[:, :-1][said][:, labels[labels >= 0].unique()]
    handle.remove()
    centred = (logits - logits.mean(-1, keepdim=True)).flatten()
    jacobian = torch.stack([torch.autograd.grad(one, outputs[0], retain_graph=True)[0][0] for one in centred])  # [logits, tokens, width]
    expected = torch.einsum("ctd,cte->de", jacobian, jacobian)

    draws = 300
    felt = OutputGradients(exact_width=4096, rank=8)
    with felt.watching(model, [name]):
        answer_gradients(model, processor, question.select([0] * draws), 25, felt)
    found = felt.moments[name].total / draws
    assert (found - expected).norm() < 0.15 * expected.norm()
    assert all(p.grad is None for p in model.parameters())


def test_layers_that_read_one_input_share_it(made):
    reads = load_anchor(made.path).subspace.reads
    assert {reads[f"{LAYER}self_attn.{name}_proj"] for name in "qkv"} == {f"{LAYER}self_attn.q_proj"}
    assert reads[f"{LAYER}mlp.up_proj"] == reads[f"{LAYER}mlp.gate_proj"] == f"{LAYER}mlp.gate_proj"
    assert "model.vision_model.embeddings.patch_embedding" in reads
    assert not any(name.startswith("lm_head") for name in reads), "lerobot freezes the head"


def test_the_overlap_with_robot_frames_is_told_layer_by_layer(made):
    told = json.loads((made.path / "subspace.json").read_text())
    for layer in told["layers"]:
        free, overlap = list(layer["free"].values()), list(layer["overlap"].values())
        assert 0 <= layer["free_pairs"]["0.999"] <= layer["free_pairs"]["0.9"] <= 1
        assert 0 <= free[-1] <= free[0] <= 1
        assert 0 <= overlap[0] <= overlap[-1] <= 1 + 1e-6
    assert made.metrics["robot_tokens"] > 0
    assert load_anchor(made.path).robot_mean is not None


def test_width_bounds_turn_into_sketches(small_config, tmp_path):
    made = anchor.run(small_config("anchor.frames=0", "anchor.exact_width=159", "anchor.rank=7"), tmp_path)
    with safe_open(made.path / "subspace.safetensors", "pt") as opened:
        kept = {opened.get_slice(name).get_shape()[1] for name in opened.keys() if name.endswith(".basis")}  # noqa: SIM118
    assert max(kept) == 7
    assert made.metrics["robot_tokens"] == 0
    assert load_anchor(made.path).robot_mean is None
