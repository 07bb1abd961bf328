"""What the names of a VLM's parts find in real models: the shipped one, a small PaliGemma, SmolVLM2 in its published shape."""

import re

import pytest
import torch
from torch import nn
from vlas import published_smolvlm2, small_paligemma

from vla_tune.resources import demo_vlm
from vla_tune.vlm.loading import load_vlm
from vla_tune.vlm.parts import (
    PROJECTIONS,
    TEXT,
    VISION,
    Taps,
    decoder_dtype,
    decoder_of,
    first_norm,
    linears,
    mlp_of,
    part_blocks,
    projections_of,
    residual_taps,
    vlm_group_of,
    with_block_linears,
)


@pytest.fixture(scope="module", params=["demo", "paligemma", "smolvlm2"])
def vlm(request, tmp_path_factory):
    """The last one has no weights (`meta`)."""
    if request.param == "demo":
        return load_vlm(str(demo_vlm()))[0]
    folder = tmp_path_factory.mktemp("vlms") / request.param
    if request.param == "paligemma":
        return load_vlm(str(small_paligemma(folder)))[0]
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(published_smolvlm2(folder)))


@pytest.fixture
def with_weights(vlm):
    if vlm.device.type == "meta":
        pytest.skip("has no weights")
    return vlm


def text_inputs(vlm):
    ids = torch.arange(7, 19).view(2, 6)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | (
        {} if "text_model" in dir(vlm.model) else {"token_type_ids": ids * 0}
    )


def test_every_parameter_has_a_group_and_blocks_have_one_each(vlm):
    depth = vlm.config.get_text_config().num_hidden_layers
    groups = {vlm_group_of(name) for name in vlm.state_dict()}
    assert groups == {*(f"layers.{number}" for number in range(depth)), "embeddings", "vision", "connector", "norm", "head"}


def test_a_parameter_of_nothing_known_is_no_group():
    with pytest.raises(AssertionError, match=r"no group for the VLM parameter model\.other\.weight"):
        vlm_group_of("model.other.weight")


def test_blocks_are_the_decoders_and_the_vision_towers(vlm):
    blocks = part_blocks(vlm, TEXT)
    assert [block for _, block in blocks] == list(decoder_of(vlm).layers)
    assert {vlm_group_of(name) for name, _ in blocks} == {f"layers.{number}" for number in range(len(blocks))}
    seen = part_blocks(vlm, VISION)
    assert len(seen) == vlm.config.vision_config.num_hidden_layers
    assert {vlm_group_of(name) for name, _ in seen} == {"vision"}


def test_the_projections_are_all_linear_layers_of_the_blocks_named(vlm):
    depth = len(decoder_of(vlm).layers)
    chosen = [str(number) for number in range(0, depth, 2)]
    expected = [
        f"{name}.{inner}"
        for name, block in part_blocks(vlm, TEXT)[::2]
        for inner, module in block.named_modules()
        if isinstance(module, nn.Linear)
    ]
    found = [name for name, _ in vlm.named_modules() if re.fullmatch(projections_of(chosen), name)]
    assert found == expected
    assert len(found) == len(PROJECTIONS) * len(chosen)


def test_linear_layers_are_those_named_and_all_inside_blocks(vlm):
    every = linears(vlm)
    patches = [name for name, module in every.items() if isinstance(module, nn.Conv2d)]
    assert len(patches) == 1
    inside = with_block_linears(vlm, [])
    assert 0 < len(inside) < len(every)
    assert set(patches).isdisjoint(inside)
    assert with_block_linears(vlm, patches) == [name for name in every if name in {*inside, *patches}]


def test_every_block_has_an_mlp_behind_its_norm(with_weights):
    width = with_weights.config.get_text_config().hidden_size
    read = {}
    found = [mlp_of(block) for _, block in part_blocks(with_weights, TEXT)]
    assert [one[2] for one in found] == [width] * len(found)

    def note(module, inputs, out):
        read[module] = (inputs[0], out)

    handles = [module.register_forward_hook(note) for one in found for module in one[:2]]
    with torch.no_grad():
        with_weights.model(**text_inputs(with_weights), use_cache=False)
    assert all(read[norm][1] is read[mlp][0] for norm, mlp, _ in found)
    for handle in handles:
        handle.remove()
    vision = [mlp_of(block) for _, block in part_blocks(with_weights, VISION)]
    assert {one[2] for one in vision} == {with_weights.config.vision_config.hidden_size}
    assert mlp_of(nn.Linear(2, 2)) is None


def test_taps_are_the_outputs_of_the_blocks(with_weights):
    decoder = decoder_of(with_weights)
    seen = []

    def note(_module, _inputs, out):
        seen.append(out[0] if isinstance(out, tuple) else out)

    handles = [block.register_forward_hook(note) for block in decoder.layers]
    with torch.no_grad(), residual_taps(with_weights, Taps()) as taps:
        last = with_weights.model(**text_inputs(with_weights), use_cache=False).last_hidden_state
    for handle in handles:
        handle.remove()
    assert len(taps.states) == len(decoder.layers)
    assert all(torch.equal(tap, own) for tap, own in zip(taps.states, seen, strict=True))
    assert torch.equal(decoder.norm(taps.states[-1]), last)
    assert not any(first_norm(block)._forward_pre_hooks for block in decoder.layers)


def test_counted_tokens_are_split_into_image_and_text():
    taps = Taps(mask=torch.tensor([[True, False, True, True]]), text=slice(2, 4))
    assert taps.counted("all").tolist() == [[True, False, True, True]]
    assert taps.counted("image").tolist() == [[True, False, False, False]]
    assert taps.counted("text").tolist() == [[False, False, True, True]]


def test_the_decoders_type_is_its_matrices(with_weights):
    assert decoder_dtype(with_weights) == torch.float32
