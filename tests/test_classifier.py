import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.command_line import call
from support.containers import TEST_IMAGES
from support.tiny_world import tiny_world
from support.training_runs import Listener, run

from fastcifar.data import cifar10
from fastcifar.errors import FastcifarError, Interrupted
from fastcifar.inference.classifier import Classifier, evaluate_split, load_classifier, predict_pictures
from fastcifar.results.records import read_predictions
from fastcifar.results.run_dir import interrupted_run_dir, list_runs
from fastcifar.training.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def trained_template(tiny_template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    with tiny_world():
        return run_dir, run(tiny_template, run_dir, precision="bf16", epochs=2)


@pytest.fixture
def trained(
    trained_template: tuple[Path, dict[str, Any]], tiny_data: Path, tmp_path: Path
) -> tuple[Path, dict[str, Any]]:
    template, results = trained_template
    return Path(shutil.copytree(template, tmp_path / "run")), results


def test_evaluation_gives_the_figures_of_the_run(tiny_data: Path, trained: tuple[Path, dict[str, Any]]) -> None:
    run_dir, results = trained
    for path, row in (
        (run_dir, results["best"]),
        (run_dir / "best.pt", results["best"]),
        (run_dir / "last.pt", results["last"]),
    ):
        classifier = load_classifier(path)
        assert classifier.num_epochs == row["epoch"] + 1
        clean = evaluate_split(classifier, tiny_data, "test")
        assert (clean["accuracy"], clean["loss"]) == (row["test_accuracy"], row["test_loss"])
        augmented = evaluate_split(classifier, tiny_data, "test", augmented=True)
        assert augmented["accuracy"] == row["test_accuracy_augmented"]
        assert evaluate_split(classifier, tiny_data, "val")["accuracy"] == row["val_accuracy"]
    both = evaluate_split(classifier, tiny_data, "test10k")
    assert both["num_images"] == 20
    assert both["accuracy"] == results["test10k_accuracy"]
    assert sum(row["num_images"] for row in both["classes"]) == 20
    assert evaluate_split(classifier, tiny_data, "test10k", num_images=4)["num_images"] == 8
    with pytest.raises(FastcifarError, match="split must be val, test or test10k, not 'train'"):
        evaluate_split(classifier, tiny_data, "train")
    with pytest.raises(FastcifarError, match="num_images must be between 1 and 10, not 11"):
        evaluate_split(classifier, tiny_data, "test", num_images=11)


def test_mirror_tta_is_the_mean_of_both(trained: tuple[Path, dict[str, Any]]) -> None:
    classifier = load_classifier(trained[0])
    images = torch.from_numpy(TEST_IMAGES)
    both = (classifier.logits(images) + classifier.logits(images.flip(2))) / 2
    torch.testing.assert_close(classifier.logits(images, mirror_tta=True), both)
    assert not torch.equal(both, classifier.logits(images))


def test_pictures_are_classified_as_in_the_run(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    run_dir, _ = trained
    saved = read_predictions(run_dir)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, image in enumerate(saved.images):
        Image.fromarray(image).save(folder / f"{i:02}.png")
    found = predict_pictures(load_classifier(run_dir), [folder])
    assert [Path(row["path"]).name for row in found] == [f"{i:02}.png" for i in range(len(saved.labels))]
    probabilities = torch.from_numpy(saved.logits).softmax(1).numpy()
    for row, expected in zip(found, probabilities, strict=True):
        order = np.argsort(-expected)[:3]
        assert [guess["class"] for guess in row["top"]] == [cifar10.CLASSES[label] for label in order]
        assert [guess["probability"] for guess in row["top"]] == pytest.approx(expected[order], abs=1e-5)


def test_a_recipe_that_changed_since_does_not_matter(trained: tuple[Path, dict[str, Any]]) -> None:
    path = trained[0] / "best.pt"
    content = load_checkpoint(path)
    save_checkpoint(path, content | {"settings": content["settings"] | {"learning_rate": 9.0}})
    assert isinstance(load_classifier(path), Classifier)


@pytest.mark.parametrize("change", [{"model": {}}, {"settings": {}}, {"epoch": "x"}])
def test_what_holds_no_model_is_refused(trained: tuple[Path, dict[str, Any]], change: dict[str, Any]) -> None:
    path = trained[0] / "best.pt"
    save_checkpoint(path, load_checkpoint(path) | change)
    with pytest.raises(FastcifarError, match=r"best\.pt does not hold a model of this version"):
        load_classifier(trained[0])
    path.unlink()
    with pytest.raises(FastcifarError, match=r"run holds no best\.pt: no epoch of a run was finished there"):
        load_classifier(trained[0])


def test_the_commands(
    tiny_data: Path,
    trained: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    results = trained[1]["best"]
    code, out, err = call(monkeypatch, capsys, "evaluate", "run")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("run/best.pt: adam89, ")
    assert lines[1].startswith(f"accuracy {results['test_accuracy']:.2%} (95% interval ")
    assert lines[1].endswith(", on 10 images of test, clean")
    assert lines[3].split() == ["class", "precision", "recall", "F1", "images"]
    assert [line.split()[0] for line in lines[4:14]] == list(cifar10.CLASSES)
    code, out, _ = call(monkeypatch, capsys, "evaluate", "run", "--split", "val", "--tta", "--json")
    evaluation = json.loads(out)
    assert (code, evaluation["split"], evaluation["mirror_tta"]) == (0, "val", True)
    code, _, err = call(monkeypatch, capsys, "evaluate", "run", "--tta", "--augmented")
    assert (code, err) == (2, "Error: --augmented and --tta exclude each other\n")

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


def test_runs_are_listed(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call(monkeypatch, capsys, "runs")
    assert (code, err) == (2, "Error: cannot read runs: No such file or directory\n")
    folder = tmp_path / "runs"
    (folder / "other").mkdir(parents=True)
    assert call(monkeypatch, capsys, "runs") == (0, "runs holds no runs\n", "")
    results = run(tiny_data, folder / "first", epochs=1)
    listener = Listener()
    listener.stop_at = (1, 0)
    with pytest.raises(Interrupted):
        run(tiny_data, folder / "part", listener)
    capsys.readouterr()
    (folder / "bad").mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (folder / "bad" / name).write_text("x")
    found = {summary.path.name: summary for summary in list_runs(folder)}
    assert list(found) == ["part", "first", "bad"]
    states = {name: (summary.state, summary.num_epochs, summary.epochs) for name, summary in found.items()}
    assert states == {"part": ("stopped", 1, 3), "first": ("finished", 1, 1), "bad": ("damaged", 0, 0)}
    assert found["first"].test_accuracy == results["best"]["test_accuracy"]
    with interrupted_run_dir(folder / "part"):
        assert list_runs(folder / "part")[0].state == "running"
    code, out, err = call(monkeypatch, capsys, "runs")
    assert (code, err) == (0, "")
    assert out.splitlines()[1].split()[:4] == ["part", "stopped", "adam89", "1/3"]
    assert out.splitlines()[-1].endswith("for example: fastcifar train --resume runs/part")
