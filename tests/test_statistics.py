"""Intervals and paired differences: by hand, against scipy, by coverage, and at the edges."""

import numpy as np
import pytest
from scipy import stats

from stepagent.statistics import Interval, mean_interval, paired_difference, proportion_interval


def test_mean_interval_of_three_scores_is_what_the_t_table_says() -> None:
    # mean 50, sample deviation 10, t(0.975, 2) = 4.3027: 50 +- 4.3027 * 10 / sqrt(3)
    interval = mean_interval([40, 50, 60])
    assert interval.mean == 50
    assert interval.low == pytest.approx(50 - 24.841, abs=1e-3)
    assert interval.high == pytest.approx(50 + 24.841, abs=1e-3)
    assert interval.n == 3


def test_wilson_interval_of_8_of_10_is_what_the_formula_says() -> None:
    # z = 1.96: centre (0.8 + z^2/20) / (1 + z^2/10) = 0.7167, half width 0.2266
    interval = proportion_interval(8, 10)
    assert interval.mean == 0.8
    assert interval.low == pytest.approx(0.4902, abs=1e-4)
    assert interval.high == pytest.approx(0.9433, abs=1e-4)


def test_wilson_interval_is_not_empty_when_nothing_or_everything_succeeds() -> None:
    nothing, everything = proportion_interval(0, 10), proportion_interval(10, 10)
    assert nothing.low == 0 and nothing.high == pytest.approx(0.2775, abs=1e-4)
    assert everything.high == 1 and everything.low == pytest.approx(0.7225, abs=1e-4)


def test_paired_difference_of_three_items_by_hand() -> None:
    # differences 10, 20, 30; of the 8 sign patterns 2 reach |mean| = 20: p = 0.25
    difference = paired_difference([20, 40, 60], [10, 20, 30])
    assert difference.mean == 20
    assert difference.low == pytest.approx(20 - 24.841, abs=1e-3)
    assert difference.high == pytest.approx(20 + 24.841, abs=1e-3)
    assert difference.p_value == pytest.approx(0.25)


def test_intervals_agree_with_scipys_t_tests() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.uniform(20, 80, (2, 40))
    one = stats.ttest_1samp(a, 0).confidence_interval()
    assert mean_interval(a.tolist()).low == pytest.approx(one.low)
    paired = stats.ttest_rel(a, b)
    difference = paired_difference(a.tolist(), b.tolist())
    assert difference.high == pytest.approx(paired.confidence_interval().high)
    assert difference.p_value == pytest.approx(paired.pvalue, abs=0.02)


def test_mean_interval_covers_the_mean_of_lumpy_scores_about_95_percent_of_the_time() -> None:
    rng = np.random.default_rng(0)
    population = np.array([100.0] * 9 + [0, 3, 8, 10, 17, 25, 33, 50, 67, 75, 83])
    covered = 0
    for _ in range(1000):
        interval = mean_interval(rng.choice(population, 30).tolist())
        assert interval.low is not None and interval.high is not None
        covered += interval.low <= population.mean() <= interval.high
    assert 930 <= covered <= 970


def test_paired_test_rejects_equal_methods_about_5_percent_of_the_time() -> None:
    rng = np.random.default_rng(0)
    p_values = [paired_difference(*rng.normal(50, 9, (2, 9)).tolist()).p_value for _ in range(300)]
    assert 5 <= sum(p is not None and p <= 0.05 for p in p_values) <= 26


def test_a_constant_shift_is_found_and_swapping_the_methods_flips_the_sign() -> None:
    rng = np.random.default_rng(2)
    b = rng.uniform(0, 60, 30)
    a = b + rng.uniform(5, 15, 30)
    forward, backward = paired_difference(a, b), paired_difference(b, a)
    assert forward.p_value is not None and forward.p_value < 0.001
    assert forward.low is not None and backward.high is not None
    assert forward.low > 0
    assert backward.high == pytest.approx(-forward.low)
    assert backward.p_value == forward.p_value


def test_the_same_scores_give_the_same_difference_twice() -> None:
    a, b = np.random.default_rng(3).uniform(0, 100, (2, 40)).tolist()
    assert paired_difference(a, b) == paired_difference(a, b)


def test_equal_scores_differ_by_nothing_with_p_one() -> None:
    difference = paired_difference([10, 20, 30], [10, 20, 30])
    assert (difference.mean, difference.low, difference.high) == (0, 0, 0)
    assert difference.p_value == 1


def test_no_item_and_one_item_have_no_interval() -> None:
    assert mean_interval([]) == Interval(None, None, None, 0)
    assert mean_interval([37.5]) == Interval(37.5, None, None, 1)
    assert proportion_interval(0, 0) == Interval(None, None, None, 0)
    assert proportion_interval(1, 1).low == pytest.approx(0.2065, abs=1e-4)
    assert paired_difference([], []).mean is None
    single = paired_difference([50], [20])
    assert (single.mean, single.low, single.p_value, single.n) == (30, None, None, 1)


def test_score_intervals_stay_on_the_scale() -> None:
    interval = mean_interval([100, 100, 90, 0])
    assert interval.high == 100
    assert interval.low is not None and 0 <= interval.low < 72.5


def test_impossible_input_is_refused() -> None:
    with pytest.raises(ValueError, match="0 to 100, got 101"):
        mean_interval([50, 101])
    with pytest.raises(ValueError, match="finite"):
        mean_interval([float("nan")])
    with pytest.raises(ValueError, match="11 of 10"):
        proportion_interval(11, 10)
    with pytest.raises(ValueError, match="2 and 1"):
        paired_difference([1, 2], [1])
