"""All expert layers of a model as one thing: attach, grow, freeze, prune, save."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from vla_tune.experts.layer import ExpertLinear, Mixture, Routing


class ExpertPool:
    """The experts of a model.

    Args:
        model: changed in place: its chosen linear layers become `ExpertLinear`, everything in it is frozen.
        layers: full names of the linear layers to change.
        rank, scale, top_k: as in `ExpertLinear`.

    """

    def __init__(self, model: nn.Module, layers: Iterable[str], *, rank: int, scale: float, top_k: int = 0) -> None:
        model.requires_grad_(requires_grad=False)
        self.model, self.routing = model, Routing()
        self.layers: dict[str, ExpertLinear] = {}
        for name in layers:
            layer = ExpertLinear(model.get_submodule(name), self.routing, rank=rank, scale=scale, top_k=top_k)  # type: ignore[arg-type]
            _put(model, name, layer)
            self.layers[name] = layer

    def grow(
        self, task: int, candidates: int, places: Iterable[str], *, routed: bool = True, old: Callable[[str], bool] = lambda _: True
    ) -> None:
        """New experts for a task in these layers, and its mixture: over them first, then the earlier experts that `old` lets it use."""
        for name in places:
            layer = self.layers[name]
            known = [one for one in layer.down if old(one)]
            fresh = [f"{task}-{number}" for number in range(candidates)]
            for one in fresh:
                layer.add_expert(one)
            layer.add_mixture(task, [*fresh, *known], routed=routed)  # with top_k, the first slots are those that a new router uses

    def thaw(self, task: int) -> None:
        """A task's own experts and its routers train."""
        for layer in self.layers.values():
            for part in (layer.down, layer.up):
                for one, parameter in part.items():
                    parameter.requires_grad = owner(one) == task
            mixture = layer.mixture(task)
            if mixture is not None:
                mixture.requires_grad_()

    def freeze(self) -> None:
        """Nothing that is here trains any more."""
        for layer in self.layers.values():
            for part in (layer.down, layer.up, layer.mixtures):
                part.requires_grad_(requires_grad=False)

    def count(self) -> dict[str, int]:
        """How many numbers the experts and the routers are made of."""
        experts = sum(p.numel() for layer in self.layers.values() for part in (layer.down, layer.up) for p in part.values())
        routers = sum(p.numel() for layer in self.layers.values() for p in layer.mixtures.parameters())
        return {"experts": experts, "routers": routers}

    def routed(self, tasks: int | Tensor | None, pictures: Tensor | None = None) -> AbstractContextManager[None]:
        """Forward passes in here are those of these tasks (see `Routing`)."""
        return self.routing.routed(tasks, pictures)

    @contextmanager
    def watched(self, counted: Callable[[], Tensor | None] = lambda: None, *, weighted: bool = False) -> Iterator[dict[str, list[Tensor]]]:
        """Collect the probabilities `[tokens, 1 + experts]` of every layer's calls in here.

        counted: says during a pass which tokens count, `[batch, tokens]` (None: all); inputs of another shape (patches) count whole.
        weighted: tokens that do not count stay, as zeros, and the others are scaled so that means are right. To leave them out would
            wait for the device.
        """
        names = {id(layer): name for name, layer in self.layers.items()}
        seen: dict[str, list[Tensor]] = {name: [] for name in self.layers}

        def note(layer: ExpertLinear, probabilities: Tensor) -> None:
            mask = counted()
            if mask is None or mask.shape != probabilities.shape[:-1]:
                found = probabilities.flatten(0, -2)
            elif weighted:
                found = (probabilities * (mask / mask.float().mean())[..., None]).flatten(0, -2)
            else:
                found = probabilities[mask]
            seen[names[id(layer)]].append(found)

        before, self.routing.watch = self.routing.watch, note
        try:
            yield seen
        finally:
            self.routing.watch = before

    def detached(self) -> AbstractContextManager[None]:
        """In here the model has its own linear layers, without experts."""
        return self._swapped({name: layer.base for name, layer in self.layers.items()})

    def merged(self, task: int, shares: dict[str, Tensor]) -> AbstractContextManager[None]:
        """In here the model has linear layers of its own kind with a task's experts in them, by their mean `shares` (see `mean_shares`)."""
        wholes: dict[str, nn.Module] = {}
        for name, layer in self.layers.items():
            whole = wholes[name] = copy.deepcopy(layer.base)
            whole.weight = nn.Parameter(layer.merged(task, shares[name][1:] if name in shares else None), requires_grad=False)
        return self._swapped(wholes)

    @contextmanager
    def _swapped(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        for name, module in modules.items():
            _put(self.model, name, module)
        try:
            yield
        finally:
            for name, layer in self.layers.items():
                _put(self.model, name, layer)

    def keep(self, task: int, kept: dict[str, list[str]]) -> None:
        """Cut a task's mixtures down to the experts named by layer; its own experts that no mixture uses, and empty mixtures, go."""
        for name, layer in self.layers.items():
            mixture = layer.mixture(task)
            if mixture is None:
                continue
            stay = [one for one in mixture.experts if one in kept.get(name, ())]
            gone = [one for one in mixture.experts if one not in stay]
            mixture.keep(stay)
            for one in gone:
                if owner(one) == task and not any(one in other.experts for _, other in _mixtures(layer)):
                    layer.remove_expert(one)
            if not mixture.experts:
                del layer.mixtures[str(task)]

    @torch.no_grad()
    def settle(self, task: int, shares: Mapping[str, Mapping[str, float]]) -> None:
        """A task's routers give way to a factor an expert: what its `shares` by layer and name say, to be trained.

        The task's own experts take theirs into B and begin at 1: a factor before B would be one on its pace.
        """
        for name, layer in self.layers.items():
            mixture = layer.mixture(task)
            if mixture is None:
                continue
            own = [owner(one) == task for one in mixture.experts]
            for one in itertools.compress(mixture.experts, own):
                layer.up[one] *= shares[name][one]
            factors = [1.0 if new else shares[name][one] for one, new in zip(mixture.experts, own, strict=True)]
            mixture.settle(layer.weight.new_tensor(factors))

    def state_dict(self) -> dict[str, Tensor]:
        """Every expert and router, by `{layer}:{expert}:{down|up}` and `{layer}:router-{task}:{weight|bias|factors}`."""
        state: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            for one in layer.down:
                state |= {f"{name}:{one}:down": layer.down[one].detach(), f"{name}:{one}:up": layer.up[one].detach()}
            for task, mixture in _mixtures(layer):
                state |= {f"{name}:router-{task}:{part}": parameter.detach() for part, parameter in mixture.named_parameters()}
        return state

    def structure(self) -> str:
        """Which experts each task uses in each layer, and whether by a router, as JSON."""
        layers = {
            name: {str(task): [mixture.weight is not None, *mixture.experts] for task, mixture in _mixtures(layer)}
            for name, layer in self.layers.items()
        }
        return json.dumps(layers)

    def load(self, state: dict[str, Tensor], structure: str) -> None:
        """Become what `state_dict` and `structure` came from; everything is frozen."""
        tasks: dict[str, dict[str, list[str]]] = json.loads(structure)
        for name, layer in self.layers.items():
            layer.down.clear()
            layer.up.clear()
            layer.mixtures.clear()
            own = [key.split(":")[1] for key in state if key.startswith(f"{name}:") and key.endswith(":down")]
            for one in sorted(own, key=lambda expert: [int(part) for part in expert.split("-")]):
                layer.add_expert(one)
                _fill(layer.down[one], state[f"{name}:{one}:down"])
                _fill(layer.up[one], state[f"{name}:{one}:up"])
            for task, (routed, *experts) in tasks[name].items():
                layer.add_mixture(int(task), experts, routed=bool(routed))
                mixture = layer.mixture(int(task))
                assert mixture is not None
                if (factors := state.get(f"{name}:router-{task}:factors")) is not None:
                    mixture.settle(layer.weight.new_zeros(len(factors)))
                for part, parameter in mixture.named_parameters():
                    _fill(parameter, state[f"{name}:router-{task}:{part}"])
        self.freeze()


def owner(expert: str) -> int:
    """The task that an expert was made for."""
    return int(expert.split("-", maxsplit=1)[0])


def mean_shares(seen: list[Tensor]) -> Tensor:
    """The mean probability of each slot `[1 + experts]` over all tokens of some calls."""
    flat = torch.cat([one.detach() for one in seen])
    return flat.double().mean(0)


def top_slots(seen: list[Tensor]) -> Tensor:
    """The slot that each token uses most, `[tokens]`, on the CPU, where checkpoints come back to."""
    return torch.cat([one.detach().argmax(-1) for one in seen]).cpu()


def _mixtures(layer: ExpertLinear) -> list[tuple[int, Mixture]]:
    return [(int(task), mixture) for task, mixture in layer.mixtures.items()]  # type: ignore[misc]


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _fill(parameter: nn.Parameter, value: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value)


__all__ = ["ExpertPool", "mean_shares", "owner", "top_slots"]
