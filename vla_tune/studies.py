"""Studies: which variants of a pipeline are run over which seeds, and where each run lies."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from vla_tune.config import METHODS, Config, find_file, load_config, read_yaml, structured
from vla_tune.errors import UserError, nearest

PARTS = ("train", "eval-vqa", "eval-rollout", "benchmark")
"""What a study can make, in this order; `benchmark` is the step times. The anchor is always made: the others read it."""
FROM_OTHERS = {"wise_ft": ["method.wise_ft.path={full}/train"]}
"""What a method needs beside its name, where that is another variant's run."""
REFERENCE = re.compile(r"\{([\w.+-]+)\}")
TAKEN = ("benchmark", "report", "frontier")
"""Folders that lie beside the variants' own."""


@dataclass
class Study:
    """A study file.

    seeds: how many, counted up from the pipeline's own. overrides: KEY=VALUE for all runs.
    variants: label to KEY=VALUE. `{label}` in a value stands for another variant's run folder of the same seed.
    stages: what is made of each run, of `PARTS`.
    """

    name: str
    pipeline: str = "demo"
    seeds: int = 1
    overrides: list[str] = field(default_factory=list)
    variants: dict[str, list[str]] = field(default_factory=dict)
    stages: list[str] = field(default_factory=lambda: list(PARTS))


@dataclass(frozen=True)
class Plan:
    """The runs of a study: a configuration for every label and seed, in the order in which they are made.

    default: the variant that is the pipeline as it stands, if there is one.
    needs: the variants whose run, of the same seed, a variant reads.
    """

    out: Path
    configs: dict[tuple[str, int], Config]
    default: str | None
    stages: tuple[str, ...] = PARTS
    needs: dict[str, list[str]] = field(default_factory=dict)

    def folder(self, label: str, seed: int) -> Path:
        return run_folder(self.out, label, seed)

    @property
    def labels(self) -> list[str]:
        return list(dict.fromkeys(label for label, _ in self.configs))


def run_folder(out: Path, label: str, seed: int) -> Path:
    """Where a run of a study lies."""
    return out / label / f"seed-{seed}"


def load_study(name: str) -> Study:
    """A shipped study by its name, or a YAML file by its path.

    Raises:
        UserError: no such study, or a key or value in it is wrong.

    """
    file = find_file("studies", name, "STUDY")
    study = structured(Study, {"name": file.stem, **read_yaml(file)}, [], str(file))
    for stage in study.stages:
        if stage not in PARTS:
            raise UserError(f"{file}: stages: there is no '{stage}'; {nearest(stage, list(PARTS))}")
    for label in study.variants:
        if not re.fullmatch(r"\w[\w.+-]*", label) or label in TAKEN:
            raise UserError(f"{file}: variants: '{label}' cannot name a folder; use other letters, digits, '.', '+', '-' and '_'")
    return study


def narrowed(study: Study, names: str) -> Study:
    """The study with the named variants only; a name it does not have is a method's, and `all` means every method."""
    asked = list(METHODS) if names == "all" else [name.strip() for name in names.split(",") if name.strip()]
    by_method = {name: [f"method.name={name}", *FROM_OTHERS.get(name, [])] for name in METHODS}
    known = {**by_method, **study.variants}
    for name in asked:
        if name not in known:
            raise UserError(f"--methods: there is no method or variant '{name}'; {nearest(name, list(known))}")
    return replace(study, variants={name: known[name] for name in asked})


def make_plan(study: Study, out: Path, overrides: list[str] | None = None) -> Plan:
    """Read the configuration of every variant and seed; `overrides` come after the study's own and before a variant's.

    Raises:
        UserError: no variant or seed, a wrong key, variants that wait for each other, or a key that every run sets itself.

    """
    if not study.variants or study.seeds < 1:
        raise UserError(f"study {study.name}: at least one variant and one seed are needed")
    common = [*study.overrides, *(overrides or [])]

    @cache  # seeds differ in what they read only where a variant names another's run
    def read(*own: str) -> Config:
        return load_config(study.pipeline, [*common, *own])

    first = read()
    needs = {label: _needs(label, study) for label in study.variants}
    order = in_order(needs)

    def config(label: str, seed: int) -> Config:
        own = [_resolved(override, lambda other: run_folder(out, other, seed)) for override in study.variants[label]]
        asked = read(*own)
        for key, value, expected in (
            ("seed", asked.seed, first.seed),
            ("anchor.path", asked.anchor.path, None),
            ("train.path", asked.train.path, None),
        ):
            if value != expected:
                raise UserError(f"study {study.name}, {label}: {key}={value}: every run has its own; leave it out")
        return replace(asked, seed=seed)

    configs = {(label, seed): config(label, seed) for seed in range(first.seed, first.seed + study.seeds) for label in order}
    default = next((label for label in study.variants if configs[label, first.seed] == first), None)
    return Plan(out, configs, default, tuple(part for part in PARTS if part in study.stages), needs)


def in_order(needs: dict[str, list[str]]) -> list[str]:
    """The labels, each after those that it needs, and otherwise as they come."""
    order: list[str] = []

    def add(label: str, waiting: tuple[str, ...]) -> None:
        if label in waiting:
            raise UserError(f"variants: {' needs '.join([*waiting[waiting.index(label) :], label])}")
        for other in needs[label]:
            add(other, (*waiting, label))
        if label not in order:
            order.append(label)

    for label in needs:
        add(label, ())
    return order


def _needs(label: str, study: Study) -> list[str]:
    """The variants that a variant's values name."""
    named = [name for override in study.variants[label] for name in REFERENCE.findall(override)]
    for name in named:
        if name not in study.variants:
            raise UserError(f"study {study.name}, {label}: {{{name}}} is no variant of it; {nearest(name, list(study.variants))}")
    return named


def _resolved(override: str, folder: Callable[[str], Path]) -> str:
    return REFERENCE.sub(lambda found: str(folder(found[1])), override)
