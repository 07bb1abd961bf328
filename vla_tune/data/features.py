"""What a policy reads of a dataset's features: colour pictures, the state and the action. Everything else is left out."""

from __future__ import annotations

from typing import Any

STATE, ACTION = "observation.state", "action"
OBSERVED = "observation."
"""What lerobot's processors hand to a policy begins with this."""
NUMBERS = ("float", "int", "uint", "bool")


def is_picture(feature: dict[str, Any]) -> bool:
    """Whether it is pictures, stored or filmed, also depth."""
    return feature["dtype"] in ("image", "video")


def is_depth(feature: dict[str, Any]) -> bool:
    """Whether pictures are marked as depth, by the mark that lerobot's `depth_keys` go by."""
    info, filmed = feature.get("info") or {}, feature.get("video_info") or {}
    return bool(info.get("is_depth_map") or info.get("video.is_depth_map") or filmed.get("video.is_depth_map"))


def is_colour(feature: dict[str, Any]) -> bool:
    """Whether it is pictures for eyes, which are read as RGB."""
    return is_picture(feature) and not is_depth(feature)


def is_numeric(feature: dict[str, Any]) -> bool:
    """Whether it is a number or a vector of numbers a frame."""
    return str(feature["dtype"]).startswith(NUMBERS) and len(feature["shape"]) == 1


def picture_size(feature: dict[str, Any]) -> tuple[int, int] | None:
    """Height and width of pictures as `info.json` has them; None where its shape is no picture's.

    The channels stand where lerobot looks for them, or at the other end, where alone there is a number of channels.
    """
    shape, names = [int(size) for size in feature["shape"]], feature.get("names")
    if len(shape) == 2:
        return shape[0], shape[1]
    if len(shape) != 3:
        return None
    last = not (isinstance(names, list) and len(names) == 3) or names[2] in ("channel", "channels")
    ends = (shape[:2], shape[2]), (shape[1:], shape[0])
    for (height, width), channels in ends if last else ends[::-1]:
        if channels in (1, 3, 4):
            return height, width
    return None


def policy_features(features: dict[str, Any], rename: dict[str, str] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """lerobot's inputs and outputs of a policy that reads a dataset with these features.

    Args:
        rename: the dataset's names of observations, each with the policy's.

    """
    from lerobot.configs import FeatureType, PolicyFeature

    inputs, rename = {}, rename or {}
    for key, feature in features.items():
        name, size = rename.get(key, key), picture_size(feature)
        if is_colour(feature) and key.startswith(OBSERVED) and size:
            inputs[name] = PolicyFeature(FeatureType.VISUAL, (3, *size))
        elif name == STATE and not is_picture(feature):
            inputs[name] = PolicyFeature(FeatureType.STATE, tuple(feature["shape"]))
    return inputs, {key: PolicyFeature(FeatureType.ACTION, tuple(features[key]["shape"])) for key in (ACTION,) if key in features}
