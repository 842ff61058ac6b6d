"""A recipe trained with several seeds: a folder of ordinary run directories, read together."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fastcifar.errors import ArgumentError, FastcifarError, counted
from fastcifar.files import write_json
from fastcifar.results.charts import describe_run, name_runs
from fastcifar.results.comparable import comparable_settings, describe_differing, differing_settings
from fastcifar.results.records import CONFIG_FILE, RunConfig, read_config, read_metrics, read_results
from fastcifar.results.run_dir import read_diverged, run_state, seed_dirs
from fastcifar.results.seed_statistics import Difference, Mean, mean_of, num_seeds_needed, paired, welch

SUMMARY_FILE = "summary.json"
MEASURES = {"test_accuracy": "clean", "test_accuracy_augmented": "augmented", "test10k_accuracy": "official test"}
DETECTABLE = (0.001, 0.002, 0.005)  # differences of accuracy, 0..1


@dataclass(frozen=True)
class SeedRun:
    """One seed's run.

    Attributes:
        seed: its seed.
        state: from `run_dir.run_state`.
        reason: where the loss was not finite, for a diverged run.
        accuracies: for a finished run, 0..1 by the names of `MEASURES`: clean and augmented accuracy of its best
            weights, and accuracy of its last weights on all official test images.
        seconds: wall time of a finished run.
        epochs_to_target: epochs until the validation accuracy first reached the target; None if it never did.
    """

    seed: int
    state: str
    reason: str = ""
    accuracies: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    epochs_to_target: int | None = None


@dataclass(frozen=True)
class Repeats:
    """All seeds of a folder.

    Attributes:
        folder: the folder that holds them.
        name: the folder's name; its path, if it is compared with another folder of the same name.
        config: the first seed's; the others differ only in settings that do not change the training.
        devices: the processors' names, each once.
        runs: the runs, by seed.
        target_accuracy: the target of `SeedRun.epochs_to_target`, 0..1, or None.
    """

    folder: Path
    name: str
    config: RunConfig
    devices: tuple[str, ...]
    runs: tuple[SeedRun, ...]
    target_accuracy: float | None

    @property
    def finished(self) -> tuple[SeedRun, ...]:
        """The runs that have results."""
        return tuple(run for run in self.runs if run.state == "finished")

    @property
    def num_diverged(self) -> int:
        """The number of runs whose loss was not finite."""
        return sum(run.state == "diverged" for run in self.runs)

    def describe(self) -> dict[str, str]:
        """Describe what was trained, in parts of a few words."""
        parts = describe_run(self.config, self.config.epochs)
        del parts["seed"]
        return parts

    @property
    def shared_settings(self) -> dict[str, Any]:
        """The settings that all seeds share: those that may change the training."""
        return comparable_settings(self.config.settings)

    def values(self, measure: str) -> list[float]:
        """The finished runs' values of a measure, by seed."""
        return [run.accuracies[measure] for run in self.finished]

    def means(self) -> dict[str, Mean]:
        """Means over the finished seeds: of the accuracies, by the names of `MEASURES`, and of `seconds`.

        `epochs_to_target` is included only if every seed reached the target; otherwise the mean would cover only the
        quick seeds. Empty if no seed is finished.
        """
        if not self.finished:
            return {}
        samples = {measure: self.values(measure) for measure in MEASURES}
        samples["seconds"] = [run.seconds or 0.0 for run in self.finished]
        epochs = [run.epochs_to_target for run in self.finished if run.epochs_to_target is not None]
        if len(epochs) == len(self.finished):
            samples["epochs_to_target"] = [float(each) for each in epochs]
        return {name: mean_of(values) for name, values in samples.items()}


@dataclass(frozen=True)
class Comparison:
    """Two folders of seeds, the second compared with the first.

    Attributes:
        differing: settings that differ, with both values.
        paired: whether the shared seeds were compared one by one.
        differences: the differences, by the names of `MEASURES`.
    """

    differing: Mapping[str, tuple[Any, Any]]
    paired: bool
    differences: Mapping[str, Difference]


def check_same_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a folder that holds seeds trained with other settings.

    Raises:
        FastcifarError: the settings differ; the message names them.
    """
    for path in seed_dirs(folder).values():
        if (path / CONFIG_FILE).exists() and (differing := differing_settings(read_config(path).settings, settings)):
            raise FastcifarError(f"{path} has other settings: {describe_differing(differing)}")


def read_repeats(folder: Path, target_accuracy: float | None = None) -> Repeats:
    """Read the seeds of a folder.

    Args:
        folder: a folder that `repeat` filled.
        target_accuracy: validation accuracy, 0..1, to count the epochs to.

    Raises:
        FastcifarError: it holds no seeds or seeds of different settings, or one's files are damaged.
    """
    dirs = {seed: path for seed, path in seed_dirs(folder).items() if (path / CONFIG_FILE).exists()}
    if not dirs:
        raise FastcifarError(f"{folder} holds no seeds: `fastcifar repeat` makes such a folder")
    configs = [read_config(path) for path in dirs.values()]
    check_same_settings(folder, configs[0].settings)
    return Repeats(
        folder=folder,
        name=folder.absolute().name,
        config=configs[0],
        devices=tuple(dict.fromkeys(config.device_name for config in configs)),
        runs=tuple(_read_seed(seed, path, target_accuracy) for seed, path in dirs.items()),
        target_accuracy=target_accuracy,
    )


def read_groups(folders: Sequence[Path], target_accuracy: float | None = None) -> list[Repeats]:
    """Read several folders of seeds, each with another name.

    Args:
        folders: different folders, see `read_repeats`.
        target_accuracy: see `read_repeats`.

    Raises:
        FastcifarError: as `read_repeats`, or a folder is given twice.
    """
    names = name_runs(folders)
    return [
        replace(read_repeats(folder, target_accuracy), name=name) for folder, name in zip(folders, names, strict=True)
    ]


def _read_seed(seed: int, path: Path, target_accuracy: float | None) -> SeedRun:
    state = run_state(path)
    if state != "finished":
        return SeedRun(seed, state, reason=read_diverged(path) if state == "diverged" else "")
    results, metrics = read_results(path), read_metrics(path)
    reached = (line.epoch + 1 for line in metrics if target_accuracy and line.val_accuracy >= target_accuracy)
    return SeedRun(
        seed,
        state,
        accuracies={
            "test_accuracy": results.best.test_accuracy,
            "test_accuracy_augmented": results.best.test_accuracy_augmented,
            "test10k_accuracy": results.test10k_accuracy,
        },
        seconds=results.seconds,
        epochs_to_target=next(reached, None),
    )


def check_same_images(first: Repeats, second: Repeats) -> None:
    """Refuse two folders of seeds whose accuracies cannot be compared.

    Raises:
        FastcifarError: they were tested on different images.
    """
    differing = differing_settings(first.config.settings, second.config.settings)
    if "num_eval_images" in differing:
        images = " and on ".join(map(str, differing["num_eval_images"]))
        raise FastcifarError(
            f"{first.folder} and {second.folder} were tested on {images} images, so they cannot be compared"
        )


def compare_repeats(first: Repeats, second: Repeats, *, by_seed: bool = False) -> Comparison:
    """Compare two folders of seeds.

    Args:
        first: the baseline.
        second: the folder that is compared with it.
        by_seed: compare the seeds that both have finished one by one (paired), rather than all (Welch).

    Raises:
        FastcifarError: they were tested on different images, or too few seeds are finished.
    """
    check_same_images(first, second)
    samples = [{run.seed: run.accuracies for run in repeats.finished} for repeats in (first, second)]
    if by_seed:
        shared = samples[0].keys() & samples[1].keys()
        if len(shared) < 2:
            raise ArgumentError("paired", f"needs at least 2 seeds that both folders have finished, not {len(shared)}")
        samples = [{seed: sample[seed] for seed in sorted(shared)} for sample in samples]
    for repeats, sample in zip((first, second), samples, strict=True):
        if len(sample) < 2:
            raise FastcifarError(
                f"{repeats.folder} has {counted(len(sample), 'finished seed')}: a comparison needs 2 of each"
            )
    test = paired if by_seed else welch
    ours, theirs = (list(sample.values()) for sample in samples)
    return Comparison(
        differing_settings(first.config.settings, second.config.settings),
        by_seed,
        {name: test([row[name] for row in ours], [row[name] for row in theirs]) for name in MEASURES},
    )


def seeds_to_detect(sd: float | None, *, pairs: bool = False) -> dict[float, int | None]:
    """How many seeds of each it takes to detect the differences in `DETECTABLE`; empty if the spread is not known."""
    return {} if sd is None else {each: num_seeds_needed(each, sd, pairs=pairs) for each in DETECTABLE}


def write_summary(out: Path, groups: Sequence[Repeats], comparison: Comparison | None = None) -> Path:
    """Write `summary.json` into a folder: every seed, the statistics, and how two folders differ; returns its path."""
    content: dict[str, Any] = {"groups": [_as_json(repeats) for repeats in groups]}
    if comparison is not None:
        content["comparison"] = {
            "differing_settings": dict(comparison.differing),
            "test": "paired t" if comparison.paired else "Welch's t",
            "differences": {
                name: asdict(each) | {"seeds_needed": seeds_to_detect(each.sd, pairs=comparison.paired)}
                for name, each in comparison.differences.items()
            },
        }
    write_json(out / SUMMARY_FILE, content)
    return out / SUMMARY_FILE


def _as_json(repeats: Repeats) -> dict[str, Any]:
    means = repeats.means()
    return {
        "name": repeats.name,
        "settings": repeats.shared_settings,
        "devices": list(repeats.devices),
        "target_accuracy": repeats.target_accuracy,
        "num_finished": len(repeats.finished),
        "num_diverged": repeats.num_diverged,
        "runs": [asdict(run) for run in repeats.runs],
        "statistics": {
            name: asdict(each) | ({"seeds_needed": seeds_to_detect(each.sd)} if name in MEASURES else {})
            for name, each in means.items()
        },
    }
