import importlib
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support import containers
from support.command_line import LAUNCHED, NUM_THREADS
from support.tiny_world import tiny_world
from support.training_runs import interrupt, run

from fastcifar.data.containers import Dataset
from fastcifar.data.download import load_source
from fastcifar.data.prepare import prepare_data
from fastcifar.errors import FastcifarError
from fastcifar.results.records import Results

# What a bare GPU host may lack, and the modules that cannot be collected without it.
OPTIONAL = {
    "hypothesis": ["test_containers.py"],
    "scipy": ["test_repeat.py", "test_repeats.py", "test_seed_statistics.py"],
}
collect_ignore = []
for package, modules in OPTIONAL.items():
    try:
        importlib.import_module(package)
    except ImportError:
        collect_ignore += modules


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the number of torch's threads, here and in processes that a test starts; no launcher's variables are set."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(NUM_THREADS))
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(NUM_THREADS)


@pytest.fixture
def default_sighup() -> Iterator[None]:
    """Let SIGHUP end a process even if the tests run under nohup; processes that a test starts inherit this."""
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, former)


@pytest.fixture(scope="session")
def tiny_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    source = containers.write_folder(containers.binary_files(), folder / "cifar-10-batches-bin")
    with containers.tiny_cifar10():
        prepare_data(folder / "data", str(source))
    return folder / "data"


@pytest.fixture
def tiny_data(tiny_template: Path, tmp_path: Path) -> Iterator[Path]:
    """A data folder of the tiny dataset, in a tiny world for the test's duration."""
    with tiny_world():
        yield Path(shutil.copytree(tiny_template, tmp_path / "data"))


@pytest.fixture(scope="session")
def finished_template(tiny_template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    torch.set_num_threads(NUM_THREADS)  # this comes before `environment`
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    with tiny_world():
        return run_dir, run(tiny_template, run_dir, precision="bf16")


@pytest.fixture
def finished_run(finished_template: tuple[Path, Results], tiny_data: Path, tmp_path: Path) -> tuple[Path, Results]:
    """A copy of a finished run of `adam89` in bf16, three epochs, and its results; with the data of a tiny world."""
    template, results = finished_template
    return Path(shutil.copytree(template, tmp_path / "run")), results


@pytest.fixture(scope="session")
def stopped_template(tiny_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(NUM_THREADS)
    run_dir = tmp_path_factory.mktemp("stopped") / "run"
    with tiny_world():
        interrupt(tiny_template, run_dir, (1, 1))
    return run_dir


@pytest.fixture
def stopped_run(stopped_template: Path, tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of an `adam89` run in fp32 stopped in its second epoch of three; with the data of a tiny world."""
    return Path(shutil.copytree(stopped_template, tmp_path / "run"))


@pytest.fixture(scope="session")
def real_dataset() -> Dataset:
    """The 60,000 images, for tests marked `network`, which are skipped if the data cannot be downloaded."""
    try:
        return load_source("auto")
    except FastcifarError as error:
        pytest.skip(str(error))
