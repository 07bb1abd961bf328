"""Recording for real: two tasks, two episodes each, once for the module."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vla_tune.artifacts.store import find_damage
from vla_tune.config import DataConfig
from vla_tune.data import demonstrations as module
from vla_tune.data import recording
from vla_tune.data.demonstrations import check_dataset, dataset_metadata, demonstrations, open_dataset, open_metadata
from vla_tune.data.manifests import DemonstrationsManifest
from vla_tune.errors import RunError, UserError

MANIFEST = DemonstrationsManifest(tasks=["reach-v3", "drawer-close-v3"], episodes_per_task=2, license="Apache-2.0")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The cache folder of the manifest's recording."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLA_TUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        repo_id, root = demonstrations(MANIFEST)
    return repo_id, root


@pytest.fixture
def cached(recorded, tmp_path, monkeypatch):
    """A copy of the cache that a test may damage."""
    _, root = recorded
    monkeypatch.setenv("VLA_TUNE_CACHE", str(tmp_path))
    folder = tmp_path / "demonstrations" / root.parent.name
    shutil.copytree(root.parent, folder)
    return folder


def policy_config(chunk=4):
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

    return SmolVLAConfig(
        chunk_size=chunk,
        n_action_steps=chunk,
        device="cpu",
        input_features={
            "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
            "observation.state": PolicyFeature(FeatureType.STATE, (4,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (4,))},
    )


def test_the_dataset_is_lerobots_with_pictures_and_instructions(recorded):
    from lerobot.envs.metaworld import TASK_DESCRIPTIONS

    meta = open_metadata(*recorded)
    assert meta.total_episodes == 4
    assert meta.features["observation.image"]["dtype"] == "image"
    assert not meta.video_keys
    assert tuple(meta.features["observation.image"]["shape"]) == (64, 64, 3)
    assert set(meta.tasks.index) == {TASK_DESCRIPTIONS[task] for task in MANIFEST.tasks}
    check_dataset(meta, policy_config())
    dataset = open_dataset(meta, policy_config())
    item = dataset[0]
    assert item["observation.image"].shape == (1, 3, 64, 64)  # one step of observations, as SmolVLA asks
    assert item["action"].shape == (4, 4)
    assert item["action"].abs().max() <= 1
    assert not list(recorded[1].rglob("*.png"))  # they lie in the parquet files


def test_windows_are_those_of_lerobots_factory(recorded):
    from lerobot.configs.default import DatasetConfig
    from lerobot.datasets.factory import make_dataset

    repo_id, root = recorded
    settings = DatasetConfig(repo_id, root=str(root), video_backend="pyav", use_imagenet_stats=False)
    settings.image_transforms.enable = False
    theirs = make_dataset(SimpleNamespace(dataset=settings, trainable_config=policy_config(), tolerance_s=1e-4))
    ours = open_dataset(open_metadata(repo_id, root), policy_config())
    assert ours.delta_timestamps == theirs.delta_timestamps
    for row in (0, len(ours) - 1):
        mine, other = ours[row], theirs[row]
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[key], other[key]) if torch.is_tensor(mine[key]) else mine[key] == other[key] for key in mine)


def test_recording_again_gives_the_same_bits(recorded):
    import pyarrow.parquet as pq

    again = recording.record_task(MANIFEST, "drawer-close-v3")
    stored = pq.read_table(recorded[1] / "data" / "chunk-000" / "file-000.parquet").to_pydict()
    dataset = open_dataset(open_metadata(*recorded), policy_config())
    rows = [row for row, episode in enumerate(stored["episode_index"]) if episode >= 2]  # the second task's
    assert len(rows) == sum(len(episode.actions) for episode in again)
    assert np.array_equal(np.float32([stored["action"][row] for row in rows]), np.concatenate([episode.actions for episode in again]))
    assert np.array_equal(np.float32([stored["observation.state"][row] for row in rows]), np.concatenate([e.states for e in again]))
    pictures = np.concatenate([episode.images for episode in again])
    for row in (rows[0], rows[-1]):
        stored_picture = (dataset[row]["observation.image"][0] * 255).round().byte().permute(1, 2, 0)
        assert np.array_equal(stored_picture.numpy(), pictures[row - rows[0]])


def test_every_episode_ends_in_the_success_that_its_actions_reach():
    from vla_tune.simulators.metaworld import FastMetaworldEnv

    for episode in recording.record_task(MANIFEST, "reach-v3"):
        assert episode.seed >= recording.FIRST_SEED
        env = FastMetaworldEnv("reach-v3", obs_type="pixels_agent_pos")
        env.render_observations = False
        env.reset(seed=episode.seed)
        successes = [env.step(action)[2] for action in episode.actions]
        assert successes == [False] * (len(episode.actions) - 1) + [True]


def test_an_expert_that_fails_is_told(monkeypatch):
    monkeypatch.setattr(recording, "STEP_LIMIT", 1)
    with pytest.raises(RunError, match=r"expert of reach-v3 succeeded in 0 of 12"):
        recording.record_task(DemonstrationsManifest(tasks=["reach-v3"], episodes_per_task=1, license="x", image_size=8), "reach-v3")


def test_an_unknown_task_names_the_nearest(monkeypatch, tmp_path):
    monkeypatch.setenv("VLA_TUNE_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="did you mean 'reach-v3'"):
        demonstrations(DemonstrationsManifest(tasks=["reach-v4"], episodes_per_task=1, license="x"))
    assert not list((tmp_path / "demonstrations").iterdir())


def test_a_whole_cache_is_reused(cached, monkeypatch):
    monkeypatch.setattr(recording, "write_dataset", pytest.fail)
    assert demonstrations(MANIFEST)[1] == cached / "dataset"


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "no table", "broken table"])
def test_damage_is_found_and_recorded_again(cached, monkeypatch, capsys, damage):
    file = cached / "dataset" / "data" / "chunk-000" / "file-000.parquet"
    content = file.read_bytes()
    table = cached / "files.json"
    {
        "flip": lambda: file.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]),
        "cut": lambda: file.write_bytes(content[:-10]),
        "remove": file.unlink,
        "no table": table.unlink,
        "broken table": lambda: table.write_text("{"),
    }[damage]()
    assert find_damage(cached / "dataset")

    def write(manifest, repo_id, root):
        (root / "meta").mkdir(parents=True)
        (root / "meta" / "info.json").write_text("{}")

    monkeypatch.setattr(recording, "write_dataset", write)
    demonstrations(MANIFEST)
    assert "is made again" in capsys.readouterr().err
    assert find_damage(cached / "dataset") is None
    assert [path.name for path in cached.parent.iterdir()] == [cached.name]


def test_an_interrupted_recording_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("VLA_TUNE_CACHE", str(tmp_path))

    def write(manifest, repo_id, root):
        root.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(recording, "write_dataset", write)
    with pytest.raises(KeyboardInterrupt):
        demonstrations(MANIFEST)
    assert not list((tmp_path / "demonstrations").iterdir())


def edit(folder, name, change):
    file = folder / "dataset" / "meta" / name
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return folder / "dataset"


def test_old_format_names_the_converter(cached):
    root = edit(cached, "info.json", lambda info: info.update(codebase_version="v2.1"))
    with pytest.raises(UserError, match=r"convert_dataset_v21_to_v30 --repo-id=me/mine --root=.*dataset --push-to-hub=false"):
        open_metadata("me/mine", root)


def test_missing_statistics_are_named(cached):
    root = edit(cached, "stats.json", lambda stats: stats["action"].pop("std"))
    with pytest.raises(UserError, match=r"no std of 'action' in meta/stats.json.*recompute_stats"):
        check_dataset(open_metadata("me/mine", root), policy_config())
    (root / "meta" / "stats.json").unlink()
    with pytest.raises(UserError, match=r"no mean and std of 'observation\.state'"):
        check_dataset(open_metadata("me/mine", root), policy_config())


def test_missing_language_is_named(cached):
    meta = open_metadata("me/mine", cached / "dataset")
    meta.tasks = meta.tasks.rename(index={meta.tasks.index[0]: " "})
    with pytest.raises(UserError, match="no instructions"):
        check_dataset(meta, policy_config())
    (cached / "dataset" / "meta" / "tasks.parquet").unlink()
    with pytest.raises(UserError, match="no instructions"):
        open_metadata("me/mine", cached / "dataset")


def test_pictures_that_the_policy_lacks_are_named(recorded):
    meta, config = open_metadata(*recorded), policy_config()
    config.input_features["observation.images.top"] = config.input_features.pop("observation.image")
    with pytest.raises(UserError, match=r"pictures 'observation.image', which the policy lacks; it reads 'observation.images.top'"):
        check_dataset(meta, config)


def test_other_shapes_are_named(recorded):
    meta, config = open_metadata(*recorded), policy_config()
    config.output_features["action"].shape = (7,)
    with pytest.raises(UserError, match=r"'action' of shape \[4\], the policy of \[7\]"):
        check_dataset(meta, config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig(), "either data.manifest"),
        (DataConfig(manifest="metaworld-demo", repo_id="me/mine"), "either data.manifest"),
        (DataConfig(manifest="shapes"), "holds vqa, not demonstrations"),
        (DataConfig(manifest="metaworld-dem"), "did you mean 'metaworld-demo'"),
        (DataConfig(repo_id="me/mine", root="/nowhere"), "not a LeRobotDataset"),
    ],
)
def test_wrong_data_settings(config, message):
    with pytest.raises(UserError, match=message):
        dataset_metadata(config)


def test_a_damaged_dataset_is_one_message(cached):
    (cached / "dataset" / "meta" / "info.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        open_metadata("me/mine", cached / "dataset")
    assert module.CONVERTER.startswith("python -m lerobot")
