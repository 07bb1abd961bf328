"""Backward passes: the only place where a step's gradients are taken and summed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from vla_tune.methods.base import Gradients, Parameters, Term


def backward(terms: dict[str, Term]) -> dict[str, Gradients]:
    """Take the gradients of a step's losses, which lie on one graph.

    Terms that give a gradient to the same parameters are summed, by their weights, into one backward pass; it leaves its gradients
    in the parameters.

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
