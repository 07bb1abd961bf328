"""Pictures for the policy's own path: those of one size as they are, those of several brought to the policy's size one by one."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from vla_tune.anchors.passes import pixels
from vla_tune.errors import UserError
from vla_tune.policies.pi0 import Pi0Adapter
from vla_tune.policies.smolvla import SmolVLAAdapter

SIZE = 48


def adapter(kind, **settings):
    """An adapter of a policy that is nothing but its settings; a real one's construction looks at weights."""
    made = object.__new__(kind)
    made.policy = SimpleNamespace(config=SimpleNamespace(**settings))
    return made


ADAPTERS = [adapter(SmolVLAAdapter, resize_imgs_with_padding=(SIZE, SIZE)), adapter(Pi0Adapter, image_resolution=(SIZE, SIZE))]


def picture(seed, width, height):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def raw(one):
    return torch.from_numpy(np.array(one)).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("made", ADAPTERS, ids=lambda made: made.policy_type)
def test_pictures_of_several_sizes(made):
    pictures = [picture(0, 64, 40), picture(1, 30, 100), picture(2, SIZE, SIZE)]
    stacked = pixels(pictures, made.resized)
    assert stacked.shape == (3, 3, SIZE, SIZE)
    for row, one in zip(stacked, pictures, strict=True):
        assert torch.equal(row, made.resized(raw(one))[0])
    assert torch.equal(made.resized(stacked), stacked)  # the forward pass resizes once more
    assert torch.equal(stacked[2], raw(pictures[2])[0])


@pytest.mark.parametrize("made", ADAPTERS, ids=lambda made: made.policy_type)
def test_pictures_of_one_size_are_stacked_as_they_are(made):
    pictures = [picture(seed, 64, 40) for seed in range(3)]
    assert torch.equal(pixels(pictures, made.resized), torch.cat([raw(one) for one in pictures]))


def test_a_policy_that_does_not_resize_cannot_take_several_sizes():
    made = adapter(SmolVLAAdapter, resize_imgs_with_padding=None)
    with pytest.raises(UserError, match=r"policy\.settings\.resize_imgs_with_padding=null"):
        pixels([picture(0, 10, 10), picture(0, 12, 10)], made.resized)
