import importlib.util
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import containers
from support.command_line import ENVIRONMENT, PROGRAMS, call
from support.training_runs import run

from fastcifar.data.folder import load_val_and_test
from fastcifar.errors import FastcifarError
from fastcifar.inference import classifier as classifier_module
from fastcifar.inference import export
from fastcifar.inference.classifier import Classifier, load_classifier
from fastcifar.inference.evaluation import evaluate_split
from fastcifar.inference.export import TOLERANCE, export_model
from fastcifar.inference.prediction import predict_pictures
from fastcifar.pipeline.augment import affine_coeffs, sample_augmentation
from fastcifar.results import charts
from fastcifar.results.records import read_predictions, read_results
from fastcifar.training.checkpoint import load_checkpoint, save_checkpoint

safetensors = pytest.importorskip("safetensors.torch")
for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)

IMAGES = np.random.default_rng(5).integers(0, 256, (257, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def tiny(tiny_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with prepared data, a finished run of the real network and its three exports."""
    folder = tmp_path_factory.mktemp("export")
    with containers.tiny_cifar10(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "write_charts", lambda run_dir: [])
        shutil.copytree(tiny_template, folder / "data")
        run(folder / "data", folder / "run", epochs=1)
        for kind in ("safetensors", "torch", "onnx"):
            export_model(folder / "run", kind)
        yield folder


@pytest.fixture
def finished(tiny: Path, tmp_path: Path) -> Path:
    """The finished run, to be changed."""
    names = ("best.pt", "results.json", "predictions.npz")
    (tmp_path / "run").mkdir()
    for name in names:
        shutil.copy(tiny / "run" / name, tmp_path / "run" / name)
    return tmp_path / "run"


def test_files_classify_alike_where_there_is_no_fastcifar(tiny: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    paths = tiny / "run", tmp_path / "images.npy", tmp_path / "out.npz"
    command = [sys.executable, str(PROGRAMS / "use_exports.py"), *map(str, paths)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = load_classifier(tiny / "run", "cpu").logits(torch.from_numpy(IMAGES)).numpy()
    tolerance = TOLERANCE * abs(expected).max()
    with np.load(tmp_path / "out.npz") as found:
        assert len(found.files) == 9
        for name in found.files:
            size = int(name.split("-")[1])
            np.testing.assert_allclose(found[name], expected[:size], rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("name", ["hub", "hub/model.safetensors", "model.onnx"])
def test_exported_files_are_evaluated_as_the_run_is(tiny: Path, name: str) -> None:
    ours, theirs = load_classifier(tiny / "run" / name, "cpu"), load_classifier(tiny / "run", "cpu")
    assert ours.settings == theirs.settings
    assert ours.describe().endswith(": adam89, 1 epoch")
    images = torch.from_numpy(IMAGES[:20])
    coeffs = affine_coeffs(sample_augmentation(42, 0, torch.arange(20), padding=4, max_angle_deg=15))
    for options in ({}, {"coeffs": coeffs}, {"mirror_tta": True}):
        found, expected = (each.logits(images, **options) for each in (ours, theirs))
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))
    figures = [evaluate_split(each, tiny / "data", "test10k") for each in (ours, theirs)]
    assert [each.num_images for each in figures] == [20, 20]
    assert figures[0].accuracy == figures[1].accuracy


@pytest.mark.parametrize("name", ["hub", "model.onnx"])
def test_the_commands_take_exported_files(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    stored = read_predictions(tiny / "run")  # of its test images
    names = ["0.png", "1.png", "2.png"]
    for image, file in zip(stored.images, names, strict=False):
        Image.fromarray(image).save(file)
    path, theirs = str(tiny / "run" / name), load_classifier(tiny / "run", "cpu")
    tolerance = 2 * TOLERANCE * float(abs(stored.logits).max())  # of a log-probability: of its logit and of the sum's
    options = ["--device", "cpu", "--json"]

    code, out, err = call(monkeypatch, capsys, "evaluate", path, "--data", str(tiny / "data"), *options)
    assert (code, err) == (0, "")
    found, expected = json.loads(out), evaluate_split(theirs, tiny / "data", "test")
    assert (found["num_images"], found["accuracy"]) == (10, expected.accuracy)
    assert found["loss"] == pytest.approx(expected.loss, abs=tolerance)

    code, out, err = call(monkeypatch, capsys, "predict", path, *names, *options)
    assert (code, err) == (0, "")
    for row, prediction in zip(json.loads(out), predict_pictures(theirs, [*map(Path, names)]), strict=True):
        assert row["path"] == prediction.path
        assert [guess["class"] for guess in row["top"]] == [guess.class_name for guess in prediction.top]
        for guess, theirs_guess in zip(row["top"], prediction.top, strict=True):
            assert math.log(guess["probability"] / theirs_guess.probability) == pytest.approx(0, abs=tolerance)


def test_the_weights_are_torchvisions_and_the_card_says_what_they_reach(tiny: Path) -> None:
    weights = safetensors.load_file(tiny / "run" / "hub" / "model.safetensors")
    ours = load_checkpoint(tiny / "run" / "best.pt")["model"]
    assert {f"backbone.{name}" for name in weights} == set(ours)
    assert all(torch.equal(value, ours[f"backbone.{name}"]) for name, value in weights.items())
    card = (tiny / "run" / "hub" / "README.md").read_text()
    _, test = load_val_and_test(tiny / "data")
    logits = load_classifier(tiny / "run", "cpu").logits(torch.from_numpy(test.images))
    accuracy = (logits.argmax(1).numpy() == test.labels).mean()
    assert f"| clean, these weights in float32 | {accuracy:.2%} (95% interval " in card
    augmented = read_results(tiny / "run").best.test_accuracy_augmented
    assert f"| augmented as in training, in fp32 | {augmented:.2%} |" in card
    assert "epochs: 1; training images: 40 of 40; batch size: 8; seed: 42" in card
    config = json.loads((tiny / "run" / "hub" / "config.json").read_text())
    assert (config["id2label"]["3"], config["label2id"]["cat"], config["mean"]) == ("cat", 3, [0.5, 0.5, 0.5])


def test_no_file_names_a_path_of_this_machine(tiny: Path) -> None:
    for name in ("model.pt2", "model.onnx", "hub/model.safetensors", "hub/README.md"):
        content = (tiny / "run" / name).read_bytes()
        assert str(Path(export.__file__).parent).encode() not in content, name


def test_a_failed_export_is_one_line_and_writes_nothing(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished.parent)
    before = sorted(finished.parent.rglob("*"))

    def message(*arguments: str) -> str:
        code, out, err = call(monkeypatch, capsys, "export", *arguments)
        assert (code, out) == (2, "")
        assert sorted(finished.parent.rglob("*")) == before
        return err.removeprefix("Error: ")

    exists = "run/best.pt exists already: remove it, or give another path\n"
    assert message("run", "--format", "onnx", "--out", "run/best.pt") == exists
    assert message("none", "--format", "torch") == "none holds no results.json: only a finished run is exported\n"
    content = load_checkpoint(finished / "best.pt")
    content["model"]["backbone.fc.bias"][3] = math.nan
    save_checkpoint(finished / "best.pt", content)
    assert message("run", "--format", "torch") == "run/best.pt holds weights that are not finite\n"
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else real(name))
    missing = "onnx, onnxscript, onnxruntime not installed: pip install 'fastcifar[export]'\n"
    assert message("run", "--format", "onnx") == missing


def test_an_export_that_classifies_otherwise_is_not_written(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = export._write_safetensors

    def mirrored(*arguments: Any) -> export.Classify:
        classify = real(*arguments)
        return lambda images: classify(images.flip(2))

    monkeypatch.setitem(export._WRITERS, "safetensors", mirrored)
    before = sorted(finished.rglob("*"))
    with pytest.raises(
        FastcifarError, match=r"hub is not written: read back, it gives \d+ of 10 test images another class"
    ):
        export_model(finished, "safetensors")
    assert sorted(finished.rglob("*")) == before


class Mirrored(export.ImageClassifier):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images.flip(2))


class BlueFirst(export.ImageClassifier):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images.flip(3))


class OtherStd(export.ImageClassifier):
    def __init__(self, classifier: Classifier) -> None:
        super().__init__(classifier)
        self.std = classifier.std * 1.1


class OtherBias(export.ImageClassifier):
    def __init__(self, classifier: Classifier) -> None:
        super().__init__(classifier)
        torch.nn.init.ones_(self.get_parameter("backbone.fc.bias"))


@pytest.mark.parametrize("broken", [Mirrored, BlueFirst, OtherStd, OtherBias])
def test_a_program_that_computes_otherwise_than_the_run_is_not_written(
    broken: type[export.ImageClassifier], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "ImageClassifier", broken)  # of the program that is written, and of that read back
    before = sorted(finished.rglob("*"))
    with pytest.raises(FastcifarError, match=r"hub is not written: read back, it gives \d+ of 10 test images another"):
        export_model(finished, "safetensors")
    assert sorted(finished.rglob("*")) == before


def test_a_bf16_run_is_exported_in_fp32_and_its_card_says_bf16(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier_module, "is_bf16_fast", lambda _: False)  # on the machine that exports
    content = load_checkpoint(finished / "best.pt")
    content["settings"]["precision"] = "bf16"
    save_checkpoint(finished / "best.pt", content)
    hub = export_model(finished, "safetensors")
    assert load_classifier(hub).settings.precision == "bf16"
    assert "| augmented as in training, in bf16 | " in (hub / "README.md").read_text()


def test_files_that_are_not_ours_are_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(FastcifarError, match=r"model\.pt2 is not loaded, because torch unpickles it: name the run"):
        load_classifier(tiny / "run" / "model.pt2")
    for name in ("x.safetensors", "x.onnx"):
        with pytest.raises(FastcifarError, match=f"cannot read .*{name}: No such file"):
            load_classifier(tmp_path / name)
        (tmp_path / name).write_bytes(b"\xff" * 100)
        with pytest.raises(FastcifarError, match=f"{name} is damaged: it is not a"):
            load_classifier(tmp_path / name)
    weights = safetensors.load_file(tiny / "run" / "hub" / "model.safetensors")
    safetensors.save_file(weights, tmp_path / "x.safetensors")
    with pytest.raises(FastcifarError, match=r"x\.safetensors was not exported by this version of fastcifar"):
        load_classifier(tmp_path / "x.safetensors")
    with pytest.raises(FastcifarError, match="device must be cpu for an ONNX file, not 'cuda'"):
        load_classifier(tiny / "run" / "model.onnx", "cuda")


def test_an_onnx_file_is_computed_in_fp32_only(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny)
    for precision in ("auto", "fp32"):
        code, out, err = call(
            monkeypatch, capsys, "evaluate", "run/model.onnx", "--precision", precision, "--data", "data", "--json"
        )
        assert (code, json.loads(out)["precision"], err) == (0, "fp32", "")
    code, out, err = call(monkeypatch, capsys, "evaluate", "run/model.onnx", "--precision", "bf16", "--data", "data")
    assert (code, out, err) == (2, "", "Error: --precision must be fp32 for an ONNX file, not 'bf16'\n")
