"""The training engine computes what it computed when the golden files were recorded (`python tests/golden/make.py`).

On the same processor with the same packages everything is equal to the last bit. Elsewhere sums are taken in another order, and
figures may differ by a share of the largest of their series; digests then say nothing.
"""

from __future__ import annotations

import json

import pytest
from cases import FOLDER, GROUPS, Work, fingerprint, one_thread

FIGURES = 0.002
"""By how much figures may differ on other machines, as a share of the largest of their series. AVX2 in place of AVX-512: 0.00005."""
SIZES = 0.02
"""The same for a stream's sizes: an expert close to the threshold may stay or go."""
OTHER_ANSWERS = 2
"""How many of the ten answers may differ on other machines."""

GOLDEN = {group: json.loads((FOLDER / f"{group}.json").read_text()) for group in GROUPS}
NAMES = [f"{group}/{name}" for group in GROUPS for name in GOLDEN[group]["cases"]]


@pytest.fixture(scope="module")
def work(tmp_path_factory, cache):
    with one_thread():
        yield Work(tmp_path_factory.mktemp("golden"))


def test_every_case_is_recorded(work):
    assert sorted(work.names) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_engine_computes_what_was_recorded(work, name):
    group, own = name.split("/")
    golden = GOLDEN[group]["cases"][own]
    now = json.loads(json.dumps(work.case(name)))
    if GOLDEN[group]["machine"] == fingerprint():
        assert now == golden
    else:
        assert differences(golden, now) == []


def differences(golden, now):
    """Where two recordings of a case on different machines differ by more than they may."""
    found = []
    if "base" in golden:
        for key in ("base", "tuned"):
            others = sum(one != other for one, other in zip(golden[key], now[key], strict=True))
            found += [f"{key}: {others} answers"] if others > OTHER_ANSWERS else []
    was, is_now = series_of(golden), series_of(now)
    found += [f"{key}: only on one side" for key in sorted(was.keys() ^ is_now.keys()) if "stream" not in key]
    for key in sorted(was.keys() & is_now.keys()):
        share = SIZES if key.startswith(("stream", "after")) else FIGURES
        found += [f"{key}: {told}" for told in [departure(was[key], is_now[key], share)] if told]
    return found


def departure(golden, now, share):
    """What is wrong with a series of numbers, if anything is."""
    known = [[one for one in series if isinstance(one, int | float)] for series in (golden, now)]
    if [isinstance(one, int | float) for one in golden] != [isinstance(one, int | float) for one in now]:
        return "other steps have a figure"
    largest, apart = max(map(abs, known[0]), default=0), max((abs(one - other) for one, other in zip(*known, strict=True)), default=0)
    return f"apart by {apart:.3g} of {largest:.3g}" if not apart <= share * largest else None


def series_of(case, key=""):
    """The series of a case by dotted key: lists (flat), and single figures as lists of one; digests and answers are left out."""
    if isinstance(case, dict):
        return {name: series for one in case for name, series in series_of(case[one], f"{key}.{one}".removeprefix(".")).items()}
    if isinstance(case, list):
        if any(isinstance(one, dict) for one in case):
            return {name: series for number, one in enumerate(case) for name, series in series_of(one, f"{key}.{number}").items()}
        return {} if key in ("base", "tuned") else {key: list(flat(case))}
    return {} if key.endswith("digest") or isinstance(case, str) else {key: [case]}


def flat(values):
    for one in values:
        if isinstance(one, list):
            yield from flat(one)
        else:
            yield one
