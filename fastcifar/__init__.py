"""The classic CIFAR-10 ResNet-18, trained fast and exactly.

The public functions and classes are here by name. A name's module is imported on first use, so importing this package
costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

__all__ = [
    "RECIPES",
    "Callback",
    "Callbacks",
    "Classifier",
    "EpochMetrics",
    "Evaluation",
    "FastcifarError",
    "Interrupted",
    "Prediction",
    "Recipe",
    "ResNet18",
    "Results",
    "Settings",
    "evaluate_split",
    "list_runs",
    "load_classifier",
    "predict_pictures",
    "prepare_data",
    "resolve_settings",
    "resume_training",
    "train_model",
    "verify_data",
    "write_charts",
    "write_report",
]

if TYPE_CHECKING:
    from fastcifar.data.folder import verify_data
    from fastcifar.data.prepare import prepare_data
    from fastcifar.errors import FastcifarError, Interrupted
    from fastcifar.inference.classifier import Classifier, load_classifier
    from fastcifar.inference.evaluation import Evaluation, evaluate_split
    from fastcifar.inference.prediction import Prediction, predict_pictures
    from fastcifar.recipes import RECIPES, Recipe
    from fastcifar.results.charts import write_charts
    from fastcifar.results.records import EpochMetrics, Results
    from fastcifar.results.report import write_report
    from fastcifar.results.run_dir import list_runs
    from fastcifar.training.callbacks import Callback, Callbacks
    from fastcifar.training.model import ResNet18
    from fastcifar.training.run import resume_training, train_model
    from fastcifar.training.settings import Settings, resolve_settings
else:  # a type checker that saw __getattr__ would believe in any name
    _MODULES = {
        "results.charts": ("write_charts",),
        "inference.classifier": ("Classifier", "load_classifier"),
        "inference.evaluation": ("Evaluation", "evaluate_split"),
        "inference.prediction": ("Prediction", "predict_pictures"),
        "errors": ("FastcifarError", "Interrupted"),
        "training.model": ("ResNet18",),
        "training.callbacks": ("Callback", "Callbacks"),
        "data.folder": ("verify_data",),
        "data.prepare": ("prepare_data",),
        "recipes": ("RECIPES", "Recipe"),
        "results.records": ("EpochMetrics", "Results"),
        "results.report": ("write_report",),
        "results.run_dir": ("list_runs",),
        "training.settings": ("Settings", "resolve_settings"),
        "training.run": ("resume_training", "train_model"),
    }

    def __getattr__(name: str) -> Any:
        for module, names in _MODULES.items():
            if name in names:
                value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
