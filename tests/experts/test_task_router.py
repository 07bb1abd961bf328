"""Telling tasks apart by features: against a weighted ridge regression by least squares, in any order, sample by sample."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from vla_tune.experts.tasks import NONE, RIDGE, TaskRouter, side_by_side

GROUPS, D, WIDTH = 3, 8, 96
TASKS = (NONE, 0, 1, 2, 3)


def cluster(task, count, seed=0, spread=0.3):
    """Samples of a task: about a direction of its own in every group."""
    centre = np.random.default_rng(1000 + task).normal(size=(1, GROUPS, D))
    noise = np.random.default_rng((seed, task + 1)).normal(size=(count, GROUPS, D))
    return side_by_side(torch.from_numpy((centre + spread * noise).astype(np.float32)))


def router_of(tasks=TASKS, counts=None, spread=0.3):
    router = TaskRouter(WIDTH)
    for task in tasks:
        router.add(task, cluster(task, (counts or {}).get(task, 40), spread=spread))
    return router


def mixed(count, seed=5, spread=0.3):
    """Samples of all tasks in turns, and their tasks."""
    parts = [cluster(task, count, seed, spread) for task in TASKS]
    return torch.stack(parts, dim=1).flatten(0, 1), torch.tensor(TASKS).repeat(count)


@pytest.fixture(scope="module")
def router():
    return router_of()


def test_clusters_far_apart_are_told_apart(router):
    samples, tasks = mixed(50)
    assert float((router.assign(samples) == tasks).float().mean()) > 0.99
    assert router.assign(samples).dtype == torch.long


def test_samples_of_no_task_are_told_from_those_of_a_task(router):
    assert NONE == -1
    assert (router.assign(cluster(NONE, 30, seed=7)) == NONE).all()
    assert (router.assign(cluster(2, 30, seed=7)) == 2).all()
    without = router_of((0, 1, 2))
    assert set(without.assign(cluster(NONE, 30, seed=7)).tolist()) <= {0, 1, 2}


def test_tasks_may_bear_any_numbers():
    router = TaskRouter(WIDTH)
    for name, task in ((7, 0), (NONE, NONE), (3, 1)):
        router.add(name, cluster(task, 40))
    assert (router.assign(cluster(0, 10, seed=7)) == 7).all()
    assert (router.assign(cluster(1, 10, seed=7)) == 3).all()


def test_one_task_alone_is_every_sample(router):
    alone = TaskRouter(WIDTH)
    alone.add(4, cluster(4, 10))
    assert alone.assign(mixed(3)[0]).tolist() == [4] * 15


def test_the_responses_are_a_ridge_regression_in_which_every_task_weighs_the_same():
    """By least squares over all samples with one-hot targets, weighted by one over the size of the task."""
    counts = {NONE: 60, 0: 10, 1: 25, 2: 40, 3: 15}
    router = router_of(counts=counts, spread=1.0)
    lifted = {task: router._lifted(cluster(task, counts[task], spread=1.0)).numpy() for task in TASKS}
    weights = np.sqrt(np.concatenate([np.full(counts[task], 1 / counts[task]) for task in TASKS]))[:, None]
    rows, targets = np.concatenate(list(lifted.values())), np.repeat(np.eye(len(TASKS)), [counts[task] for task in TASKS], axis=0)
    ridge = RIDGE * np.mean([(sum((part[:, one] ** 2).mean() for part in lifted.values())) for one in range(WIDTH)])
    stacked = np.concatenate([weights * rows, np.sqrt(ridge) * np.eye(WIDTH)])
    solution = np.linalg.lstsq(stacked, np.concatenate([weights * targets, np.zeros((WIDTH, len(TASKS)))]), rcond=None)[0]
    samples, _ = mixed(10, spread=1.0)
    assert np.allclose(router._responses(samples).numpy(), router._lifted(samples).numpy() @ solution, rtol=1e-7, atol=1e-9)


@settings(max_examples=20)
@given(st.permutations(TASKS))
def test_the_order_of_tasks_does_not_matter(order):
    samples, _ = mixed(10, spread=1.0)
    one, other = router_of(spread=1.0), router_of(order, spread=1.0)
    assert torch.allclose(one._responses(samples), other._responses(samples), rtol=1e-8, atol=1e-9)
    assert torch.equal(one.assign(samples), other.assign(samples))


def test_seeing_the_samples_of_a_task_twice_changes_nothing():
    samples, _ = mixed(10, spread=1.0)
    one, other = TaskRouter(WIDTH), TaskRouter(WIDTH)
    for task in TASKS:
        seen = cluster(task, 30, spread=1.0)
        one.add(task, seen)
        other.add(task, torch.cat([seen] * 3) if task == 1 else seen)
    assert torch.allclose(one._responses(samples), other._responses(samples), rtol=1e-8, atol=1e-9)


@given(st.lists(st.integers(0, 49), min_size=1, max_size=12, unique=True))
def test_every_sample_is_decided_alone(router, rows):
    samples, _ = mixed(10, spread=1.0)
    alone = torch.cat([router.assign(samples[row : row + 1]) for row in rows])
    assert torch.equal(router.assign(samples[rows]), alone)
    assert torch.equal(router.assign(samples)[rows], alone)


def test_a_batch_decision_is_one_for_all_and_goes_wrong_on_a_mixed_batch(router):
    batch = torch.cat([cluster(1, 9, seed=6), cluster(3, 2, seed=6)])
    assert router.assign(batch).tolist() == [1] * 9 + [3] * 2
    assert router.assign_batch(batch).tolist() == [1] * 11
    assert router.assign_batch(batch[9:]).tolist() == [3] * 2


@given(st.integers(0, 49))
def test_a_batch_of_one_sample_is_decided_as_the_sample(router, row):
    samples, _ = mixed(10, spread=1.0)
    assert torch.equal(router.assign_batch(samples[row : row + 1]), router.assign(samples[row : row + 1]))


def test_a_batch_of_one_task_is_steadier_than_its_samples():
    """Why published selectors decide by batch: their figures are those of an easier question."""
    router = router_of(spread=1.5)
    right = [float((router.assign(cluster(task, 50, 8, 1.5)) == task).float().mean()) for task in TASKS]
    assert all(0.3 < share < 1 for share in right)
    assert all((router.assign_batch(cluster(task, 50, 8, 1.5)) == task).all() for task in TASKS)


@given(st.floats(1e-3, 1e3), st.integers(0, GROUPS - 1))
def test_views_stand_side_by_side_and_the_length_of_a_group_says_nothing(factor, group):
    one, other = torch.randn(5, GROUPS, D), torch.randn(5, 2, 3)
    longer = one.clone()
    longer[:, group] *= factor
    joined = side_by_side(longer, other)
    assert joined.shape == (5, GROUPS * D + 6)
    assert torch.allclose(joined, side_by_side(one, other), rtol=1e-4, atol=1e-5)
    assert torch.allclose(joined[:, :D].norm(dim=1), torch.full((5,), D**0.5))
    assert torch.allclose(joined[:, GROUPS * D :].unflatten(1, (2, 3)).norm(dim=2), torch.full((5, 2), 3**0.5))


def test_random_features_are_the_same_whenever_they_are_drawn(router):
    """By any router, and no one else's random numbers are touched."""
    samples, _ = mixed(2)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = router._lifted(samples)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(TaskRouter(WIDTH)._lifted(samples), first)


def test_the_router_is_the_one_that_was_saved(router):
    samples, _ = mixed(20, spread=1.5)
    other = TaskRouter(WIDTH)
    other.load_state_dict(load(save({name: value.contiguous() for name, value in router.state_dict().items()})))
    assert torch.equal(other._responses(samples), router._responses(samples))
    assert torch.equal(other.assign(samples), router.assign(samples))
    assert (other.size, other.nearest(3)) == (router.size, router.nearest(3))


def test_a_loaded_router_takes_further_tasks_and_leaves_the_first_alone():
    samples, _ = mixed(20, spread=1.5)
    first = router_of((NONE, 0, 1))
    before = first._responses(samples).clone()
    other = TaskRouter(WIDTH)
    other.load_state_dict(first.state_dict())
    for task in (2, 3):
        other.add(task, cluster(task, 40))
    assert torch.equal(first._responses(samples), before)
    assert torch.equal(other._responses(samples), router_of()._responses(samples))
    other.load_state_dict(first.state_dict())
    assert torch.equal(other._responses(samples), before)


def test_the_nearest_task_is_the_earlier_one_that_looks_most_alike():
    """Directions on a circle: each task's nearest earlier one by its angle. Samples of no task do not count."""
    angles = {NONE: 100, 0: 0, 1: 90, 2: 30, 3: 75, 4: 100}
    router = TaskRouter(WIDTH)
    for task, angle in angles.items():
        turned = np.deg2rad(angle + np.random.default_rng(task + 1).normal(size=(20, 1)))
        router.add(task, torch.from_numpy(np.concatenate([np.cos(turned), np.sin(turned)], axis=-1)))
    for task in range(1, 5):
        distances = {other: abs(angles[other] - angles[task]) for other in range(task)}
        assert router.nearest(task) == min(distances, key=distances.get)


def test_the_size_is_that_of_what_is_kept(router):
    kept = router.state_dict()
    vectors = [value for name, value in kept.items() if name != "moment"]
    assert len(vectors) == 2 * len(TASKS)
    assert len(kept["moment"]) == len(list(itertools.combinations_with_replacement(range(WIDTH), 2)))
    assert router.size == sum(map(len, kept.values()))
    smaller = router_of(TASKS[:-1])
    assert router.size - smaller.size == WIDTH + GROUPS * D
