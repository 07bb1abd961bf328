"""Bottleneck adapters beside the MLP of a transformer block, chosen by a noisy top-k router: MoE-Adapters (arXiv 2403.11549).

y = MLP(norm(x)) + sum over e of g_e * s * up_e(relu(down_e(x))), x the residual stream before the block's second norm. Every sample
is routed by its first token. Put on stock blocks by two hooks, so that any caller of the block's parts meets them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vla_tune.experts.layer import Routing

SCALE, DROPOUT, LEAST_NOISE = 0.1, 0.1, 1e-2
"""As the published code has them."""


class AdapterBlock(nn.Module):
    """The experts of one block of width d, and a router a task over all of them.

    width: of the bottleneck. top_k: how many experts a sample uses.
    """

    def __init__(self, d: int, experts: int, tasks: int, *, width: int, top_k: int, routing: Routing) -> None:
        super().__init__()
        self.routing, self.top_k = routing, top_k
        self.down = nn.ModuleList(nn.Linear(d, width) for _ in range(experts))
        self.up = nn.ModuleList(nn.Linear(width, d) for _ in range(experts))
        for down, up in zip(self.down, self.up, strict=True):
            nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))  # type: ignore[arg-type]
            for zero in (down.bias, up.weight, up.bias):
                nn.init.zeros_(zero)  # type: ignore[arg-type]
        self.gate = nn.ParameterList(nn.Parameter(torch.zeros(experts, d)) for _ in range(tasks))
        self.noise = nn.ParameterList(nn.Parameter(torch.zeros(experts, d)) for _ in range(tasks))
        self.used = torch.zeros(experts, dtype=torch.long)
        """How often each expert was chosen in training."""
        self._residual: Tensor | None = None

    def attach(self, norm: nn.Module, mlp: nn.Module) -> None:
        """Read the residual stream at the norm, add to the MLP's output."""
        norm.register_forward_pre_hook(self._keep)
        mlp.register_forward_hook(self._add)

    def _keep(self, _norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._residual = inputs[0]

    def _add(self, _mlp: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        x, self._residual = self._residual, None
        assert x is not None
        rows = self.routing.rows(len(x))
        if rows is None:
            return output
        if isinstance(rows, int):
            return output if rows < 0 else output + self.update(x, rows)
        for task, samples in rows.items():
            if task >= 0:
                own = samples.to(x.device)
                output = output.index_add(0, own, self.update(x[own], task))
        return output

    def update(self, x: Tensor, task: int) -> Tensor:
        """What the experts of a task add at the residual stream `[batch, tokens, d]`."""
        gates = self.gates(x[:, 0], task)
        chosen = (gates > 0).any(0).nonzero().flatten().tolist()
        if self.training:
            self.used += (gates > 0).sum(0).cpu()
        parts = [
            gates[:, one, None, None] * SCALE * self.up[one](F.dropout(self.down[one](x).relu(), DROPOUT, self.training)) for one in chosen
        ]
        return torch.stack(parts).sum(0)

    def gates(self, first: Tensor, task: int) -> Tensor:
        """The share of every expert `[batch, experts]`, from each sample's first token `[batch, d]`; 0 for all but `top_k`."""
        logits = F.linear(first, self.gate[task])
        if self.training:
            logits = logits + torch.randn_like(logits) * (F.softplus(F.linear(first, self.noise[task])) + LEAST_NOISE)
        best = logits.topk(min(self.top_k, logits.shape[-1]), dim=-1)
        return torch.zeros_like(logits).scatter(-1, best.indices, best.values.softmax(-1))

    def most_used(self, count: int, frozen: list[int]) -> list[int]:
        """The experts chosen most often so far, of those that are not frozen."""
        order = [one for one in self.used.argsort(descending=True, stable=True).tolist() if one not in frozen]
        return order[:count]
