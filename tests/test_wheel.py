"""A wheel built from this tree is installed, and works in an environment without access to the tree."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STORED_RUN = ROOT / "tests" / "data" / "run-0.1" / "finished"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    shutil.copytree(ROOT / "fastcifar", tree / "fastcifar", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    build = "from setuptools.build_meta import build_wheel; build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_it_holds_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if name.startswith("fastcifar/")}
    package = ROOT / "fastcifar"
    beside = {
        str(path.relative_to(ROOT)) for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    assert inside == beside


def test_the_wheel_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("pip")
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--isolated", "--disable-pip-version-check"]
    install = ["install", "--no-deps", "--no-index", "--no-cache-dir", "--no-compile", str(wheel)]
    subprocess.run([*pip, *install], check=True, capture_output=True)
    (site_packages,) = environment.glob("lib/python*/site-packages")
    # The dependencies are this environment's: a path in a .pth file, so that its own .pth files are not read.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    variables |= {"PYTHONNOUSERSITE": "1", "PYTHONWARNINGS": "error"}

    def call(*arguments: str) -> str:
        command = [str(environment / "bin" / "fastcifar"), *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [str(python), "-I", "-c", "import fastcifar; print(fastcifar.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert Path(where.strip()).is_relative_to(environment)
    assert "prepare" in call("--help")
    run_dir = Path(shutil.copytree(STORED_RUN, tmp_path / "run"))
    assert call("report", str(run_dir)) == f"{run_dir / 'report.html'}\n"
    assert "Test accuracy, clean" in (run_dir / "report.html").read_text()
