"""Exact tests on pairs: the same question before and after, the same initial state under two policies."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

type Floats = npt.NDArray[np.float64]


def sign_test(negative: int, positive: int) -> float:
    """The two-sided p of the exact sign test: differences of each sign, zeros left out, are equally likely (Arbuthnot 1710)."""
    from scipy.stats import binomtest

    return float(binomtest(negative, negative + positive, 0.5).pvalue) if negative + positive else 1.0


def mcnemar(before: Floats, after: Floats) -> dict[str, Any]:
    """McNemar's exact test on paired `[n]` scores of 0 or 1: how many were `lost` and `gained`, and `p`, the sign test's on these."""
    lost, gained = int(((before == 1) & (after == 0)).sum()), int(((before == 0) & (after == 1)).sum())
    return {"lost": lost, "gained": gained, "p": sign_test(lost, gained)}
