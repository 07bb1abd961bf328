"""Opening and saving a stock Hugging Face VLM by its library's own loaders."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vla_tune.errors import UserError, one_line
from vla_tune.resources import SHIPPED
from vla_tune.trust.models import check_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


def vlm_source(name: str) -> str:
    """Return a Hub id or an absolute folder; `demo` is the VLM that is shipped, `demo-clip` the CLIP."""
    if name in SHIPPED:
        return str(SHIPPED[name]())
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def load_vlm(source: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Return a stock Hugging Face VLM in float32, in evaluation mode, and its processor.

    Raises:
        UserError: it cannot be opened (no such folder, no network, incomplete).

    """
    from transformers import AutoModelForImageTextToText

    with _opened(source):
        model = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
    return model.eval(), load_processor(source)


def load_processor(source: str) -> ProcessorMixin:
    """Return a VLM's processor alone.

    Raises:
        UserError: it cannot be opened.

    """
    from transformers import AutoProcessor

    with _opened(source):
        return AutoProcessor.from_pretrained(source, trust_remote_code=False)


@contextlib.contextmanager
def _opened(source: str) -> Iterator[None]:
    from safetensors import SafetensorError

    check_model(source)
    try:
        with quiet():
            yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"the VLM '{source}' cannot be opened ({one_line(error)}); check policy.base_vlm") from None


def save_vlm(vlm: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> None:
    """Write a stock Hugging Face checkpoint with its processor."""
    with quiet():
        vlm.save_pretrained(folder)
        processor.save_pretrained(folder)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep lerobot's and transformers' prints and progress bars out of our output."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        if bars:
            logging.enable_progress_bar()
