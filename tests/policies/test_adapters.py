"""Every adapter on lerobot's real class: prefix, groups, export and grafting, saving and opening."""

import sys
import types
from importlib.metadata import EntryPoints

import pytest
import torch
from conftest import KINDS
from safetensors.torch import load_file, save_file

import vla_tune.policies as policies_module
from vla_tune.errors import UserError
from vla_tune.policies import adapt, adapter_class
from vla_tune.policies.loading import grafted_vlm, load_policy, load_processors, save_policy
from vla_tune.policies.smolvla import SmolVLAAdapter
from vla_tune.policies.weights import moved_groups, weights_digest
from vla_tune.vlm.loading import load_vlm, save_vlm
from vla_tune.vlm.parts import Taps, residual_taps
from vla_tune.vlm.prompts import prompts_of

kinds = pytest.mark.parametrize("kind", KINDS)


def weights(folder):
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def stir(module):
    """Other weights everywhere."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))


@kinds
def test_every_parameter_has_its_group_and_every_block_its_own(made, kind):
    policy, _ = made(kind)
    adapter = adapt(policy)
    groups = adapter.groups()
    named = [name for parameters in groups.values() for name in parameters]
    assert sorted(named) == sorted(name for name, _ in policy.named_parameters())
    blocks = {group for group in groups if group.startswith("vlm.layers.")}
    assert blocks == {f"vlm.layers.{number}" for number in range(len(adapter.layers()))}
    assert {"vlm.vision", "vlm.connector", "expert"} <= set(groups)
    assert adapter.width == adapter.layers()[0].mlp.gate_proj.in_features


@kinds
def test_the_export_of_an_untouched_policy_is_the_vlm_it_was_made_from(made, kind, tmp_path):
    policy, base = made(kind)
    vlm, processor = grafted_vlm(policy, base)
    original, _ = load_vlm(base)
    assert weights_digest(vlm.state_dict()) == weights_digest(original.state_dict())
    save_vlm(vlm, processor, tmp_path / "vlm")
    original.save_pretrained(tmp_path / "original")
    exported, whole = weights(tmp_path / "vlm"), weights(tmp_path / "original")
    assert exported.keys() == whole.keys()
    assert all(torch.equal(exported[name], whole[name]) for name in whole)

    from PIL import Image

    inputs = prompts_of(processor).inputs([Image.new("RGB", (64, 64), "red")], ["what color is the large circle?"])
    said = [model.generate(**inputs, max_new_tokens=5, do_sample=False) for model in (load_vlm(str(tmp_path / "vlm"))[0], original)]
    assert torch.equal(*said)


@kinds
def test_tuned_layers_are_grafted_and_all_others_are_the_base_vlms(made, kind):
    policy, base = made(kind)
    adapter = adapt(policy)
    stir(adapter.vlm)
    tuned = adapter.vlm.state_dict()
    whole, original = grafted_vlm(policy, base)[0].state_dict(), load_vlm(base)[0].state_dict()
    for name, tensor in whole.items():
        rows = len(tuned[name]) if name in tuned else 0
        assert torch.equal(tensor[:rows], tuned.get(name, tensor)[:rows])
        assert torch.equal(tensor[rows:], original[name][rows:])
    assert all(group.moved for group in moved_groups(original, tuned))


@kinds
def test_lerobot_opens_what_was_saved_bit_for_bit(made, kind, tmp_path):
    policy, base = made(kind)
    stir(policy)
    unit = {"mean": torch.zeros(4), "std": torch.ones(4), "q01": -torch.ones(4), "q99": torch.ones(4)}
    processors = load_processors(policy, stats={"observation.state": unit, "action": unit})
    save_policy(policy, processors, tmp_path / "policy", base)
    trained = policy.state_dict()
    for opened in (load_policy(str(tmp_path / "policy")), type(policy).from_pretrained(tmp_path / "policy", strict=True)):
        state = opened.state_dict()
        assert state.keys() == trained.keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in trained.items())
    load_processors(opened, str(tmp_path / "policy"))


@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_weights_that_lerobot_lets_be_missing_are_an_error(made, kind, tmp_path):
    policy, base = made(kind)
    save_policy(policy, load_processors(policy, stats={}), tmp_path / "policy", base)
    file = tmp_path / "policy" / "model.safetensors"
    kept = load_file(file)
    del kept["model.action_in_proj.weight"]
    save_file(kept, file)
    with pytest.raises(UserError, match=r"cannot be loaded .*action_in_proj"):
        load_policy(str(tmp_path / "policy"))


@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_paligemmas_prefix_is_what_the_stock_model_computes(made, kind):
    """Prompts attend both ways in both paths, and rotary positions are relative."""
    policy, base = made(kind)
    adapter, (vlm, processor) = adapt(policy), load_vlm(base)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 56, 56, generator=generator)
    tokens = torch.randint(5, 90, (2, 7), generator=generator)
    mask = torch.ones(2, 7, dtype=torch.bool)
    policys = adapter.prefix_forward(images, tokens, mask)
    ids = torch.cat([torch.full((2, 16), processor.image_token_id), tokens], dim=1)
    with torch.no_grad(), residual_taps(vlm, Taps()) as stock:
        vlm.model(
            input_ids=ids,
            pixel_values=images * 2 - 1,
            attention_mask=torch.ones_like(ids),
            token_type_ids=torch.zeros_like(ids),
            use_cache=False,
        )
    assert len(policys.states) == len(stock.states) == len(adapter.layers())
    for own, theirs in zip(policys.states, stock.states, strict=True):
        assert torch.allclose(own, theirs, atol=1e-4)
    assert policys.mask.all()
    assert torch.equal(policys.counted("text").nonzero()[:, 1].unique(), torch.arange(16, 23))


@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_bos_and_padding_do_not_count(made, kind):
    policy, _ = made(kind)
    tokens, mask = torch.tensor([[2, 9, 9, 0]]), torch.tensor([[True, True, True, False]])
    text = adapt(policy).prefix_forward(torch.rand(1, 3, 64, 64), tokens, mask).counted("text")
    assert text[0, 16:].tolist() == [False, True, True, False]


@kinds
def test_freezing_follows_the_configuration(made, kind):
    policy, _ = made(kind)
    adapter = adapt(policy)
    policy.config.train_expert_only = True
    adapter.freeze_as_configured()
    trained = {group for group, ps in adapter.groups().items() if any(p.requires_grad for p in ps.values())}
    assert trained
    assert not [group for group in trained if group.startswith("vlm.")]
    policy.config.train_expert_only, policy.config.freeze_vision_encoder = False, True
    adapter.freeze_as_configured()
    trained = {group for group, ps in adapter.groups().items() if any(p.requires_grad for p in ps.values())}
    assert "vlm.layers.0" in trained
    assert "vlm.vision" not in trained


def test_a_type_without_adapter_lists_those_that_have_one():
    with pytest.raises(UserError, match=r"'act' has no adapter; those that have: pi0, pi05, smolvla; docs/adapters\.md"):
        adapter_class("act")


def test_another_package_registers_an_adapter_by_entry_point(monkeypatch):
    from importlib.metadata import EntryPoint

    class TheirAdapter(SmolVLAAdapter):
        policy_type = "theirs"

    module = types.ModuleType("their_package")
    module.TheirAdapter = TheirAdapter
    monkeypatch.setitem(sys.modules, "their_package", module)
    theirs = EntryPoint("theirs", "their_package:TheirAdapter", policies_module.ENTRY_POINTS)
    monkeypatch.setattr(policies_module, "entry_points", lambda group: EntryPoints([theirs]).select(group=group))
    assert adapter_class("theirs") is TheirAdapter


@kinds
def test_the_prefix_pass_calls_the_model_of_vlm_and_expert_so_that_its_hooks_run(made, kind):
    """Shards and wrappers hang on hooks; to call `forward` itself would pass them by, with the same states."""
    policy, _ = made(kind)
    adapter = adapt(policy)
    (inner,) = (module for name, module in policy.model.named_children() if name in ("vlm_with_expert", "paligemma_with_expert"))
    images, tokens = torch.rand(2, 3, 56, 56), torch.arange(3, 11).view(2, 4)
    ran = []
    handle = inner.register_forward_pre_hook(lambda *_: ran.append(1))
    with torch.no_grad():
        called = adapter.prefix_forward(images, tokens, torch.ones_like(tokens, dtype=torch.bool))
    assert ran == [1]
    handle.remove()
    inner._call_impl = inner.forward
    with torch.no_grad():
        bare = adapter.prefix_forward(images, tokens, torch.ones_like(tokens, dtype=torch.bool))
    assert all(torch.equal(one, other) for one, other in zip(called.states, bare.states, strict=True))
