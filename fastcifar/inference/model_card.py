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
# ResNet-18 for CIFAR-10, by the recipe {recipe.name}

torchvision's ResNet-18 with a 3x3 stride-1 first convolution and no first pooling, for 32x32 images of ten classes:
{classes}.

## Accuracy

| {num_images:,} test images, none of them used in training | accuracy |
|---|---|
| clean, these weights in float32 | {accuracy:.2%} (95% interval {low:.2%} to {high:.2%}) |
| augmented as in training, in {settings.precision} | {best.test_accuracy_augmented:.2%} |

The weights are those of epoch {epoch} of {recipe.epochs}, the best on {num_images:,} validation images (the other half
of the official test set).

## Use

```python
import torch, torchvision
from safetensors.torch import load_file

model = torchvision.models.resnet18(num_classes=10)
model.conv1 = torch.nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
model.maxpool = torch.nn.Identity()
model.load_state_dict(load_file("model.safetensors"))
model.eval()

def classify(images):
    \"\"\"(B, 32, 32, 3) uint8 RGB to (B, 10) logits.\"\"\"
    images = (images / 255 - torch.tensor({recipe.mean})) / torch.tensor({recipe.std})
    return model(images.permute(0, 3, 1, 2))
```

## Training

- epochs: {recipe.epochs}; training images: {settings.num_train_images:,} of {num_train:,}; \
batch size: {recipe.global_batch_size}; seed: {recipe.seed}
- {optimizer}, learning rate {recipe.learning_rate:g}, weight decay {recipe.weight_decay:g}, schedule {recipe.schedule}
- each image cropped (padding {recipe.padding}), mirrored and rotated (up to {recipe.max_angle_deg:g} degrees) at random
- {settings.precision} on {settings.device_name}, by fastcifar {version}

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
        recipe=recipe,
        settings=settings,
        best=results.best,
        epoch=results.best.epoch + 1,
        classes=", ".join(CLASSES),
        num_images=num_images,
        accuracy=num_correct / num_images,
        low=low,
        high=high,
        optimizer={"sgd": f"SGD with momentum {recipe.momentum:g}", "adam": "Adam"}[recipe.optimizer],
        num_train=cifar10.SPEC.num_train,
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
