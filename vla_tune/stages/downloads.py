"""What a pipeline would fetch from the Hugging Face Hub before it can start, and how large it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vla_tune.console import say, table
from vla_tune.data.manifests import BenchmarkManifest, LabelledManifest, in_folder, load_manifest
from vla_tune.errors import UserError
from vla_tune.policies import adapter_class
from vla_tune.resources import SHIPPED
from vla_tune.simulators.registry import simulators

if TYPE_CHECKING:
    from vla_tune.config import Config

APPROXIMATE_MB = {
    "lerobot/smolvla_base": 910,
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": 2030,
    "lerobot/pi05_base": 14_500,
    "google/paligemma-3b-mix-224": 11_700,
    "openai/clip-vit-base-patch16": 600,
}
"""Weights that the shipped pipelines start from, from their parameters and the number format they are published in."""
TOKENIZER_MB = 22
"""PaliGemma's, without its weights."""
TRAINING = ("policy", "VLM", "tokenizer", "demonstrations", "tasks")
"""What `train` needs of it all."""
TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Fetch:
    """A repository on the Hub.

    what: it is for. kind: `model` or `dataset`. here: whether it is in the cache.
    megabytes: by a manifest; else the Hub is asked.
    """

    what: str
    repo: str
    kind: str
    here: bool
    megabytes: int = 0

    def size(self) -> str:
        """For people, in MB: exact where the Hub or a manifest says it."""
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            exact = self.megabytes or _asked(self.repo, self.kind)
        except RepositoryNotFoundError:
            return "unknown: the Hub has none of this name, or not for you"
        except Exception:  # no network, offline mode: all end here
            return f"about {APPROXIMATE_MB[self.repo]:,}" if self.repo in APPROXIMATE_MB else "unknown: the Hub was not reached"
        return f"{exact:,}"


def fetches(config: Config) -> list[Fetch]:
    """Everything on the Hub that the four stages read."""
    named = [*(task.manifest for task in config.stream.tasks), config.stream.reference]
    streamed = [in_folder(config.stream.folder, name) for name in named if name]
    robots = not streamed  # a stream of pictures or questions has neither a policy nor demonstrations
    wanted = [("policy", config.policy.path if robots else None), ("VLM", config.policy.base_vlm)]
    found = [Fetch(what, name, "model", _cached(name, "model")) for what, name in wanted if name and _on_hub(what, name)]
    if robots and (tokenizer := adapter_class(config.policy.type).tokenizer):
        found.append(Fetch("tokenizer", tokenizer, "model", _cached(tokenizer, "model"), TOKENIZER_MB))
    if robots and config.data.repo_id and not config.data.root:
        found.append(Fetch("demonstrations", config.data.repo_id, "dataset", _recorded(config.data.repo_id)))
    asked = [config.vqa.manifest, config.anchor.manifest or config.vqa.manifest] if robots else []
    for name in dict.fromkeys([*asked, *streamed]):
        manifest = load_manifest(name)
        if (
            isinstance(manifest, BenchmarkManifest | LabelledManifest)
            and manifest.dataset
            and not Path(manifest.dataset).expanduser().exists()
        ):
            here = _cached(manifest.dataset, "dataset", manifest.revision)
            found.append(Fetch("tasks" if streamed else "questions", manifest.dataset, "dataset", here, manifest.download_mb))
    worlds = [*config.rollout.tasks, *(world for task in config.stream.tasks for world in task.tasks)]
    needed = [one.assets() for one in simulators().values() if any(one.knows(world) for world in worlds)]
    return found + [Fetch(assets.what, assets.repo, "dataset", assets.here) for assets in needed if assets]


def show_fetches(found: list[Fetch]) -> bool:
    """Print what is missing; whether all that training reads is here."""
    missing = [one for one in found if not one.here]
    if missing:
        rows = [[one.what, f"{one.kind} {one.repo}", one.size()] for one in missing]
        table("would be fetched from the Hugging Face Hub", ["for", "what", "MB"], rows)
    elif found:
        say(f"in the Hub's cache already: {', '.join(one.repo for one in found)}")
    return not any(one.what in TRAINING for one in missing)


def _on_hub(what: str, name: str) -> bool:
    if name in SHIPPED or Path(name).expanduser().is_dir():
        return False
    if name.count("/") != 1 or name.startswith(("/", ".", "~")):
        raise UserError(f"the {what} '{name}' is neither a folder nor a name on the Hub (owner/name)")
    return True


def _cached(repo: str, kind: str, revision: str | None = None) -> bool:
    """Whether some of it was fetched before; what is missing of it would be fetched still."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        snapshot_download(repo, repo_type=kind, revision=revision, local_files_only=True)
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
        return False
    return True


def _recorded(repo: str) -> bool:
    """Whether lerobot has the dataset in its own folder or its cache."""
    from lerobot.utils.constants import HF_LEROBOT_HOME, HF_LEROBOT_HUB_CACHE

    cached = HF_LEROBOT_HUB_CACHE / f"datasets--{repo.replace('/', '--')}"
    return (HF_LEROBOT_HOME / repo / "meta" / "info.json").is_file() or cached.is_dir()


def _asked(repo: str, kind: str) -> int:
    """What the Hub says, in MB."""
    from huggingface_hub import HfApi

    hub = HfApi()
    info = hub.dataset_info if kind == "dataset" else hub.model_info
    files = info(repo, files_metadata=True, timeout=TIMEOUT_S).siblings or []
    return round(sum(file.size or 0 for file in files) / 1e6)
