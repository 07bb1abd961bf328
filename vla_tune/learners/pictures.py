"""Streams of image classification with CLIP, as MTIL has them (arXiv 2303.06628): each task a data set with its class names."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vla_tune.console import progress
from vla_tune.data.labelled_images import LabelledImages, labelled_images
from vla_tune.data.manifests import in_folder
from vla_tune.errors import UserError, one_line
from vla_tune.experts.tasks import NONE, side_by_side
from vla_tune.learners.base import StreamLearner, draws, redraws
from vla_tune.learners.once import once
from vla_tune.learners.patches import patch_responses
from vla_tune.trust.models import check_model
from vla_tune.vlm.loading import load_processor
from vla_tune.vlm.parts import part_blocks

if TYPE_CHECKING:
    from vla_tune.config import Config
    from vla_tune.learners.deployed import Deployed

SMOOTHING = 0.1
PROBE = 64
"""Pictures that routers are looked at on."""
CHUNK = 256


@dataclass(frozen=True)
class Pixels:
    """Row numbers `[n]` to what CLIP reads of those pictures, `[n, 3, height, width]`.

    whole: all of them, where they are in memory.
    """

    known: LabelledImages
    prepare: Any
    whole: Tensor | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        if self.whole is not None:
            return self.whole[rows]
        pixels: Tensor = self.prepare(self.known.images[rows.tolist()]["image"], return_tensors="pt")["pixel_values"]
        return pixels


class Pictures(StreamLearner):
    """A CLIP, its two towers; a batch is `(task, pixels [batch, 3, height, width], labels [batch])`."""

    model: Any
    known_parts: ClassVar[tuple[str, ...]] = ("text", "vision")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.model, self.processor = load_clip(self.base, self.config.device)
        self.device = torch.device(self.config.device)
        self._sets = [
            {split: labelled_images(in_folder(config.stream.folder, task.manifest), split) for split in ("train", "test")}
            for task in config.stream.tasks
            if task.manifest
        ]
        reference = config.stream.reference
        self._reference = labelled_images(in_folder(config.stream.folder, reference), "train") if reference else None
        self._reference_test = labelled_images(in_folder(config.stream.folder, reference), "test") if reference else None

    def stacks(self) -> dict[str, list[tuple[str, nn.Module]]]:
        return {
            "text": part_blocks(self.model, r"text_model\.encoder\.layers\.\d+"),
            "vision": part_blocks(self.model, r"vision_model\.encoder\.layers\.\d+"),
        }

    # Training.

    def batches(self, task: int, step: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        pixels, labels = self._pixels(task, "train"), self._labels(task, "train")
        for rows in draws(len(labels), self.config.train.batch_size, self.config.seed, task, step):
            yield task, pixels(rows), labels[rows]

    def loss(self, batch: tuple[int, Tensor, Tensor]) -> Tensor:
        task, pixels, labels = batch
        prompts = self._prompts(task)
        self.counted = prompts["attention_mask"].bool()
        logits = self.model(pixel_values=pixels.to(self.device), **prompts).logits_per_image
        return F.cross_entropy(logits, labels.to(self.device), label_smoothing=SMOOTHING)

    def count(self, batch: tuple[int, Tensor, Tensor]) -> int:
        return len(batch[2])

    def size(self, batch: tuple[int, Tensor, Tensor]) -> int:
        return len(batch[2])

    def rows(self, batch: tuple[int, Tensor, Tensor], rows: slice) -> tuple[int, Tensor, Tensor]:
        task, pixels, labels = batch
        return task, pixels[rows], labels[rows]

    def probe(self, task: int) -> tuple[int, Tensor, Tensor]:
        rows = torch.arange(min(PROBE, len(self._labels(task, "train"))))
        return task, self._pixels(task, "train")(rows), self._labels(task, "train")[rows]

    def remembered(self, task: int, samples: int, count: int, number: int) -> tuple[int, Tensor, Tensor]:
        labels = self._labels(task, "train")
        rows = redraws(min(samples, len(labels)), count, self.config.seed, number)
        return task, self._pixels(task, "train")(rows), labels[rows]

    # Telling tasks apart.

    def task_features(self, task: int) -> Tensor:
        count = min(self.config.stream.router_samples, len(self._labels(task, "train")))
        return self._features(self._pixels(task, "train"), count)

    def reference_features(self) -> Tensor | None:
        if self._reference is None:
            return None
        count = min(self.config.stream.router_samples, len(self._reference.images))
        return self._features(self._reader(self._reference, "reference"), count)

    @torch.no_grad()
    def _features(self, pixels: Pixels, count: int) -> Tensor:
        """Mean and deviation over tokens at the start, in the middle and at the end of the vision tower, and the picture's own patches."""
        found = []
        for rows in torch.arange(count).split(CHUNK):
            seen = pixels(rows).to(self.device)
            states = self.model.vision_model(pixel_values=seen, output_hidden_states=True).hidden_states
            chosen = (states[0], states[len(states) // 2], states[-1])
            pooled = torch.stack([part for one in chosen for part in (one.mean(1), one.std(1))], dim=1)
            found.append(side_by_side(pooled, patch_responses(seen)).cpu())
        return torch.cat(found)

    # Scoring.

    def score(self, task: int, deployed: Deployed) -> tuple[Tensor, Tensor | None]:
        features = self._test_features(task) if deployed.method.routes else None
        return self._score(self._sets[task]["test"], self._pixels(task, "test"), self._labels(task, "test"), features, deployed)

    def score_reference(self, deployed: Deployed) -> tuple[Tensor, Tensor | None] | None:
        known = self._reference_test
        if known is None:
            return None
        features = self._reference_features if deployed.method.routes else None
        return self._score(known, self._reference_pixels, self._reference_labels, features, deployed)

    @torch.no_grad()
    def _score(
        self, known: LabelledImages, pixels: Pixels, labels: Tensor, features: Tensor | None, deployed: Deployed
    ) -> tuple[Tensor, Tensor | None]:
        """Whether the class of each picture, of the set's first ones with these `labels`, is found among the classes of its set."""
        tasks = None if features is None else deployed.tasks(features)
        texts: dict[int, Tensor] = {}
        right = []
        for rows in torch.arange(len(labels)).split(CHUNK):
            own = torch.full((len(rows),), NONE) if tasks is None else tasks[rows]
            with deployed.routed(None if tasks is None else own):
                seen = F.normalize(self.model.get_image_features(pixel_values=pixels(rows).to(self.device)).pooler_output, dim=-1)
            for one in own.unique().tolist():
                if one not in texts:
                    with deployed.routed(None if tasks is None else one):
                        texts[one] = self._class_features(known)
            words = torch.stack([texts[one] for one in own.tolist()])
            right.append(torch.einsum("nd,ncd->nc", seen, words).argmax(1).cpu() == labels[rows])
        return torch.cat(right).double(), tasks

    def _class_features(self, known: LabelledImages) -> Tensor:
        """The mean over templates of every class's text features `[classes, d]`, of unit length."""
        each = [
            F.normalize(self.model.get_text_features(**self._tokens(known, template)).pooler_output, dim=-1) for template in known.templates
        ]
        return F.normalize(torch.stack(each).mean(0), dim=-1)

    def _tokens(self, known: LabelledImages, template: str) -> dict[str, Tensor]:
        texts = [template.format(name) for name in known.classes]
        return dict(self.processor.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(self.device))

    # Data, kept where it fits.

    @once
    def _test_features(self, task: int) -> Tensor:
        return self._features(self._pixels(task, "test"), len(self._labels(task, "test")))

    @functools.cached_property
    def _reference_pixels(self) -> Pixels:
        assert self._reference_test is not None
        return self._reader(self._reference_test, "reference, test")

    @functools.cached_property
    def _reference_labels(self) -> Tensor:
        assert self._reference_test is not None
        return torch.tensor(self._reference_test.images["label"])[: self.config.vqa.questions]

    @functools.cached_property
    def _reference_features(self) -> Tensor:
        return self._features(self._reference_pixels, len(self._reference_labels))

    @once
    def _prompts(self, task: int) -> dict[str, Tensor]:
        """What the classes are called in training: by the first template."""
        known = self._sets[task]["train"]
        return self._tokens(known, known.templates[0])

    @once
    def _labels(self, task: int, split: str) -> Tensor:
        labels = torch.tensor(self._sets[task][split].images["label"])
        return labels if split == "train" else labels[: self.config.vqa.questions]

    @once
    def _pixels(self, task: int, split: str) -> Pixels:
        return self._reader(self._sets[task][split], f"{self.tasks[task]}, {split}")

    def _reader(self, known: LabelledImages, title: str) -> Pixels:
        """A set's pictures, in memory where all of them fit into `data.cache_mb`."""
        pixels, count = Pixels(known, self.processor.image_processor), len(known.images)
        if pixels(torch.zeros(1, dtype=torch.long)).numel() * 4 * count > self.config.data.cache_mb * 1e6:
            return pixels
        parts = []
        with progress(f"reading {title}", count, "pictures") as counter:
            for rows in torch.arange(count).split(CHUNK):
                parts.append(pixels(rows))
                counter.advance(len(rows))
        return replace(pixels, whole=torch.cat(parts))

    def save(self, folder: Path, final: Path) -> None:
        self.model.save_pretrained(folder / "clip")
        load_processor(self.base).save_pretrained(folder / "clip")  # opened anew: one that was used would write how it padded last


def load_clip(source: str, device: str) -> tuple[Any, Any]:
    """A stock Hugging Face CLIP in float32, in evaluation mode, and its processor.

    Raises:
        UserError: it cannot be opened, or is no CLIP.

    """
    from transformers import AutoConfig, CLIPModel, CLIPProcessor

    from vla_tune.vlm.loading import quiet

    check_model(source)
    try:
        with quiet():
            kind = AutoConfig.from_pretrained(source).model_type
            if kind != "clip":
                raise UserError(f"policy.base_vlm={source}: a stream of labelled pictures trains a CLIP, and this is a '{kind}' model")
            model = CLIPModel.from_pretrained(source, dtype=torch.float32, use_safetensors=True)
            processor = CLIPProcessor.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"the CLIP '{source}' cannot be opened ({one_line(error)}); check policy.base_vlm") from None
    return model.to(device).eval(), processor  # type: ignore[arg-type]
