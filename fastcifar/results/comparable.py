"""Which settings decide whether two runs were trained alike."""

from collections.abc import Mapping
from typing import Any

# What may differ between the seeds of one training: it does not change what is trained.
_NOT_COMPARED = {"seed", "device_name", "num_threads", "num_workers"}


def comparable_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that may change the training, with a device's kind only, and with lists for tuples as in JSON."""
    values = {key: value for key, value in settings.items() if key not in _NOT_COMPARED}
    if "device" in values:
        values["device"] = str(values["device"]).split(":")[0]
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def differing_settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings in which two runs differ and that may change the training, with both values."""
    ours, theirs = comparable_settings(first), comparable_settings(second)
    pairs = {key: (ours.get(key), theirs.get(key)) for key in {**ours, **theirs}}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def describe_differing(differing: Mapping[str, tuple[Any, Any]]) -> str:
    """Settings and their two values, on one line."""
    return ", ".join(f"{key} {first} and {second}" for key, (first, second) in differing.items())
