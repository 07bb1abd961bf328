"""The anchor artifact against token counts and forward passes worked out independently, one question at a time."""

import math

import pytest
import torch
from safetensors.torch import load_file

from vla_tune.artifacts.folder import read_artifact
from vla_tune.config import load_config
from vla_tune.errors import UserError
from vla_tune.resources import demo_vlm
from vla_tune.stages import anchor
from vla_tune.vlm.loading import load_vlm
from vla_tune.vqa.dataset import vqa_questions

SAMPLES = 12
IMAGE_TOKENS = 16


def config(*overrides):
    return load_config("demo", [f"anchor.samples={SAMPLES}", "anchor.batch_size=5", "anchor.frames=0", *overrides])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    return run, anchor.run(config(), run)


@pytest.fixture
def vlm():
    return load_vlm(str(demo_vlm()))


def tensors(artifact):
    return load_file(artifact.path / "anchor.safetensors")


def assert_moments(found, prefix, states):
    """`states`: for each block the tokens `[n, width]` of all questions."""
    for layer, parts in enumerate(states):
        name = f"{prefix}layers.{layer}"
        tokens = torch.cat(parts).double()
        assert found[f"{name}.count"] == len(tokens)
        std = (tokens.var(0, correction=0) + 1e-6).sqrt()
        torch.testing.assert_close(found[f"{name}.mean"].double(), tokens.mean(0), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found[f"{name}.std"].double(), std, rtol=1e-4, atol=1e-4)


def test_names_shapes_and_counts(made, vlm):
    run, artifact = made
    found, metrics = tensors(artifact), artifact.metrics
    layers, width = metrics["layers"], metrics["width"]
    text = vlm[0].config.text_config
    assert (layers, width) == (text.num_hidden_layers, text.hidden_size)
    expected = {f"{path}layers.{i}.{what}" for path in ("", "stock.") for i in range(layers) for what in ("mean", "std", "count")}
    assert set(found) == expected
    assert {tuple(t.shape) for name, t in found.items() if not name.endswith("count")} == {(width,)}
    assert {t.dtype for name, t in found.items() if not name.endswith("count")} == {torch.float32}
    questions = vqa_questions("shapes", "anchor", SAMPLES)
    words = sum(len(vlm[1].tokenizer(text, add_special_tokens=False)["input_ids"]) for text in questions["question"])
    assert metrics["samples"] == SAMPLES
    assert metrics["stock_tokens"] == SAMPLES * IMAGE_TOKENS + words
    assert metrics["tokens"] == SAMPLES * (IMAGE_TOKENS + 1) + words  # lerobot ends an instruction with a newline
    assert metrics["backbone"] == metrics["base"]  # the policy is new and keeps every layer
    assert read_artifact(run / "anchor", "anchor", "").digest == artifact.digest


@pytest.mark.parametrize("batch_size", [1, 12])
def test_the_batch_size_changes_nothing(made, tmp_path, batch_size):
    """What is left is float32 rounding in the forward pass: matrix products of other shapes add in another order."""
    other = tensors(anchor.run(config(f"anchor.batch_size={batch_size}"), tmp_path))
    for name, tensor in tensors(made[1]).items():
        torch.testing.assert_close(other[name], tensor, rtol=2e-5, atol=2e-5)


def test_the_stock_path_equals_hooks_on_the_blocks(made, vlm):
    model, processor = vlm
    blocks = model.model.text_model.layers
    states, outputs = [[] for _ in blocks], {}
    for layer, block in enumerate(blocks):
        block.register_forward_hook(lambda _module, _inputs, out, layer=layer: outputs.update({layer: out}))
    for row in vqa_questions("shapes", "anchor", SAMPLES):
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["question"]}]}
        prompt = processor.apply_chat_template([message], add_generation_prompt=True)
        inputs = processor(text=prompt, images=[row["image"]], return_tensors="pt")
        ids = inputs["input_ids"][0].tolist()
        words = processor.tokenizer(row["question"], add_special_tokens=False)["input_ids"]
        start = next(i for i in range(len(ids)) if ids[i : i + len(words)] == words)
        kept = [i for i, token in enumerate(ids) if token == processor.image_token_id] + list(range(start, start + len(words)))
        with torch.no_grad():
            model(**inputs)
        for layer, out in outputs.items():
            states[layer].append((out[0] if isinstance(out, tuple) else out).reshape(len(ids), -1)[kept])
    assert_moments(tensors(made[1]), "stock.", states)


def rms_norm(x, module):
    return module.weight * x / (x.square().mean(-1, keepdim=True) + module.variance_epsilon).sqrt()


def rotate(x):
    """Rotary embedding with base 10,000 of `[heads, tokens, head_dim]`, halves as pairs, as lerobot writes it."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1])[:, None] / 10_000 ** (torch.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], -1)


def prefix_states(model, picture, ids):
    """Block outputs of the policy's prefix for one picture and one text: embeddings times sqrt(width), attention to all."""
    embeddings = model.model.text_model.embed_tokens(torch.tensor(ids))
    x = torch.cat([picture, embeddings]) * math.sqrt(embeddings.shape[1])
    for block in model.model.text_model.layers:
        normed, attention = rms_norm(x, block.input_layernorm), block.self_attn
        q, k, v = (
            p(normed).unflatten(-1, (-1, attention.head_dim)).transpose(0, 1)
            for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        weights = (rotate(q) @ rotate(k).transpose(1, 2) / math.sqrt(attention.head_dim)).softmax(-1)
        x = x + attention.o_proj((weights @ v).transpose(0, 1).flatten(1))
        normed, mlp = rms_norm(x, block.post_attention_layernorm), block.mlp
        x = x + mlp.down_proj(torch.nn.functional.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))
        yield x


def test_the_policy_path_equals_an_independent_forward(made, vlm):
    model, processor = vlm
    states = [[] for _ in model.model.text_model.layers]
    for row in vqa_questions("shapes", "anchor", SAMPLES):
        pixels = processor.image_processor([row["image"]], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            picture = model.model.get_image_features(pixels, return_dict=True).pooler_output[0]
            ids = processor.tokenizer(row["question"] + "\n", add_special_tokens=False)["input_ids"]
            for layer, state in enumerate(prefix_states(model, picture, ids)):
                states[layer].append(state)
    assert_moments(tensors(made[1]), "", states)


def test_a_finished_anchor_is_not_overwritten(made):
    with pytest.raises(UserError, match="--overwrite"):
        anchor.run(config(), made[0])


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(UserError, match=r"policy\.base_vlm"):
        anchor.run(config("policy.base_vlm=null"), tmp_path)
    with pytest.raises(UserError, match=r"anchor\.samples=9000"):
        anchor.run(config("anchor.samples=9000"), tmp_path)
    assert not list(tmp_path.iterdir())
