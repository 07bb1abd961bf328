"""The table of `make bench`, on made-up rounds: nothing is timed here."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import rounds, table

SECONDS = st.floats(1e-3, 1e3)


def made_up(name, *ratios):
    return rounds.Rounds(name, list(ratios), [1.0] * len(ratios))


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=12))
def test_a_row_is_the_median_of_the_rounds_ratios_inside_its_range(pairs):
    ours, theirs = (list(side) for side in zip(*pairs, strict=True))
    row = rounds.Rounds("a", ours, theirs).row
    ratios = sorted(one / other for one, other in pairs)
    assert ratios[0] <= row["low"] * (1 + 1e-9)
    assert row["low"] <= row["ratio"] * (1 + 1e-9) <= row["high"] * (1 + 1e-8)
    assert row["high"] <= ratios[-1] * (1 + 1e-9)
    assert ratios[(len(ratios) - 1) // 2] <= row["ratio"] <= ratios[len(ratios) // 2]


def test_what_slows_both_of_a_round_changes_no_ratio():
    assert rounds.Rounds("a", [1.0, 30.0, 2.0], [2.0, 60.0, 4.0]).row == {"name": "a", "ratio": 0.5, "low": 0.5, "high": 0.5}


@pytest.fixture
def a_clock(monkeypatch):
    """A clock that turns alone move on."""
    now = [0.0]
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: now[0])
    return now


def test_two_take_turns_in_changing_order_and_the_first_turns_do_not_count(a_clock):
    seen = []

    def turn(name, seconds):
        def take():
            seen.append(name)
            a_clock[0] += seconds if len(seen) > 2 else 100

        return take

    found = rounds.alternate("a", turn("ours", 6), turn("theirs", 4), 3, units=(2, 1))
    assert (found.ours, found.theirs) == ([3.0] * 3, [4.0] * 3)
    assert seen[2:] == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert len(rounds.alternate("a", turn("ours", 6), turn("theirs", 4), 2, warm_up=False).ours) == 2


@pytest.mark.parametrize(("now", "told"), [(1.04, []), (0.5, []), (1.06, ["a"]), (2.0, ["a"])])
def test_more_than_five_percent_is_told(now, told):
    rows = [made_up(name, value).row for name, value in {"a": now, "b": 1.0, "new": 9.0}.items()]
    before = [made_up(name, 1.0).row for name in ("a", "b", "gone")]
    assert [line.partition(":")[0] for line in table.slower(rows, before)] == told


def test_ranges_that_overlap_are_named():
    apart, overlapping = made_up("a", 2.0, 2.0, 2.0).row, made_up("a", 0.9, 2.0, 2.1).row
    before = [made_up("a", 1.0, 1.1, 1.2).row]
    assert "overlap" not in table.slower([apart], before)[0]
    assert "overlap" in table.slower([overlapping], before)[0]


def test_the_table_is_printed_written_and_compared(tmp_path, capsys):
    out, baseline = tmp_path / "bench" / "table.json", tmp_path / "table.json"
    table.report(table.as_table([made_up("step", 1.0, 1.2, 1.1)]), out, baseline)
    first = capsys.readouterr().out
    assert "there is no baseline" in first
    assert "1.100" in first
    found = json.loads(out.read_text())
    assert found["rows"] == [{"name": "step", "ratio": 1.1, "low": pytest.approx(1.02), "high": pytest.approx(1.18)}]
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["torch"]

    out.rename(baseline)
    table.report(table.as_table([made_up("step", 1.1)]), out, baseline)
    assert "nothing became more than 5 % slower" in capsys.readouterr().out
    table.report(table.as_table([made_up("step", 1.3)]), out, baseline)
    assert "step: 1.300, baseline 1.100 (+18%)" in capsys.readouterr().out

    kept = json.loads(baseline.read_text())
    baseline.write_text(json.dumps({**kept, "machine": {**kept["machine"], "cores": 999}}))
    table.report(table.as_table([made_up("step", 1.1)]), out, baseline)
    assert "the baseline is of another machine" in capsys.readouterr().out
