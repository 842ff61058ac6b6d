"""Plans what a benchmark measures in its time: contenders may be left out, but a valid measurement is not shortened."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# The least for a valid measurement: interleaved rounds, and timed steps of each contender per round.
NUM_ROUNDS, MIN_STEPS = 3, 2
USUAL_S = 300.0
_MAX_STEPS = 50
_BUILD_S = 8.0  # for a contender's process, imports and data
# Left out in this order if time is short, after all recipes but the first.
_DISPENSABLE = ("resident eager", "stock FFCV", "fastcifar streamed", "published", "fastcifar, torch convolutions")


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        recipes: names of the recipes.
        contenders: names of the contenders.
        left_out: names of recipes and contenders that are left out.
        least_s: estimated seconds of a valid measurement.
        seconds: the seconds to spend.
    """

    recipes: tuple[str, ...]
    contenders: tuple[str, ...]
    left_out: tuple[str, ...]
    least_s: float
    seconds: float


def make_plan(
    step_s: Mapping[str, float], recipes: Sequence[str], *, rounds: int = NUM_ROUNDS, given_s: float | None = None
) -> Plan:
    """Choose what to measure.

    Args:
        step_s: estimated seconds of each contender's step.
        recipes: names of the requested recipes.
        rounds: the number of interleaved rounds.
        given_s: the available time; None for five minutes, or the time of a valid measurement of everything.
    """
    contenders, chosen, left_out = list(step_s), list(recipes), []

    def least_s() -> float:
        # Every round has one step that is not timed; the warm-up round has one that is.
        num_steps = 2 + rounds * (1 + MIN_STEPS)
        return len(chosen) * sum(_BUILD_S + num_steps * step_s[name] for name in contenders)

    if given_s is not None:
        while len(chosen) > 1 and least_s() > given_s:
            left_out.append(chosen.pop())
        for name in _DISPENSABLE:
            if name in contenders and least_s() > given_s:
                contenders.remove(name)
                left_out.append(name)
    seconds = max(USUAL_S if given_s is None else given_s, least_s())
    return Plan(tuple(chosen), tuple(contenders), tuple(left_out), least_s(), seconds)


def steps_of_round(step_s: float, round_s: float) -> int:
    """How many steps to time in a contender's share of a round, besides the first, which is not timed."""
    return max(MIN_STEPS, min(_MAX_STEPS, int(round_s / step_s) - 1))
