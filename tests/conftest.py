"""What all tests share: no network, software rendering, a cache of their own, small data, third-party data."""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from small_runs import demo_overrides, write_dataset

from vla_tune.config import load_config

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported: workers that share cores would wait for each other
os.environ["HF_HOME"] = tempfile.mkdtemp()  # read when huggingface_hub is imported
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ["LIBERO_CONFIG_PATH"] = tempfile.mkdtemp()  # read by processes that are forked from one that starts early
atexit.register(shutil.rmtree, os.environ["LIBERO_CONFIG_PATH"], ignore_errors=True)

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


@pytest.fixture(scope="session")
def libero_assets(third_party_data, tmp_path_factory):
    """LIBERO with the slim assets among the third-party data."""
    package = importlib.util.find_spec("libero")
    if package is None or not (archive := third_party_data / "libero_slim.tar.xz").is_file():
        pytest.skip("LIBERO is not installed, or its assets are not among the third-party test data")
    assets = tmp_path_factory.mktemp("libero")
    with tarfile.open(archive) as packed:
        packed.extractall(assets, filter="data")
    root = f"{package.submodule_search_locations[0]}/libero"
    folders = {"benchmark_root": root, "bddl_files": f"{root}/bddl_files", "init_states": f"{root}/init_files", "datasets": root}
    lines = [f"{key}: {folder}" for key, folder in {**folders, "assets": assets}.items()]
    (Path(os.environ["LIBERO_CONFIG_PATH"]) / "config.yaml").write_text("\n".join(lines))
    return assets


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory):
    """Two tasks, three episodes of 9 to 11 frames of noise, written by lerobot's own writer."""
    return write_dataset(tmp_path_factory.mktemp("data") / "small")


@pytest.fixture
def overrides(small_dataset):
    """The demo pipeline cut down: small data, few steps, little evaluation."""
    return demo_overrides(small_dataset)


@pytest.fixture
def small_config(overrides):
    """A function from further overrides to the configuration."""
    return lambda *more: load_config("demo", [*overrides, *more])


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A function from a configuration to the run of its finished training, made once; a test that writes into it takes `copied`."""
    from vla_tune.stages import train

    runs: dict[str, Path] = {}

    def run_of(config):
        key = json.dumps(config.to_dict(), sort_keys=True, default=str)
        if key not in runs:
            folder = tmp_path_factory.mktemp("trained")
            train.run(config, folder)
            runs[key] = folder
        return runs[key]

    return run_of


@pytest.fixture
def copied(trained, tmp_path):
    """A function from a configuration to a copy of its finished training in the test's own folder, or in `name` below it."""

    def copy_of(config, name="."):
        shutil.copytree(trained(config), tmp_path / name, dirs_exist_ok=True)
        return tmp_path / name

    return copy_of
