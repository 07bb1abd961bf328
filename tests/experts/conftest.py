"""A small model and the pool of its experts."""

from __future__ import annotations

import pytest
import torch
from pools import Model, pool_of


@pytest.fixture
def stock():
    torch.manual_seed(0)
    return Model()


@pytest.fixture
def pool(stock):
    return pool_of(stock)
