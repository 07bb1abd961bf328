"""MoE-Adapters4CL (arXiv 2403.11549): adapters for the whole stream from the start, the most used of each task frozen after it.

As published but for its task selector: autoencoders over the features of another network, which decide for a batch at once. Here
samples are told apart one by one, by the same `TaskRouter` as for every other strategy.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from torch import Tensor, nn

from vla_tune.errors import UserError
from vla_tune.experts.adapters import AdapterBlock
from vla_tune.experts.layer import Routing
from vla_tune.methods.base import Term
from vla_tune.methods.continual import Continual


class MoEAdapters(Continual):
    """Two experts a task in every block, top-2 routing, freezing by activation."""

    name: ClassVar[str] = "moe_adapters"

    def prepare(self) -> None:
        if self.learner.writes:
            raise UserError(
                "method.name=moe_adapters: it routes a sample by its first token, and an answer is written token by token; "
                "learn questions by another method (docs/continual.md)"
            )
        self.own = self.settings.moe_adapters
        self.learner.model.requires_grad_(requires_grad=False)
        self.routing = Routing()
        tasks = len(self.learner.tasks)
        self.adapters = self.extras["adapters"] = nn.ModuleList()
        for norm, mlp, width in self.learner.blocks():
            block = AdapterBlock(width, self.own.experts * tasks, tasks, width=self.own.width, top_k=self.own.top_k, routing=self.routing)
            block.to(next(mlp.parameters())).attach(norm, mlp)
            self.adapters.append(block)
        self.frozen: list[list[int]] = [[] for _ in self.adapters]

    def begin(self, task: int) -> None:
        self.adapters.requires_grad_(requires_grad=False)
        self.train_fresh(on=task == 0)
        for block, frozen in zip(self.blocks, self.frozen, strict=True):
            for number, (down, up) in enumerate(zip(block.down, block.up, strict=True)):
                for part in (down, up):
                    part.requires_grad_(number not in frozen)
            block.gate[task].requires_grad = block.noise[task].requires_grad = True

    @property
    def blocks(self) -> list[AdapterBlock]:
        return list(self.adapters)  # type: ignore[arg-type]

    def terms(self, batch: Any) -> dict[str, Term]:
        self.adapters.train()
        try:
            return super().terms(batch)
        finally:
            self.adapters.eval()

    def survey(self, batch: Any) -> dict[str, Tensor | int]:
        raise UserError("train.accumulate: moe_adapters' routers draw noise for a batch as a whole; leave it at 1")

    def end(self, task: int) -> None:
        for block, frozen in zip(self.blocks, self.frozen, strict=True):
            frozen.extend(block.most_used(self.own.experts, frozen))
        self.adapters.requires_grad_(requires_grad=False)
        self.train_fresh(on=False)

    def routed(self, tasks: int | Tensor | None, pictures: Tensor | None = None) -> AbstractContextManager[None]:
        return self.routing.routed(tasks, pictures)

    def added(self) -> dict[str, int]:
        experts = sum(p.numel() for block in self.blocks for part in (block.down, block.up) for p in part.parameters())
        routers = sum(p.numel() for block in self.blocks for part in (block.gate, block.noise) for p in part.parameters())
        return {"experts": experts, "routers": routers}

    def state_dict(self) -> dict[str, Tensor]:
        state = {f"adapters:{name}": p.detach() for name, p in self.adapters.named_parameters()}
        used = {f"used:{number}": block.used for number, block in enumerate(self.blocks)}
        return {**state, **used, **super().state_dict()}

    def note(self) -> str:
        return json.dumps({"frozen": self.frozen})

    def load_state_dict(self, state: dict[str, Tensor], note: str = "{}") -> None:
        own = {name.removeprefix("adapters:"): value for name, value in state.items() if name.startswith("adapters:")}
        self.adapters.load_state_dict(own)
        super().load_state_dict(state, note)
        for number, block in enumerate(self.blocks):
            block.used = state[f"used:{number}"].clone()
        self.frozen = json.loads(note)["frozen"]

    def resume(self, task: int) -> None:
        self.begin(task)
