"""The public names of `import fastcifar`."""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any, assert_type

import numpy as np
import pytest
from support.command_line import ENVIRONMENT

import fastcifar
from fastcifar.data.containers import Dataset

ROOT = Path(fastcifar.__file__).parent.parent


def test_the_names_are_those_of_their_modules() -> None:
    homes = {name: getattr(fastcifar, name) for name in fastcifar.__all__}
    assert {name: value.__module__ for name, value in homes.items() if name != "RECIPES"} == {
        "Classifier": "fastcifar.inference.classifier",
        "EpochMetrics": "fastcifar.results.records",
        "Evaluation": "fastcifar.inference.evaluation",
        "FastcifarError": "fastcifar.errors",
        "Interrupted": "fastcifar.errors",
        "Callback": "fastcifar.training.callbacks",
        "Callbacks": "fastcifar.training.callbacks",
        "Prediction": "fastcifar.inference.prediction",
        "Recipe": "fastcifar.recipes",
        "ResNet18": "fastcifar.training.model",
        "Results": "fastcifar.results.records",
        "Settings": "fastcifar.training.settings",
        "evaluate_split": "fastcifar.inference.evaluation",
        "list_runs": "fastcifar.results.run_dir",
        "load_classifier": "fastcifar.inference.classifier",
        "predict_pictures": "fastcifar.inference.prediction",
        "prepare_data": "fastcifar.data.prepare",
        "resolve_settings": "fastcifar.training.settings",
        "resume_training": "fastcifar.training.run",
        "train_model": "fastcifar.training.run",
        "verify_data": "fastcifar.data.folder",
        "write_charts": "fastcifar.results.charts",
        "write_report": "fastcifar.results.report",
    }
    assert list(fastcifar.RECIPES) == ["sgd92", "adam89"]
    assert all(value.__doc__ for value in homes.values())
    assert set(fastcifar.__all__) <= set(dir(fastcifar))


def test_another_name_is_an_error() -> None:
    with pytest.raises(AttributeError, match="module 'fastcifar' has no attribute 'trian_model'"):
        fastcifar.trian_model  # type: ignore[attr-defined] # noqa: B018


def test_importing_it_imports_nothing_until_a_name_is_used() -> None:
    script = (
        "import sys, fastcifar; from fastcifar import RECIPES, FastcifarError, Callback; dir(fastcifar)\n"
        "print(*sorted(name for name in sys.modules if name.startswith('fastcifar.')))\n"
        "print(*{'torch', 'numpy', 'matplotlib', 'PIL', 'ffcv'} & set(sys.modules))\n"
        "fastcifar.train_model; print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, check=True, capture_output=True, text=True)
    assert run.stdout.splitlines() == [
        "fastcifar.errors fastcifar.recipes fastcifar.training fastcifar.training.callbacks",
        "",
        "True",
    ]


def types_are_seen_through_the_package(data: Path) -> None:
    """For mypy, which checks it with the tests: nothing is Any."""
    settings = assert_type(
        fastcifar.resolve_settings(assert_type(fastcifar.RECIPES["sgd92"], fastcifar.Recipe)), fastcifar.Settings
    )
    assert_type(fastcifar.train_model(settings, data), tuple[Path, fastcifar.Results])
    assert_type(fastcifar.load_classifier(data), fastcifar.Classifier)


def test_the_readmes_example_runs(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (example,) = (block for block in blocks if "train_model" in block)
    chosen = "epochs=3, num_train_images=4096, num_eval_images=1000"
    assert example.count(chosen) == 1
    example = example.replace(chosen, "epochs=1, num_train_images=40, num_eval_images=10, global_batch_size=8")
    monkeypatch.chdir(tmp_path)
    assert tiny_data == Path("data").absolute()
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    (run_dir,) = Path("runs").iterdir()
    assert names["run_dir"] == run_dir
    assert '"recipe": "mine"' in (run_dir / "config.json").read_text()
    assert capsys.readouterr().out == f"{run_dir}: {names['evaluation'].accuracy:.1%} of 20 images\n"


def test_the_example_of_a_logger_runs(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "loggers.md").read_text(), re.DOTALL)
    chosen = 'resolve_settings(RECIPES["adam89"])'
    assert example.count(chosen) == 1
    short = 'epochs=2, num_train_images=8, global_batch_size=8, device="cpu"'
    example = example.replace(chosen, chosen.replace(")", f", {short})"))
    monkeypatch.chdir(tmp_path)
    assert tiny_data == Path("data").absolute()
    begun: list[tuple[str, dict[str, Any]]] = []
    logged: list[tuple[int, dict[str, Any]]] = []

    class Service:
        def log(self, values: dict[str, Any], step: int) -> None:
            logged.append((step, values))

    def init(name: str, config: dict[str, Any]) -> Service:
        begun.append((name, config))
        return Service()

    service = ModuleType("other_service")
    service.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "other_service", service)
    exec(compile(example, "loggers.md", "exec"), {})
    (run_dir,) = Path("runs").iterdir()
    assert [(name, config["recipe"]) for name, config in begun] == [(run_dir.name, "adam89")]
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    assert logged == [(step, json.loads(line)) for step, line in enumerate(lines, start=1)]
    assert len(lines) == 2


def test_the_pages_recipe_is_a_diff_that_applies(tmp_path: Path) -> None:
    (diff,) = re.findall(r"```diff\n(.*?)```", (ROOT / "docs" / "own-recipe.md").read_text(), re.DOTALL)
    (tmp_path / "fastcifar").mkdir()
    path = tmp_path / "fastcifar" / "recipes.py"
    path.write_text((ROOT / "fastcifar" / "recipes.py").read_text())
    outside = os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}  # tmp_path may be in another repository
    subprocess.run(["git", "apply", "-"], input=diff, cwd=tmp_path, env=outside, check=True, text=True)
    module: dict[str, Any] = {"__name__": "recipes"}
    sys.modules["recipes"] = ModuleType("recipes")  # where dataclasses look up their module
    try:
        exec(compile(path.read_text(), str(path), "exec"), module)
    finally:
        del sys.modules["recipes"]
    recipes = module["RECIPES"]
    assert list(recipes) == ["sgd92", "adam89", "sgd-upright"]
    expected = asdict(fastcifar.RECIPES["sgd92"]) | {
        "name": "sgd-upright",
        "published_accuracy": None,
        "max_angle_deg": 0.0,
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
    }
    assert asdict(recipes["sgd-upright"]) == expected


@pytest.mark.network
def test_the_pages_means_and_deviations_are_cifar10s(real_dataset: Dataset) -> None:
    values = np.arange(256) / 255
    pixels = real_dataset.train_images.reshape(-1, 3)
    counts = np.stack([np.bincount(channel, minlength=256) for channel in pixels.T])
    shares = counts / counts.sum(1, keepdims=True)
    mean = shares @ values
    std = np.sqrt((shares * (values - mean[:, None]) ** 2).sum(1))
    assert (mean.round(4).tolist(), std.round(4).tolist()) == ([0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616])
