"""Paired tests against scipy's, and against counting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vla_tune.stats.paired import mcnemar, sign_test

COUNTS = st.integers(0, 60)


@given(COUNTS, COUNTS)
def test_the_sign_test_is_twice_the_smaller_tail(negative, positive):
    tail = stats.binom.cdf(min(negative, positive), negative + positive, 0.5)
    assert sign_test(negative, positive) == pytest.approx(min(1.0, 2 * tail))
    assert sign_test(negative, positive) == sign_test(positive, negative)


def test_mcnemar_by_hand():
    before, after = np.array([1, 1, 1, 1, 1, 1, 0, 1, 0.0]), np.array([0, 0, 0, 0, 0, 0, 1, 1, 0.0])
    assert mcnemar(before, after) == {"lost": 6, "gained": 1, "p": pytest.approx(2 * (1 + 7) / 2**7)}
    assert mcnemar(before, before)["p"] == 1.0


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), max_size=80))
def test_mcnemar_reads_only_what_changed(pairs):
    before, after = (np.array([pair[place] for pair in pairs], dtype=float) for place in (0, 1))
    found, changed = mcnemar(before, after), before != after
    assert found == mcnemar(before[changed], after[changed])
    assert found["gained"] - found["lost"] == after.sum() - before.sum()
