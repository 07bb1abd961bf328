"""Backward passes: the only place where a step's gradients are taken and summed, over losses and micro-batches.

Every term's gradient is summed over the whole batch before a method's rule looks at it, so a rule is right however the batch came.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vla_tune.methods.base import WHOLE, Part

if TYPE_CHECKING:
    from vla_tune.methods.base import Gradients, Method, Parameters, Term

Values = dict[str, Tensor]
"""The terms of a step by name, without weights."""


def reduce(method: Method, batch: Any, parts: int = 1) -> tuple[Values, Values, dict[str, Gradients]]:
    """Take a batch's losses through their backward passes, in `parts` micro-batches.

    Returns:
        The losses of the whole batch; those of them that the log shows; the gradients of the terms that are `apart`, by the term's
        name and the parameter's. All other gradients are in the parameters.

    """
    if parts == 1:
        terms = method.terms(batch)
        return *_values(terms), backward(terms)
    learner, size = method.learner, method.learner.size(batch)
    parts = min(parts, size)  # the last batch of an epoch of lerobot's may be short
    pieces = [Part(index, parts, size) for index in range(parts)]
    batches = [learner.rows(batch, piece.rows(size)) for piece in pieces]
    shares = _shares(method, list(zip(pieces, batches, strict=True)))
    values: Values = {}
    shown: Values = {}
    gradients: dict[str, Gradients] = {}
    for piece, own, share in zip(pieces, batches, shares, strict=True):
        method.part = piece
        terms = {
            name: replace(term, value=term.value * share.get(name, 1 / parts)) if term.mean else term
            for name, term in method.terms(own).items()
        }
        for total, found in zip((values, shown), _values(terms), strict=True):
            total |= {name: total[name] + value if name in total else value for name, value in found.items()}
        for name, part in backward(terms).items():
            before = gradients.get(name)
            gradients[name] = part if before is None else {key: before[key].add_(gradient) for key, gradient in part.items()}
    method.part = WHOLE
    return values, shown, gradients


def backward(terms: dict[str, Term]) -> dict[str, Gradients]:
    """Take the gradients of losses that lie on one graph.

    Terms that give a gradient to the same parameters are summed, by their weights, into one backward pass; it adds its gradients to
    those in the parameters.

    Returns:
        The gradients of the terms that are `apart`, by the term's name and the parameter's; one that no loss reached is zero.

    """
    joint: list[tuple[Parameters | None, Tensor]] = []
    for term in (term for term in terms.values() if not term.apart):
        value = term.value if term.weight == 1 else term.weight * term.value
        if joint and joint[-1][0] is term.into:
            joint[-1] = (term.into, joint[-1][1] + value)
        else:
            joint.append((term.into, value))
    apart = {name: term for name, term in terms.items() if term.apart}
    left = len(joint) + len(apart)
    for into, value in joint:
        left -= 1
        torch.autograd.backward(value, retain_graph=left > 0, inputs=None if into is None else list(into.values()))
    gradients: dict[str, Gradients] = {}
    for name, term in apart.items():
        left -= 1
        into = term.into
        assert into is not None
        found = torch.autograd.grad(term.value, list(into.values()), retain_graph=left > 0, materialize_grads=True, allow_unused=True)
        gradients[name] = dict(zip(into, found, strict=True))
    return gradients


@torch.no_grad()
def _shares(method: Method, pieces: list[tuple[Part, Any]]) -> list[dict[str, Tensor | float]]:
    """What each term of each micro-batch counts in the mean over the whole batch."""
    counts = []
    for part, batch in pieces:
        method.part = part
        counts.append(method.survey(batch))
    names = {name for count in counts for name in count}
    totals = {name: sum(count.get(name, 0) for count in counts) for name in names}
    return [{name: number / totals[name] for name, number in count.items()} for count in counts]


def _values(terms: dict[str, Term]) -> tuple[Values, Values]:
    values = {name: term.value.detach() for name, term in terms.items()}
    return values, {name: values[name] for name, term in terms.items() if term.shown}
