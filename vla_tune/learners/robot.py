"""Streams of a robot's tasks on a VLA: each task some demonstrations of one dataset, scored in closed loop."""

from __future__ import annotations

import functools
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from vla_tune.data.batches import ordered_batches
from vla_tune.data.instructions import instructions
from vla_tune.errors import UserError
from vla_tune.experts.tasks import NONE
from vla_tune.learners.answers import pooled, question_features, score_questions
from vla_tune.learners.base import StreamLearner, redraws
from vla_tune.learners.demonstrations import REMEMBERED, Demonstrations
from vla_tune.learners.start import make_processors
from vla_tune.policies.loading import set_action_steps, whole_vlm
from vla_tune.simulators.actor import Actor, check_fits, trained_size
from vla_tune.simulators.chunks import world_maker
from vla_tune.simulators.episodes import Episode, check_plan, plan
from vla_tune.simulators.registry import simulator_of, tasks_of
from vla_tune.simulators.runner import Runner
from vla_tune.simulators.videos import write_video
from vla_tune.vlm.loading import load_processor
from vla_tune.vlm.parts import TEXT, VISION, part_blocks
from vla_tune.vqa.dataset import vqa_questions

if TYPE_CHECKING:
    from vla_tune.config import Config
    from vla_tune.learners.deployed import Deployed


class Robot(Demonstrations, StreamLearner):
    """A policy; a batch is what its forward pass takes. What belongs to no task: the questions of `vqa.manifest`, the base ability.

    Raises:
        UserError: a task has no demonstrations, or no world of the simulator, or cannot be scored as `rollout` says.

    """

    known_parts: ClassVar[tuple[str, ...]] = ("text", "vision", "expert")

    def __init__(self, config: Config) -> None:
        Demonstrations.__init__(self, config)
        StreamLearner.__init__(self, config, self.base)
        self._stats = self.start.dataset.meta.stats
        self.model.eval()
        self.vlm = whole_vlm(self.start.policy, self.base)
        self.vlm_prefix = self.adapter.vlm_prefix
        self.simulator = simulator_of([name for task in config.stream.tasks for name in task.tasks])
        self.worlds = [tasks_of(self.simulator, task.tasks) for task in config.stream.tasks]
        check_fits(self.start.policy, self.start.processors[0], self.simulator)
        for own in self.worlds:
            check_plan(config.rollout, self.simulator, own)
        self._episodes = [self._demonstrations(number) for number in range(len(self.tasks))]

    def _demonstrations(self, task: int) -> list[int]:
        """The episodes that a task learns from."""
        settings = self.config.stream.tasks[task]
        told = set(settings.instructions or [self.simulator.instruction(world) for world in self.worlds[task]])
        meta = self.start.dataset.meta
        own = [number for number in self.chosen if told & set(meta.episodes["tasks"][number])]
        if not own:
            known = ", ".join(f"'{text}'" for text in list(instructions(meta).values())[:12])
            raise UserError(
                f"stream.tasks: '{settings.name}' has no demonstrations with the instruction {' or '.join(map(repr, sorted(told)))}; "
                f"set its instructions to some of the dataset's: {known}"
            )
        return own

    # Places.

    def stacks(self) -> dict[str, list[tuple[str, nn.Module]]]:
        prefix = self.adapter.vlm_prefix.replace(".", r"\.")
        inside = {id(module) for part in (self.adapter.vlm, self.adapter.expert) for module in part.modules()}
        layers = self.adapter.expert_layers()
        blocks = [(name, module) for name, module in self.model.named_modules() if module in layers]
        rest = [(name, module) for name, module in self.model.named_modules() if isinstance(module, nn.Linear) and id(module) not in inside]
        return {
            "text": part_blocks(self.model, prefix + TEXT),
            "vision": part_blocks(self.model, prefix + VISION),
            "expert": blocks + rest,
        }

    def fresh(self) -> list[tuple[str, nn.Parameter]]:
        """A new policy's action expert."""
        return [] if self.config.policy.path else self.new_parameters()

    # Training.

    def batches(self, task: int, step: int, workers: int | None = None) -> Iterator[dict[str, Any]]:
        return self.read(self.frames_of(self._episodes[task]), task, step, workers)

    def loss(self, batch: dict[str, Any]) -> Tensor:
        def note(present: Tensor, *_: Tensor) -> None:
            self.counted = present.bool()

        with self.adapter.embedded(note):
            return super().loss(batch)

    def probe(self, task: int) -> dict[str, Any]:
        return next(self.batches(task, 0, workers=0))

    def remembered(self, task: int, samples: int, count: int, number: int) -> dict[str, Any]:
        """Of `samples` frames spread evenly over a task's demonstrations."""
        frames = self.frames_of(self._episodes[task])
        kept = min(samples, len(frames))
        rows = [frames[row * len(frames) // kept] for row in redraws(kept, count, self.config.seed, number).tolist()]
        return self.drawn(self.processed(next(ordered_batches(self.frames, rows, count))), REMEMBERED + number)

    def scales(self) -> dict[str, Any]:
        """The dataset's statistics; with new demonstrations in it they are others, and earlier tasks go by the old ones."""
        from lerobot.datasets.utils import serialize_dict

        scales: dict[str, Any] = serialize_dict(self._stats)
        return scales

    def rescale(self, scales: Any) -> None:
        from lerobot.datasets.io_utils import cast_stats_to_numpy

        if scales != self.scales():
            self._stats = cast_stats_to_numpy(scales)
            self.start.processors = make_processors(self.config, self.start.policy, self._stats)

    # Telling tasks apart.

    def task_features(self, task: int) -> Tensor:
        frames = len(self.frames_of(self._episodes[task]))
        count = -(-min(frames, self.config.stream.router_samples) // self.config.train.batch_size)
        return torch.cat([self.batch_features(batch) for batch in itertools.islice(self.batches(task, 0, workers=0), count)])

    @torch.no_grad()
    def batch_features(self, batch: dict[str, Any]) -> Tensor:
        """How the policy as it routes now sees a batch's pictures and instructions, `[batch, 6 * d]`."""
        taps = self.adapter.batch_prefix(batch)
        assert taps.mask is not None
        return pooled(taps.states, taps.mask)

    def reference_features(self) -> Tensor:
        questions = vqa_questions(self.config.vqa.manifest, "anchor")
        looked_at = questions.select(range(min(self.config.stream.router_samples, len(questions))))
        return question_features(self.vlm, self.processor, looked_at, self.config.vqa.batch_size, self.depth)

    @property
    def depth(self) -> int:
        """How many of the VLM's blocks the policy has."""
        return len(self.adapter.layers())

    @functools.cached_property
    def processor(self) -> Any:
        """The base VLM's."""
        return load_processor(self.base)

    # Scoring.

    def score(self, task: int, deployed: Deployed) -> tuple[Tensor, Tensor | None]:
        episodes, taken = self.run_episodes(task, deployed, self.config.rollout.episodes)
        return torch.tensor([episode.success for episode in episodes]).double(), taken

    def score_reference(self, deployed: Deployed) -> tuple[Tensor, Tensor | None]:
        """The questions of `vqa.manifest` to the policy's VLM."""
        vqa = self.config.vqa
        questions = vqa_questions(vqa.manifest, "test", vqa.questions)
        settings = {"batch_size": vqa.batch_size, "max_new_tokens": vqa.max_new_tokens}
        marks, _, tasks = score_questions(self.vlm, self.processor, vqa.manifest, questions, deployed, settings, self.depth)
        return marks, tasks

    def images(self, task: int) -> list[str] | None:
        return list(vqa_questions(self.config.vqa.manifest, "test", self.config.vqa.questions)["image_id"]) if task == NONE else None

    def film(self, deployed: Deployed, folder: Path) -> None:
        """The first of each task's episodes once more, as `rollout.videos` videos in all."""
        videos = self.config.rollout.videos
        shutil.rmtree(folder, ignore_errors=True)  # an evaluation that was interrupted here may have been of another training
        for task, name in enumerate(self.tasks[:videos]):
            folder.mkdir(exist_ok=True)
            for episode in self.run_episodes(task, deployed, len(range(task, videos, len(self.tasks))), filmed=True)[0]:
                write_video(folder / f"{name}-{episode.video}", episode.frames)

    def run_episodes(self, task: int, deployed: Deployed, count: int, *, filmed: bool = False) -> tuple[list[Episode], Tensor | None]:
        """The first `count` episodes of a task, each call's task told from what the policy sees; and what calls were taken for."""
        settings, taken = self.config.rollout, list[Tensor]()
        policy = self.start.policy
        set_action_steps(policy.config, settings.n_action_steps)
        size = settings.image_size or trained_size(policy, self.start.processors[0], self.simulator)
        worlds = {one: self.simulator.instruction(one) for one in self.worlds[task]}
        episodes = plan(worlds, count, settings.first_seed, count if filmed else 0)
        actor = Actor(policy, self.start.processors, self.simulator.processor(), deployed.around(self.batch_features, taken))

        maker = world_maker(self.simulator, size, settings.step_limit)
        Runner(actor, maker, parallel=settings.parallel, processes=settings.processes).run(episodes, lambda _: None)
        return episodes, torch.cat(taken) if taken else None
