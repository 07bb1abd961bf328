"""What is left of a dataset's instructions once the policy's own processor has made tokens of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch

from vla_tune.errors import UserError
from vla_tune.policies import adapter_class
from vla_tune.policies.loading import load_processors
from vla_tune.preflight.findings import Finding, stop, tell

if TYPE_CHECKING:
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.processor import PolicyProcessorPipeline

LENGTH = "policy.settings.tokenizer_max_length"


@dataclass(frozen=True)
class Tokens:
    """An instruction as the policy reads it.

    count: its tokens, the policy's wording (a newline, pi0.5's state) included. kept: those that are not cut off.
    """

    text: str
    count: int
    kept: tuple[int, ...]

    @property
    def cut(self) -> bool:
        return len(self.kept) < self.count


def open_processor(policy: PreTrainedConfig, path: str | None) -> PolicyProcessorPipeline | None:
    """lerobot's preprocessor of a policy, without the policy; None where its tokenizer is not here, which opening the policy tells.

    Args:
        policy: its configuration, its VLM named by a folder where that is here.
        path: the folder that it starts from, whose processor is used; None for a new policy.

    """
    try:
        return load_processors(cast("Any", SimpleNamespace(config=policy)), path)[0]
    except (UserError, OSError, ValueError):
        return None


def tokenized(texts: Sequence[str], policy: PreTrainedConfig, processor: PolicyProcessorPipeline) -> list[Tokens]:
    """These instructions through the processor's steps that word and cut them."""
    from lerobot.lerobot_types import TransitionKey
    from lerobot.processor.converters import create_transition
    from lerobot.utils.constants import OBS_STATE

    steps = [step for step in processor.steps if type(step).__name__ in adapter_class(policy.type).text_steps]
    (tokenizer,) = [step for step in steps if hasattr(step, "input_tokenizer")]
    state = policy.robot_state_feature  # zeros stand in the middle of its range, where its digits are most
    observed = {OBS_STATE: torch.zeros(len(texts), *state.shape)} if state else {}
    worded = create_transition(observation=observed, complementary_data={"task": list(texts)})
    for step in steps[: steps.index(tokenizer)]:
        worded = step(worded)
    told = worded[TransitionKey.COMPLEMENTARY_DATA]["task"]
    whole = tokenizer.input_tokenizer(told)["input_ids"]
    kept = tokenizer.input_tokenizer(told, max_length=tokenizer.max_length, truncation=tokenizer.truncation)["input_ids"]
    return [Tokens(text, len(every), tuple(some)) for text, every, some in zip(texts, whole, kept, strict=True)]


def instructions(every: Sequence[Tokens]) -> Iterator[Finding]:
    """Look for those that are empty, cut, or the same to the policy."""
    if any(not one.text.strip() for one in every):
        yield stop(
            "one of the dataset's instructions (meta/tasks.parquet) is empty, and the policy reads them; give it one with: "
            "lerobot-edit-dataset --operation.type=modify_tasks"
        )
    alike = [group for group in _grouped({one: " ".join(one.text.split()).casefold() for one in every}) if len(group) > 1]
    if alike:
        more = f", and {len(alike) - 1} more such groups" if len(alike) > 1 else ""
        yield tell(f"the instructions {_texts(alike[0])} differ in case or spaces alone, and count as different tasks{more}")
    same = [group for group in _grouped({one: one.kept for one in every}) if len(group) > 1 and group not in alike]
    for group in same:
        yield _same(group)
    cut = [one for one in every if one.cut and not any(one in group for group in same)]
    if cut:
        longest = max(cut, key=lambda one: one.count)
        which = f"the instruction '{longest.text}' has" if len(cut) == 1 else f"{len(cut)} instructions are cut; '{longest.text}' has"
        yield tell(f"{which} {longest.count} tokens and the policy reads {len(longest.kept)}: {LENGTH}={longest.count} keeps its end")


def _same(group: list[Tokens]) -> Finding:
    longest, kept = max(one.count for one in group), len(group[0].kept)
    if any(one.cut for one in group):
        return stop(f"the instructions {_texts(group)} are cut to the same {kept} tokens; give {LENGTH}={longest}, or shorten them")
    return stop(f"the instructions {_texts(group)} are the same tokens to the policy, whose tokenizer lacks what differs; reword them")


def _grouped(keys: dict[Tokens, Any]) -> list[list[Tokens]]:
    groups: dict[Any, list[Tokens]] = {}
    for one, key in keys.items():
        groups.setdefault(key, []).append(one)
    return list(groups.values())


def _texts(group: list[Tokens]) -> str:
    shown = " and ".join(f"'{one.text}'" for one in group[:2])
    return shown if len(group) == 2 else f"{shown} (and {len(group) - 2} more)"
