"""The metrics of continual learning: against plain loops, their properties, and ZSCL's published figures."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_tune.geometry.continual import average, backward_transfer, forgetting, last, summary, transfer

METRICS = {"transfer": transfer, "average": average, "last": last, "backward_transfer": backward_transfer, "forgetting": forgetting}

# Accuracy in % on the 11 tasks of MTIL in order I (Aircraft, Caltech101, CIFAR100, DTD, EuroSAT, Flowers, Food, MNIST, OxfordPet,
# StanfordCars, SUN397), a row for each task learnt. Source: the outputs stored in mtil/results.ipynb of github.com/Thunderbeee/ZSCL
# at commit 08c6ef675f8d, of results/t3_7.npy (ZSCL), results/t3_1.npy (continual fine-tuning) and the zero-shot row; the figures
# below are those that it prints beside them, under "Table 3. Comparison of different methods on MTIL".
ZSCL = [
    [55.115512, 86.002304, 66.33, 44.893617, 49.240741, 70.564319, 88.336634, 53.58, 87.380758, 61.298346, 65.679739],
    [48.874887, 94.182028, 68.55, 44.680851, 50.444444, 66.970239, 87.631683, 55.19, 85.009539, 61.012312, 65.937198],
    [47.134713, 93.145161, 86.20, 46.489362, 50.129630, 68.840462, 87.702970, 63.43, 87.598801, 60.564606, 67.445175],
    [47.014701, 93.836406, 84.99, 76.170213, 51.740741, 69.946333, 87.774257, 65.87, 88.389207, 61.211292, 67.150936],
    [46.144614, 92.799539, 83.97, 75.000000, 97.759259, 69.084404, 87.148515, 67.56, 87.980376, 60.303445, 67.086571],
    [43.774377, 92.511521, 83.21, 73.457447, 97.240741, 96.340868, 87.104950, 63.30, 86.481330, 58.835966, 66.852099],
    [44.344434, 92.223502, 82.89, 71.223404, 96.777778, 93.755082, 92.201980, 63.47, 87.271736, 60.266136, 67.914119],
    [41.944194, 91.935484, 80.48, 67.819149, 95.296296, 89.510490, 91.857426, 99.01, 84.382666, 58.400696, 66.470507],
    [41.614161, 91.820276, 81.32, 68.191489, 95.666667, 90.730200, 91.984158, 98.84, 95.284819, 58.873274, 66.429130],
    [39.783978, 91.877880, 81.82, 68.882979, 95.703704, 91.624654, 91.841584, 98.76, 94.467157, 85.847531, 67.325640],
    [40.624062, 92.165899, 81.29, 70.531915, 94.759259, 90.486258, 91.885149, 98.71, 93.867539, 85.300336, 80.221599],
]
FINE_TUNING = [
    [62.616262, 67.108295, 42.96, 30.797872, 45.962963, 46.202635, 64.233663, 43.06, 69.283183, 26.601169, 51.827502],
    [15.691569, 93.375576, 49.00, 31.329787, 36.203704, 32.883396, 60.510891, 48.02, 65.794494, 15.831364, 51.216036],
    [24.422442, 90.380184, 88.78, 34.148936, 36.314815, 32.541877, 57.833663, 46.26, 73.262469, 22.882726, 54.613581],
    [25.982598, 89.631336, 78.92, 76.914894, 24.000000, 34.607253, 60.851485, 49.12, 70.128100, 23.355304, 52.549308],
    [22.652265, 88.076037, 70.56, 68.989362, 98.814815, 28.785168, 49.227723, 41.44, 60.043609, 21.862952, 46.641534],
    [22.862286, 88.076037, 70.77, 69.680851, 98.462963, 96.064401, 53.702970, 39.00, 64.568002, 22.559383, 48.287435],
    [27.422742, 90.207373, 76.69, 72.500000, 97.962963, 89.299073, 92.146535, 41.84, 73.453257, 35.828877, 57.123810],
    [2.280228, 33.928571, 4.89, 20.000000, 21.759259, 11.074972, 7.865347, 99.59, 10.248024, 2.350454, 17.976185],
    [17.881788, 80.645161, 43.92, 51.276596, 74.148148, 61.977557, 80.554455, 99.60, 93.322431, 13.244621, 39.446462],
    [27.302730, 85.426267, 57.25, 61.808511, 89.648148, 65.783054, 82.530693, 99.51, 93.240665, 87.613481, 46.218565],
    [31.023102, 89.285714, 65.83, 67.340426, 88.944444, 71.084729, 85.560396, 99.55, 92.913600, 77.254073, 81.141097],
]
ZERO_SHOT = [[24.3, 88.4, 68.2, 44.6, 54.9, 71.0, 88.5, 59.4, 89.0, 64.7, 65.2]] * 11
PUBLISHED = [
    pytest.param(
        ZSCL,
        (68.1, 75.4, 83.6),
        [86.0, 67.4, 45.4, 50.4, 69.1, 87.6, 61.8, 86.8, 60.1, 66.8],
        [45.1, 92.0, 80.1, 64.3, 79.5, 81.6, 89.6, 75.2, 88.9, 64.7, 68.0],
        [40.6, 92.2, 81.3, 70.5, 94.8, 90.5, 91.9, 98.7, 93.9, 85.3, 80.2],
        id="ZSCL",
    ),
    pytest.param(
        FINE_TUNING,
        (44.6, 55.9, 77.3),
        [67.1, 46.0, 32.1, 35.6, 35.0, 57.7, 44.1, 60.8, 20.5, 46.6],
        [25.5, 81.5, 59.1, 53.2, 64.7, 51.8, 63.2, 64.3, 69.7, 31.8, 49.7],
        [31.0, 89.3, 65.8, 67.3, 88.9, 71.1, 85.6, 99.6, 92.9, 77.3, 81.1],
        id="fine-tuning",
    ),
    pytest.param(ZERO_SHOT, (69.4, 65.3, 65.3), ZERO_SHOT[0][1:], ZERO_SHOT[0], ZERO_SHOT[0], id="zero-shot"),
]

quick = settings(max_examples=60, deadline=None)
score = st.floats(-100, 100, allow_subnormal=False)


@st.composite
def matrices(draw, cell=score, least=1):
    tasks = draw(st.integers(least, 6))
    row = st.lists(cell, min_size=tasks, max_size=tasks)
    return torch.tensor(draw(st.lists(row, min_size=tasks, max_size=tasks)), dtype=torch.float64)


def mean(cells):
    total = 0.0
    for cell in cells:
        total += cell
    return total / len(cells) if cells else math.nan


def slow(r):
    """Every metric, a task at a time in plain Python; NaN cells spread by arithmetic, and by hand through the maximum."""
    tasks = len(r)
    out = {name: [] for name in METRICS}
    for i in range(tasks):
        out["average"].append(mean([r[j][i] for j in range(tasks)]))
        out["last"].append(r[tasks - 1][i])
        if i >= 1:
            out["transfer"].append(mean([r[j][i] for j in range(i)]))
        if i < tasks - 1:
            out["backward_transfer"].append(r[tasks - 1][i] - r[i][i])
            best = -math.inf
            for j in range(i, tasks - 1):
                best = math.nan if math.isnan(best) or math.isnan(r[j][i]) else max(best, r[j][i])
            out["forgetting"].append(best - r[tasks - 1][i])
    return out


def close(got, want):
    torch.testing.assert_close(got, torch.as_tensor(want, dtype=torch.float64), rtol=1e-12, atol=1e-10, equal_nan=True)


@quick
@given(st.one_of(matrices(), matrices(st.one_of(score, score, score, st.just(math.nan)))))
def test_equals_plain_loops_with_cells_missing_or_not(r):
    before = r.clone()
    want = slow(r.tolist())
    means = summary(r)
    assert list(means) == list(METRICS)
    for name, metric in METRICS.items():
        close(metric(r), want[name])
        whole = mean(want[name])
        assert means[name] is None if math.isnan(whole) else means[name] == pytest.approx(whole, rel=1e-12, abs=1e-10)
    assert torch.equal(r.nan_to_num(1e9), before.nan_to_num(1e9))


def test_by_hand():
    r = torch.tensor([[8.0, 2.0, 1.0], [9.0, 7.0, 3.0], [5.0, 8.0, 6.0]])
    assert transfer(r).tolist() == [2, 2]
    assert average(r).tolist() == pytest.approx([22 / 3, 17 / 3, 10 / 3])
    assert last(r).tolist() == [5, 8, 6]
    assert backward_transfer(r).tolist() == [-3, 1]
    assert forgetting(r).tolist() == [4, -1]
    assert summary(r) == pytest.approx({"transfer": 2, "average": 49 / 9, "last": 19 / 3, "backward_transfer": -1, "forgetting": 1.5})


def test_a_score_from_before_a_task_was_learnt_cannot_be_forgotten():
    assert forgetting(torch.tensor([[1.0, 9.0, 0.0], [1.0, 5.0, 0.0], [1.0, 5.0, 0.0]])).tolist() == [0, 0]


@quick
@given(st.lists(score, min_size=2, max_size=6))
def test_where_nothing_changes_nothing_is_forgotten(row):
    r = torch.tensor([row] * len(row), dtype=torch.float64)
    close(transfer(r), row[1:])
    close(average(r), row)
    assert last(r).tolist() == row
    assert not backward_transfer(r).any()
    assert not forgetting(r).any()


@quick
@given(score, st.integers(2, 6))
def test_a_constant_matrix(value, tasks):
    want = {"transfer": value, "average": value, "last": value, "backward_transfer": 0, "forgetting": 0}
    assert summary(torch.full((tasks, tasks), value, dtype=torch.float64)) == pytest.approx(want)


@quick
@given(matrices(least=2), st.floats(1e-2, 1e2), score)
def test_levels_move_with_scale_and_shift_and_differences_with_scale_alone(r, scale, shift):
    for metric in (transfer, average, last):
        torch.testing.assert_close(metric(scale * r + shift), scale * metric(r) + shift, rtol=1e-9, atol=1e-9)
    for metric in (backward_transfer, forgetting):
        torch.testing.assert_close(metric(scale * r + shift), scale * metric(r), rtol=1e-9, atol=1e-9)


@quick
@given(matrices(least=2))
def test_forgetting_is_at_least_the_backward_transfer_lost_and_just_that_where_scores_only_fall(r):
    assert (forgetting(r) >= -backward_transfer(r)).all()
    falling = r.cummin(0).values
    assert torch.equal(forgetting(falling), -backward_transfer(falling))


@quick
@given(matrices(least=2), st.randoms(use_true_random=False))
def test_average_knows_no_order_of_the_stream(r, random):
    order = random.sample(range(len(r)), len(r))
    close(average(r[order][:, order]), average(r)[order])
    close(average(r[order]), average(r))


@quick
@given(matrices(least=2), st.sampled_from([math.nan, 1e30, -math.inf]))
def test_cells_without_a_use_have_no_effect(r, junk):
    ones = torch.ones_like(r, dtype=torch.bool)
    lower, upper = r.masked_fill(ones.triu(1), junk), r.masked_fill(ones.tril(), junk)
    assert torch.equal(transfer(upper), transfer(r))
    for metric in (last, backward_transfer, forgetting):
        assert torch.equal(metric(lower), metric(r))


@quick
@given(matrices(least=2))
def test_where_only_the_lower_triangle_was_measured(r):
    means, whole = summary(r.masked_fill(torch.ones_like(r, dtype=torch.bool).triu(1), math.nan)), summary(r)
    assert means["transfer"] is None
    assert means["average"] is None
    assert all(means[name] == whole[name] for name in ("last", "backward_transfer", "forgetting"))


def test_one_missing_cell_takes_its_own_task_alone():
    r = torch.arange(16, dtype=torch.float64).reshape(4, 4)
    r[1, 2] = math.nan
    assert transfer(r).isnan().tolist() == [False, True, False]
    assert average(r).isnan().tolist() == [False, False, True, False]
    r[2, 1] = math.nan
    assert forgetting(r).isnan().tolist() == [False, True, False]
    assert backward_transfer(r).isnan().tolist() == [False, False, False]


def test_a_stream_of_one_task():
    r = torch.tensor([[3.0]])
    assert all(metric(r).shape == (0,) for metric in (transfer, backward_transfer, forgetting))
    assert summary(r) == {"transfer": None, "average": 3, "last": 3, "backward_transfer": None, "forgetting": None}


@pytest.mark.parametrize("metric", [*METRICS.values(), summary])
@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (4,), (2, 2, 2), (0, 0), ()])
def test_other_shapes_are_refused(metric, shape):
    with pytest.raises(ValueError, match="square"):
        metric(torch.zeros(shape))


@pytest.mark.parametrize(("r", "means", "transfers", "averages", "lasts"), PUBLISHED)
def test_reproduces_zscls_published_figures(r, means, transfers, averages, lasts):
    scores = torch.tensor(r, dtype=torch.float64)
    found = summary(scores)
    assert tuple(round(found[name], 1) for name in ("transfer", "average", "last")) == means
    for metric, want in ((transfer, transfers), (average, averages), (last, lasts)):
        # numpy rounds a half to the even digit, Python the double nearest to it: 1e-6 is the notebook's own precision.
        assert metric(scores).tolist() == pytest.approx(want, rel=0, abs=0.05 + 1e-6)
