"""What the projections take out of a weight, against the pure functions on the whole mask."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_tune.anchors.directions import Directions, protected_pairs
from vla_tune.anchors.projections import InputSide, Pairs
from vla_tune.geometry.subspace import project_out, project_pairs

seeds, energies = st.integers(0, 2**31 - 1), st.floats(0.05, 0.9999)


def directions(seed: int, width: int, kept: int, steepness: float) -> Directions:
    random = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(width, width, generator=random, dtype=torch.float64))[0][:, :kept]
    values = torch.exp(-steepness * torch.arange(width, dtype=torch.float64))
    return Directions(basis, values, float(values.sum()))


@given(seeds, st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.floats(0, 2), energies)
def test_strips_take_out_the_protected_pairs(seed, out, width, j, i, steepness, energy):
    outputs, inputs = directions(seed, out, min(j, out), steepness), directions(seed + 1, width, min(i, width), steepness)
    rows = torch.randn(out, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mask = protected_pairs(outputs, inputs, energy)
    pairs = Pairs.of(outputs, inputs, energy)
    assert torch.allclose(pairs(rows), project_pairs(rows, outputs.basis, inputs.basis, mask), atol=1e-10)
    assert abs(pairs.free - (1 - int(mask.sum()) / (out * width))) < 1e-12
    assert torch.equal(pairs(rows), pairs(rows.clone(), out=rows.clone()))


@given(seeds, st.integers(1, 5), st.integers(1, 9), st.floats(0, 2), energies)
def test_the_smaller_basis_does_what_the_other_would(seed, out, width, steepness, energy):
    inputs = directions(seed, width, width, steepness)
    rows = torch.randn(out, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    side = InputSide.of(inputs, energy)
    assert torch.allclose(side(rows), project_out(rows, inputs.leading(energy)), atol=1e-10)
    assert 2 * side.basis.shape[1] <= width
