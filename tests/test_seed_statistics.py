import math

import pytest

from fastcifar.results.seed_statistics import mean_of, num_seeds_needed, paired, welch

# By hand: for 1, 2, 3 the standard deviation is 1; t(2 degrees of freedom, 0.975) is 4.302653 in any table.
T_2 = 4.302652729911275


def test_the_mean_of_a_sample_with_its_interval() -> None:
    found = mean_of([3.0, 1.0, 2.0])
    assert (found.n, found.mean, found.sd) == (3, 2.0, 1.0)
    assert found.standard_error == pytest.approx(1 / math.sqrt(3))
    assert found.interval_95 == pytest.approx((2 - T_2 / math.sqrt(3), 2 + T_2 / math.sqrt(3)))


def test_one_value_has_no_interval() -> None:
    found = mean_of([0.9])
    assert (found.n, found.mean) == (1, 0.9)
    assert (found.sd, found.standard_error, found.interval_95) == (None, None, None)


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert mean_of([0.7, 0.7, 0.7]).interval_95 == (0.7, 0.7)


def test_welch_gives_the_reference_values_of_a_published_example() -> None:
    # Welch's test as R computes it: t.test(a, b), for the first pair of samples on
    # https://rosettacode.org/wiki/Welch%27s_t-test, which gives p to 15 digits.
    first = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4]
    second = [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 20.5, 24.4]
    assert welch(first, second).p == pytest.approx(0.021378001462867, rel=1e-12)


def test_welch_by_hand() -> None:
    # Variances 1 and 4 over 3 values each: standard error sqrt(5 / 3), degrees of freedom
    # (5 / 3)^2 / ((1 / 3)^2 / 2 + (4 / 3)^2 / 2) = 50 / 17.
    found = welch([1.0, 2.0, 3.0], [3.0, 5.0, 7.0])
    assert (found.n, found.difference) == ((3, 3), 3.0)
    assert found.sd == pytest.approx(math.sqrt(2.5))
    low, high = found.interval_95
    assert (low + high) / 2 == pytest.approx(3.0)
    t_at_50_over_17 = (high - 3.0) / math.sqrt(5 / 3)
    assert 3.182446 < t_at_50_over_17 < T_2  # between the quantiles for 3 and 2 degrees of freedom
    assert t_at_50_over_17 == pytest.approx(_t_quantile(50 / 17), rel=1e-6)
    assert found.p == pytest.approx(2 * _t_tail(3 / math.sqrt(5 / 3), 50 / 17), rel=1e-6)


def test_pairs_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t = 2 sqrt(3); with 2 degrees of freedom the tail has the
    # closed form (1 - t / sqrt(2 + t^2)) / 2.
    found = paired([10.0, 20.0, 30.0], [11.0, 22.0, 33.0])
    t = 2 * math.sqrt(3)
    assert (found.n, found.difference, found.sd) == ((3, 3), 2.0, 1.0)
    assert found.interval_95 == pytest.approx((2 - T_2 / math.sqrt(3), 2 + T_2 / math.sqrt(3)))
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))


def test_samples_that_do_not_vary_have_a_difference_and_no_p() -> None:
    for found in (welch([0.5, 0.5], [0.75, 0.75]), paired([0.1, 0.2], [0.35, 0.45])):
        assert found.difference == pytest.approx(0.25)
        assert found.interval_95 == (found.difference, found.difference)
        assert found.p is None


@pytest.mark.parametrize(
    ("effect", "groups", "pairs"),
    [(0.2, 394, 199), (0.5, 64, 34), (0.8, 26, 15)],  # small, medium and large effects, as G*Power 3 computes them
)
def test_the_number_of_seeds_is_that_of_power_tables(effect: float, groups: int, pairs: int) -> None:
    assert num_seeds_needed(effect * 0.003, 0.003) == groups
    assert num_seeds_needed(effect * 0.003, 0.003, pairs=True) == pairs


def test_the_number_of_seeds_at_its_limits() -> None:
    assert num_seeds_needed(0.001, 0.0) == 2
    assert num_seeds_needed(1.0, 1e-9) == 2
    assert num_seeds_needed(1e-9, 1.0) is None


def _t_tail(t: float, freedom: float) -> float:
    """The share of Student's distribution beyond t, by Simpson's rule on its density, substituting x = t / u."""
    scale = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    num_steps = 20_000

    def integrand(u: float) -> float:
        if u == 0:
            return 0.0
        x = t / u
        density: float = scale * (1 + x * x / freedom) ** (-(freedom + 1) / 2)
        return density * t / (u * u)

    weights = (1 if i in (0, num_steps) else 4 if i % 2 else 2 for i in range(num_steps + 1))
    return sum(weight * integrand(i / num_steps) for i, weight in enumerate(weights)) / (3 * num_steps)


def _t_quantile(freedom: float) -> float:
    """The t at which that share is 2.5%, by bisection."""
    low, high = 1.0, 10.0
    while high - low > 1e-8:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_tail(middle, freedom) > 0.025 else (low, middle)
    return low
