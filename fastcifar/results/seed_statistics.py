"""Statistics over seeds: means with intervals, differences, and how many seeds it takes to detect a difference."""

import bisect
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import nctdtr, stdtr, stdtrit

_LEVEL, _POWER = 0.95, 0.8
_MOST_SEEDS = 1_000_000


@dataclass(frozen=True)
class Mean:
    """The mean of a sample, and its uncertainty.

    Attributes:
        n: the number of values in the sample.
        mean: their mean.
        sd: standard deviation, with n - 1 in the denominator; None for a single value.
        standard_error: standard error of the mean; None for a single value.
        interval_95: interval of the mean, by Student's t distribution; None for a single value.
    """

    n: int
    mean: float
    sd: float | None
    standard_error: float | None
    interval_95: tuple[float, float] | None


@dataclass(frozen=True)
class Difference:
    """The difference of two means, second minus first.

    Attributes:
        n: the number of values in each sample; for pairs, both are the number of pairs.
        difference: the difference of the means.
        sd: standard deviation of a single value, for `num_seeds_needed`: for pairs, that of their differences,
            otherwise the root mean square of both samples' standard deviations.
        interval_95: interval of the difference.
        p: p-value of the two-sided test for no difference; None if neither sample varies.
    """

    n: tuple[int, int]
    difference: float
    sd: float
    interval_95: tuple[float, float]
    p: float | None


def mean_of(values: Sequence[float]) -> Mean:
    """Summarise a sample.

    Args:
        values: the values, at least one.
    """
    mean = statistics.mean(values)
    if len(values) == 1:
        return Mean(1, mean, None, None, None)
    sd = statistics.stdev(values)
    standard_error = sd / math.sqrt(len(values))
    return Mean(len(values), mean, sd, standard_error, _interval(mean, standard_error, len(values) - 1))


def welch(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare the means of two independent samples, whose variances may differ.

    Source of the degrees of freedom: Welch, Biometrika 34 (1947), 28-35.

    Args:
        first: at least two values.
        second: at least two values.
    """
    n = len(first), len(second)
    variances = statistics.variance(first), statistics.variance(second)
    first_part, second_part = variances[0] / n[0], variances[1] / n[1]
    total = first_part + second_part
    # If nothing varies, the denominator is 0 and there is no test.
    freedom = total and total**2 / (first_part**2 / (n[0] - 1) + second_part**2 / (n[1] - 1))
    difference = statistics.mean(second) - statistics.mean(first)
    return _difference(n, difference, math.sqrt(statistics.mean(variances)), math.sqrt(total), freedom)


def paired(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare two samples pair by pair (the paired t test), for example two folders trained with the same seeds.

    Args:
        first: at least two values.
        second: of the same length, in the same order.
    """
    # Rounded, because equal differences of decimal fractions differ in their last bits, and would look significant.
    differences = [round(b - a, 12) for a, b in zip(first, second, strict=True)]
    n, sd = len(differences), statistics.stdev(differences)
    return _difference((n, n), statistics.mean(differences), sd, sd / math.sqrt(n), n - 1)


def num_seeds_needed(difference: float, sd: float, *, pairs: bool = False) -> int | None:
    """How many seeds of either kind (or pairs) a t test needs to detect a difference: power 0.8 at the 0.05 level.

    The smallest n whose exact power reaches 0.8. The power is the probability that a noncentral t variable with f
    degrees of freedom lies beyond -t or t, where t is the two-sided critical value. For two samples of equal variance
    its noncentrality is difference / sd * sqrt(n / 2), and f = 2 (n - 1); for pairs difference / sd * sqrt(n), and
    f = n - 1.
    Source: Cohen, Statistical Power Analysis for the Behavioral Sciences (1988), chapter 2.

    Args:
        difference: the difference to detect, greater than 0.
        sd: standard deviation of a single value; for pairs, of their differences.
        pairs: whether the seeds are shared.

    Returns:
        At least 2; None if it is more than a million.
    """
    share = 1 if pairs else 2

    def power(n: int) -> float:
        freedom, noncentrality = share * (n - 1), difference / sd * math.sqrt(n / share)
        critical = stdtrit(freedom, (1 + _LEVEL) / 2)
        return float(1 - nctdtr(freedom, noncentrality, critical) + nctdtr(freedom, noncentrality, -critical))

    if sd == 0:
        return 2
    enough = 2
    while power(enough) < _POWER:
        enough *= 2
        if enough > _MOST_SEEDS:
            return None
    return bisect.bisect_left(range(enough), _POWER, lo=2, key=power)


def _interval(centre: float, standard_error: float, freedom: float) -> tuple[float, float]:
    half_width = float(stdtrit(freedom, (1 + _LEVEL) / 2)) * standard_error
    return centre - half_width, centre + half_width


def _difference(n: tuple[int, int], difference: float, sd: float, standard_error: float, freedom: float) -> Difference:
    if standard_error == 0:
        return Difference(n, difference, sd, (difference, difference), None)
    p = 2 * float(stdtr(freedom, -abs(difference) / standard_error))
    return Difference(n, difference, sd, _interval(difference, standard_error, freedom), p)
