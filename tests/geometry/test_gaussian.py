"""Moments and the 2-Wasserstein distance: properties, and gradients against autograd and the closed form."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_tune.geometry.gaussian import BatchSums, Moments, anchor_distances, batch_moments, sample_tokens, wasserstein2

seeds = st.integers(0, 2**31 - 1)
quick = settings(max_examples=40, deadline=None)


def rows(seed: int, n: int, d: int = 3, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, d, generator=generator, dtype=torch.float64) + 100


def assert_same(a: Moments, b: Moments) -> None:
    assert a.count == b.count
    torch.testing.assert_close(a.mean, b.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(a.m2, b.m2, rtol=1e-9, atol=1e-18)


@quick
@given(seeds, st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(sum), st.floats(1e-3, 1e3))
def test_merge_equals_concatenation_in_any_order(seed, sizes, scale):
    parts = [rows(seed + number, size, scale=scale) for number, size in enumerate(sizes)]
    together = Moments.of(torch.cat(parts))
    forwards, backwards = Moments.empty(3), Moments.empty(3)
    for part in parts:
        forwards = forwards.update(part)
    for part in reversed(parts):
        backwards = Moments.of(part).merge(backwards)
    assert_same(forwards, together)
    assert_same(backwards, together)
    torch.testing.assert_close(together.mean, torch.cat(parts).mean(0), rtol=1e-12, atol=0)


def test_std_by_hand():
    moments = Moments.of(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    assert moments.mean.tolist() == [2, 5]
    assert moments.std(eps=0).tolist() == [1, 0]
    assert moments.std()[1].item() == pytest.approx(1e-3)


def test_nothing_seen_has_no_deviation():
    with pytest.raises(ValueError, match="no vectors"):
        Moments.empty(2).std()
    assert batch_moments(torch.ones(1, 2, 3), torch.zeros(1, 2, dtype=torch.bool))[0].isnan().all()


@quick
@given(seeds, seeds)
def test_distance_is_symmetric_and_zero_only_where_equal(one, other):
    a, b = rows(one, 2, 4).abs(), rows(other, 2, 4).abs()
    distance = wasserstein2(a[0], a[1], b[0], b[1])
    assert distance >= 0
    assert distance == wasserstein2(b[0], b[1], a[0], a[1])
    assert (distance == 0) == torch.equal(a, b)
    assert wasserstein2(a[0], a[1], a[0], a[1]) == 0


def test_distance_by_hand():
    assert wasserstein2(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), torch.tensor([3.0, 1.0]), torch.tensor([1.0, 3.0])) == 13


@quick
@given(seeds, st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=4))
def test_whitened_a_channels_scale_has_no_part(seed, scales):
    a, b = rows(seed, 2, 4).abs(), rows(seed + 1, 2, 4).abs()
    scale = torch.tensor(scales, dtype=torch.float64)
    plain, scaled = (wasserstein2(a[0] * c, a[1] * c, b[0] * c, b[1] * c, whiten=True) for c in (torch.ones(4), scale))
    torch.testing.assert_close(plain, scaled, rtol=1e-9, atol=0)
    torch.testing.assert_close(plain, wasserstein2(a[0] / b[1], a[1] / b[1], b[0] / b[1], torch.ones(4)), rtol=1e-9, atol=1e-12)


@quick
@given(seeds, st.integers(1, 30), st.integers(0, 2**40))
def test_sampled_tokens_are_some_of_the_masks_and_the_same_again(seed, count, step):
    mask = torch.rand(3, 8, generator=torch.Generator().manual_seed(seed)) < 0.6
    kept = sample_tokens(mask, count, step)
    assert not (kept & ~mask).any()
    assert kept.sum() == min(count, int(mask.sum()))
    assert torch.equal(kept, sample_tokens(mask, count, step))
    assert kept.shape == mask.shape


def test_other_steps_draw_other_tokens_and_each_as_often():
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[0, 0] = False
    often = torch.stack([sample_tokens(mask, 5, step) for step in range(2000)]).double().mean(0)
    assert often[0, 0] == 0
    assert (often[mask] - 5 / 19).abs().max() < 0.05


@quick
@given(seeds)
def test_gradient_equals_closed_form_and_finite_differences(seed):
    x = rows(seed, 6).reshape(2, 3, 3).requires_grad_()
    mask = torch.tensor([[True, True, False], [True, False, True]])
    mean_a, std_a = rows(seed + 1, 1)[0], rows(seed + 2, 1)[0].abs()

    def distance(x: torch.Tensor) -> torch.Tensor:
        return wasserstein2(*batch_moments(x, mask), mean_a, std_a)

    (gradient,) = torch.autograd.grad(distance(x), x)
    mean, std = batch_moments(x.detach(), mask)
    n = mask.sum()
    closed = 2 / n * ((mean - mean_a) + (std - std_a) * (x.detach() - mean) / std) * mask[..., None]
    torch.testing.assert_close(gradient, closed, rtol=1e-9, atol=1e-9)
    assert torch.autograd.gradcheck(distance, (x,), eps=1e-6, atol=1e-3, rtol=1e-3)


@quick
@given(seeds, st.sampled_from([0.0, 1e30, float("nan"), float("inf")]))
def test_padding_changes_nothing(seed, padding):
    x = rows(seed, 8).reshape(2, 4, 3).float()
    mask = torch.ones(2, 4, dtype=torch.bool)
    longer = torch.cat([x, torch.full((2, 2, 3), padding)], dim=1).requires_grad_()
    longer_mask = torch.cat([mask, torch.zeros(2, 2, dtype=torch.bool)], dim=1)
    mean, std = batch_moments(longer, longer_mask)
    wanted_mean, wanted_std = batch_moments(x, mask)
    torch.testing.assert_close(mean, wanted_mean, rtol=1e-6, atol=0)  # sums of more numbers are taken in another order
    torch.testing.assert_close(std, wanted_std, rtol=1e-4, atol=0)
    (mean.sum() + std.sum()).backward()
    assert longer.grad is not None
    assert torch.equal(longer.grad[:, 4:], torch.zeros(2, 2, 3))


def test_batch_and_streaming_moments_agree():
    x = rows(0, 12).reshape(3, 4, 3)
    mask = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)) < 0.6
    mean, std = batch_moments(x, mask)
    streamed = Moments.of(x[mask])
    torch.testing.assert_close(mean, streamed.mean)
    torch.testing.assert_close(std, streamed.std())


@quick
@given(seeds, st.booleans())
def test_a_batch_in_parts_has_the_whole_batchs_distance_and_gradient(seed, whiten):
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(6, 4, 3, generator=generator)
    mask = torch.rand(6, 4, generator=generator) < 0.7
    mask[0, 0] = True
    anchor = [(torch.randn(3, generator=generator), torch.rand(3, generator=generator) + 0.5)]
    x = whole.clone().requires_grad_()
    (distance,) = anchor_distances([x], mask, anchor, whiten=whiten)
    distance.backward()
    y, sums = whole.clone().requires_grad_(), BatchSums()
    parts = [(y[rows], mask[rows]) for rows in (slice(0, 1), slice(1, 4), slice(4, 6))]
    for states, counted in parts:
        sums.add([states], counted)
    for states, counted in parts:
        (told,), (part,) = sums.distances([states], counted, anchor, whiten=whiten)
        assert torch.allclose(told, distance.detach(), rtol=1e-4, atol=1e-6)
        part.backward()
    torch.testing.assert_close(y.grad, x.grad, rtol=1e-3, atol=1e-6)
