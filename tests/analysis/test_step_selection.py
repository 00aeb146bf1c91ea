"""Truths about choosing steps: the specified rule against a literal implementation of it, for any number of steps; its
invariances; ends; outliers; log-SNR and path-length spacing; refusals."""

import time

import numpy as np
import pytest
from scipy.stats import ortho_group

from svclib.analysis.step_selection import intervals, select_steps
from svclib.models.diffusion.schedule import Schedule
from svclib.utils.errors import ConversionError


def walk(n, dims=6, seed=0):
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
        rows = walk(n, seed=k)
        assert select_steps(rows, k, ends).tolist() == literal(rows, k, ends)


@pytest.mark.parametrize("n", [5, 20, 50, 100, 1000])
def test_one_pick_per_interval_strictly_rising(n):
    rows = walk(n)
    for k in range(1, n + 1, max(1, n // 20)):
        edges, picks = intervals(rows, k), select_steps(rows, k, ends=False)
        assert len(picks) == k and (np.diff(picks) > 0).all()
        assert (picks >= edges[:-1]).all() and (picks < edges[1:]).all()


def test_all_rows_and_one_row():
    rows = walk(30)
    assert select_steps(rows, 30).tolist() == list(range(30))
    nearest = int(np.argmin(((rows - rows.mean(0)) ** 2).sum(1)))
    assert select_steps(rows, 1, ends=False).tolist() == [nearest]
    assert select_steps(rows[:1], 1).tolist() == [0]


@pytest.mark.parametrize("spacing", ["index", "change"])
def test_turning_moving_and_scaling_change_nothing(spacing):
    rows = walk(60)
    turned = 3.7 * rows @ ortho_group.rvs(6, random_state=1) + 1e4 * np.arange(6)
    for k in (5, 13, 30):
        assert select_steps(turned, k, spacing=spacing).tolist() == select_steps(rows, k, spacing=spacing).tolist()


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
    edges = intervals(walk(1000), 333)
    assert edges[-1] == 1000 and int(333 * (1000 / 333)) == 999  # the published rule ends one early
    assert select_steps(walk(1000), 333)[-1] == 999


def test_of_two_rows_the_lower():
    for seed in range(20):
        assert select_steps(walk(40, seed=seed), 20, ends=False).tolist() == list(range(0, 40, 2))


def test_what_cannot_be_chosen_is_said():
    rows = walk(10)
    with pytest.raises(ConversionError, match="0 of 10"):
        select_steps(rows, 0)
    with pytest.raises(ConversionError, match="11 of 10"):
        select_steps(rows, 11)
    with pytest.raises(ConversionError, match="ends=False"):
        select_steps(rows, 1)
    with pytest.raises(ConversionError, match="pool"):
        select_steps(rows.reshape(5, 2, 6), 2)
    with pytest.raises(ConversionError, match="spacing"):
        select_steps(rows, 3, spacing="time")
    with pytest.raises(ConversionError, match="needs log_snr"):
        select_steps(rows, 3, spacing="logsnr")
    with pytest.raises(ConversionError, match="rise"):
        select_steps(rows, 3, spacing="logsnr", log_snr=np.zeros(10))
    rows[3, 2] = np.nan
    with pytest.raises(ConversionError, match="finite"):
        select_steps(rows, 3)


@pytest.mark.parametrize("spacing", ["index", "change", "logsnr"])
def test_ends_are_there(spacing):
    log_snr = Schedule().half_log_snr[::-1][:100]
    for k in (2, 3, 17, 100):
        picks = select_steps(walk(100), k, spacing=spacing, log_snr=log_snr)
        assert picks[0] == 0 and picks[-1] == 99 and len(picks) <= k and (np.diff(picks) > 0).all()


def test_change_puts_steps_where_features_move():
    # 60 % of the path lies in rows 40 .. 59
    moves = np.full(99, 0.4 / 79)
    moves[40:60] = 0.6 / 20
    rows = np.concatenate([[0], np.cumsum(moves)])[:, None] * np.array([[1.0, 2.0, -1.0]])
    picks = select_steps(rows, 30, ends=False, spacing="change")
    assert np.mean((picks >= 40) & (picks <= 60)) >= 0.6
    still = select_steps(np.zeros((20, 3)), 5, spacing="change")
    assert still.tolist() == select_steps(np.zeros((20, 3)), 5).tolist()


def test_log_snr_intervals_are_equally_wide_and_empty_ones_merge():
    log_snr = Schedule().half_log_snr[::-1]
    edges = intervals(np.zeros((1000, 1)), 10, "logsnr", log_snr)
    width = (log_snr[-1] - log_snr[0]) / 10
    assert len(edges) <= 11 and edges[0] == 0 and edges[-1] == 1000
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        assert (high > low) and log_snr[high - 1] - log_snr[low] <= width + 1e-9
    few = select_steps(walk(5), 5, spacing="logsnr", log_snr=np.array([0.0, 0.1, 0.2, 0.3, 10.0]))
    assert few.tolist() == [0, 4]


def test_two_runs_together_and_speed():
    a, b = walk(50, seed=1), walk(50, seed=2)
    both = np.concatenate([a, b], axis=1)
    assert select_steps(both, 8).tolist() == literal(both, 8, True)
    big = np.random.default_rng(0).standard_normal((1000, 512)).cumsum(0)
    seconds = []
    for _ in range(5):
        begun = time.process_time()
        select_steps(big, 100)
        seconds.append(time.process_time() - begun)
    assert min(seconds) < 0.05
