"""Commands that use a trained model."""

import json
from collections.abc import Sequence
from pathlib import Path

import click

from fastcifar.cli.options import PATH, inference_options, picture_option
from fastcifar.errors import ArgumentError, one_line


@click.command(short_help="Accuracy of a trained model.")
@click.argument("checkpoint", metavar="RUN|CHECKPOINT", type=PATH)
@click.option(
    "--split",
    type=click.Choice(["val", "test", "test10k"]),
    default="test",
    help="test10k is val and test together, the official test set.",
)
@click.option("--augmented", is_flag=True, help="Augment the images, as the published project very likely did.")
@click.option(
    "--tta", is_flag=True, help="Average the logits of each image and its mirror image (test-time augmentation)."
)
@click.option(
    "--images",
    "num_images",
    type=click.IntRange(1, 5000),
    help="Images of val and of test each, the same as with --eval-images.  [default: all 5,000]",
)
@click.option("--data", "data_dir", type=PATH, help="Prepared data.  [default: data, or what the run was trained on]")
@inference_options
@picture_option("--calibration", "Draw the reliability diagram: accuracy over confidence.")
@picture_option("--label-errors", "Draw the images whose label is least plausible.")
def evaluate(
    checkpoint: Path,
    split: str,
    augmented: bool,
    tta: bool,
    num_images: int | None,
    data_dir: Path | None,
    device: str,
    precision: str,
    as_json: bool,
    calibration: Path | None,
    label_errors: Path | None,
) -> None:
    """Evaluate a trained model: accuracy with its 95% interval, calibration, scores of each class, confusions.

    A run directory means its best.pt.
    """
    if augmented and tta:
        raise click.UsageError("--augmented and --tta exclude each other")
    if calibration is not None or label_errors is not None:
        from fastcifar.results.calibration import draw_calibration
        from fastcifar.results.label_errors import draw_label_errors
        from fastcifar.results.style import check_picture, write_picture

        for name, path in (("calibration", calibration), ("label_errors", label_errors)):
            if path is not None:
                check_picture(path, name)
    from fastcifar.data.folder import load_val_and_test, official_test_set
    from fastcifar.inference.classifier import load_classifier
    from fastcifar.inference.evaluation import evaluate_split
    from fastcifar.results.records import as_plain
    from fastcifar.terminal import show_evaluation

    classifier = load_classifier(checkpoint, device, precision)
    data_dir = data_dir or _find_data(classifier.data_dir)
    _show_notes(classifier.notes)
    evaluation = evaluate_split(classifier, data_dir, split, augmented=augmented, mirror_tta=tta, num_images=num_images)
    title = f"{classifier.describe()}, on {evaluation.describe_images()}"
    if calibration is not None:
        write_picture(calibration, draw_calibration(evaluation.calibration, title=title))
    if label_errors is not None:
        images, _ = official_test_set(*load_val_and_test(data_dir))
        write_picture(label_errors, draw_label_errors(images, evaluation.label_errors, title=title))
    if as_json:
        click.echo(json.dumps(as_plain(evaluation), indent=2))
    else:
        show_evaluation(evaluation)


def _find_data(recorded: Path | None) -> Path:
    """The data to evaluate on if --data names none. If it is not the usual folder, a note says so."""
    from fastcifar.data.folder import is_prepared

    usual = Path("data")
    if recorded is None or is_prepared(usual):
        return usual
    if not is_prepared(recorded):
        problem = f"is needed: neither {usual.absolute()} nor {recorded}, the run's data folder, has data"
        raise ArgumentError("data_dir", problem)
    _show_notes([f"on {recorded}, the data of its run; --data names another folder"])
    return recorded


def _show_notes(notes: Sequence[str]) -> None:
    for note in notes:
        click.echo(f"note: {one_line(note)}", err=True)


@click.command(short_help="Classify pictures.")
@click.argument("checkpoint", metavar="RUN|CHECKPOINT", type=PATH)
@click.argument("pictures", metavar="PICTURE|FOLDER...", nargs=-1, required=True, type=PATH)
@inference_options
@picture_option("--picture", "Also draw each picture beside its probabilities.")
@click.option("--recursive", "-r", is_flag=True, help="Also search sub-folders.")
def predict(
    checkpoint: Path,
    pictures: tuple[Path, ...],
    device: str,
    precision: str,
    as_json: bool,
    picture: Path | None,
    recursive: bool,
) -> None:
    """Classify pictures of any size: the three most likely CIFAR-10 classes for each.

    Exit code 1 means that some of them cannot be read, 2 that none can.
    """
    from fastcifar.inference.pictures import find_pictures, read_pictures

    files = find_pictures(list(pictures), recursive=recursive)
    if picture is not None:
        from fastcifar.inference.grid import check_grid, draw_grid
        from fastcifar.results.style import write_picture

        check_grid(picture, files)
    read = read_pictures(files)
    for file in read:
        if file.error:
            click.echo(f"Error: {one_line(file.error)}", err=True)
    images = [file.image for file in read if file.image is not None]
    if not images and not as_json:
        click.get_current_context().exit(2)
    from fastcifar.inference.classifier import load_classifier
    from fastcifar.inference.prediction import classify_pictures
    from fastcifar.results.records import as_plain
    from fastcifar.terminal import show_predictions

    classifier = load_classifier(checkpoint, device, precision)
    predictions = classify_pictures(classifier, read)
    _show_notes([*classifier.notes, *(row.note for row in predictions if row.note)])
    readable = [row for row in predictions if not row.error]
    if picture is not None and readable:
        write_picture(picture, draw_grid(images, readable, title=classifier.describe()))
    if as_json:
        rows = [{key: value for key, value in as_plain(row).items() if value is not None} for row in predictions]
        click.echo(json.dumps(rows, indent=2))
    else:
        show_predictions(readable)
    if len(readable) < len(predictions):
        click.get_current_context().exit(1 if readable else 2)


@click.command(short_help="Write a trained model for use elsewhere.")
@click.argument("run_dir", metavar="RUN", type=PATH)
@click.option(
    "--format",
    type=click.Choice(["safetensors", "torch", "onnx"]),
    required=True,
    help="Weights with a model card; a torch.export program; an ONNX model.",
)
@click.option(
    "--out",
    type=PATH,
    help="Output file, for safetensors a folder.  [default: RUN/hub, RUN/model.pt2 or RUN/model.onnx]",
)
def export(run_dir: Path, format: str, out: Path | None) -> None:  # noqa: A002
    """Write a finished run's best weights in a form that needs no fastcifar.

    The file is read back, and kept only if it classifies the test images as an evaluation of the run does in fp32.
    """
    from fastcifar.inference.export import export_model

    click.echo(export_model(run_dir, format, out))
