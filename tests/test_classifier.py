import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.command_line import call
from support.containers import TEST_IMAGES, TEST_LABELS

from fastcifar.data import cifar10
from fastcifar.data.folder import load_val_and_test, official_test_set
from fastcifar.errors import FastcifarError
from fastcifar.inference import classifier as classifier_module
from fastcifar.inference.classifier import Classifier, load_classifier
from fastcifar.inference.evaluation import evaluate_split
from fastcifar.inference.prediction import predict_pictures
from fastcifar.results.metrics import calibrate
from fastcifar.results.records import Results, read_predictions
from fastcifar.results.run_dir import interrupted_run_dir, list_runs
from fastcifar.training.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture
def trained(finished_run: tuple[Path, Results], monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Results]:
    monkeypatch.setattr(classifier_module, "is_bf16_fast", lambda _: True)  # so that the run's precision is used
    return finished_run


def test_evaluation_gives_the_figures_of_the_run(tiny_data: Path, trained: tuple[Path, Results]) -> None:
    run_dir, results = trained
    for path, row in (
        (run_dir, results.best),
        (run_dir / "best.pt", results.best),
        (run_dir / "last.pt", results.last),
    ):
        classifier = load_classifier(path)
        assert classifier.num_epochs == row.epoch + 1
        clean = evaluate_split(classifier, tiny_data, "test")
        assert (clean.accuracy, clean.loss) == (row.test_accuracy, row.test_loss)
        augmented = evaluate_split(classifier, tiny_data, "test", augmented=True)
        assert augmented.accuracy == row.test_accuracy_augmented
        assert evaluate_split(classifier, tiny_data, "val").accuracy == row.val_accuracy
    both = evaluate_split(classifier, tiny_data, "test10k")
    assert both.num_images == 20
    assert both.accuracy == results.test10k_accuracy
    assert sum(row.num_images for row in both.classes) == 20
    assert evaluate_split(classifier, tiny_data, "test10k", num_images=4).num_images == 8
    with pytest.raises(FastcifarError, match="split must be val, test or test10k, not 'train'"):
        evaluate_split(classifier, tiny_data, "train")
    with pytest.raises(FastcifarError, match="num_images must be between 1 and 10, not 11"):
        evaluate_split(classifier, tiny_data, "test", num_images=11)


def test_label_errors_are_numbered_as_the_official_test_set_is(tiny_data: Path, trained: tuple[Path, Results]) -> None:
    run_dir, _ = trained
    classifier, saved = load_classifier(run_dir), read_predictions(run_dir)
    tested = evaluate_split(classifier, tiny_data, "test")
    assert tested.calibration.error == pytest.approx(calibrate(saved.labels, saved.logits).error, abs=1e-5)
    both = evaluate_split(classifier, tiny_data, "test10k")
    for evaluation in (tested, both):
        numbers = [error.image for error in evaluation.label_errors]
        assert len(numbers) == round(evaluation.num_images * (1 - evaluation.accuracy)) > 0
        assert [error.label for error in evaluation.label_errors] == [cifar10.CLASSES[TEST_LABELS[n]] for n in numbers]
    np.testing.assert_array_equal(official_test_set(*load_val_and_test(tiny_data))[0], TEST_IMAGES)
    predicted = classifier.logits(torch.from_numpy(TEST_IMAGES)).argmax(1)
    assert [error.predicted for error in both.label_errors] == [
        cifar10.CLASSES[predicted[error.image]] for error in both.label_errors
    ]


def test_mirror_tta_is_the_mean_of_both(trained: tuple[Path, Results]) -> None:
    classifier = load_classifier(trained[0])
    images = torch.from_numpy(TEST_IMAGES)
    both = (classifier.logits(images) + classifier.logits(images.flip(2))) / 2
    torch.testing.assert_close(classifier.logits(images, mirror_tta=True), both)
    assert not torch.equal(both, classifier.logits(images))


def test_pictures_are_classified_as_in_the_run(trained: tuple[Path, Results], tmp_path: Path) -> None:
    run_dir, _ = trained
    saved = read_predictions(run_dir)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, image in enumerate(saved.images):
        Image.fromarray(image).save(folder / f"{i:02}.png")
    found = predict_pictures(load_classifier(run_dir), [folder])
    five = predict_pictures(load_classifier(run_dir), [folder], 5)
    assert [row.top[:3] for row in five] == [row.top for row in found]
    assert {len(row.top) for row in five if not row.error} == {5}
    assert [Path(row.path).name for row in found] == [f"{i:02}.png" for i in range(len(saved.labels))]
    probabilities = torch.from_numpy(saved.logits).softmax(1).numpy()
    for row, expected in zip(found, probabilities, strict=True):
        order = np.argsort(-expected)[:3]
        assert [guess.class_name for guess in row.top] == [cifar10.CLASSES[label] for label in order]
        assert [guess.probability for guess in row.top] == pytest.approx(expected[order], abs=1e-5)


def test_a_recipe_that_changed_since_does_not_matter(trained: tuple[Path, Results]) -> None:
    path = trained[0] / "best.pt"
    content = load_checkpoint(path)
    save_checkpoint(path, content | {"settings": content["settings"] | {"learning_rate": 9.0}})
    assert isinstance(load_classifier(path), Classifier)


@pytest.mark.parametrize("change", [{"model": {}}, {"settings": {}}, {"epoch": "x"}])
def test_a_checkpoint_without_a_model_is_refused(trained: tuple[Path, Results], change: dict[str, Any]) -> None:
    path = trained[0] / "best.pt"
    save_checkpoint(path, load_checkpoint(path) | change)
    with pytest.raises(FastcifarError, match=r"best\.pt does not hold a model of this version"):
        load_classifier(trained[0])
    path.unlink()
    with pytest.raises(FastcifarError, match=r"run holds no best\.pt: no epoch of a run was finished there"):
        load_classifier(trained[0])


def test_the_commands(
    tiny_data: Path,
    trained: tuple[Path, Results],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    results = trained[1].best
    code, out, err = call(monkeypatch, capsys, "evaluate", "run")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("run/best.pt: adam89, ")
    assert lines[1].startswith(f"accuracy {results.test_accuracy:.2%} (95% interval ")
    assert lines[1].endswith(", on 10 images of test, clean")
    assert lines[2].startswith("expected calibration error ")
    assert lines[4].split() == ["class", "precision", "recall", "F1", "images"]
    assert [line.split()[0] for line in lines[5:15]] == list(cifar10.CLASSES)
    pictures = ("--calibration", "x/calibration.svg", "--label-errors", "x/labels.png")
    code, out, _ = call(monkeypatch, capsys, "evaluate", "run", "--split", "val", "--tta", "--json", *pictures)
    evaluation = json.loads(out)
    assert list(evaluation["calibration"]) == ["error", "mean_confidence", "accuracy", "bins"]
    assert list(evaluation["label_errors"][0])[:2] == ["image", "label"]
    assert sorted(path.name for path in Path("x").iterdir()) == ["calibration.svg", "labels.png"]
    assert (code, evaluation["split"], evaluation["mirror_tta"]) == (0, "val", True)
    assert evaluation["precision"] == "bf16"
    code, _, err = call(monkeypatch, capsys, "evaluate", "run", "--tta", "--augmented")
    assert (code, err) == (2, "Error: --augmented and --tta exclude each other\n")
    code, _, err = call(monkeypatch, capsys, "evaluate", "none", "--label-errors", "x.gif")
    assert (code, err) == (2, "Error: --label-errors must end in .png or .svg, not 'x.gif'\n")

    Image.fromarray(TEST_IMAGES[0]).resize((400, 300)).save("photo.jpg")
    code, out, err = call(monkeypatch, capsys, "predict", "run", "photo.jpg")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"photo\.jpg( +[a-z]+ \d+\.\d%){3}", out.splitlines()[1].strip())
    code, out, _ = call(monkeypatch, capsys, "predict", "run", "photo.jpg", "--json")
    assert [guess["class"] in cifar10.CLASSES for guess in json.loads(out)[0]["top"]] == [True] * 3
    code, again, err = call(monkeypatch, capsys, "predict", "run", "photo.jpg", "--json", "--picture", "grid.svg")
    assert (code, again, err) == (0, out, "")
    assert 'id="bar-0-2"' in Path("grid.svg").read_text()
    code, out, err = call(monkeypatch, capsys, "predict", "none", "photo.jpg", "--picture", "grid.gif")
    assert (code, out, err) == (2, "", "Error: --picture must end in .png or .svg, not 'grid.gif'\n")
    code, _, err = call(monkeypatch, capsys, "predict", "run", "run/config.json")
    assert (code, err) == (2, "Error: cannot read run/config.json: not a picture, or damaged\n")


def test_the_precision_is_chosen_for_the_machine(
    trained: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.from_numpy(TEST_IMAGES)
    fp32 = load_classifier(trained[0], precision="fp32")
    bf16 = load_classifier(trained[0])
    assert (fp32.precision, bf16.precision, bf16.notes) == ("fp32", "bf16", ())
    assert not torch.equal(fp32.logits(images), bf16.logits(images))
    monkeypatch.setattr(classifier_module, "is_bf16_fast", lambda _: False)
    chosen = load_classifier(trained[0])
    assert (chosen.precision, chosen.settings.precision) == ("fp32", "bf16")  # here, and in the run
    assert torch.equal(chosen.logits(images), fp32.logits(images))
    note = "computed in fp32, because bf16 is slow here; precision bf16 gives the run's own figures"
    assert chosen.notes == (note,)
    assert torch.equal(load_classifier(trained[0], precision="bf16").logits(images), bf16.logits(images))


def test_the_data_is_found_where_the_run_had_it(
    tiny_data: Path,
    trained: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_dir, _ = trained
    recorded = load_checkpoint(run_dir / "best.pt")["data_dir"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, out, err = call(monkeypatch, capsys, "evaluate", str(run_dir), "--json")
    assert (code, err) == (0, f"note: on {recorded}, the data of its run; --data names another folder\n")
    assert call(monkeypatch, capsys, "evaluate", str(run_dir), "--json", "--data", str(tiny_data)) == (0, out, "")
    for name in ("best.pt", "last.pt"):
        content = load_checkpoint(run_dir / name)
        save_checkpoint(run_dir / name, content | {"data_dir": "/gone/data"})
    (run_dir / "results.json").unlink()
    code, _, err = call(monkeypatch, capsys, "evaluate", str(run_dir))
    here = tmp_path / "elsewhere" / "data"
    problem = f"neither {here} nor /gone/data, the run's data folder, has data"
    assert (code, err) == (2, f"Error: --data is needed: {problem}\n")
    code, _, err = call(monkeypatch, capsys, "train", "--resume", str(run_dir / "last.pt"))
    assert (code, err) == (2, "Error: --data /gone/data no longer exists: give the new path of the run's data\n")
    code, out, err = call(
        monkeypatch, capsys, "train", "--resume", str(run_dir / "last.pt"), "--data", str(tiny_data), "--quiet"
    )
    assert (code, out, err) == (0, f"{run_dir}\n", "")
    assert (run_dir / "results.json").exists()


def test_good_pictures_are_classified_in_spite_of_bad_ones(
    trained: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p" / "cat").mkdir(parents=True)
    for name in ("a.png", "c.png", "cat/d.png"):
        Image.fromarray(TEST_IMAGES[0]).save(tmp_path / "p" / name)
    Path("p/b.png").write_bytes(Path("p/a.png").read_bytes()[:200])
    os.mkfifo("p/pipe.png")
    code, out, err = call(monkeypatch, capsys, "predict", "run", "p", "none.png", "--picture", "grid.svg")
    bad = ["cannot read p/b.png: not a picture, or damaged", "cannot read none.png: No such file or directory"]
    assert (code, err.splitlines()) == (1, [f"Error: {line}" for line in bad])
    assert [line.split()[0] for line in out.splitlines()] == ["picture", "p/a.png", "p/c.png"]
    assert 'id="picture-1"' in Path("grid.svg").read_text()
    code, out, _ = call(monkeypatch, capsys, "predict", "run", "p", "none.png", "--json")
    rows = json.loads(out)
    assert [(row["path"], len(row["top"]), row.get("error", "")) for row in rows] == [
        ("p/a.png", 3, ""),
        ("p/b.png", 0, bad[0]),
        ("p/c.png", 3, ""),
        ("none.png", 0, bad[1]),
    ]
    assert rows[0]["top"] == rows[2]["top"]
    # The error comes before a model is loaded, which takes seconds; so it does not matter that there is none.
    code, out, err = call(monkeypatch, capsys, "predict", "no-run", "p/b.png", "p/pipe.png")
    assert (code, out) == (2, "")
    assert err.splitlines() == [f"Error: {bad[0]}", "Error: cannot read p/pipe.png: it is not a regular file"]
    code, out, _ = call(monkeypatch, capsys, "predict", "run", "p", "--recursive", "--json")
    assert [row["path"] for row in json.loads(out)] == ["p/a.png", "p/b.png", "p/c.png", "p/cat/d.png"]
    Image.fromarray(np.full((40, 40), 200, np.int32)).save("grey.tif")
    code, out, err = call(monkeypatch, capsys, "predict", "run", "grey.tif", "--json")
    note = "grey.tif does not say its range of values: 0..255 is assumed (its greatest is 200)"
    assert (code, err, json.loads(out)[0]["note"]) == (0, f"note: {note}\n", note)


WRAPPERS: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, Any]]] = {
    "the published model's": lambda state: state,
    "torchvision's": lambda state: {name.removeprefix("backbone."): value for name, value in state.items()},
    "data parallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "compiled, data parallel": lambda state: {f"_orig_mod.module.{name}": value for name, value in state.items()},
    "net": lambda state: {"net": {f"module.{name}": value for name, value in state.items()}, "acc": 95.1, "epoch": 3},
    "Lightning": lambda state: {"state_dict": {f"model.{name}": value for name, value in state.items()}, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
    "half": lambda state: {name: value.half() for name, value in state.items()},
    "old": lambda state: {name: value for name, value in state.items() if "num_batches" not in name},
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_plain_weights(kind: str, trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    ours = load_classifier(trained[0], precision="fp32")
    path = tmp_path / "weights.pt"
    torch.save(WRAPPERS[kind](ours.model.state_dict()), path)
    plain = load_classifier(path, precision="fp32")
    note = f"{path} does not say how its images were normalised: mean 0.5 and deviation 0.5 are assumed"
    assert (plain.notes, plain.mean.tolist(), plain.std.tolist()) == ((note,), [0.5] * 3, [0.5] * 3)
    assert plain.describe() == f"{path}: plain-weights"
    images = torch.from_numpy(TEST_IMAGES)
    torch.testing.assert_close(plain.logits(images), ours.logits(images), rtol=0, atol=0 if kind != "half" else 0.05)


def test_weights_of_other_networks(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    state = load_classifier(trained[0]).model.state_dict()
    imagenet = {name.removeprefix("backbone."): value for name, value in state.items()}
    imagenet |= {
        "conv1.weight": torch.zeros(64, 3, 7, 7),
        "fc.weight": torch.zeros(1000, 512),
        "fc.bias": torch.zeros(9),
    }
    torch.save(imagenet, path)
    with pytest.raises(
        FastcifarError, match=r"holds a ResNet-18 for ImageNet \(7x7 first convolution, 1,000 classes\)"
    ):
        load_classifier(path)
    torch.save(state | {"backbone.fc.bias": torch.zeros(100)}, path)
    with pytest.raises(FastcifarError, match=r"not hold torchvision's ResNet-18 for CIFAR-10: see backbone\.fc\.bias"):
        load_classifier(path)
    torch.save({"linear.weight": torch.zeros(3)}, path)
    with pytest.raises(FastcifarError, match="does not hold torchvision's ResNet-18 for CIFAR-10: see backbone"):
        load_classifier(path)
    torch.save({"model": Path("a class")}, path)  # a file of tensors does not need it
    with pytest.raises(FastcifarError, match="is damaged, or not a fastcifar checkpoint"):
        load_classifier(path)
    damaged = bytearray((trained[0] / "best.pt").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(FastcifarError, match="is damaged, or not a fastcifar checkpoint"):
        load_classifier(path)


def test_runs_are_listed(
    finished_template: tuple[Path, Results],
    stopped_template: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call(monkeypatch, capsys, "runs")
    assert (code, err) == (2, "Error: cannot read runs: No such file or directory\n")
    folder = tmp_path / "runs"
    (folder / "other").mkdir(parents=True)
    assert call(monkeypatch, capsys, "runs") == (0, "runs holds no runs\n", "")
    for run_dir, name, day in ((finished_template[0], "first", 1), (stopped_template, "part", 2)):
        config_file = shutil.copytree(run_dir, folder / name) / "config.json"
        config = json.loads(config_file.read_text())
        config_file.write_text(json.dumps(config | {"begun": f"2026-11-0{day}T12:00:00+00:00"}))
    (folder / "bad").mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (folder / "bad" / name).write_text("x")
    found = {summary.path.name: summary for summary in list_runs(folder)}
    assert list(found) == ["part", "first", "bad"]
    states = {name: (summary.state, summary.num_epochs, summary.epochs) for name, summary in found.items()}
    assert states == {"part": ("stopped", 1, 3), "first": ("finished", 3, 3), "bad": ("damaged", 0, 0)}
    assert found["first"].test_accuracy == finished_template[1].best.test_accuracy
    with interrupted_run_dir(folder / "part"):
        assert list_runs(folder / "part")[0].state == "running"
    code, out, err = call(monkeypatch, capsys, "runs")
    assert (code, err) == (0, "")
    assert out.splitlines()[1].split()[:4] == ["part", "stopped", "adam89", "1/3"]
    assert out.splitlines()[-1].endswith("for example: fastcifar train --resume runs/part")
