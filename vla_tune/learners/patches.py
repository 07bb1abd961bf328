"""What a picture is made of, as seen before any model: the responses of random filters to its patches.

Ours, after the single-layer networks of Coates, Lee & Ng (AISTATS 2011): patches of equal contrast, whitened filters, a threshold,
pooling over quarters. A model's states are made to tell its classes apart and to forget how a picture was taken, and that is what
tells sets of pictures apart. Nothing is learnt or kept: the filters are drawn from a seed, and whiten by what natural pictures have in
common, amplitudes that fall as 1 / frequency (Field, 1987).
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

FILTERS, SIDE, STRIDE = 512, 6, 2
AT_ONCE = 16
"""Pictures; one of 224 pixels has 25 MB of responses."""
THRESHOLD = 0.25
"""Of a response, which is at most the filter's length times the root of the numbers in a patch."""
FLAT = 0.01
"""Added to a patch's variance: what varies less than this is no texture but noise."""
COLOURS = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))
"""Brightness and the two opponents, which natural pictures hardly correlate."""


def patch_responses(pixels: Tensor) -> Tensor:
    """Pictures `[n, 3, height, width]` of about unit variance to the mean response of every filter in each quarter, `[n, 4, FILTERS]`."""
    return torch.cat([_responses(some) for some in pixels.float().split(AT_ONCE)])


def _responses(pixels: Tensor) -> Tensor:
    mean = F.avg_pool2d(pixels, SIDE, STRIDE).mean(1, keepdim=True)
    variance = F.avg_pool2d(pixels.square(), SIDE, STRIDE).mean(1, keepdim=True) - mean.square()
    responses = F.conv2d(pixels, filters().to(pixels), stride=STRIDE) / (variance.clamp(min=0) + FLAT).sqrt()
    return F.adaptive_avg_pool2d(F.relu(responses - THRESHOLD), 2).flatten(2).transpose(1, 2)


@functools.cache
def filters() -> Tensor:
    """Filters without mean, of length SIDE, `[FILTERS, 3, SIDE, SIDE]`; the same whenever they are drawn."""
    place = torch.arange(SIDE, dtype=torch.float32)
    waves = F.normalize(torch.cos(math.pi * (place + 0.5) * place[:, None] / SIDE), dim=1)
    colours = F.normalize(torch.tensor(COLOURS), dim=1)
    frequency = (place[:, None].square() + place.square()).sqrt()
    inverse_spectrum = torch.stack([frequency, 2 * (frequency + 1), 2 * (frequency + 1)])  # colours vary less and more slowly
    noise = torch.randn(FILTERS, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    drawn = torch.einsum("kcuv,uy,vx,cd->kdyx", noise * inverse_spectrum, waves, waves, colours)
    drawn = drawn - drawn.mean((1, 2, 3), keepdim=True)
    return F.normalize(drawn.flatten(1), dim=1).view_as(drawn) * SIDE
