"""What a benchmark measures in its time: contenders are left out, but a valid measurement is never cut short."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NUM_ROUNDS, MIN_STEPS = 3, 2  # of a valid measurement: interleaved rounds, and timed steps of each contender in one
USUAL_S = 300.0
_MAX_STEPS = 50
_BUILD_S = 8.0  # of a contender: its process, its imports, its data
# Left out in this order where time is short; before them all recipes but the first.
_DISPENSABLE = ("resident eager", "stock FFCV", "fastcifar streamed", "published", "fastcifar, torch convolutions")


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        recipes: by name.
        contenders: by name.
        left_out: recipes and contenders, by name.
        least_s: that a valid measurement takes, as estimated.
        seconds: to be spent.
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
        step_s: what a step takes, as estimated, of each contender.
        recipes: wanted, by name.
        rounds: interleaved ones.
        given_s: the time there is; None for five minutes, or what a valid measurement of everything takes.
    """
    contenders, chosen, left_out = list(step_s), list(recipes), []

    def least_s() -> float:
        # A round has a step that is not timed; the one that warms up has one that is.
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
    """How many steps to time in a contender's share of a round, besides the one that is not timed."""
    return max(MIN_STEPS, min(_MAX_STEPS, int(round_s / step_s) - 1))
