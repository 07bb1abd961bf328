"""Which backend MuJoCo draws with, and what to tell where it cannot.

Imported before anything that imports mujoco, which reads the setting then.
"""

from __future__ import annotations

import os

from vla_tune.errors import UserError

os.environ.setdefault("MUJOCO_GL", "egl")  # lerobot's own default asks for a window

GL_PACKAGES = "libegl1 libopengl0 libegl-mesa0 libgl1-mesa-dri"


def no_gl(error: BaseException) -> UserError:
    """What to tell a user on whose machine MuJoCo cannot draw."""
    return UserError(
        f"MuJoCo cannot draw: no GL backend '{os.environ['MUJOCO_GL']}' ({type(error).__name__}: {error}); on Debian or Ubuntu: "
        f"apt-get install {GL_PACKAGES} (or libosmesa6, with MUJOCO_GL=osmesa)"
    )
