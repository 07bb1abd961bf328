"""Which of a dataset's features a policy reads: what it needs is there under its name, and what is left out is told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from vla_tune.data.features import ACTION, OBSERVED, STATE, is_colour, is_depth, is_numeric, is_picture, picture_size
from vla_tune.preflight.findings import Finding, stop, tell

if TYPE_CHECKING:
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

LIMITS = {STATE: "max_state_dim", ACTION: "max_action_dim"}
"""The policy's settings that say how many numbers it takes."""
EMPTY = f"{OBSERVED}images.empty_camera_"
"""What lerobot calls cameras that a policy keeps free."""
FEATURES_EDITOR = "lerobot-edit-dataset --operation.type=remove_feature"


def cameras(
    meta: LeRobotDatasetMetadata, policy: PreTrainedConfig, rename: dict[str, str], *, new: bool, saved: dict[str, str] | None = None
) -> Iterator[Finding]:
    """Look at the pictures and the vectors that a policy would be given.

    Args:
        policy: lerobot's configuration of it.
        rename: the dataset's names of observations, each with the policy's.
        new: whether the policy is made for this dataset.
        saved: what the policy's own processor renames where `rename` is empty.

    """
    features = meta.features
    found = [*_doubled(features, rename, saved or {}), *_pictures(features, policy, rename, new=new)]
    for name in LIMITS:
        found += _vector(features, name, policy, rename, new=new)
    yield from found
    if not any(one.stops for one in found):  # else what is left out may be what is missed
        yield from _left_out(features, rename)


def colour_cameras(features: dict[str, Any]) -> list[str]:
    """The keys of pictures that lerobot hands to a policy as colour pictures."""
    return [key for key, feature in features.items() if is_colour(feature) and key.startswith(OBSERVED)]


def _doubled(features: dict[str, Any], rename: dict[str, str], saved: dict[str, str]) -> Iterator[Finding]:
    """Two features under one name, of which lerobot keeps the last."""
    own: dict[str, list[str]] = {}
    renamed = rename or saved
    for key, feature in features.items():
        if is_colour(feature) or is_numeric(feature):
            own.setdefault(renamed.get(key, key), []).append(key)
    for name, keys in own.items():
        if len(keys) > 1:
            text = f"{_names(keys)} of the dataset would both be '{name}', and one would be lost"
            if not rename:
                yield stop(f"{text}: policy.path was saved with that renaming; data.rename={{{name}: {name}}} takes its place")
            elif all(key in rename for key in keys):
                yield stop(f"data.rename: {text}; leave one of them out")
            else:
                yield stop(f"data.rename: {text}; remove one from the dataset: {FEATURES_EDITOR}")


def _pictures(features: dict[str, Any], policy: PreTrainedConfig, rename: dict[str, str], *, new: bool) -> Iterator[Finding]:
    known = colour_cameras(features)
    for key in known:
        if picture_size(features[key]) is None:
            yield stop(f"'{key}': meta/info.json has the shape {list(features[key]['shape'])}, which is no picture's")
    foreign = [key for key, feature in features.items() if is_colour(feature) and key not in known]
    if foreign and known:
        yield tell(f"{_names(foreign)}: left out, because only what is called {OBSERVED}images.NAME is handed to a policy")
    wanted = {key for key in policy.image_features if not key.startswith(EMPTY)}
    strange = [key for key, name in rename.items() if name in wanted and key in features and not is_colour(features[key])]
    if strange:
        yield stop(f"data.rename: {_names(strange)} is no colour picture, and the policy reads '{rename[strange[0]]}' as one")
    found = {rename.get(key, key) for key in known}
    if not known:
        has = _names([key for key, feature in features.items() if is_picture(feature)])
        yield stop(f"the dataset has no colour pictures called {OBSERVED}images.NAME, and the policy needs one camera; it has {has}")
    elif not new:
        yield from _cameras_of_another(sorted(found - wanted), sorted(wanted - found), wanted)


def _cameras_of_another(unknown: list[str], missing: list[str], wanted: set[str]) -> Iterator[Finding]:
    """Of a policy that was made for other cameras."""
    if len(missing) == len(wanted) or (unknown and missing):
        yield stop(
            f"the dataset has the pictures {_names(unknown)}, which the policy lacks; it reads {_names(sorted(wanted))}: "
            "say which is which with data.rename={theirs: the policy's}, or start from policy.base_vlm, which takes the dataset's"
        )
        return
    if unknown:
        yield tell(f"the policy does not read the dataset's {_names(unknown)}")
    if missing:
        yield tell(f"the dataset lacks the policy's {_names(missing)}; it is trained without")


def _vector(features: dict[str, Any], name: str, policy: PreTrainedConfig, rename: dict[str, str], *, new: bool) -> Iterator[Finding]:
    keys = [key for key in features if (rename.get(key, key) if name == STATE else key) == name]
    most = getattr(policy, LIMITS[name], None)
    if not keys:
        yield stop(_missing(features, name, new=new))
        return
    feature, key = features[keys[0]], keys[0]
    takes = "a vector of numbers" if most is None else f"a vector of at most {most} numbers"
    if not is_numeric(feature):
        yield stop(f"'{key}' is {feature['dtype']} of shape {list(feature['shape'])}, the policy takes {takes} as '{name}'")
    elif most is not None and feature["shape"][0] > most:
        size = feature["shape"][0]
        mend = f"policy.settings.{LIMITS[name]}={size}" if new else "start from policy.base_vlm, or from a wider policy"
        yield stop(f"'{key}' has {size} numbers, the policy takes {most}: {mend}")


def _missing(features: dict[str, Any], name: str, *, new: bool) -> str:
    stem = name.removeprefix(OBSERVED)
    like = [key for key, feature in features.items() if stem in key and not is_picture(feature)]
    text = f"the dataset has no '{name}', which the policy reads"
    if not like:
        return f"{text}; it has {_names(sorted(features))}"
    if len(like) == 1 and name == STATE and not new and like[0].startswith(OBSERVED):
        return f"{text}; it has '{like[0]}': give data.rename={{{like[0]}: {name}}}"
    return f"{text}; it has {_names(like)}: {'give it that name' if len(like) == 1 else 'join them into one vector of that name'}"


def _left_out(features: dict[str, Any], rename: dict[str, str]) -> Iterator[Finding]:
    from lerobot.utils.constants import DEFAULT_FEATURES

    rest = {
        key: feature
        for key, feature in features.items()
        if not is_colour(feature)
        and rename.get(key, key) != STATE
        and key != ACTION
        and key not in DEFAULT_FEATURES
        and not key.startswith("next.")
    }
    depth = [key for key, feature in rest.items() if is_depth(feature)]
    vectors = [key for key, feature in rest.items() if key not in depth and is_numeric(feature)]
    others = [f"'{key}' ({feature['dtype']})" for key, feature in rest.items() if key not in (*depth, *vectors)]
    if depth:
        yield tell(f"{_names(depth)}: left out, because the policy reads no depth pictures")
    if vectors:
        yield tell(f"{_names(vectors)}: left out, because the policy reads no numbers but '{STATE}' and '{ACTION}'")
    if others:
        yield tell(f"{', '.join(others)}: left out, because the policy reads no texts and arrays")


def _names(keys: Iterable[str]) -> str:
    return ", ".join(f"'{key}'" for key in keys) or "none"
