"""Truths about choosing steps: the specified rule against a literal implementation of it, for any number of steps; its
invariances; ends; outliers; refusals."""

import time

import numpy as np
import pytest
from scipy.stats import ortho_group

from svclib.analysis.recorder import select_steps
from svclib.utils.errors import ConversionError


def random_walk(n, dims=6, seed=0):
    return np.cumsum(np.random.default_rng(seed).standard_normal((n, dims)), axis=0)


def literal(rows, k, ends):
    """The rule as it is written down, in exact steps of Python integers and one distance at a time."""
    picks = []
    for i in range(k):
        low, high = i * len(rows) // k, (i + 1) * len(rows) // k
        center = sum(rows[low:high]) / (high - low)
        distances = [float(((rows[j] - center) ** 2).sum()) for j in range(low, high)]
        best = min(distances)
        picks.append(low + next(j for j, d in enumerate(distances) if d <= best * (1 + 1e-9)))
    return [0, *picks[1:-1], len(rows) - 1] if ends else picks


@pytest.mark.parametrize("n", [20, 50, 100])
@pytest.mark.parametrize("ends", [True, False])
def test_equals_the_literal_rule(n, ends):
    for k in (2, 3, 7, 10, n // 2, n - 1, n):
        rows = random_walk(n, seed=k)
        assert select_steps(rows, k, ends).tolist() == literal(rows, k, ends)


@pytest.mark.parametrize("n", [5, 20, 50, 100, 1000])
def test_one_pick_per_interval_strictly_rising(n):
    rows = random_walk(n)
    for k in range(1, n + 1, max(1, n // 20)):
        edges, picks = np.array([i * n // k for i in range(k + 1)]), select_steps(rows, k, ends=False)
        assert len(picks) == k and (np.diff(picks) > 0).all()
        assert (picks >= edges[:-1]).all() and (picks < edges[1:]).all()


def test_all_rows_and_one_row():
    rows = random_walk(30)
    assert select_steps(rows, 30).tolist() == list(range(30))
    nearest = int(np.argmin(((rows - rows.mean(0)) ** 2).sum(1)))
    assert select_steps(rows, 1, ends=False).tolist() == [nearest]
    assert select_steps(rows[:1], 1).tolist() == [0]


def test_turning_moving_and_scaling_change_nothing():
    rows = random_walk(60)
    turned = 3.7 * rows @ ortho_group.rvs(6, random_state=1) + 1e4 * np.arange(6)
    for k in (5, 13, 30):
        assert select_steps(turned, k).tolist() == select_steps(rows, k).tolist()


def test_a_straight_line_gives_midpoints():
    line = np.arange(100)[:, None] * np.array([[3, -2]])
    assert select_steps(line, 10, ends=False).tolist() == [4 + 10 * i for i in range(10)]  # a tie: the lower of two
    assert select_steps(line[:99], 11, ends=False).tolist() == [4 + 9 * i for i in range(11)]


def test_an_outlier_is_never_chosen():
    for place in range(1, 29):
        rows = np.arange(30.0)[:, None] * np.ones((1, 4))
        rows[place] += 100
        assert place not in select_steps(rows, 10, ends=False)  # three rows each


def test_the_last_step_belongs_to_an_interval_where_float_edges_lose_it():
    assert int(333 * (1000 / 333)) == 999  # the published rule ends one early
    assert select_steps(random_walk(1000), 333)[-1] == 999


def test_of_two_rows_the_lower():
    for seed in range(20):
        assert select_steps(random_walk(40, seed=seed), 20, ends=False).tolist() == list(range(0, 40, 2))


def test_what_cannot_be_chosen_is_said():
    rows = random_walk(10)
    with pytest.raises(ConversionError, match="0 of 10"):
        select_steps(rows, 0)
    with pytest.raises(ConversionError, match="11 of 10"):
        select_steps(rows, 11)
    with pytest.raises(ConversionError, match="both ends"):
        select_steps(rows, 1)
    with pytest.raises(ConversionError, match="pool"):
        select_steps(rows.reshape(5, 2, 6), 2)
    rows[3, 2] = np.nan
    with pytest.raises(ConversionError, match="finite"):
        select_steps(rows, 3)


def test_ends_are_there():
    for k in (2, 3, 17, 100):
        picks = select_steps(random_walk(100), k)
        assert picks[0] == 0 and picks[-1] == 99 and len(picks) == k and (np.diff(picks) > 0).all()


def test_two_runs_together_and_speed():
    a, b = random_walk(50, seed=1), random_walk(50, seed=2)
    both = np.concatenate([a, b], axis=1)
    assert select_steps(both, 8).tolist() == literal(both, 8, True)
    big = np.random.default_rng(0).standard_normal((1000, 512)).cumsum(0)
    seconds = []
    for _ in range(5):
        begun = time.process_time()
        select_steps(big, 100)
        seconds.append(time.process_time() - begun)
    assert min(seconds) < 0.05
