"""Questions about the robot's own scene: the answers are those that the picture gives."""

import re
from collections import Counter

import numpy as np
import pytest

from vla_tune.data.manifests import load_manifest, parse_manifest
from vla_tune.errors import UserError
from vla_tune.simulators.metaworld.tasks import COLOURS
from vla_tune.simulators.metaworld.touch_scenes import ANSWERS, sample_touch_scene
from vla_tune.simulators.metaworld.world import FastMetaworldEnv
from vla_tune.vqa.dataset import generate, generator_of

SEEN = 0.06
"""How far a pixel's hue may lie from a ball's; the arm is a darker red than the red ball."""


def found(picture):
    """The balls that the pixels show: colour to the middle (x, y) of what is about as bright and of its hue."""
    pixels = np.asarray(picture).astype(float) / 255
    places = {}
    for colour, rgb in COLOURS.items():
        hue = np.array(rgb) / np.linalg.norm(rgb)
        bright = np.linalg.norm(pixels, axis=-1)
        near = np.linalg.norm(pixels / np.maximum(bright, 1e-6)[..., None] - hue, axis=-1) < SEEN
        rows, columns = np.nonzero(near & (bright > 0.8 * np.linalg.norm(rgb)))
        if len(rows):
            places[colour] = (np.median(columns) + 0.5, np.median(rows) + 0.5)
    return places


@pytest.fixture(scope="module")
def asked():
    return list(generate(generator_of(load_manifest("touch-scenes")), 0, "test", 24))


def test_a_ball_is_where_the_picture_shows_it(asked):
    for scene, _ in asked:
        places = found(scene.draw())
        assert set(places) == {ball.colour for ball in scene.balls}
        for ball in scene.balls:
            assert np.hypot(places[ball.colour][0] - ball.x, places[ball.colour][1] - ball.y) < 2


def test_answers_equal_what_the_picture_says(asked):
    checked = Counter()
    for scene, questions in asked:
        places = found(scene.draw())
        for question in questions:
            answer = read_off(question.text, places)
            checked[question.type] += 1
            if question.type == "nearest":  # what the pixels do not give: the simulation started anew
                answer = nearest_to_gripper(scene)
            assert answer == question.answer, (question, places)
    assert checked == dict.fromkeys(ANSWERS, 12)


def nearest_to_gripper(scene):
    """The ball with the least distance to the middle between the fingers' pads, in a world of its own."""
    rng = np.random.default_rng(scene.seed)
    env = FastMetaworldEnv("touch-blue", observation_width=64, observation_height=64)
    env.reset(seed=int(rng.integers(2**31)))
    action = np.append(rng.uniform(-1, 1, 3), 0).astype(np.float32)
    for _ in range(rng.integers(26)):
        env.step(action)
    data = env._env.data
    hand = (data.body("rightpad").xpos + data.body("leftpad").xpos) / 2
    return min((ball.colour for ball in scene.balls), key=lambda colour: np.linalg.norm(data.site(colour).xpos - hand))


def read_off(text, places):
    """The answer by the pixels alone; None for what they do not give (distances in the world)."""
    if text == "how many balls are there?":
        return str(len(places))
    if match := re.fullmatch(r"is there a (\w+) ball\?", text):
        return "yes" if match[1] in places else "no"
    if match := re.fullmatch(r"how many balls are (left|right) of the (\w+) ball\?", text):
        own = places[match[2]][0]
        return str(sum(x < own if match[1] == "left" else x > own for x, _ in places.values()))
    if match := re.fullmatch(r"what color is the (leftmost|rightmost|highest|lowest) ball\?", text):
        axis, pick = {"leftmost": (0, min), "rightmost": (0, max), "highest": (1, min), "lowest": (1, max)}[match[1]]
        return pick(places, key=lambda colour: places[colour][axis])
    if match := re.fullmatch(r"is the (\w+) ball (left of|right of|above|below) the (\w+) ball\?", text):
        axis = 0 if match[2].endswith("of") else 1
        gap = places[match[3]][axis] - places[match[1]][axis]
        return "yes" if (gap > 0) == (match[2] in ("left of", "above")) else "no"
    assert text == "what color is the ball nearest to the gripper?"
    return None


def test_a_scene_is_the_same_whatever_came_before():
    first = sample_touch_scene(0, "anchor", 3)
    picture = first.draw()
    sample_touch_scene(1, "anchor", 4).draw()
    assert sample_touch_scene(0, "anchor", 3) == first
    assert first.draw() == picture


def test_types_cannot_be_chosen():
    with pytest.raises(UserError, match="'shapes' alone"):
        parse_manifest({"kind": "vqa", "generator": "touch", "types": ["count"], "license": "Apache-2.0"}, "a file")
