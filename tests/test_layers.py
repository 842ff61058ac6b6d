"""Modules import only downwards; the package imports nothing that lies beside it."""

import ast
from pathlib import Path

import fastcifar

PACKAGE = Path(fastcifar.__file__).parent
LAYERS = [  # from the top
    "__main__", "cli", "console", "printing", "report", "page", "doctor", "train", "parts", "record", "trainer",
    "captured_step", "host_memory", "stop_signals", "observer", "classifier", "run_list", "settings", "evaluate",
    "recipes", "charts", "curves", "outcomes", "picture_grid", "figures", "scores", "pictures", "prepare", "loader",
    "ffcv_stream", "checkpoint", "distributed", "runs", "sources", "local_copies", "decoding", "model",
    "augment_numba", "beton", "augment", "cifar10", "hashing", "files", "errors", "__init__",
]  # fmt: skip


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = node.module or ""
            names = {f"fastcifar.{alias.name}" for alias in node.names}
            is_module = {(PACKAGE / f"{name.split('.')[1]}.py").exists() for name in names}
            found |= names if module == "fastcifar" and is_module == {True} else {module}
    return found


def test_every_module_has_its_layer() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(LAYERS)


def test_imports_go_down() -> None:
    for rank, layer in enumerate(LAYERS[:-1]):  # the last, __init__, hands out names of all of them, when asked
        modules = imported_modules(PACKAGE / f"{layer}.py")
        ours = {[*module.split("."), "__init__"][1] for module in modules if module.split(".")[0] == "fastcifar"}
        assert ours <= set(LAYERS[rank + 1 :]), layer
        from_package = {name for node in ast.walk(ast.parse((PACKAGE / f"{layer}.py").read_text()))
                        if isinstance(node, ast.ImportFrom) and node.module == "fastcifar"
                        for name in (alias.name for alias in node.names)}  # fmt: skip
        assert from_package <= {*LAYERS, "__version__"}, f"{layer}: the package's own names are for others"
        assert not {module.split(".")[0] for module in modules} & {"benchmarks", "tools", "tests"}


def test_only_two_modules_know_ffcv() -> None:
    users = {
        path.stem for path in PACKAGE.glob("*.py") if any(m.split(".")[0] == "ffcv" for m in imported_modules(path))
    }
    assert users == {"beton", "ffcv_stream"}
