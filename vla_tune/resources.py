"""Where the shipped files are: pipelines, studies, data manifests and the embedded VLM.

In a wheel they lie inside the package; in a checkout `pipelines/`, `studies/` and `data_manifests/` lie at its top level.
"""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).parent


def resource(*parts: str) -> Path:
    """The path of a shipped file or folder, for example `resource("pipelines", "demo.yaml")`."""
    packaged = _PACKAGE.joinpath(*parts)
    return packaged if packaged.exists() else _PACKAGE.parent.joinpath(*parts)


def available(kind: str) -> list[str]:
    """The names of the shipped YAML files of one kind (`pipelines`, `studies` or `data_manifests`)."""
    return sorted(file.stem for file in resource(kind).glob("*.yaml"))


def demo_vlm() -> Path:
    """The folder of the embedded vision-language model."""
    return resource("assets", "demo_vlm")


def demo_clip() -> Path:
    """The folder of the embedded CLIP."""
    return resource("assets", "demo_clip")


SHIPPED = {"demo": demo_vlm, "demo-clip": demo_clip}
"""The models that have a name of their own."""


def cache_folder() -> Path:
    """Where the demo keeps what it makes for itself: `$VLA_TUNE_CACHE`, else `~/.cache/vla-tune`."""
    return Path(os.environ.get("VLA_TUNE_CACHE") or Path.home() / ".cache" / "vla-tune").expanduser()
