"""The files beside exported weights: a model card, as model hubs show it, and the configuration."""

from pathlib import Path

from fastcifar import __version__
from fastcifar.data import cifar10
from fastcifar.data.cifar10 import CLASSES
from fastcifar.files import write_json
from fastcifar.results.metrics import wilson_interval
from fastcifar.results.records import Results
from fastcifar.training.settings import Settings

_CARD = """\
---
license: other
library_name: torchvision
pipeline_tag: image-classification
datasets: [cifar10]
metrics: [accuracy]
---
# ResNet-18 for CIFAR-10, by the recipe {recipe}

torchvision's ResNet-18 with a 3x3 stride-1 first convolution and no first pooling, for 32x32 images of ten classes:
{classes}.

## Accuracy

| {num_images:,} test images, none of them used in training | accuracy |
|---|---|
| clean, these weights in float32 | {accuracy:.2%} (95% interval {low:.2%} to {high:.2%}) |
| augmented as in training, in {precision} | {augmented:.2%} |

The weights are those of epoch {epoch} of {epochs}, the best on {num_images:,} validation images (the other half of the
official test set).

## Use

```python
import torch, torchvision
from safetensors.torch import load_file

model = torchvision.models.resnet18(num_classes={num_classes})
model.conv1 = torch.nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
model.maxpool = torch.nn.Identity()
model.load_state_dict(load_file("model.safetensors"))
model.eval()

def classify(images):
    \"\"\"(B, 32, 32, 3) uint8 RGB to (B, {num_classes}) logits.\"\"\"
    images = (images / 255 - torch.tensor({mean})) / torch.tensor({std})
    return model(images.permute(0, 3, 1, 2))
```

## Training

- epochs: {epochs}; training images: {num_train_images:,} of {num_train:,}; batch size: {batch_size}; seed: {seed}
- {optimizer}, learning rate {learning_rate:g}, weight decay {weight_decay:g}, schedule {schedule}
- each image cropped (padding {padding}), mirrored and rotated (up to {max_angle_deg:g} degrees) at random
- {precision} on {device_name}, by fastcifar {version}

## Data and licence

CIFAR-10 (Alex Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009) is published without a licence.
The code that trained this model is under the MIT licence. If you publish the weights, state their licence here.
"""


def write_card(folder: Path, settings: Settings, results: Results, num_correct: int, num_images: int) -> None:
    """Write `README.md` and `config.json`.

    Args:
        folder: the folder to write to.
        settings: the run's settings.
        results: the run's results.
        num_correct: the number of test images that the weights classify correctly.
        num_images: the number of test images.
    """
    recipe = settings.recipe
    low, high = wilson_interval(num_correct, num_images)
    card = _CARD.format(
        recipe=recipe.name,
        classes=", ".join(CLASSES),
        num_classes=len(CLASSES),
        num_images=num_images,
        accuracy=num_correct / num_images,
        low=low,
        high=high,
        augmented=results.best.test_accuracy_augmented,
        precision=settings.precision,
        epoch=results.best.epoch + 1,
        epochs=recipe.epochs,
        mean=recipe.mean,
        std=recipe.std,
        optimizer={"sgd": f"SGD with momentum {recipe.momentum:g}", "adam": "Adam"}[recipe.optimizer],
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        schedule=recipe.schedule,
        batch_size=recipe.global_batch_size,
        num_train_images=settings.num_train_images,
        num_train=cifar10.SPEC.num_train,
        padding=recipe.padding,
        max_angle_deg=recipe.max_angle_deg,
        seed=recipe.seed,
        device_name=settings.device_name,
        version=__version__,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    config = {
        "architecture": "resnet18",
        "image_size": [32, 32],
        "mean": recipe.mean,
        "std": recipe.std,
        "id2label": {str(label): name for label, name in enumerate(CLASSES)},
        "label2id": {name: label for label, name in enumerate(CLASSES)},
    }
    write_json(folder / "config.json", config)
