"""Sub-packages import only downwards; the package imports no other folder of this repository."""

import ast
from pathlib import Path

import fastcifar

PACKAGE = Path(fastcifar.__file__).parent
LAYERS = [  # from the top; each is a sub-package or a single module
    "__main__",
    "cli",
    "terminal",
    "doctor",
    "inference",
    "training",
    "pipeline",
    "results",
    "kernels",
    "data",
    "recipes",
    "distributed",
    "machine",
    "files",
    "streams",
    "errors",
    "__init__",  # hands out names of all of them, when asked
]
FFCV_USERS = {"pipeline/ffcv_reader.py"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    """Absolute names of what a module imports, function bodies included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = node.module or ""
            found |= {f"fastcifar.{alias.name}" for alias in node.names} if module == "fastcifar" else {module}
    return found


def test_every_module_has_its_layer() -> None:
    assert {layer_of(path) for path in MODULES} == set(LAYERS)


def test_imports_go_down() -> None:
    for path in MODULES:
        layer = layer_of(path)
        modules = imported_modules(path)
        ours = {module.split(".")[1] for module in modules if module.startswith("fastcifar.")} - {layer, "__version__"}
        if layer != "__init__":
            assert ours <= set(LAYERS[LAYERS.index(layer) + 1 : -1]), path
        assert not {module.split(".")[0] for module in modules} & {"benchmarks", "tools", "tests"}


def test_only_one_module_knows_ffcv() -> None:
    users = {path for path in MODULES if any(m.split(".")[0] == "ffcv" for m in imported_modules(path))}
    assert {str(path.relative_to(PACKAGE)) for path in users} == FFCV_USERS
