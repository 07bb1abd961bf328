"""Drawing MuJoCo's worlds off screen: without shadows, reflections and multisampling, one renderer for all worlds of a task."""

from __future__ import annotations

import atexit
import os
import threading
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_tune.errors import UserError
from vla_tune.simulators.gl import no_gl

try:
    import mujoco
except ModuleNotFoundError as missing:
    raise UserError(f"Meta-World is not installed (no module '{missing.name}'); pip install 'vla-tune[metaworld]'") from None
except (ImportError, AttributeError, RuntimeError, OSError) as failure:  # mujoco.egl raises any of them without libEGL
    raise no_gl(failure) from None


class Renderer:
    """Draws any environment of one task off screen: the models of a task share their meshes and textures.

    Belongs to the thread that made it, as OpenGL contexts do.
    """

    def __init__(self, model: mujoco.MjModel, width: int, height: int) -> None:
        model.vis.quality.offsamples = 0
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        self._gl = _gl_context(width, height)
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = False
        self._options, self._camera = mujoco.MjvOption(), mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._viewport = mujoco.MjrRect(0, 0, width, height)

    def draw(self, model: mujoco.MjModel, data: mujoco.MjData, camera: str) -> NDArray[np.uint8]:
        """The picture of one camera, `[height, width, 3]`, first row at the top."""
        self._gl.make_current()
        self._camera.fixedcamid = model.camera(camera).id
        mujoco.mjv_updateScene(model, data, self._options, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene)
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        picture = np.empty((self._viewport.height, self._viewport.width, 3), np.uint8)
        mujoco.mjr_readPixels(picture, None, self._viewport, self._context)
        return picture[::-1]

    def close(self) -> None:
        """Free the context, while there is still an interpreter to do it."""
        self._gl.make_current()
        self._context.free()
        self._gl.free()


def _gl_context(width: int, height: int) -> Any:
    """A current context of the backend that MUJOCO_GL names.

    Not `mujoco.GLContext`: that was chosen when something imported mujoco, maybe before MUJOCO_GL was set.
    """
    try:
        backend: Any = import_module(f"mujoco.{os.environ['MUJOCO_GL']}")
        # Without `_context` a context that cannot be made prints a second error when it is deleted.
        context = type("Context", (backend.GLContext,), {"_context": None})(width, height)
        context.make_current()
    except Exception as error:  # every backend raises its own kind
        raise no_gl(error) from None
    return context


_local = threading.local()


def renderer_of(task: str, model: mujoco.MjModel, width: int, height: int) -> Renderer:
    """The calling thread's renderer of a task and size; making one takes half a second."""
    if not hasattr(_local, "renderers"):
        _local.renderers = {}
    renderers: dict[tuple[str, int, int], Renderer] = _local.renderers
    key = task, width, height
    if key not in renderers:
        renderers[key] = Renderer(model, width, height)
        # Registered after mujoco's own handler, so run before it takes the display away.
        atexit.unregister(close_renderers)
        atexit.register(close_renderers)
    return renderers[key]


def close_renderers() -> None:
    """Free the renderers that this thread made. A thread that draws calls it before it ends."""
    renderers = getattr(_local, "renderers", {})
    while renderers:
        renderers.popitem()[1].close()
