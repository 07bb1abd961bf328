"""How a VLM is asked: one file a family, each with the words that it was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vla_tune.errors import UserError
from vla_tune.vlm.prompts.base import Prompts
from vla_tune.vlm.prompts.paligemma import PaliGemmaPrompts
from vla_tune.vlm.prompts.smolvlm import SmolVLMPrompts

if TYPE_CHECKING:
    from transformers import ProcessorMixin

__all__ = ["Prompts", "prompts_of"]

FAMILIES = {"SmolVLMProcessor": SmolVLMPrompts, "Idefics3Processor": SmolVLMPrompts, "PaliGemmaProcessor": PaliGemmaPrompts}


def prompts_of(processor: ProcessorMixin) -> Prompts:
    """How the VLM of this processor is asked.

    Raises:
        UserError: it is of no known family.

    """
    family = FAMILIES.get(type(processor).__name__)
    if family is None:
        raise UserError(f"a VLM with a {type(processor).__name__} cannot be asked; those that can: {', '.join(FAMILIES)}")
    return family(processor)
