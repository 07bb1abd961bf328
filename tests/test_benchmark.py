from pathlib import Path

import pytest

from vla_tune.config import FullConfig, MethodConfig, WiSEFTConfig
from vla_tune.stages import step_times as benchmark

NO_ANCHOR = Path("nowhere")


@pytest.fixture
def times(small_config, monkeypatch):
    """Step times by label, and how many batches each contestant was given."""
    turns: list[int] = []
    for name, value in (("TURN", 2), ("PAIRS", 2), ("WARM_UP", 1)):
        monkeypatch.setattr(benchmark, name, value)
    turn = benchmark.Contestant.turn

    def counted(self, batches):
        turns.append(len(batches))
        return turn(self, batches)

    monkeypatch.setattr(benchmark.Contestant, "turn", counted)

    def measure(**methods):
        turns.clear()
        return benchmark.step_ratio(small_config(), {label: (method, NO_ANCHOR) for label, method in methods.items()}), list(turns)

    return measure


def test_variants_are_measured_beside_plain_fine_tuning(times):
    slow = MethodConfig(name="full", full=FullConfig(vlm_lr=0.1))
    mixed = MethodConfig(name="wise_ft", wise_ft=WiSEFTConfig(path="nowhere"))
    found, turns = times(plain=MethodConfig(), slow=slow, mixed=mixed)
    assert list(found) == ["plain", "slow"]  # what does not train has no step
    assert found["plain"][1] == 1.0
    assert turns == [1, 1, 2, 2, 2, 2]
    found, turns = times(slow=slow)  # plain fine-tuning takes part though nobody asked for its figures
    assert list(found) == ["slow"]
    assert turns == [1, 1, 2, 2, 2, 2]
