"""The demonstrations that a policy is trained on: ours, recorded once and checked before reuse, or a user's LeRobotDataset."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_tune.artifacts.store import made_once
from vla_tune.data.features import ACTION, STATE, is_colour, policy_features
from vla_tune.data.instructions import instructions
from vla_tune.data.manifests import GENERATORS, DemonstrationsManifest, load_manifest, manifest_digest
from vla_tune.errors import UserError, nearest, one_line
from vla_tune.resources import cache_folder

if TYPE_CHECKING:
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from vla_tune.config import DataConfig

_EITHER = "data: give either data.manifest (demonstrations that are recorded) or data.repo_id (a LeRobotDataset)"
CONVERTER = "python -m lerobot.scripts.convert_dataset_v21_to_v30"


def demonstrations(manifest: DemonstrationsManifest) -> tuple[str, Path]:
    """The `repo_id` and the folder of a manifest's dataset, from the cache where it is whole, else recorded now.

    Raises:
        UserError: an unknown task, or no GL backend to draw with.
        RunError: an expert that fails too often.

    """
    generator = import_module(GENERATORS["demonstrations"][manifest.generator])
    repo_id, folder = _place(manifest)
    return repo_id, made_once(folder, lambda root: generator.write_dataset(manifest, repo_id, root))


def _place(manifest: DemonstrationsManifest) -> tuple[str, Path]:
    """The `repo_id` and the folder of a manifest's dataset, whether it is there or not."""
    generator = import_module(GENERATORS["demonstrations"][manifest.generator])
    key = f"{manifest.generator}-v{generator.GENERATOR_VERSION}-{manifest_digest(manifest)[:16]}"
    return f"vla-tune/{key}", cache_folder() / "demonstrations" / key / "dataset"


def known_metadata(config: DataConfig) -> LeRobotDatasetMetadata | None:
    """As `dataset_metadata`, of a dataset that is here; None where it would have to be recorded or downloaded."""
    from lerobot.utils.constants import HF_LEROBOT_HOME, HF_LEROBOT_HUB_CACHE

    if bool(config.manifest) == bool(config.repo_id):
        raise UserError(_EITHER)
    if config.repo_id and config.root:
        return open_metadata(config.repo_id, Path(config.root))
    if config.repo_id:
        cached = HF_LEROBOT_HUB_CACHE / f"datasets--{config.repo_id.replace('/', '--')}"
        folders = [HF_LEROBOT_HOME / config.repo_id, *cached.glob("snapshots/*")]
        root = next((one for one in folders if (one / "meta" / "info.json").is_file()), None)
        return open_metadata(config.repo_id, root) if root else None
    repo_id, root = _place(_manifest(config))
    return open_metadata(repo_id, root) if (root / "meta" / "info.json").is_file() else None


def known_features(config: DataConfig) -> dict[str, Any] | None:
    """lerobot's features of the dataset: its own where it is here, those that are recorded of a manifest; else None."""
    meta = known_metadata(config)
    if meta is not None:
        features: dict[str, Any] = meta.features
        return features
    return recorded_features(_manifest(config).image_size) if config.manifest else None


def recorded_features(size: int) -> dict[str, Any]:
    """lerobot's features of demonstrations that we record, with pictures of this size."""
    vector = {"dtype": "float32", "shape": (4,), "names": None}
    picture = {"dtype": "image", "shape": (size, size, 3), "names": ["height", "width", "channel"]}
    return {"observation.image": picture, "observation.state": {**vector}, "action": {**vector}}


def dataset_metadata(config: DataConfig) -> LeRobotDatasetMetadata:
    """The metadata of the dataset that a pipeline names; a manifest's is recorded where the cache lacks it.

    Raises:
        UserError: neither or both are named, or the dataset cannot be opened.

    """
    if bool(config.manifest) == bool(config.repo_id):
        raise UserError(_EITHER)
    if config.repo_id:
        return open_metadata(config.repo_id, Path(config.root) if config.root else None)
    return open_metadata(*demonstrations(_manifest(config)))


def _manifest(config: DataConfig) -> DemonstrationsManifest:
    manifest = load_manifest(str(config.manifest))
    if not isinstance(manifest, DemonstrationsManifest):
        raise UserError(f"data.manifest={config.manifest}: holds {manifest.kind}, not demonstrations")
    return manifest


def open_metadata(repo_id: str, root: Path | None) -> LeRobotDatasetMetadata:
    """A dataset's metadata by lerobot's own reader, from `root` or, without it, from lerobot's cache or the Hub."""
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from lerobot.datasets.utils import BackwardCompatibilityError

    if root:
        _check_folder(repo_id, root)
    try:
        with _as_it_is(root):
            return LeRobotDatasetMetadata(repo_id, root=root)
    except BackwardCompatibilityError:
        raise _old_format(repo_id, root) from None
    except Exception as error:  # the Hub, pyarrow and pandas raise many kinds
        raise _unreadable(repo_id, root, error) from None


@contextmanager
def _as_it_is(root: Path | None) -> Iterator[None]:
    """A folder is read as it is: without this, lerobot fills its holes, and more, with what the Hub has under that name."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or root is not None
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _unreadable(repo_id: str, root: Path | None, error: Exception) -> UserError:
    where = f" in {root}" if root else " in lerobot's cache or on the Hub (data.root names a folder)"
    return UserError(f"the dataset '{repo_id}' cannot be opened{where}: {one_line(error)}")


def _check_folder(repo_id: str, root: Path) -> None:
    """What lerobot would meet with a download from the Hub is told here as what it is."""
    file = root / "meta" / "info.json"
    if not file.is_file():
        raise UserError(f"data.root={root} is not a LeRobotDataset: it has no meta/info.json")
    try:
        version = json.loads(file.read_text())["codebase_version"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} is damaged: it names no codebase_version") from None
    if str(version) == "v2.1":
        raise _old_format(repo_id, root)
    if not str(version).startswith("v3"):
        raise UserError(
            f"the dataset '{repo_id}' is in LeRobot's format {version}, which this lerobot cannot convert; record it anew, or bring it to "
            "v2.1 with an older lerobot (0.3) and then to v3.0 with this one"
        )
    if not (root / "meta" / "tasks.parquet").is_file():
        raise _no_language(repo_id, root)
    for missing in ("meta/episodes/*/*.parquet",):
        if not any(root.glob(missing)):
            raise UserError(f"data.root={root}: {missing.replace('*/*', 'chunk-000/file-000')} is missing; copy the dataset again")


def _old_format(repo_id: str, root: Path | None) -> UserError:
    place = f" --root={root}" if root else ""
    return UserError(
        f"the dataset '{repo_id}' is in LeRobot's format v2.1 and v3.0 is needed; convert it with: "
        f"{CONVERTER} --repo-id={repo_id}{place} --push-to-hub=false"
    )


def _no_language(repo_id: str, root: Path) -> UserError:
    return UserError(
        f"the dataset '{repo_id}' has no instructions (task strings), which the policy reads; "
        f"give them with: lerobot-edit-dataset --repo_id={repo_id} --root={root} --operation.type=modify_tasks --operation.new_task='...'"
    )


def open_dataset(meta: LeRobotDatasetMetadata, policy: PreTrainedConfig, episodes: Sequence[int] | None = None) -> LeRobotDataset:
    """The dataset with the policy's windows (its action chunk), exactly as lerobot's factory makes it; of some episodes alone.

    Stored pictures come as float32 in 0..1, those of videos as uint8, which lerobot's training turns into floats on the device.
    """
    from lerobot.datasets.factory import resolve_delta_timestamps
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    windows = resolve_delta_timestamps(policy, meta)
    # pyav: looking for the default decoder prints tracebacks where FFmpeg is missing.
    try:
        chosen = None if episodes is None else list(episodes)
        with _as_it_is(meta._requested_root):  # noqa: SLF001 - None for what is the Hub's
            return LeRobotDataset(meta.repo_id, meta.root, chosen, delta_timestamps=windows, video_backend="pyav", return_uint8=True)
    except Exception as error:  # as above: missing or damaged files end at the Hub
        raise _unreadable(meta.repo_id, meta.root, error) from None


def adopt_shapes(meta: LeRobotDatasetMetadata, policy: PreTrainedConfig, rename: dict[str, str]) -> None:
    """Give a loaded policy the shapes of the dataset's action and state, which it pads to its own width, and of its pictures.

    Raises:
        UserError: they are wider than the policy, or a name that is given for one is not the policy's.

    """
    for old, new in rename.items():
        if old not in meta.features:
            raise UserError(f"data.rename: the dataset '{meta.repo_id}' has no '{old}'; {nearest(old, sorted(meta.features))}")
        if new not in policy.input_features:
            raise UserError(f"data.rename.{old}: the policy reads no '{new}'; {nearest(new, sorted(policy.input_features))}")
    inputs, actions = policy_features(meta.features, rename)
    states = {key: one for key, one in inputs.items() if key == STATE}
    pictures = {key: one for key, one in inputs.items() if key != STATE}
    for limit, group in (("max_action_dim", actions), ("max_state_dim", states)):
        for key, one in group.items():
            if one.shape[0] > getattr(policy, limit):
                raise UserError(
                    f"the dataset '{meta.repo_id}' has '{key}' of {one.shape[0]} numbers, the policy takes {getattr(policy, limit)}"
                )
    policy.output_features = actions or policy.output_features
    known = {key: one for key, one in pictures.items() if key in policy.input_features}
    policy.input_features = {**policy.input_features, **states, **known}


def check_dataset(meta: LeRobotDatasetMetadata, policy: PreTrainedConfig, rename: dict[str, str] | None = None) -> None:
    """What training would stumble over later.

    Args:
        rename: the dataset's names of pictures or of the state, each with the policy's.

    Raises:
        UserError: no instructions, missing statistics, or pictures, states or actions that are not those of the policy.

    """
    tasks = instructions(meta)
    if not tasks or not all(tasks.values()):
        raise _no_language(meta.repo_id, meta.root)
    rename = rename or {}
    _check_pictures(meta, policy, rename)
    own = {new: old for old, new in rename.items()}
    for key, feature in (*policy.input_features.items(), *policy.output_features.items()):
        if key in (STATE, ACTION):
            mode = policy.normalization_mapping.get(feature.type.value)
            _check_vector(meta, own.get(key, key), tuple(feature.shape), mode.value if mode else "IDENTITY")


def _check_pictures(meta: LeRobotDatasetMetadata, policy: PreTrainedConfig, rename: dict[str, str]) -> None:
    wanted, found = set(policy.image_features), {rename.get(key, key) for key, feature in meta.features.items() if is_colour(feature)}
    unknown, missing = sorted(found - wanted), sorted(wanted - found)
    if not wanted & found or (unknown and missing):
        raise UserError(
            f"the dataset '{meta.repo_id}' has the pictures {_names(unknown)}, which the policy lacks; it reads {_names(sorted(wanted))}: "
            "say which is which with data.rename={theirs: the policy's}, or start from policy.base_vlm, which takes the dataset's"
        )


def _check_vector(meta: LeRobotDatasetMetadata, key: str, shape: tuple[int, ...], normalization: str) -> None:
    if key not in meta.features:
        raise UserError(f"the dataset '{meta.repo_id}' has no '{key}', which the policy needs; it has {_names(sorted(meta.features))}")
    own = tuple(meta.features[key]["shape"])
    if own != shape:
        raise UserError(f"the dataset '{meta.repo_id}' has '{key}' of shape {list(own)}, the policy of {list(shape)}")
    needed = {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99")}.get(normalization, ())
    stats: dict[str, Any] = (meta.stats or {}).get(key, {})
    missing = [name for name in needed if name not in stats]
    if missing:
        raise UserError(
            f"the dataset '{meta.repo_id}' has no {' and '.join(missing)} of '{key}' in meta/stats.json, which normalisation needs; "
            + recompute_command(meta)
        )


def recompute_command(meta: LeRobotDatasetMetadata) -> str:
    """How to mend statistics."""
    return f"compute them with: lerobot-edit-dataset --repo_id={meta.repo_id} --root={meta.root} --operation.type=recompute_stats"


def _names(keys: list[str]) -> str:
    return ", ".join(f"'{key}'" for key in keys) or "nothing"
