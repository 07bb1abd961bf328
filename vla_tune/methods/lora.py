"""Low-rank adapters (LoRA, arXiv 2106.09685) on the VLM's text layers, the action expert fully trained."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from vla_tune.methods.base import Method
from vla_tune.vlm.parts import projections_of


class LoRA(Method):
    """peft's adapters on every linear layer of the decoder blocks that lerobot would train; the VLM itself is frozen."""

    name: ClassVar[str] = "lora"

    def prepare(self) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        self.require_trainable_vlm()
        trained = [
            group.rpartition(".")[2]
            for group, ps in self.adapter.groups().items()
            if group.startswith("vlm.layers.") and any(p.requires_grad for p in ps.values())
        ]
        self.freeze("vlm")
        self.config = LoraConfig(
            r=self.settings.lora.rank,
            lora_alpha=self.settings.lora.alpha,
            target_modules=projections_of(trained),
        )
        inject_adapter_in_model(self.config, self.adapter.vlm)

    def finish(self, folder: Path) -> None:
        """Save the adapter to `folder/adapter`, then merge it into the VLM's weights."""
        from peft import get_peft_model_state_dict
        from peft.tuners.lora import LoraLayer
        from safetensors.torch import save_file

        vlm = self.adapter.vlm
        target = folder / "adapter"
        target.mkdir(exist_ok=True)
        state = {name: tensor.contiguous() for name, tensor in get_peft_model_state_dict(vlm).items()}
        save_file(state, target / "adapter_model.safetensors")
        self.config.save_pretrained(str(target))
        for name, module in list(vlm.named_modules()):
            if isinstance(module, LoraLayer):
                module.merge(safe_merge=True)
                parent, _, child = name.rpartition(".")
                setattr(vlm.get_submodule(parent), child, module.get_base_layer())
