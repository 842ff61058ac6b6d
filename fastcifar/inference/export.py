"""Exports a finished run's weights for use without fastcifar: as safetensors, a torch.export program, or ONNX.

Each file is read back before it is renamed into place, and must classify the run's test images as an evaluation of the
run does in fp32 with torch's convolutions.
"""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcifar.data.cifar10 import CLASSES, IMAGE_SIZE, NUM_CLASSES
from fastcifar.errors import FastcifarError, check_choice
from fastcifar.files import replacing
from fastcifar.inference.classifier import Classifier, load_classifier
from fastcifar.inference.exported import (
    METADATA_KEY,
    WEIGHTS_FILE,
    load_onnx,
    load_safetensors,
    write_metadata,
)
from fastcifar.inference.model_card import write_card
from fastcifar.kernels.gather import normalise
from fastcifar.machine import check_installed
from fastcifar.results.records import BEST_FILE, RESULTS_FILE, read_predictions, read_results

# Relative to the largest logit. Both sides add the same products in float32, in an order that depends on the program
# and the memory format (channels-last or contiguous). Another order changes a layer by about 1e-6, 20 layers by at most
# about 1e-4; a mistake in the preprocessing or in a layer's settings changes the logits far more than this.
TOLERANCE = 1e-3

_DEFAULT_NAMES = {"safetensors": "hub", "torch": "model.pt2", "onnx": "model.onnx"}
_PACKAGES = {"safetensors": ("safetensors",), "torch": (), "onnx": ("onnx", "onnxscript", "onnxruntime")}
_BATCH_SIZE = 500
_EXAMPLE = (torch.zeros((2, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8),)
_DYNAMIC_SHAPES = ({0: torch.export.Dim("batch", min=1)},)

Classify = Callable[[Tensor], Tensor]  # (B, 32, 32, 3) uint8 to (B, 10) float32


class ImageClassifier(nn.Module):
    """A network that includes its preprocessing: uint8 pixels in, logits out.

    Args:
        classifier: the source of the weights; its model's last layer is replaced.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        backbone = classifier.model.backbone
        assert isinstance(backbone, nn.Module)
        fc = nn.Linear(backbone.fc.in_features, NUM_CLASSES)  # type: ignore[union-attr, arg-type]
        fc.load_state_dict(backbone.fc.state_dict())  # type: ignore[union-attr]
        backbone.fc = fc  # the run's layer handles autocast, which an exported program does not need
        self.backbone = backbone
        self.register_buffer("mean", classifier.mean)
        self.register_buffer("std", classifier.std)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images.

        Args:
            images: `(B, 32, 32, 3)` uint8.

        Returns:
            `(B, 10)` float32 logits.
        """
        logits: Tensor = self.backbone(normalise(images, self.mean, self.std))  # type: ignore[arg-type]
        return logits


def export_model(run_dir: Path, format: str, out: Path | None = None) -> Path:  # noqa: A002 (as the option is called)
    """Write a finished run's best weights for use elsewhere.

    Args:
        run_dir: the run directory.
        format: "torch" (a torch.export program) or "onnx", both from uint8 images of any batch size to logits, or
            "safetensors": a folder with the weights under torchvision's names and a model card.
        out: the file, or for safetensors the folder; None for `model.pt2`, `model.onnx` or `hub` in the run directory.

    Returns:
        The path of the file or folder.

    Raises:
        FastcifarError: the path exists, the run is not finished, its weights are not finite, a package is missing, the
            file cannot be written, or the model that is read back classifies the test images differently.
    """
    check_choice("format", format, *_DEFAULT_NAMES)
    check_installed("export", *_PACKAGES[format])
    out = out or run_dir / _DEFAULT_NAMES[format]
    if out.exists() or out.is_symlink():
        raise FastcifarError(f"{out} exists already: remove it, or give another path")
    if not (run_dir / RESULTS_FILE).exists():
        raise FastcifarError(f"{run_dir} holds no {RESULTS_FILE}: only a finished run is exported")
    classifier = load_classifier(run_dir / BEST_FILE, "cpu", precision="fp32", convolution="torch")
    if not all(value.isfinite().all() for value in classifier.model.state_dict().values()):
        raise FastcifarError(f"{classifier.path} holds weights that are not finite")
    tested = read_predictions(run_dir)
    images = torch.from_numpy(tested.images)
    expected = classifier.logits(images)  # before its layers become the exported model's
    model = ImageClassifier(classifier).eval()
    with replacing(out) as temporary:
        written = _WRITERS[format](temporary, model, classifier)
        _check_alike(out, _logits(written, images), expected)
        if format == "safetensors":
            num_correct = int((expected.argmax(1).numpy() == tested.labels).sum())
            write_card(temporary, classifier.settings, read_results(run_dir), num_correct, len(images))
    return out


def _logits(classify: Classify, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([classify(batch) for batch in images.split(_BATCH_SIZE)])


def _check_alike(out: Path, found: Tensor, expected: Tensor) -> None:
    """Raise FastcifarError unless both give the same classes, and logits within `TOLERANCE` of the largest logit."""
    num_other = int((found.argmax(1) != expected.argmax(1)).sum())
    error, largest = float((found - expected).abs().max()), float(expected.abs().max())
    if num_other or not error <= TOLERANCE * largest:
        raise FastcifarError(
            f"{out} is not written: read back, it gives {num_other} of {len(expected)} test images another class, and "
            f"logits that differ by up to {error:.2g} (allowed: no image, {TOLERANCE * largest:.2g})"
        )


def _write_safetensors(out: Path, model: ImageClassifier, classifier: Classifier) -> Classify:
    import safetensors.torch

    out.mkdir(parents=True)
    weights = {name: value.contiguous() for name, value in model.backbone.state_dict().items()}
    metadata = {METADATA_KEY: write_metadata(classifier.settings, classifier.num_epochs), "format": "pt"}
    (out / WEIGHTS_FILE).write_bytes(safetensors.torch.save(weights, metadata))
    return ImageClassifier(load_safetensors(out / WEIGHTS_FILE, "cpu")).eval()


def _write_torch(out: Path, model: ImageClassifier, _: Classifier) -> Classify:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own code
        program = torch.export.export(model, _EXAMPLE, dynamic_shapes=_DYNAMIC_SHAPES)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        out.write_bytes(buffer.getvalue())
        module: Any = torch.export.load(io.BytesIO(out.read_bytes())).module()  # unpickles what was just written
    return module  # type: ignore[no-any-return]


def _write_onnx(out: Path, model: ImageClassifier, classifier: Classifier) -> Classify:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            _EXAMPLE,
            dynamo=True,
            dynamic_shapes=_DYNAMIC_SHAPES,
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # paths of this machine
    program.model.metadata_props.update(
        {"classes": ",".join(CLASSES), METADATA_KEY: write_metadata(classifier.settings, classifier.num_epochs)}
    )
    out.write_bytes(program.model_proto.SerializeToString())
    return load_onnx(out, "cpu").logits


_WRITERS = {"safetensors": _write_safetensors, "torch": _write_torch, "onnx": _write_onnx}
