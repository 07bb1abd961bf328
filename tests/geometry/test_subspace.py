"""Second moments of layer inputs and the projections made from them, against numpy and by their defining properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from vla_tune.geometry.subspace import (
    SecondMoment,
    SketchedMoment,
    complement,
    leading_pairs,
    project_on,
    project_out,
    project_pairs,
    rank_of,
    share_inside,
)


def rows(seed: int, count: int, width: int, rank: int | None = None) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    if rank is None:
        return torch.from_numpy(rng.normal(size=(count, width)))
    return torch.from_numpy(rng.normal(size=(count, rank)) @ rng.normal(size=(rank, width)))


def moment(x: torch.Tensor) -> SecondMoment:
    made = SecondMoment.empty(x.shape[1])
    made.update(x)
    return made


def basis(seed: int, width: int, kept: int) -> torch.Tensor:
    return torch.linalg.qr(rows(seed, width, width))[0][:, :kept]


seeds, counts, widths = st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 12)


@given(seeds, counts, widths, st.integers(0, 30))
def test_parts_merge_into_the_whole(seed, count, width, cut):
    x = rows(seed, count, width)
    merged, whole = moment(x[:cut]).merge(moment(x[cut:])), moment(x)
    assert merged.count == whole.count
    assert torch.allclose(merged.total, whole.total)


@given(seeds, counts, widths)
def test_the_eigenvectors_are_those_of_numpy(seed, count, width):
    x = rows(seed, count, width)
    values, vectors = moment(x).principal()
    expected = np.linalg.svd(x.numpy(), compute_uv=False) ** 2 / count
    assert np.allclose(values.numpy()[: len(expected)], expected)
    assert torch.allclose(vectors @ values.diag() @ vectors.T, x.T @ x / count, atol=1e-8)
    assert moment(x).energy == pytest.approx(float(x.square().sum(1).mean()))


@given(seeds, st.integers(1, 60), st.integers(2, 12), st.integers(1, 6), st.integers(1, 60))
def test_a_sketch_is_never_too_large_and_too_small_by_no_more_than_its_bound(seed, count, width, rank, cut):
    x = rows(seed, count, width)
    sketch, other = SketchedMoment.empty(width, rank), SketchedMoment.empty(width, rank)
    sketch.update(x[:cut])
    other.update(x[cut:])
    both = sketch.merge(other)
    lost = x.T @ x - both.rows.double().T @ both.rows.double()
    eigenvalues = torch.linalg.eigvalsh(lost)
    scale = float(x.square().sum())
    assert eigenvalues.min() >= -1e-5 * scale
    assert eigenvalues.max() <= scale / rank * (1 + 1e-5)
    assert both.energy == pytest.approx(scale / count)
    assert len(both.principal()[0]) <= rank


@given(seeds, st.integers(1, 60), st.integers(2, 12), st.integers(1, 6), st.floats(0, 3), st.integers(1, 20))
def test_a_sketch_has_eigenvalues_within_its_bound_and_orthonormal_directions(seed, count, width, rank, steepness, batch):
    x = rows(seed, count, width) * torch.exp(-steepness * torch.arange(width))
    sketch = SketchedMoment.empty(width, rank)
    for part in x.split(batch):
        sketch.update(part)
    assert len(sketch.rows) <= 2 * rank
    values, vectors = sketch.principal()
    exact, scale = moment(x).principal()[0][: len(values)], float(x.square().sum()) / count
    assert (values <= exact + 1e-5 * scale).all()
    assert (values >= exact - scale / rank * (1 + 1e-5)).all()
    assert torch.allclose(vectors.T @ vectors, torch.eye(len(values), dtype=torch.float64), atol=1e-5)


@given(seeds, st.integers(1, 12), st.integers(2, 16))
def test_a_sketch_of_no_more_rows_than_its_rank_is_exact(seed, count, width):
    x = rows(seed, count, width, rank=max(1, count // 2))
    sketch, whole = SketchedMoment.empty(width, count), moment(x)
    sketch.update(x)
    values, vectors = sketch.principal()
    assert torch.allclose(vectors * values @ vectors.T, whole.total / whole.count, atol=1e-5 * whole.energy)


def test_an_empty_sketch_has_no_direction():
    values, vectors = SketchedMoment.empty(5, 3).principal()
    assert values.shape == (0,)
    assert vectors.shape == (5, 0)


@given(seeds, st.integers(1, 8), st.integers(0, 12), widths)
def test_what_is_left_is_orthogonal_to_the_basis(seed, out, kept, width):
    kept = min(kept, width)
    u, g = basis(seed, width, kept), rows(seed + 1, out, width)
    left = project_out(g, u)
    assert torch.allclose(left @ u, torch.zeros(out, kept, dtype=g.dtype), atol=1e-10)
    assert torch.allclose(project_out(left, u), left, atol=1e-10)
    assert left.norm() <= g.norm() * (1 + 1e-12)


@given(seeds, st.integers(1, 8), st.integers(0, 12), widths)
def test_the_free_side_projects_to_the_same(seed, out, kept, width):
    kept = min(kept, width)
    u, g = basis(seed, width, kept), rows(seed + 1, out, width)
    assert torch.allclose(project_on(g, complement(u)), project_out(g, u), atol=1e-10)


@given(seeds, counts, widths)
def test_outputs_on_protected_inputs_stay(seed, count, width):
    x = rows(seed, count, width, rank=max(1, width // 2))
    values, vectors = moment(x).principal()
    u = vectors[:, : rank_of(values, 1.0, float(values.sum()))]
    change = project_out(rows(seed + 1, 3, width), u)
    assert (change @ x.T).abs().max() <= 1e-3 * x.norm()


def test_projections_in_place_are_the_same():
    g, u, v = rows(0, 4, 12), basis(1, 12, 8), basis(2, 4, 3)
    pairs = torch.rand(3, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    for project in (
        lambda g, **to: project_out(g, u, **to),
        lambda g, **to: project_on(g, u, **to),
        lambda g, **to: project_pairs(g, v, u, pairs, **to),
    ):
        inside = g.clone()
        assert project(inside, out=inside) is inside
        assert torch.equal(inside, project(g))


@given(st.lists(st.floats(0, 100), min_size=1, max_size=10), st.floats(0, 0.999), st.floats(0, 0.999))
def test_more_energy_takes_no_fewer_directions(values, one, other):
    ordered = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    total = float(ordered.sum())
    low, high = (rank_of(ordered, energy, total) for energy in sorted((one, other)))
    assert 1 <= low <= high <= len(values)
    assert float(ordered[:low].sum()) >= min(one, other) * total * (1 - 1e-12)


def test_full_energy_leaves_out_what_is_rounding():
    assert rank_of(torch.tensor([4.0, 1.0, 1e-9]), 1.0, 5.0) == 2


@given(seeds, counts, widths, st.integers(0, 12))
def test_shares_inside_a_subspace_and_outside_sum_to_one(seed, count, width, kept):
    total, u = moment(rows(seed, count, width)).total, basis(seed + 1, width, min(kept, width))
    assert share_inside(total, u) + share_inside(total, complement(u)) == pytest.approx(1)


@given(seeds, st.integers(1, 5), st.integers(1, 5), st.floats(0.1, 0.999))
def test_pairs_are_the_leading_eigenvectors_of_the_kronecker_product(seed, out, width, energy):
    """Against numpy's eigenvectors of the whole matrix."""
    a, b = moment(rows(seed, 8, width)), moment(rows(seed + 1, 8, out))
    (inputs, u), (outputs, v) = a.principal(), b.principal()
    pairs = leading_pairs(outputs, inputs, energy, a.energy * b.energy)
    left = project_pairs(rows(seed + 2, out, width), v, u, pairs)

    values, vectors = np.linalg.eigh(np.kron((b.total / b.count).numpy(), (a.total / a.count).numpy()))
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = int((np.cumsum(values) < energy * values.sum()).sum()) + 1
    leading = vectors[:, :kept]
    whole = rows(seed + 2, out, width).numpy().reshape(-1)
    assert int(pairs.sum()) == kept
    assert np.allclose(left.numpy().reshape(-1), whole - leading @ (leading.T @ whole), atol=1e-6)


@given(seeds, st.integers(1, 6), st.integers(1, 8), st.integers(1, 6), st.integers(1, 8))
def test_protected_pairs_are_gone_and_nothing_else_changes(seed, out, width, j, i):
    v, u, g = basis(seed, out, min(j, out)), basis(seed + 1, width, min(i, width)), rows(seed + 2, out, width)
    pairs = torch.from_numpy(np.random.default_rng(seed).random((v.shape[1], u.shape[1])) < 0.5)
    left = project_pairs(g, v, u, pairs)
    assert torch.allclose((v.T @ left @ u)[pairs], torch.zeros(int(pairs.sum()), dtype=g.dtype), atol=1e-10)
    assert torch.allclose((v.T @ left @ u)[~pairs], (v.T @ g @ u)[~pairs], atol=1e-10)
    assert torch.allclose(project_pairs(left, v, u, pairs), left, atol=1e-10)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_pairs_are_taken_out_in_the_cheapest_order(out, width, j, i):
    """Counted by torch, against the four orders written out."""
    v, u, g = torch.zeros(out, j), torch.zeros(width, i), torch.zeros(out, width)
    with FlopCounterMode(display=False) as counter:
        project_pairs(g, v, u, torch.ones(j, i))
    inwards = min(j * out * width + j * width * i, out * width * i + j * out * i)
    outwards = min(out * j * i + out * i * width, j * i * width + out * j * width)
    assert counter.get_total_flops() == 2 * (inwards + outwards)


@given(seeds, st.integers(1, 6), widths, st.integers(0, 12))
def test_with_every_output_pairs_are_the_input_side(seed, out, width, kept):
    u, g = basis(seed, width, min(kept, width)), rows(seed + 1, out, width)
    everything = torch.ones(out, u.shape[1])
    assert torch.allclose(project_pairs(g, basis(seed + 2, out, out), u, everything), project_out(g, u), atol=1e-10)
