"""The projection's properties, and an independent oracle in float64."""

from __future__ import annotations

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vla_tune.geometry.projection import remove_conflict, remove_conflict_each

seeds = st.integers(0, 2**31 - 1)
shapes = st.lists(st.sampled_from([(3,), (4, 5), (2, 3, 2), (1,)]), min_size=1, max_size=4)


def gradients(seed, shapes, scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def flat(tensors):
    return torch.cat([t.double().flatten() for t in tensors])


def cosine(a, b):
    return float(flat(a) @ flat(b) / (flat(a).norm() * flat(b).norm()))


@given(seeds, seeds, shapes)
@settings(deadline=None)
def test_projection_against_the_textbook_formula(seed, other, shapes):
    task, anchor = gradients(seed, shapes), gradients(other, shapes)
    before = flat(task)
    conflict = remove_conflict(task, anchor)
    g = flat(anchor)
    wanted = before - torch.clamp(before @ g, max=0.0) / (g @ g) * g
    torch.testing.assert_close(flat(task), wanted, rtol=1e-5, atol=1e-6)
    assert bool(conflict.projected) == bool(before @ g < 0)


@given(seeds, seeds, shapes)
@settings(deadline=None)
def test_no_conflict_leaves_every_bit(seed, other, shapes):
    task, anchor = gradients(seed, shapes), gradients(other, shapes)
    assume(cosine(task, anchor) >= 0)
    before = [t.clone() for t in task]
    conflict = remove_conflict(task, anchor)
    assert all(torch.equal(a, b) for a, b in zip(task, before, strict=True))
    assert not conflict.projected
    assert conflict.energy_shed == 0.0


@given(seeds, seeds, st.lists(st.sampled_from([(4, 5), (7, 3)]), min_size=1, max_size=4), st.sampled_from([1e-12, 1e-6, 1.0, 1e6, 1e12]))
@settings(deadline=None)
def test_conflict_is_removed_exactly_whatever_the_anchors_scale(seed, other, shapes, scale):
    task, anchor = gradients(seed, shapes), gradients(other, shapes, scale)
    assume(cosine(task, anchor) < 0)
    before = flat(task).norm()
    expected = cosine(task, anchor)
    conflict = remove_conflict(task, anchor)
    residual = float(flat(task) @ flat(anchor) / (before * flat(anchor).norm()))
    assert abs(residual) < 1e-6
    assert flat(task).norm() <= before * (1 + 1e-6)
    assert abs(conflict.cosine - expected) < 1e-6
    assert abs(conflict.energy_shed - (1 - float(flat(task).norm() / before) ** 2)) < 1e-5


@given(seeds, seeds, shapes, st.sampled_from([1e-6, 1e6]))
@settings(deadline=None)
def test_the_penaltys_weight_cancels(seed, other, shapes, scale):
    one, two = gradients(seed, shapes), gradients(seed, shapes)
    remove_conflict(one, gradients(other, shapes))
    remove_conflict(two, gradients(other, shapes, scale))
    torch.testing.assert_close(flat(one), flat(two), rtol=1e-5, atol=1e-6)


def test_a_zero_gradient_is_skipped():
    for task, anchor in (([torch.ones(3)], [torch.zeros(3)]), ([torch.zeros(3)], [torch.ones(3)])):
        before = task[0].clone()
        conflict = remove_conflict(task, anchor)
        assert torch.equal(task[0], before)
        assert (float(conflict.cosine), bool(conflict.projected), float(conflict.energy_shed)) == (0.0, False, 0.0)


def test_an_epsilon_in_the_denominator_would_fail_the_orthogonality():
    """The paper's rule on a small anchor gradient, to show that the tests above can tell the two apart."""
    task, anchor = torch.tensor([1.0, 0.0]), torch.tensor([-1e-4, 1e-4])
    dot = task @ anchor
    published = task - dot / (anchor @ anchor + 1e-8) * anchor
    assert float(published @ anchor / anchor.norm()) < -0.1
    exact = [task.clone()]
    remove_conflict(exact, [anchor])
    assert abs(float(exact[0] @ anchor / anchor.norm())) < 1e-6


def test_bfloat16_gradients_are_summed_in_full_precision():
    generator = torch.Generator().manual_seed(0)
    task = torch.randn(200_000, generator=generator).bfloat16()
    anchor = (-0.1 * task.float() + torch.randn(200_000, generator=generator)).bfloat16()
    expected = cosine([task], [anchor])
    assert abs(remove_conflict([task], [anchor]).cosine - expected) < 1e-9


@given(seeds, seeds, shapes)
@settings(deadline=None)
def test_with_the_anchors_own_part_it_is_pcgrad(seed, other, shapes):
    """PCGrad (arXiv 2001.06782) of two objectives projects each on the other's normal plane and adds; AEGIS keeps one half."""
    from torchjd.aggregation import PCGrad

    task, anchor = (gradients(s, shapes, dtype=torch.float64) for s in (seed, other))
    wanted = PCGrad()(torch.stack([flat(task), flat(anchor)]))
    projected_task, projected_anchor = [t.clone() for t in task], [a.clone() for a in anchor]
    remove_conflict(projected_task, anchor)
    remove_conflict(projected_anchor, task)
    torch.testing.assert_close(flat(projected_task) + flat(projected_anchor), wanted, rtol=1e-9, atol=1e-9)


@given(seeds, seeds, shapes)
@settings(deadline=None)
def test_each_tensor_on_its_own(seed, other, shapes):
    task, anchor = gradients(seed, shapes), gradients(other, shapes)
    before, alone = flat(task), [t.clone() for t in task]
    angle = cosine(task, anchor)
    parts = [remove_conflict([t], [a]) for t, a in zip(alone, anchor, strict=True)]
    together = remove_conflict_each(task, anchor)
    assert all(torch.equal(a, b) for a, b in zip(task, alone, strict=True))
    assert bool(together.projected) == any(bool(part.projected) for part in parts)
    assert abs(together.cosine - angle) < 1e-9
    assert abs(together.energy_shed - float((before - flat(task)).square().sum() / before.square().sum())) < 1e-5


def test_each_tensor_skips_a_zero():
    task = [torch.zeros(2), torch.zeros(3)]
    assert remove_conflict_each(task, [torch.ones(2), torch.ones(3)]).energy_shed == 0.0
