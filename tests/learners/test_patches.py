"""Responses of random filters to patches: against one patch at a time, and what they do not see."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_tune.learners.patches import FILTERS, FLAT, SIDE, STRIDE, THRESHOLD, filters, patch_responses


def pictures(count=2, side=20, seed=0):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_the_responses_are_those_of_every_patch_on_its_own():
    """A picture of 20 pixels has 8 x 8 patches; a quarter is 4 x 4 of them."""
    pixels = pictures(1)
    known = filters().double()
    found = torch.zeros(8, 8, FILTERS, dtype=torch.float64)
    for row in range(8):
        for column in range(8):
            patch = pixels[0, :, STRIDE * row : STRIDE * row + SIDE, STRIDE * column : STRIDE * column + SIDE].double()
            even = (patch - patch.mean()) / (patch.var(correction=0) + FLAT).sqrt()
            found[row, column] = ((known * even).sum((1, 2, 3)) - THRESHOLD).clamp(min=0)
    quarters = torch.stack([found[a : a + 4, b : b + 4].mean((0, 1)) for a in (0, 4) for b in (0, 4)])
    assert torch.allclose(patch_responses(pixels)[0].double(), quarters, rtol=1e-4, atol=1e-4)


def test_the_filters_are_the_same_whenever_they_are_drawn():
    first, state = filters().clone(), torch.get_rng_state()
    filters.cache_clear()
    assert torch.equal(filters(), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.allclose(first.mean((1, 2, 3)), torch.zeros(FILTERS), atol=1e-6)
    assert torch.allclose(first.flatten(1).norm(dim=1), torch.full((FILTERS,), float(SIDE)), rtol=1e-5)


@settings(max_examples=10)
@given(st.floats(0.5, 4.0), st.floats(-2.0, 2.0))
def test_brightness_and_contrast_say_nothing(contrast, brightness):
    """Of pictures that vary by far more than `FLAT`."""
    pixels = 3 * pictures()
    assert torch.allclose(patch_responses(contrast * pixels + brightness), patch_responses(pixels), atol=0.02)


def test_an_even_picture_says_nothing_and_every_picture_is_seen_alone():
    assert float(patch_responses(torch.full((1, 3, 20, 20), 0.7)).abs().max()) == 0
    pixels = pictures(3)
    assert torch.allclose(patch_responses(pixels)[1], patch_responses(pixels[1:2])[0], atol=1e-6)


def test_fine_and_coarse_textures_are_told_apart():
    """Two textures of the same brightness and contrast, each its own side of a line through what was seen of other samples."""
    fine = pictures(60, 24)
    coarse = torch.nn.functional.interpolate(pictures(60, 6, seed=1), scale_factor=4)
    one, other = (patch_responses(part).flatten(1) for part in (fine, coarse))
    line = one[:40].mean(0) - other[:40].mean(0)
    assert (one[40:] @ line).min() > (other[40:] @ line).max()
