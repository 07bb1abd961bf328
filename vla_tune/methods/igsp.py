"""iGSP (arXiv 2605.19301): find the subspace of a task among old and candidate experts, then fine-tune in it.

Phase 1, Subspace Identification: candidates are added to every layer beside the frozen experts of earlier tasks; the loss has a
price on the routing probability of new experts. When the routers agree with themselves, candidates that little flows through go.
Phase 2, Orthogonal Subspace Fine-Tuning: the structure is fixed, the price is gone, what is left trains on.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from vla_tune.anchors.projections import InputSide
from vla_tune.anchors.protection import check_stored
from vla_tune.console import say
from vla_tune.errors import UserError
from vla_tune.experts.phases import agreement, kept_slots, new_mass, overlap
from vla_tune.experts.pool import mean_shares, owner, top_slots
from vla_tune.methods.base import Term
from vla_tune.methods.experts import Experts
from vla_tune.policies.weights import weights_digest


class IGSP(Experts):
    """The strategy; docs/continual.md says what of it is the paper's."""

    name: ClassVar[str] = "igsp"

    def prepare(self) -> None:
        self.own = self.settings.igsp
        self._latest = self.own.most * self.learner.config.train.steps
        """Phase 1 of a task ends before this step."""
        super().prepare()
        self.identified: dict[int, dict[str, Any]] = {}
        """What phase 1 found, by task: the step that it ended at, the agreements, the mean shares, what was kept."""
        self.guards = self._guards()
        self._before: list[Tensor] | None = None

    def shape(self) -> tuple[int, int, int]:
        return self.own.rank, self.own.alpha, self.own.top_k

    def grow(self, task: int) -> None:
        self.pool.grow(task, self.own.candidates, self.places(task), old=self._shared(task))
        self._shield(task)
        self.identified[task] = {"agreement": [], "ended": None if self.places(task) else 0, "new": 0, "old": 0, "candidates": 0}
        self._before = None

    def _shared(self, task: int) -> Callable[[str], bool]:
        """Which experts of earlier tasks a task may use; with `similar`, those of the task that looks most like it."""
        if self.own.sharing == "similar" and task:
            nearest = self.router.nearest(task)
            return lambda expert: owner(expert) == nearest
        return lambda _: self.own.sharing == "all"

    # Isolation.

    def _guards(self) -> dict[str, InputSide]:
        """What keeps new experts of a VLM's layers blind to its leading VQA inputs, by layer (docs/subspace.md, `sides=inputs`).

        Raises:
            UserError: the anchor is of another VLM, does not go so far, or lacks a layer that gets experts.

        """
        if not self.own.protect or self.anchor is None:  # an evaluation trains nothing
            return {}
        assert self.learner.vlm_prefix is not None
        source, prefix = self.anchor.artifact.path, self.learner.vlm_prefix
        with self.pool.detached():
            weights = weights_digest(self.learner.model.get_submodule(prefix.rstrip(".")).state_dict())
        of = {self.anchor.backbone}
        if not self.anchor.artifact.config["policy"]["path"]:  # of a new policy, whose VLM is the base's or its lower part
            of.add(self.anchor.artifact.metrics["base"])
        if weights not in of:
            raise UserError(f"the anchor {source} was taken from a VLM with other weights; make one for this stream with `vla-tune anchor`")
        check_stored(self.anchor, "inputs", self.own.protect)
        known = self.anchor.subspace.to(next(self.learner.model.parameters()).device)
        inside = {name: name.removeprefix(prefix) for name in self.pool.layers if name.startswith(prefix)}
        if missing := [layer for layer in inside.values() if layer not in known.reads]:
            raise UserError(
                f"method.igsp.protect: the anchor {source} knows nothing of {len(missing)} layers that get experts, {missing[0]} first; "
                "make one with this pipeline (policy.settings.num_vlm_layers=0 takes all of a VLM's blocks), or set stream.parts"
            )
        return {name: InputSide.of(known.inputs[known.reads[layer]], self.own.protect) for name, layer in inside.items()}

    @torch.no_grad()
    def _shield(self, task: int) -> None:
        """A's rows lose what lies in the protected inputs, so B A x is 0 there whatever B is."""
        for name, guard in self.guards.items():
            for one, down in self.pool.layers[name].down.items():
                if owner(one) == task:
                    down.copy_(guard(down))

    # Phase 1.

    def identifying(self, task: int) -> bool:
        """Whether a task is in phase 1."""
        return self.identified[task]["ended"] is None

    def terms(self, batch: Any) -> dict[str, Term]:
        if not self.identifying(self.task):
            return {**super().terms(batch), **self._overlap(self.task)}
        with self.watched(weighted=True) as seen:
            task = super().terms(batch)
        mass = new_mass([call for calls in seen.values() for call in calls], self.own.candidates)
        return {**task, "new_mass": Term(mass, self.own.price, shown=True), **self._overlap(self.task)}

    def _overlap(self, task: int) -> dict[str, Term]:
        """The explicit term; without it new experts are held apart from old ones by the structure alone."""
        if not self.own.orthogonal:
            return {}
        terms = []
        for layer in self.pool.layers.values():
            new = [down for name, down in layer.down.items() if owner(name) == task]
            old = [down for name, down in layer.down.items() if owner(name) < task]
            if new and old:
                terms.append(overlap(new, old))
        return {"overlap": Term(torch.stack(terms).sum(), self.own.orthogonal)} if terms else {}

    def after_update(self) -> bool:
        task, step = self.task, self.steps
        self._shield(task)
        if not self.identifying(task) or step % self.own.check_every:
            return False
        used = self.probed(task)
        now = [top_slots(calls) for calls in used.values()]
        found = self.identified[task]
        if self._before is not None:
            found["agreement"].append([step, agreement(self._before, now)])
        self._before = now
        settled = len(found["agreement"]) > 0 and found["agreement"][-1][1] >= self.own.agreement
        late = step + self.own.check_every > self._latest  # the next look would come after phase 1
        if not late and (not settled or step < self.own.least):
            return False
        self._decide(task, step, {name: mean_shares(calls) for name, calls in used.items()})
        self._before = None
        return True

    def _decide(self, task: int, step: int, shares: dict[str, Tensor]) -> None:
        """Prune, and go over to phase 2."""
        kept: dict[str, list[str]] = {name: [] for name in self.places(task)}  # a layer that nothing calls keeps nothing
        for name, mean in shares.items():
            mixture = self.pool.layers[name].mixture(task)
            assert mixture is not None
            kept[name] = [mixture.experts[slot - 1] for slot in kept_slots(mean, self.own.threshold)]
        if self.own.pruning == "random":
            kept |= self._at_random(task, {name: kept[name] for name in shares})
        told = self._told(task, shares)
        self.pool.keep(task, kept)
        if self.own.routing == "task":
            self.pool.settle(task, told)
            self.identified[task]["shares"] = {name: {one: told[name][one] for one in ("base", *kept[name])} for name in told if kept[name]}
        new = sum(owner(one) == task for names in kept.values() for one in names)
        old = sum(owner(one) != task for names in kept.values() for one in names)
        candidates = self.own.candidates * len(kept)
        self.identified[task] |= {"ended": step, "new": new, "old": old, "candidates": candidates}
        say(f"task {task + 1}: phase 1 ends after {step} steps; {new} of {candidates} new experts stay, {old} old ones are used")

    def _at_random(self, task: int, kept: dict[str, list[str]]) -> dict[str, list[str]]:
        """As many experts as were to stay, drawn from all: the control of what routing probabilities say."""
        slots = [(name, one) for name in kept for one in self.pool.layers[name].mixture(task).experts]  # type: ignore[union-attr]
        rng = random.Random(self.learner.config.seed * 1000 + task)  # noqa: S311
        new = [slot for slot in slots if owner(slot[1]) == task]
        old = [slot for slot in slots if owner(slot[1]) != task]
        count = sum(owner(one) == task for names in kept.values() for one in names)
        others = sum(len(names) for names in kept.values()) - count
        drawn = {*rng.sample(new, count), *rng.sample(old, others)}
        return {name: [one for place, one in slots if place == name and (place, one) in drawn] for name in kept}

    # What is told and kept.

    def record(self, task: int) -> dict[str, Any]:
        """Phase 1 of a task, and the mean share of every expert in every layer, while there were routers: after its last step."""
        found = self.identified[task]
        return found if "shares" in found else {**found, "shares": self._told(task, self.shares(task))}

    def _told(self, task: int, shares: dict[str, Tensor]) -> dict[str, dict[str, float]]:
        """Mean shares by layer and slot's name."""
        told = {}
        for name, mean in shares.items():
            mixture = self.pool.layers[name].mixture(task)
            assert mixture is not None
            told[name] = dict(zip(["base", *mixture.experts], mean.tolist(), strict=True))
        return told

    def state_dict(self) -> dict[str, Tensor]:
        before = {f"before:{number:05d}": slots for number, slots in enumerate(self._before or [])}
        return {**super().state_dict(), **before}

    def note(self) -> str:
        return json.dumps({**json.loads(super().note()), "identified": self.identified})

    def load_state_dict(self, state: dict[str, Tensor], note: str = "{}") -> None:
        super().load_state_dict(state, note)
        self.identified = {int(task): found for task, found in json.loads(note)["identified"].items()}
        self._before = [state[key] for key in sorted(state) if key.startswith("before:")] or None
