"""What a dataset has for a policy: refused with the key, left out with a warning, or silent."""

import pytest
from odd import CAMERA, FRONT, vector

from vla_tune.data.demonstrations import adopt_shapes
from vla_tune.data.features import picture_size, policy_features
from vla_tune.preflight.cameras import cameras

DEPTH = {**CAMERA, "shape": (16, 24, 1), "info": {"is_depth_map": True}}
TEXT = {"dtype": "string", "shape": (1,), "names": None}
TOP, WRIST = "observation.images.top", "observation.images.wrist"


@pytest.fixture(scope="module")
def meta_of(tmp_path_factory):
    """A function from features to lerobot's metadata of a dataset with them."""
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    def make(features):
        root = tmp_path_factory.mktemp("meta") / "dataset"
        return LeRobotDatasetMetadata.create("local/odd", 10, features, root=root, use_videos=False)

    return make


@pytest.fixture
def looked(meta_of, policy_of, plain):
    """A function from features to what stops and what is told: of a new policy, or of one that reads `wanted`."""

    def look(features, wanted=None, rename=None, saved=None):
        meta, settings = meta_of(features), {"max_state_dim": 4, "max_action_dim": 4}
        policy = policy_of(features if wanted is None else policy_features(wanted), **settings)
        if wanted is not None and rename:
            adopt_shapes(meta, policy, rename)
        found = list(cameras(meta, policy, rename or {}, new=wanted is None, saved=saved))
        return [one.text for one in found if one.stops], [one.text for one in found if not one.stops]

    return look


def without(features, *keys):
    return {key: feature for key, feature in features.items() if key not in keys}


@pytest.fixture(params=["new", "path"])
def wanted(request, plain):
    """What the policy reads: the dataset's where it is new, else these."""
    return None if request.param == "new" else plain


SOUND = {
    "more of lerobot's own": {"next.reward": vector(1), "next.done": vector(1, "bool")},
    "one joint": {"observation.state": vector(1), "action": vector(1)},
    "integers": {"observation.state": vector(4, "int64"), "action": vector(4, "float64")},
    "greyscale": {FRONT: {**CAMERA, "shape": (16, 24, 1)}},
    "channels first": {FRONT: {**CAMERA, "shape": (3, 16, 24), "names": ["channels", "height", "width"]}},
    "no names": {FRONT: {**CAMERA, "names": None}},
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_features_are_silent(looked, plain, wanted, name):
    assert looked({**plain, **SOUND[name]}, wanted) == ([], [])


STOPS = {
    "an action of two dimensions": ({"action": {"dtype": "float32", "shape": (2, 2), "names": None}}, ["'action'", "[2, 2]", "at most 4"]),
    "a text for a state": ({"observation.state": TEXT}, ["'observation.state'", "string", "at most 4"]),
    "pictures for a state": ({"observation.state": CAMERA}, ["'observation.state'", "image", "at most 4"]),
    "no picture's shape": ({FRONT: {**CAMERA, "shape": (16, 24, 7)}}, [FRONT, "[16, 24, 7]"]),
}


@pytest.mark.parametrize("name", STOPS)
def test_what_cannot_be_read_stops(looked, plain, wanted, name):
    change, words = STOPS[name]
    stops, _ = looked({**plain, **change}, wanted)
    assert len(stops) == 1
    assert all(word in stops[0] for word in words)


@pytest.mark.parametrize("key", ["observation.state", "action"])
@pytest.mark.parametrize("others", [[], ["s"], [".arm", ".gripper"]])
def test_a_missing_vector_names_what_is_there_in_its_place(looked, plain, wanted, key, others):
    features = {**without(plain, key), **{f"{key}{other}": vector(2) for other in others}}
    stops, told = looked(features, wanted)
    assert len(stops) == 1
    assert stops[0].startswith(f"the dataset has no '{key}', which the policy reads")
    assert all(f"'{key}{other}'" in stops[0] for other in others)
    assert not told


def test_a_wide_robot_names_the_setting_of_a_new_policy_alone(looked, plain):
    wide = {**plain, "observation.state": vector(9), "action": vector(7)}
    new, _ = looked(wide)
    assert new == [
        "'observation.state' has 9 numbers, the policy takes 4: policy.settings.max_state_dim=9",
        "'action' has 7 numbers, the policy takes 4: policy.settings.max_action_dim=7",
    ]
    old, _ = looked(wide, wanted=plain)
    assert len(old) == 2
    assert not any("policy.settings" in text for text in old)


def test_pictures_that_lerobot_does_not_hand_on(looked, plain, wanted):
    stops, _ = looked(without(plain, FRONT), wanted)
    assert len(stops) == 1
    assert "no colour pictures called observation.images.NAME" in stops[0]
    stops, _ = looked({**without(plain, FRONT), "image": CAMERA}, wanted)
    assert "it has 'image'" in stops[0]
    stops, told = looked({**plain, "wrist_image": CAMERA}, wanted)
    assert not stops
    assert [text.partition(":")[0] for text in told] == ["'wrist_image'"]


LEFT_OUT = {
    "depth": ({TOP: DEPTH}, f"'{TOP}'"),
    "vectors": (
        {"observation.effort": vector(4), "observation.environment_state": vector(2)},
        "'observation.effort', 'observation.environ",
    ),
    "switches": ({"observation.contact": vector(2, "bool")}, "'observation.contact'"),
    "a second action": ({"action.velocity": vector(4)}, "'action.velocity'"),
    "texts": ({"annotation.note": TEXT, "observation.operator": TEXT}, "'annotation.note' (string), 'observation.operator' (string)"),
    "arrays": ({"observation.touch": {"dtype": "float32", "shape": (4, 4), "names": None}}, "'observation.touch' (float32)"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_not_read_is_told_once_by_name(looked, plain, wanted, name):
    change, words = LEFT_OUT[name]
    stops, told = looked({**plain, **change}, wanted)
    assert not stops
    assert len(told) == 1
    assert words in told[0]
    assert "left out" in told[0]


def test_two_features_under_one_name_stop(looked, plain):
    two = {TOP: CAMERA, WRIST: CAMERA, **without(plain, FRONT)}
    stops, _ = looked(two, plain, {TOP: FRONT, WRIST: FRONT})
    assert len(stops) == 1
    assert all(f"'{name}'" in stops[0] for name in (TOP, WRIST, FRONT))
    stops, _ = looked({**plain, TOP: CAMERA}, plain, {TOP: FRONT})
    assert len(stops) == 1
    assert all(f"'{name}'" in stops[0] for name in (TOP, FRONT))
    stops, _ = looked({**plain, "observation.joints": vector(4)}, plain, {"observation.joints": "observation.state"})
    assert len(stops) == 1
    assert "'observation.joints'" in stops[0]
    assert looked(two, plain, {TOP: FRONT}) == ([], [f"the policy does not read the dataset's '{WRIST}'"])


def test_two_cameras_may_change_places(looked, plain):
    two = {**plain, TOP: CAMERA}
    assert looked(two, two, {TOP: FRONT, FRONT: TOP}) == ([], [])


def test_a_renaming_that_the_policy_was_saved_with_counts(looked, plain):
    two = {**plain, TOP: CAMERA}
    stops, _ = looked(two, plain, saved={TOP: FRONT})
    assert len(stops) == 1
    assert f"data.rename={{{FRONT}: {FRONT}}}" in stops[0]
    stops, told = looked(two, plain, {FRONT: FRONT}, saved={TOP: FRONT})
    assert not stops
    assert told == [f"the policy does not read the dataset's '{TOP}'"]


def test_other_cameras_than_the_policys(looked, plain):
    stops, _ = looked({**without(plain, FRONT), TOP: CAMERA}, plain)
    assert len(stops) == 1
    assert f"'{TOP}', which the policy lacks; it reads '{FRONT}'" in stops[0]
    stops, told = looked(plain, {**plain, TOP: CAMERA})
    assert not stops
    assert told == [f"the dataset lacks the policy's '{TOP}'; it is trained without"]
    empty = {**plain, "observation.images.empty_camera_0": CAMERA}  # lerobot's own, which no dataset has
    assert looked(plain, empty) == ([], [])
    stops, _ = looked({**plain, "observation.speed": vector(2)}, {**plain, TOP: CAMERA}, {"observation.speed": TOP})
    assert any("is no colour picture" in text for text in stops)


def test_a_state_of_another_name_is_renamed(looked, plain):
    other = {**without(plain, "observation.state"), "observation.state_joints": vector(3)}
    stops, _ = looked(other, plain)
    assert len(stops) == 1
    assert stops[0].endswith("'observation.state_joints': give data.rename={observation.state_joints: observation.state}")
    assert looked(other, plain, {"observation.state_joints": "observation.state"}) == ([], [])


def test_a_new_policy_takes_no_more_than_it_reads(plain):
    odd = {**plain, TOP: DEPTH, "observation.effort": vector(4), "actions": vector(4), "note": TEXT}
    inputs, outputs = policy_features(odd)
    assert {key: feature.shape for key, feature in inputs.items()} == {FRONT: (3, 16, 24), "observation.state": (4,)}
    assert list(outputs) == ["action"]


@pytest.mark.parametrize(
    ("shape", "names", "size"),
    [
        ((480, 640, 3), ["height", "width", "channel"], (480, 640)),
        ((3, 480, 640), ["channels", "height", "width"], (480, 640)),
        ((3, 480, 640), ["height", "width", "channel"], (480, 640)),  # names of another order than the numbers
        ((480, 640), ["height", "width"], (480, 640)),
        ((480, 640, 4), None, (480, 640)),
        ((4,), None, None),
        ((480, 640, 12), None, None),
    ],
)
def test_sizes_of_pictures(shape, names, size):
    assert picture_size({"dtype": "image", "shape": shape, "names": names}) == size
