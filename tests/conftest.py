"""What all tests share: no network, software rendering, a cache of their own, the third-party data where there is any."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MUJOCO_GL", "egl")

settings.register_profile("vla-tune", deadline=None, derandomize=True)  # two busy cores: time says nothing
settings.load_profile("vla-tune")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where this run's generated data lie; the user's own cache is never touched."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLA_TUNE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def third_party_data() -> Path:
    """Real data that nobody here made: `VLA_TUNE_TEST_DATA`, else `../shared/data` from the project."""
    folder = Path(os.environ.get("VLA_TUNE_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no third-party test data in {folder} (VLA_TUNE_TEST_DATA names another folder)")
    return folder
