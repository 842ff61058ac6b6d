"""Random damage to every file that is read back: the file is refused in one line, or the original content is read.

Each damage has its own seed, which a failure's message names. `pytest -o log_cli_level=INFO -o log_cli=true` shows how
many of each kind were refused and how many were harmless.
"""

import contextlib
import copy
import gzip
import io
import json
import logging
import os
import pickle
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from support import containers
from support.containers import NUM_TEST, NUM_TRAIN, TEST_IMAGES, TEST_LABELS
from support.figure_parts import write_run

from fastcifar.data import beton, cifar10
from fastcifar.data.cifar10 import SPLITS, SplitName
from fastcifar.data.folder import Split, beton_path, load_train, load_val_and_test, verify_data
from fastcifar.errors import FastcifarError
from fastcifar.results.records import (
    CONFIG_FILE,
    METRICS_FILE,
    PREDICTIONS_FILE,
    RESULTS_FILE,
    EpochMetrics,
    Predictions,
    Results,
    Resumption,
    RunConfig,
    Scores,
    as_plain,
    read_config,
    read_metrics,
    read_predictions,
    read_results,
    write_config,
    write_metrics,
    write_predictions,
    write_results,
)
from fastcifar.results.report import build_report
from fastcifar.training.checkpoint import LastCheckpoint, load_checkpoint, read_last, save_checkpoint, seal

Item = TypeVar("Item")
Rng = np.random.Generator
Damaged = tuple[str, bytes]  # the kind of the damage, and the file

PREPARE_AGAIN = "fastcifar prepare --force"
MAX_SECONDS = 10.0  # for one damaged file
MAX_MEMORY = 200 << 20  # bytes to read it; the three .beton files are 13 MB
PAGE = beton.MIN_PAGE_SIZE

NESTED: list[Any] = []
for _ in range(300):
    NESTED = [NESTED]
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    10,
    -1,
    1.0,
    1e308,
    10**400,
    float("nan"),
    float("inf"),
    "",
    "1",
    "00" * 40,
    "\ud800",
    [],
    [1],
    {},
    {"format": 1},
    NESTED,
)


def many(quick: int, slow: int) -> pytest.MarkDecorator:
    """Run a test with a small number of damages, and with a large one if slow tests are asked for."""
    return pytest.mark.parametrize("num_damages", [quick, pytest.param(slow, marks=pytest.mark.slow)])


def check_damages(
    path: Path,
    num_damages: int,
    damage: Callable[[Rng], Damaged],
    read: Callable[[], Item],
    is_right: Callable[[Item], bool],
    remedy: str = "",
    others: Sequence[Path] = (),
) -> None:
    """Damage a file many times: an error names it (or one of the others) and the remedy, or the content is right."""
    refused, harmless, broken = Counter[str](), Counter[str](), []
    for seed in range(num_damages):
        kind, damaged = damage(np.random.default_rng([seed, *path.name.encode()]))
        with path.open("r+b") as file:  # in place: replacing a file makes some file systems flush it
            file.write(damaged)
            file.truncate()
        wrong = ""
        with contextlib.suppress(OSError):  # some kernels cannot
            Path("/proc/self/clear_refs").write_text("5")  # the peak of memory is measured from here
        memory_before, start = max(memory("VmRSS"), memory("VmHWM")), time.process_time()
        try:
            right = is_right(read())
        except FastcifarError as error:
            refused[kind] += 1
            message = str(error)
            if "\n" in message or remedy not in message or not any(str(name) in message for name in (path, *others)):
                wrong = f"refused with {message!r}"
        except Exception as error:  # no other exception may be raised
            wrong = repr(error)
        else:
            harmless[kind] += 1
            wrong = "" if right else "accepted with other content"
        seconds, peak = time.process_time() - start, memory("VmHWM") - memory_before
        if wrong or seconds > MAX_SECONDS or peak > MAX_MEMORY:
            broken.append(f"{kind}, seed {seed}: {wrong} ({seconds:.1f} s, {peak >> 20} MiB)")
    for kind in sorted({*refused, *harmless}):
        logging.info("%s, %s: %d refused, %d harmless", path.name, kind, refused[kind], harmless[kind])
    assert not broken, f"{len(broken)} of {num_damages} broke a promise:\n" + "\n".join(broken)


def memory(name: str) -> int:
    """A value of this process's memory in bytes, by its name in /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def pick(rng: Rng, items: Sequence[Item]) -> Item:
    return items[int(rng.integers(len(items)))]


def damage_bytes(
    rng: Rng, content: bytes, parts: Sequence[tuple[int, int]] = (), replacements: Sequence[bytes] = ()
) -> Damaged:
    """Damage a file in one of the parts, each (start, end); without parts, more often near its start and end."""
    size = len(content)
    low, high = pick(rng, parts or [(0, min(size, 100)), (0, size), (max(size - 1000, 0), size)])
    kinds = ["bits flipped"] * 3 + ["cut", "appended", "zeroed", "copied", "interrupted"]
    kind = pick(rng, kinds + ["replaced"] * bool(replacements))
    if kind == "replaced":
        return kind, pick(rng, replacements)
    if kind == "appended" or low == high:
        return "appended", content + (rng.bytes(int(rng.integers(1, 5000))) if rng.random() < 0.5 else content[-low:])
    damaged = bytearray(content)
    start, length = int(rng.integers(low, high)), int(2 ** rng.uniform(0, 20))
    if kind == "bits flipped":
        for position in rng.integers(low, high, rng.integers(1, 9)):
            damaged[position] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del damaged[start:]
    elif kind == "zeroed":
        damaged[start : start + length] = bytes(min(length, size - start))
    elif kind == "copied":
        source = int(rng.integers(*pick(rng, parts))) if parts else int(rng.integers(size))
        length = min(length, size - max(start, source))
        damaged[start : start + length] = content[source : source + length]
    else:  # interrupted: the file has its full size, but not all of its content
        damaged[start:] = bytes(size - start)
    return kind, bytes(damaged)


def damage_tree(rng: Rng, tree: Any, odd_values: Sequence[Any] = ODD_VALUES) -> tuple[str, Any]:
    """Damage nested dicts and lists in one place."""

    def places(node: Any) -> Iterator[tuple[Any, Any]]:
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            yield node, key
            yield from places(node[key])

    damaged = copy.deepcopy(tree)
    everywhere = list(places(damaged))
    (node, key), (other, other_key) = pick(rng, everywhere), pick(rng, everywhere)
    kind = pick(rng, ["key dropped", "key added", "value copied", "text edited", "value retyped", "value retyped"])
    if kind == "key dropped":
        del node[key]
    elif kind == "key added" and isinstance(node, dict):
        node[f"{key} more"] = pick(rng, odd_values)
    elif kind == "value copied":
        node[key] = copy.deepcopy(other[other_key])
    elif kind == "text edited" and isinstance(node[key], str) and node[key]:
        position = int(rng.integers(len(node[key])))
        node[key] = node[key][:position] + pick(rng, "0123456789abcdef") + node[key][position + 1 :]
    else:
        kind, node[key] = "value retyped", pick(rng, odd_values)
    return kind, damaged


def are_same(a: Any, b: Any) -> bool:
    """Whether values and their types are equal, and the bits of tensors."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        bits = [tensor.reshape(-1).view(torch.uint8) for tensor in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)
    if isinstance(a, np.ndarray):
        return bool(a.dtype == b.dtype and np.array_equal(a, b))
    if isinstance(a, Split | Predictions):
        return are_same(vars(a), vars(b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(are_same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(are_same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("split", SPLITS)
@many(40, 800)
def test_beton_files(tiny_data: Path, split: SplitName, num_damages: int) -> None:
    def read() -> list[Split]:
        return [load_train(tiny_data)] if split == "train" else list(load_val_and_test(tiny_data))

    def is_well_formed(found: tuple[Any, Any]) -> bool:
        formats = [(array.shape, array.dtype) for array in found]
        return formats == [((num_images, 32, 32, 3), np.uint8), ((num_images,), np.uint8)]

    path, original = beton_path(tiny_data, split), read()
    content = path.read_bytes()
    num_images = NUM_TRAIN if split == "train" else NUM_TEST // 2
    samples = 24 + 2 * 1041  # after the header and two fields' descriptors
    samples_end, pixels_end = samples + num_images * 24, PAGE + num_images * 3072
    parts = [
        (0, 24),
        (24, samples),
        (samples, samples_end),
        (samples_end, PAGE),
        (PAGE, pixels_end),
        (pixels_end, 2 * PAGE),
        (2 * PAGE, len(content)),
        (0, len(content)),
    ]
    foreign = [b"", b"text", containers.png(TEST_IMAGES[0]), gzip.compress(b"text")]
    foreign += [beton_path(tiny_data, other).read_bytes() for other in SPLITS if other != split]

    def damage(rng: Rng) -> Damaged:
        return damage_bytes(rng, content, parts, foreign)

    check_damages(path, num_damages, damage, read, lambda found: are_same(found, original), PREPARE_AGAIN)
    check_damages(
        path,
        num_damages,
        damage,
        lambda: beton.parse(np.fromfile(path, np.uint8), path, num_images),
        is_well_formed,
        PREPARE_AGAIN,
    )


@many(80, 800)
def test_manifests(tiny_data: Path, num_damages: int) -> None:
    def read() -> list[Split]:
        verify_data(tiny_data)
        return [load_train(tiny_data), *load_val_and_test(tiny_data)]

    path, original = tiny_data / "manifest.json", read()
    content = path.read_bytes()
    manifest = json.loads(content)
    foreign = [b"", b"[" * 100_000, b"9" * 5000, b"\xff\xfe{}", b"\xef\xbb\xbf" + content, b"NaN", b"[]", bytes(500)]

    def damage(rng: Rng) -> Damaged:
        how = pick(rng, ["bytes", "bytes", "tree", "tree", "tree", "key twice", "other mask"])
        if how == "bytes":
            return damage_bytes(rng, content, replacements=foreign)
        if how == "key twice":
            again = f', "{pick(rng, list(manifest))}": {json.dumps(pick(rng, ODD_VALUES))}}}'
            return how, content.rstrip()[:-1] + again.encode()
        if how == "other mask":
            mask = np.packbits(rng.permutation(NUM_TEST) < NUM_TEST // 2).tobytes().hex()
            return how, json.dumps(manifest | {"val_mask": mask}).encode()
        kind, tree = damage_tree(rng, manifest)
        return kind, json.dumps(tree).encode()

    beton_files = [beton_path(tiny_data, split) for split in SPLITS]
    check_damages(path, num_damages, damage, read, lambda found: are_same(found, original), PREPARE_AGAIN, beton_files)


class Call:
    """Its pickle calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


CALLS = [
    Call(os.system, "touch called"),
    Call(exec, "open('called', 'w')"),
    Call(open, "called", "w"),
    Call(bytearray, 1 << 30),
]


def damage_archive(rng: Rng, content: bytes) -> Damaged:
    """Write a checkpoint with other entries: every CRC fits, and where it matters the digest too."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    first, second = (int(i) for i in rng.permutation(len(entries))[:2])
    (name, data), (other_name, other_data) = entries[first], entries[second]
    kind = pick(rng, ["compressed", "entries swapped", "name twice", "call"])
    if kind == "entries swapped":
        entries[first], entries[second] = (name, other_data), (other_name, data)
    elif kind == "name twice":
        entries.insert(int(rng.integers(len(entries) + 1)), (name, damage_bytes(rng, data)[1]))
    elif kind == "call":
        called = pickle.dumps({"format": 2, "model": {"w": pick(rng, CALLS)}}, protocol=2, fix_imports=False)
        entries = [(name, called if name.endswith("data.pkl") else data) for name, data in entries]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name occurs twice
        for i, (name, data) in enumerate(entries):
            archive.writestr(name, data, zipfile.ZIP_DEFLATED if (kind, i) == ("compressed", first) else None)
    # Dangerous content must be refused even with a correct digest.
    return kind, seal(out.getvalue()) if kind in ("compressed", "call") else out.getvalue()


METRICS = [EpochMetrics(epoch, *[0.25 + epoch / 8] * 7) for epoch in range(3)]
PLAIN_METRICS = [as_plain(line) for line in METRICS]
FLOATS = [field.name for field in fields(EpochMetrics) if field.name != "epoch"]


def are_sound(metrics: Iterable[EpochMetrics]) -> bool:
    """Whether every value has its type and float32's range, and accuracies lie in 0..1."""
    return all(
        type(line) is EpochMetrics
        and type(line.epoch) is int
        and all(type(getattr(line, name)) is float and abs(getattr(line, name)) < 3.5e38 for name in FLOATS)
        and 0 <= line.train_accuracy <= 1
        and 0 <= line.val_accuracy <= 1
        for line in metrics
    )


@many(100, 1500)
def test_checkpoints(tmp_path: Path, num_damages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path, weights = tmp_path / "x.pt", torch.arange(27.0).reshape(3, 3, 3)
    model = {"a": weights, "b": -weights, "c": weights.bfloat16(), "n": torch.tensor(7), "none": torch.zeros(0, 3)}
    save_checkpoint(
        path, {"model": model, "settings": {"recipe": {"lr": 0.1, "mean": [0.5]}}, "metrics": PLAIN_METRICS}
    )
    content, original = path.read_bytes(), load_checkpoint(path)
    foreign = [b"", b"text", pickle.dumps(CALLS[0]), gzip.compress(content), b"text" + content]

    def damage(rng: Rng) -> Damaged:
        how = pick(rng, ["bytes", "archive", "twice", "followed by a sound one"])
        if how == "archive":
            return damage_archive(rng, content)
        kind, damaged = damage_bytes(rng, content, replacements=foreign)
        if how == "twice":
            return how, damage_bytes(rng, damaged)[1]
        return (how, damaged + content) if how == "followed by a sound one" else (kind, damaged)

    check_damages(path, num_damages, damage, lambda: load_checkpoint(path), lambda found: are_same(found, original))
    assert not (tmp_path / "called").exists()


def is_sound_last(last: LastCheckpoint) -> bool:
    """Whether each field that `read_last` checks is as `Checkpointer` writes it."""
    metrics, best = last.metrics, last.best
    model = last.state["model"]
    return (
        are_same(last.data, dict(cifar10.SPEC.digests))
        and [type(value) for value in (last.num_epochs, last.seconds, last.data_dir)] == [int, float, str]
        and type(last.settings) is dict
        and last.num_epochs == len(metrics)
        and are_sound(metrics)
        and [line.epoch for line in metrics] == list(range(len(metrics)))
        and (best is None) == (not metrics)
        and (best is None or (type(best.epoch), type(best.val_accuracy)) == (int, float))
        and (best is None or (0 <= best.epoch < len(metrics) and 0 <= best.val_accuracy <= 1))
        and all(
            type(tensor) is torch.Tensor for state in (model, best.model if best else {}) for tensor in state.values()
        )
        and (best is None or [*best.model] == [*model])
    )


@pytest.mark.parametrize("num_epochs", [0, 3])
@many(100, 1500)
def test_fields_of_a_last_checkpoint(tmp_path: Path, num_epochs: int, num_damages: int) -> None:
    model = {"w": torch.arange(4.0)}
    last: dict[str, Any] = {
        "format": 2,
        "model": model,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "scheduler": {"last_epoch": num_epochs},
        "settings": {"epochs": 5},
        "data": dict(cifar10.SPEC.digests),
        "normalisation": {"mean": [0.5], "std": [0.5]},
        "data_dir": "/data",
        "num_epochs": num_epochs,
        "metrics": PLAIN_METRICS[:num_epochs],
        "seconds": 1.5,
        "best": {"epoch": 2, "val_accuracy": 0.5, "model": model} if num_epochs else {},
    }
    odd_values = [*ODD_VALUES, torch.tensor(3), torch.zeros(2), model, PLAIN_METRICS, PLAIN_METRICS[:1]]
    path = tmp_path / "last.pt"
    save_checkpoint(path, last)
    read = read_last(tmp_path)
    assert is_sound_last(read)
    assert read.metrics == tuple(METRICS[:num_epochs])
    assert (read.settings, read.data_dir, read.seconds) == ({"epochs": 5}, "/data", 1.5)
    assert are_same(read.state, {key: last[key] for key in ("model", "optimizer", "scheduler")})
    assert are_same({} if read.best is None else vars(read.best), last["best"])

    def damage(rng: Rng) -> Damaged:
        kind, damaged = damage_tree(rng, last, odd_values)
        out = io.BytesIO()
        torch.save(damaged, out)
        return kind, seal(out.getvalue())

    check_damages(path, num_damages, damage, lambda: read_last(tmp_path), is_sound_last)


PREDICTIONS = Predictions(TEST_IMAGES, TEST_LABELS, np.linspace(-3, 3, NUM_TEST * 10, dtype="f4").reshape(-1, 10))
CONFIG = {
    "recipe": "sgd92",
    "epochs": 70,
    "seed": 42,
    "precision": "bf16",
    "device_name": "x",
    "num_train_images": 50_000,
}


@many(100, 1500)
def test_metrics(tmp_path: Path, num_damages: int) -> None:
    write_metrics(tmp_path, METRICS)
    content = (tmp_path / METRICS_FILE).read_bytes()

    def damage(rng: Rng) -> Damaged:
        if rng.random() < 0.5:
            return damage_bytes(rng, content)
        kind, tree = damage_tree(rng, PLAIN_METRICS)
        return kind, "".join(json.dumps(line) + "\n" for line in tree).encode()

    check_damages(tmp_path / METRICS_FILE, num_damages, damage, lambda: read_metrics(tmp_path), are_sound)


@many(100, 1500)
def test_configurations(tmp_path: Path, num_damages: int) -> None:
    write_config(tmp_path, CONFIG)
    content = (tmp_path / CONFIG_FILE).read_bytes()
    tree = json.loads(content) | {
        "resumed": [{"num_epochs": 3, "begun": "2026-11-25T20:00:00+01:00", "environment": {}}]
    }

    def damage(rng: Rng) -> Damaged:
        if rng.random() < 0.5:
            return damage_bytes(rng, content)
        kind, damaged = damage_tree(rng, tree)
        return kind, json.dumps(damaged).encode()

    def is_right(found: RunConfig) -> bool:
        begun = [found.begun, *(part.begun for part in found.resumed)]
        return (
            all(type(getattr(found, key)) is type(value) for key, value in CONFIG.items())
            and max(map(abs, (found.epochs, found.seed, found.num_train_images))) < 2**63
            and type(found.environment) is type(found.settings) is dict
            and all(type(part) is Resumption and type(part.num_epochs) is int for part in found.resumed)
            and all(time is None or time.tzinfo is not None for time in begun)
        )

    check_damages(tmp_path / CONFIG_FILE, num_damages, damage, lambda: read_config(tmp_path), is_right)


@many(100, 1500)
def test_predictions(tmp_path: Path, num_damages: int) -> None:
    write_predictions(tmp_path, PREDICTIONS)
    content = (tmp_path / PREDICTIONS_FILE).read_bytes()
    check_damages(
        tmp_path / PREDICTIONS_FILE,
        num_damages,
        lambda rng: damage_bytes(rng, content),
        lambda: read_predictions(tmp_path),
        lambda found: are_same(found, PREDICTIONS),
    )


@many(100, 1500)
def test_results(tmp_path: Path, num_damages: int) -> None:
    best, last = Scores(2, 0.5, 1.25, 0.5, 0.25), Scores(3, 0.5, 1.5, 0.375, 0.25)
    results = Results(best, last, num_test_images=5000, test10k_accuracy=0.4375, img_per_s=100.5, seconds=9.0)
    path = tmp_path / RESULTS_FILE
    write_results(tmp_path, results)
    content = path.read_bytes()

    def damage(rng: Rng) -> Damaged:
        if rng.random() < 0.5:
            return damage_bytes(rng, content)
        kind, tree = damage_tree(rng, as_plain(results))
        return kind, json.dumps(tree).encode()

    def is_right(found: Results) -> bool:
        rows = (found.best, found.last)
        shares = [share for row in rows for share in (row.val_accuracy, row.test_accuracy, row.test_accuracy_augmented)]
        floats = [found.img_per_s, found.seconds, found.best.test_loss, found.last.test_loss, found.test10k_accuracy]
        return (
            all(type(number) is float and abs(number) < 3.5e38 for number in shares + floats)
            and all(0 <= share <= 1 for share in (*shares, found.test10k_accuracy))
            and [type(row.epoch) for row in rows] == [int, int]
            and type(found.num_test_images) is int
            and 1 <= found.num_test_images <= 10_000
        )

    check_damages(path, num_damages, damage, lambda: read_results(tmp_path), is_right)


@pytest.mark.parametrize("name", [CONFIG_FILE, METRICS_FILE])
@many(20, 300)
def test_reports(tmp_path: Path, name: str, num_damages: int) -> None:
    """Configuration and metrics that are accepted can be drawn and reported."""
    run_dir = write_run(tmp_path / "run", METRICS, epochs=9)
    path = run_dir / name
    tree = json.loads(path.read_text()) if name == CONFIG_FILE else PLAIN_METRICS

    def damage(rng: Rng) -> Damaged:
        kind, damaged = damage_tree(rng, tree)
        lines = [damaged] if name == CONFIG_FILE else damaged
        return kind, "".join(json.dumps(line) + "\n" for line in lines).encode()

    check_damages(path, num_damages, damage, lambda: build_report([run_dir]), lambda page: page.endswith("</html>\n"))
