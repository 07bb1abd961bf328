"""Questions about the robot's own world: the scene of the touch tasks, drawn by its simulator through the robot's camera.

What such a VQA set needs to see is what the robot's training changes, where drawn shapes share little with the robot's
pictures. The truth comes from the simulation; left, right, above and below are those of the picture.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vla_tune.data.scenes import IMAGE_SIZE, SPLITS
from vla_tune.simulators.metaworld.tasks import COLOURS
from vla_tune.simulators.metaworld.touch import RADIUS
from vla_tune.simulators.metaworld.world import FastMetaworldEnv
from vla_tune.vqa.generator import Generator, Question
from vla_tune.vqa.questions import relation

ANSWERS = {
    "count": ("1", "2", "3", "4"),
    "count_beside": ("0", "1", "2", "3"),
    "colour": tuple(COLOURS),
    "nearest": tuple(COLOURS),
    "existence": ("yes", "no"),
    "relation": ("yes", "no"),
}
"""As for drawn shapes: by question type, the answers that a set of questions has in equal numbers."""
MARGIN = 4.0
"""Two balls must differ by this many pixels along the axis that is asked about."""
NEARER = 0.03
"""And by this many metres in their distance to the gripper."""
MOVES = 25
"""At most so many steps, in one direction, does the arm take before the picture."""


@dataclass(frozen=True)
class Ball:
    """A ball that is shown: its centre in pixels, the origin at the top left, and how far the gripper is, in metres."""

    colour: str
    x: float
    y: float
    distance: float


@dataclass(frozen=True)
class TouchScene:
    """Up to four balls, in the order of their colours, and an arm; everything follows from three integers."""

    balls: tuple[Ball, ...]
    seed: tuple[int, int, int]

    def draw(self) -> Image.Image:
        """The picture, RGB, `IMAGE_SIZE` on a side."""
        env, _ = _simulate(self.seed)
        return Image.fromarray(env.observe()["pixels"])


def sample_touch_scene(seed: int, split: str, index: int) -> TouchScene:
    """The scene number `index` of a split; splits never share a random stream."""
    key = (seed, SPLITS[split], index)
    env, shown = _simulate(key)
    world = env._env  # noqa: SLF001 - lerobot's wrapper has no other way in
    hand = world.tcp_center
    balls = []
    for colour in shown:
        place = world.data.site(colour).xpos
        x, y = pixel_of(env, place)
        balls.append(Ball(colour, x, y, float(np.linalg.norm(hand - place))))
    return TouchScene(tuple(balls), key)


def pixel_of(env: FastMetaworldEnv, place: NDArray[np.float64]) -> tuple[float, float]:
    """Where a point of the world, in metres, lies in the observation's picture."""
    world = env._env  # noqa: SLF001
    camera = world.data.camera(env.camera_name)
    x, y, z = camera.xmat.reshape(3, 3).T @ (place - camera.xpos)
    focal = IMAGE_SIZE / 2 / math.tan(math.radians(float(world.model.camera(env.camera_name).fovy[0])) / 2)
    across, down = IMAGE_SIZE / 2 + focal * x / -z, IMAGE_SIZE / 2 + focal * y / z
    turned = env.camera_name == "corner2"
    return (IMAGE_SIZE - across, IMAGE_SIZE - down) if turned else (across, down)


def ask_touch(scene: TouchScene, kind: str, rng: np.random.Generator) -> Question | None:
    """A random question of one type about the scene; None where the scene does not allow one."""
    return _QUESTIONS[kind](scene, rng)


def _count(scene: TouchScene, rng: np.random.Generator) -> Question:  # noqa: ARG001
    return Question("count", "how many balls are there?", str(len(scene.balls)))


def _count_beside(scene: TouchScene, rng: np.random.Generator) -> Question | None:
    if not scene.balls:
        return None
    ball = scene.balls[rng.integers(len(scene.balls))]
    side = ("left", "right")[rng.integers(2)]
    gaps = [(other.x - ball.x) * (-1 if side == "left" else 1) for other in scene.balls if other is not ball]
    if any(abs(gap) < MARGIN for gap in gaps):
        return None
    return Question("count_beside", f"how many balls are {side} of the {ball.colour} ball?", str(sum(gap > 0 for gap in gaps)))


def _colour(scene: TouchScene, rng: np.random.Generator) -> Question | None:
    word, axis, sign = (("leftmost", "x", 1), ("rightmost", "x", -1), ("highest", "y", 1), ("lowest", "y", -1))[rng.integers(4)]
    ball = _first(scene, lambda b: sign * getattr(b, axis), MARGIN)
    return Question("colour", f"what color is the {word} ball?", ball.colour) if ball else None


def _nearest(scene: TouchScene, rng: np.random.Generator) -> Question | None:  # noqa: ARG001
    ball = _first(scene, lambda b: b.distance, NEARER)
    return Question("nearest", "what color is the ball nearest to the gripper?", ball.colour) if ball else None


def _existence(scene: TouchScene, rng: np.random.Generator) -> Question:
    shown = [ball.colour for ball in scene.balls]
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    return Question("existence", f"is there a {colour} ball?", "yes" if colour in shown else "no")


def _relation(scene: TouchScene, rng: np.random.Generator) -> Question | None:
    return relation(scene.balls, lambda ball: f"the {ball.colour} ball", MARGIN, rng)


_QUESTIONS: dict[str, Callable[[TouchScene, np.random.Generator], Question | None]] = {
    "count": _count,
    "count_beside": _count_beside,
    "colour": _colour,
    "nearest": _nearest,
    "existence": _existence,
    "relation": _relation,
}
GENERATOR = Generator(sample_touch_scene, ask_touch, ANSWERS, scenes=10_000, version=1)


def _first(scene: TouchScene, key: Callable[[Ball], float], margin: float) -> Ball | None:
    """The ball with the least `key`, where there is another and it leads by `margin`."""
    ranked = sorted(scene.balls, key=key)
    return ranked[0] if len(ranked) > 1 and key(ranked[1]) - key(ranked[0]) >= margin else None


def _simulate(key: tuple[int, int, int]) -> tuple[FastMetaworldEnv, list[str]]:
    """The world of a scene, ready to be drawn, and the colours of the balls that it shows; the next scene takes it over."""
    rng = np.random.default_rng(key)
    env = _world()
    env.reset(seed=int(rng.integers(2**31)))
    action = np.append(rng.uniform(-1, 1, 3), 0).astype(np.float32)
    for _ in range(rng.integers(MOVES + 1)):
        env.step(action)
    wanted = rng.permutation(list(COLOURS))[: rng.integers(1, len(COLOURS) + 1)]
    shown = [colour for colour in COLOURS if colour in wanted and _in_sight(env, colour)]
    for colour in COLOURS:
        env._env.model.site(colour).rgba[3] = float(colour in shown)  # noqa: SLF001
    return env, shown


def _in_sight(env: FastMetaworldEnv, colour: str) -> bool:
    """Whether the arm leaves a ball's middle and its four sides free; balls are no obstacles to rays themselves."""
    world = env._env  # noqa: SLF001
    camera, centre = world.data.camera(env.camera_name), world.data.site(colour).xpos
    right, up = camera.xmat.reshape(3, 3).T[:2]
    hit = np.zeros(1, np.int32)
    for side in (np.zeros(3), right, -right, up, -up):
        ray = centre + 0.6 * RADIUS * side - camera.xpos
        distance = mujoco.mj_ray(world.model, world.data, camera.xpos, ray, None, 1, -1, hit)  # in lengths of the ray; -1: nothing hit
        if 0 <= distance < 1:
            return False
    return True


@functools.cache
def _world() -> FastMetaworldEnv:
    env = FastMetaworldEnv("touch-red", observation_width=IMAGE_SIZE, observation_height=IMAGE_SIZE)
    env.render_observations = False
    return env
