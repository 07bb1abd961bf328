"""The rules of the two phases, against sums written out and by what must hold for any routers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from vla_tune.experts.phases import agreement, kept_slots, new_mass, overlap

seeds = st.integers(0, 2**31)
layer_sizes = st.lists(st.tuples(st.integers(1, 8), st.integers(0, 3)), min_size=1, max_size=4)


def routers(seed, sizes, new):
    """Probabilities `[tokens, 1 + new + old]` of layers of any sizes."""
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.dirichlet(np.ones(1 + new + old), size=tokens)) for tokens, old in sizes]


@given(seeds, layer_sizes, st.integers(1, 3))
def test_the_mass_of_new_experts_is_a_mean_over_layers_of_means_over_tokens(seed, sizes, new):
    probabilities = routers(seed, sizes, new)
    layers = [sum(sum(row[1 : 1 + new]) for row in layer.tolist()) / len(layer) for layer in probabilities]
    assert new_mass(probabilities, new).item() == pytest.approx(sum(layers) / len(layers))


@given(seeds, layer_sizes, st.integers(1, 3))
def test_the_more_experts_are_new_the_more_mass_they_have_and_never_all_of_it(seed, sizes, new):
    probabilities = routers(seed, sizes, new)
    masses = [new_mass(probabilities, count).item() for count in range(new + 1)]
    assert masses == sorted(masses)
    assert masses[0] == 0
    assert masses[-1] < 1


@given(seeds, st.integers(1, 4), st.integers(1, 4))
def test_pressing_on_the_mass_moves_probability_from_new_experts_to_the_rest(seed, old, new):
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=(3, 1 + new + old))).requires_grad_()
    new_mass([logits.softmax(-1)], new).backward()
    fresh = (torch.arange(1 + new + old) > 0) & (torch.arange(1 + new + old) <= new)
    assert (logits.grad[:, fresh] > 0).all()
    assert (logits.grad[:, ~fresh] < 0).all()


choices = st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=6), min_size=1, max_size=4)


@given(choices)
def test_agreement_counts_tokens_over_all_layers(pairs):
    before, now = ([torch.tensor([pair[side] for pair in layer]) for layer in pairs] for side in (0, 1))
    flat = [pair for layer in pairs for pair in layer]
    assert agreement(before, now) == pytest.approx(sum(one == other for one, other in flat) / len(flat))
    assert agreement(before, now) == agreement(now, before)
    assert agreement(now, now) == 1
    assert agreement([one + 4 for one in now], now) == 0


def test_layers_that_come_or_go_do_not_agree_silently():
    with pytest.raises(ValueError, match="argument 2 is longer"):
        agreement([torch.zeros(3)], [torch.zeros(3), torch.zeros(3)])


@given(seeds, st.integers(1, 10), st.floats(0, 2), st.floats(0, 2))
def test_slots_with_a_large_enough_share_stay(seed, experts, one, other):
    shares = torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(1 + experts)))
    low, high = sorted((one, other))
    equal = 1 / (1 + experts)
    assume(all(abs(share / equal - low) > 1e-9 for share in shares.tolist()))
    found = kept_slots(shares, low)
    assert found == [slot for slot, share in enumerate(shares.tolist()) if slot and share >= low * equal]
    assert set(kept_slots(shares, high)) <= set(found)
    assert kept_slots(shares, 0.0) == list(range(1, 1 + experts))


@given(st.integers(1, 50), st.floats(0.01, 0.999))
def test_equal_shares_all_stay(experts, threshold):
    shares = torch.zeros(1 + experts).softmax(0).double()
    assert kept_slots(shares, threshold) == list(range(1, 1 + experts))
    assert kept_slots(shares, 1.001) == []


def test_a_layer_that_is_best_left_alone_keeps_no_expert():
    assert kept_slots(torch.tensor([0.8, 0.1, 0.1]), 0.9) == []
    assert kept_slots(torch.tensor([0.1, 0.8, 0.1]), 0.9) == [1]
    assert kept_slots(torch.tensor([1.0]), 0.9) == []


def factors(seed, count, rank, d):
    return [torch.from_numpy(one) for one in np.random.default_rng(seed).normal(size=(count, rank, d))]


@given(seeds, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 6))
def test_overlap_is_the_sum_over_pairs_of_rows(seed, news, olds, rank, d):
    new, old = factors(seed, news, rank, d), factors(seed + 1, olds, rank, d)
    pairs = [float(a @ b) ** 2 for one in new for a in one for other in old for b in other]
    assert overlap(new, old).item() == pytest.approx(sum(pairs))
    assert overlap(new, old).item() == pytest.approx(overlap(old, new).item())


@given(seeds, st.integers(1, 3), st.integers(1, 3))
def test_directions_at_right_angles_do_not_overlap(seed, one, other):
    directions = torch.linalg.qr(factors(seed, 1, 6, 6)[0])[0]
    new, old = [directions[:one]], [directions[one : one + other]]
    assert overlap(new, old).item() == pytest.approx(0, abs=1e-20)
    assert overlap(new, [directions]).item() == pytest.approx(one)


def test_going_down_the_overlap_turns_new_directions_away():
    old, start = factors(0, 2, 2, 6), factors(1, 1, 2, 6)[0]
    new = start.clone().requires_grad_()
    for _ in range(300):
        (gradient,) = torch.autograd.grad(overlap([new], old), new)
        new = (new - 0.01 * gradient).detach().requires_grad_()
    span = torch.linalg.qr(torch.cat(old).T)[0]
    inside = start @ span @ span.T
    assert (new @ span).norm() < 0.05 * inside.norm()
    assert torch.allclose(new - new @ span @ span.T, start - inside, atol=1e-8)  # what does not overlap stays
