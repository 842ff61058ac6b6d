import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import containers

from fastcifar.data.containers import Dataset
from fastcifar.data.download import load_source
from fastcifar.data.prepare import prepare_data
from fastcifar.errors import FastcifarError


@pytest.fixture(scope="session")
def tiny_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    source = containers.write_folder(containers.binary_files(), folder / "cifar-10-batches-bin")
    with containers.tiny_cifar10():
        prepare_data(folder / "data", str(source))
    return folder / "data"


@pytest.fixture
def tiny_data(tiny_template: Path, tmp_path: Path) -> Iterator[Path]:
    """A data folder of the tiny dataset, which is what CIFAR-10 is for the test's duration."""
    with containers.tiny_cifar10():
        yield Path(shutil.copytree(tiny_template, tmp_path / "data"))


@pytest.fixture(scope="session")
def real_dataset() -> Dataset:
    """The 60,000 images; for tests marked `network`, which are skipped where the data cannot be reached."""
    try:
        return load_source("auto")
    except FastcifarError as error:
        pytest.skip(str(error))
