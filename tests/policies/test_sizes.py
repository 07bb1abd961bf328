"""The published shapes, on the meta device: names and counts without a byte of weights."""

import pytest
import torch
from vlas import published_smolvlm2

from vla_tune.policies.base import PolicyAdapter
from vla_tune.vlm.parts import decoder_of


def unique(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_pi_is_paligemma_whole_and_a_gemma_expert_of_18_layers(kind):
    from importlib import import_module

    modeling = import_module(f"lerobot.policies.{kind}.modeling_{kind}")
    config = import_module(f"lerobot.policies.{kind}").__dict__[f"{kind.upper()}Config"](device="cpu")
    with torch.device("meta"):
        model = getattr(modeling, f"{kind.upper()}Pytorch")(config)
    inner = model.paligemma_with_expert
    inner.paligemma.lm_head.weight = inner.paligemma.get_input_embeddings().weight
    inner.gemma_expert.lm_head = None  # never used, and no part of the published count
    assert len(decoder_of(inner.paligemma).layers) == 18
    assert unique(inner.paligemma) == pytest.approx(2.92e9, rel=0.01)
    assert unique(model) == pytest.approx(3.3e9, rel=0.03)


def test_smolvla_is_16_of_32_layers_and_450_million_parameters(tmp_path):
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import VLAFlowMatching

    vlm = published_smolvlm2(tmp_path / "vlm")
    with torch.device("meta"):
        model = VLAFlowMatching(SmolVLAConfig(vlm_model_name=str(vlm), load_vlm_weights=False, device="cpu"))
    inner = model.vlm_with_expert.vlm
    assert len(decoder_of(inner).layers) == 16
    assert inner.config.text_config.num_hidden_layers == 32
    assert unique(model) == pytest.approx(450e6, rel=0.03)


def test_the_interface_names_what_an_adapter_must_have():
    opening = {"policy_class", "vlm_name", "load", "put_vlm", "freeze_as_configured"}
    prefix = {"prefix_forward", "batch_prefix", "resized", "_bos"}
    training = {"lerobot_dtype", "layers_alone", "final_norms"}
    assert PolicyAdapter.__abstractmethods__ == opening | prefix | training | {"inner", "vlm", "expert"}
