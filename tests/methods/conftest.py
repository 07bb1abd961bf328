"""What the tests of all methods start from."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from small import SETTINGS, features

from vla_tune.anchors.artifact import Anchor
from vla_tune.policies import adapt
from vla_tune.policies.loading import load_processors, new_policy
from vla_tune.policies.smolvla import SmolVLAAdapter
from vla_tune.policies.weights import weights_digest
from vla_tune.resources import demo_vlm
from vla_tune.vlm.loading import load_vlm
from vla_tune.vqa.replay import ReplayQuestions


@pytest.fixture(scope="session")
def stock():
    torch.manual_seed(0)
    return new_policy(SmolVLAAdapter, str(demo_vlm()), SETTINGS, features())


@pytest.fixture
def policy(stock):
    return copy.deepcopy(stock)


@pytest.fixture(scope="session")
def batches(stock):
    unit = {"mean": torch.zeros(4), "std": torch.ones(4)}
    preprocess, _ = load_processors(stock, stats={"observation.state": unit, "action": unit})
    generator = torch.Generator().manual_seed(1)

    def one(number):
        return preprocess(
            {
                "observation.image": torch.rand(3, 3, 64, 64, generator=generator),
                "observation.state": torch.randn(3, 4, generator=generator),
                "action": torch.randn(3, 4, 4, generator=generator),
                "action_is_pad": torch.zeros(3, 4, dtype=torch.bool),
                "task": ["Open a drawer", "Push and close a drawer", "Press a button"],
            }
        )

    return [one(number) for number in range(5)]


@pytest.fixture
def anchor(policy):
    """Statistics that no batch has: the penalty's gradient is far from zero."""
    adapter = adapt(policy)
    layers, width = len(adapter.layers()), adapter.width
    generator = torch.Generator().manual_seed(2)
    mean = [torch.randn(width, generator=generator) for _ in range(layers)]
    std = [torch.rand(width, generator=generator) + 0.5 for _ in range(layers)]
    return Anchor(
        SimpleNamespace(path="anchor"),
        mean=mean,
        std=std,
        stock_mean=mean,
        stock_std=std,
        robot_mean=None,
        robot_std=None,
        backbone=weights_digest(adapter.vlm.state_dict()),
    )


@pytest.fixture(scope="session")
def memory():
    """Six questions about six pictures of one colour each."""
    from datasets import Dataset, Features, Image, List, Value
    from PIL import Image as Pictures

    colours = ["red", "green", "blue", "yellow", "white", "black"]
    columns = {
        "image": [Pictures.new("RGB", (64, 64), colour) for colour in colours],
        "question": ["What colour is the circle?", "Is there a circle?"] * 3,
        "answers": [[colour] for colour in colours],
    }
    types = Features({"image": Image(), "question": Value("string"), "answers": List(Value("string"))})
    return ReplayQuestions(Dataset.from_dict(columns, features=types), load_vlm(str(demo_vlm()))[1], seed=3)
