import importlib
import json
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from support import containers
from support.command_line import ENVIRONMENT, PROGRAMS, TRAIN, call
from support.figure_parts import build_metrics, build_results, write_run
from support.published import MyResnet
from support.training_runs import interrupt

from fastcifar import cli
from fastcifar.cli.training import command_of_whole_run, train
from fastcifar.data.folder import load_val_and_test
from fastcifar.training.checkpoint import load_checkpoint
from fastcifar.training.evaluate import compute_logits, loss_and_accuracy


def test_help_takes_little_longer_than_clicks_import() -> None:
    """About 1.4 times; with numpy it would be 3 times, with torch dozens."""

    def seconds(*command: str) -> float:
        """CPU time, which other work on the machine hardly changes."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], env=ENVIRONMENT, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    pairs = [(seconds("-m", "fastcifar", "--help"), seconds("-c", "import click")) for _ in range(5)]
    assert statistics.median(ours / bare for ours, bare in pairs) < 3


def test_help_imports_nothing_heavy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(monkeypatch, capsys, "--help")
    assert code == 0
    assert "prepare" in out
    assert "train" in out
    script = "import fastcifar.cli, sys; print(*{'torch', 'numpy', 'ffcv', 'rich', 'PIL'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, check=True, capture_output=True, text=True)
    assert loaded.stdout.strip() == ""


BAD: list[tuple[list[str], str]] = [
    (["train", "--recipe", "sgd93"], "Invalid value for '--recipe': 'sgd93' is not one of 'sgd92', 'adam89'."),
    (["train"], "Missing option '--recipe'. Choose from: sgd92, adam89"),
    (["train", "--recipe", "sgd92", "--epochs", "0"], "--epochs must be between 1 and 100,000, not 0"),
    (["train", "--recipe", "sgd92", "--epochs", "x"], "Invalid value for '--epochs': 'x' is not a valid integer."),
    (["train", "--recipe", "sgd92", "--batch-size", "-5"], "--batch-size must be between 1 and 50,000, not -5"),
    (["train", "--recipe", "sgd92", "--device", "tpu"], "--device must be auto, cpu, cuda or cuda:<index>, not 'tpu'"),
    (["train", "--recipe", "sgd92", "--out", "junk"], "junk is not empty: give a new directory"),
    (
        ["train", "--recipe", "sgd92", "--data", "junk"],
        "junk holds no prepared data (no manifest.json): run `fastcifar prepare --out junk`",
    ),
    (["prepare", "--out", "junk/file"], "cannot write junk/file: a file with this name exists"),
    (["prepare", "--out", "/proc/x", "--source", "junk"], "cannot write /proc/x: No such file or directory"),
    (["train", "--recipe", "sgd92", "--data", "x" * 300], f"cannot read {'x' * 300}: File name too long"),
    (["prepare", "--out", "x" * 300], f"cannot write {'x' * 300}: File name too long"),
    (["charts"], "Missing argument 'RUN...'."),
    (["charts", "junk"], "cannot read junk/config.json: No such file or directory"),
    (["charts", *"abcdefghi"], "9 runs are too many for one picture: give at most 8"),
    (["report", *"abcdefghi"], "9 runs are too many for one picture: give at most 8"),
    (["report", "junk", "./junk"], "junk is given twice"),
    (["report", "--out", "junk/x", "junk"], "cannot read junk/config.json: No such file or directory"),
    (["fly"], "No such command 'fly'."),
    (["prepare", "--speed", "9"], "No such option '--speed'."),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_one_line_and_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "file").write_text("something else")
    code, out, err = call(monkeypatch, capsys, *arguments)
    assert (code, err) == (2, f"Error: {message}\n")
    assert "Traceback" not in out


def test_paths_are_read_as_a_shell_script_means_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    params = [param for command in cli.cli.commands.values() for param in command.params]
    assert [param.name for param in params if isinstance(param.type, click.Path | click.File)] == []
    paths = {param.name for param in params if param.type.name == "path"}
    assert paths >= {"data_dir", "run_dir", "out", "checkpoint", "pictures", "picture", "folder", "run_dirs"}
    for arguments in (["prepare", "--out="], ["runs", " "], ["train", "--resume", ""]):
        code, _, err = call(monkeypatch, capsys, *arguments)
        assert (code, err.endswith(": the path is empty (an unset variable?)\n")) == (2, True), arguments
    code, _, err = call(monkeypatch, capsys, "runs", "~/runs")
    assert (code, err) == (2, f"Error: cannot read {tmp_path}/home/runs: No such file or directory\n")
    code, _, err = call(monkeypatch, capsys, "prepare", "--source", " ")
    assert (code, err) == (2, "Error: --source is empty: give auto, official, npm, or the path of a local copy\n")
    code, _, err = call(monkeypatch, capsys, "prepare", "--source=~/data.tar")
    assert code == 2
    assert f"{tmp_path}/home/data.tar" in err
    code, _, err = call(monkeypatch, capsys, "runs", "~no-such-user/x")
    assert (code, err) == (2, "Error: Invalid value for '[FOLDER]': '~no-such-user/x': there is no such home folder\n")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("~")] == []


@pytest.mark.parametrize(
    "statement",
    [
        "raise OSError('libcublas.so.12: cannot open shared object file: No such file or directory')",
        "raise ImportError('version `GLIBCXX_3.4.30\\' not found')",
        "import no_such_package",
        "1 / 0",
    ],
)
def test_a_package_that_cannot_be_imported_is_named(
    statement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken_torch.py").write_text(statement)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cli.cli, "main", lambda **_: importlib.import_module("broken_torch"))
    code, _, err = call(monkeypatch, capsys)
    assert code == 2
    assert err.startswith("Error: broken_torch cannot be imported (")
    assert err.endswith("): `fastcifar doctor` checks everything that is needed\n")
    assert "standard output" not in err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "standard output"), "standard output: No space left on device"),
        (
            FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"),
            "No usable temporary directory found in ['/tmp']: `fastcifar doctor` may know why",
        ),
        (OSError("something else"), "something else: `fastcifar doctor` may know why"),
    ],
)
def test_an_unexpected_os_error_is_one_line(
    error: OSError, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli.cli, "main", fail)
    assert call(monkeypatch, capsys) == (2, "", f"Error: {line}\n")


def test_an_error_of_our_own_code_is_not_hidden(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.cli, "main", lambda **_: [][0])
    with pytest.raises(IndexError):
        cli.main()


def test_a_folder_that_is_not_a_source_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    code, _, err = call(
        monkeypatch, capsys, "prepare", "--out", str(tmp_path / "data"), "--source", str(tmp_path / "photos")
    )
    assert code == 2
    assert err.startswith("Error: ")
    assert str(tmp_path / "photos") in err
    assert err.count("\n") == 1
    assert list((tmp_path / "data").iterdir()) == []


def test_from_nothing_to_a_trained_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the real network and all charts; the published class loads the weights and gives the run's results."""
    monkeypatch.chdir(tmp_path)
    containers.write_folder(containers.mosaic_files(), tmp_path / "package")
    with containers.tiny_cifar10():
        code, out, err = call(monkeypatch, capsys, "prepare", "--out", "data", "--source", "package")
        assert (code, out.splitlines()[-1], err) == (0, "data is prepared: 40 train, 10 val, 10 test", "")
        prepared = call(monkeypatch, capsys, "prepare", "--out", "data")
        assert prepared == (0, "data is prepared and verified\n", "")
        code, out, err = call(monkeypatch, capsys, *TRAIN, "--precision", "fp32", "--epochs", "2", "--out", "run")
        assert (code, err) == (0, "")
        _, test = load_val_and_test(Path("data"))
    lines = out.splitlines()
    assert [line.split("  ")[0] for line in lines if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    assert any(line.startswith("This was a short run: 2 of 55 epochs, 40 of 40 training images.") for line in lines)
    again = "fastcifar train --recipe adam89 --batch-size 8 --device cpu --precision fp32"
    assert lines[-1] == f"          {again}  # the full recipe"
    for line in lines[-4:]:
        assert line[10:].split()[1] in cli.cli.commands
    names = [f"{name}.{suffix}" for name in ("confusion", "curves", "samples") for suffix in ("png", "svg")]
    assert sorted(path.name for path in Path("run/charts").iterdir()) == names
    assert all(path.stat().st_size > 10_000 for path in Path("run/charts").iterdir())

    half = torch.full((3,), 0.5)
    for name in ("best", "last"):
        row = json.loads(Path("run/results.json").read_text())[name]
        model = MyResnet()
        model.load_state_dict(load_checkpoint(Path(f"run/{name}.pt"))["model"], strict=True)
        logits = compute_logits(model, torch.from_numpy(test.images), mean=half, std=half, precision="fp32")
        loss, accuracy = loss_and_accuracy(logits, torch.from_numpy(test.labels).long())
        assert accuracy == row["test_accuracy"]
        assert loss == pytest.approx(row["test_loss"], rel=1e-3)


def test_quiet_says_where_the_run_is_and_nothing_else(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(monkeypatch, capsys, *TRAIN, "--epochs", "1", "--quiet")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"runs/adam89-\d{8}-\d{6}\n", out)
    assert Path(out.strip(), "results.json").exists()
    message = "Error: --epochs must be between 1 and 100,000, not 0\n"
    assert call(monkeypatch, capsys, *TRAIN, "--epochs", "0", "--quiet") == (2, "", message)


@pytest.mark.parametrize(
    "settings",
    [{"MPLBACKEND": "module://no_such_backend"}, {"MATPLOTLIBRC": "damaged"}, {"MPLCONFIGDIR": "folder"}],
)
def test_unknown_matplotlib_settings_are_accepted(tmp_path: Path, settings: dict[str, str]) -> None:
    write_run(tmp_path / "run", build_metrics(3), build_results(0.5, 0.4))
    (tmp_path / "folder").mkdir()
    for damaged in (tmp_path / "damaged", tmp_path / "folder" / "matplotlibrc"):
        damaged.write_bytes(b"font.size: \xff\xfe")
    command = [sys.executable, "-m", "fastcifar", "charts", "run"]
    drawn = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT | settings, check=True, capture_output=True)
    assert (drawn.stdout.splitlines()[0], drawn.stderr) == (b"run/charts/curves.png", b"")


def test_control_characters_of_a_path_are_escaped_in_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(monkeypatch, capsys, "runs", "no\x1b[31m [red]such[/red]\u202efolder")
    message = r"Error: cannot read no\x1b[31m [red]such[/red]\u202efolder: No such file or directory"
    assert (code, err) == (2, f"{message}\n")


@pytest.mark.usefixtures("default_sighup")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_ends_training_cleanly(tiny_data: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    command = [sys.executable, str(PROGRAMS / "tiny_fastcifar.py"), *TRAIN, "--epochs", "1000", "--out", "run"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch"):
                process.send_signal(number)
                break
        _, err = process.communicate(timeout=300)
    assert process.returncode == code
    asked, stopped = err.splitlines()
    assert asked == "stopping after this step; a second signal stops at once"
    saved = r"stopped: run holds \d+ finished epochs?; continue with `fastcifar train --resume run`"
    assert re.fullmatch(saved, stopped)
    assert (tmp_path / "run" / "last.pt").exists()
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") >= 1


def test_verify_says_what_is_sound_and_what_is_not(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(monkeypatch, capsys, "verify", str(tiny_data))
    assert (code, err) == (0, "")
    assert out == f"{tiny_data} is sound: structure, hashes and content of all three files\n"
    with (tiny_data / "val.beton").open("r+b") as file:
        file.seek(3_000_000)
        file.write(b"x")
    code, _, err = call(monkeypatch, capsys, "verify", str(tiny_data))
    assert code == 2
    assert err == (
        f"Error: {tiny_data}/val.beton is damaged (its file_sha256 is not the manifest's): write it again with "
        f"`fastcifar prepare --force --out {tiny_data}`\n"
    )


def test_resume_goes_on_with_the_runs_own_settings(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    interrupt(tiny_data, tmp_path / "run", (1, 1))
    capsys.readouterr()
    code, _, err = call(monkeypatch, capsys, "train", "--resume", "run", "--train-images", "9")
    assert (code, err) == (2, "Error: --resume continues with the run's settings: leave out --train-images\n")
    shutil.copytree("run", "again")
    assert call(monkeypatch, capsys, "train", "--resume", "again", "--quiet") == (0, "again\n", "")
    code, out, err = call(monkeypatch, capsys, "train", "--resume", "run")
    assert (code, err) == (0, "")
    assert [line.split("  ")[0] for line in out.splitlines() if line.startswith("epoch")] == ["epoch 2/3", "epoch 3/3"]
    assert out.splitlines()[-1] == "          fastcifar predict run PICTURE  # classify your own picture"
    code, _, err = call(monkeypatch, capsys, "train", "--resume", "run")
    assert (code, err) == (2, "Error: run is finished: there is nothing left to do\n")
    code, _, err = call(monkeypatch, capsys, *TRAIN, "--out", "run")
    assert (code, err) == (2, "Error: run is not empty: give a new directory\n")


def test_charts_and_reports_lie_where_they_are_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "whole", build_metrics(2), build_results(0.5, 0.4))
    write_run(tmp_path / "part", build_metrics(1), epochs=2)
    whole = [f"{name}.{suffix}" for name in ("curves", "confusion", "samples") for suffix in ("png", "svg")]
    remark = "part is not finished: confusion and samples are left out, because the model is tested at the end"
    for arguments, lines in (
        (["charts", "whole"], [f"whole/charts/{name}" for name in whole]),
        (["charts", "--out", "x", "whole"], [f"x/{name}" for name in whole]),
        (["charts", "part"], ["part/charts/curves.png", "part/charts/curves.svg", remark]),
        (["charts", "whole", "part"], ["charts-compared/comparison.png", "charts-compared/comparison.svg"]),
        (["report", "part"], ["part/report.html"]),
        (["report", "whole", "part"], ["report.html"]),
        (["report", "part", "--out", "y/z.html"], ["y/z.html"]),
    ):
        assert call(monkeypatch, capsys, *arguments) == (0, "".join(f"{line}\n" for line in lines), "")
        assert all((tmp_path / line).exists() for line in lines if line != remark)
    (tmp_path / "y" / "folder").mkdir()
    code, _, err = call(monkeypatch, capsys, "report", "part", "--out", "y/folder")
    assert (code, err) == (2, "Error: cannot write y/folder: Is a directory\n")
    assert [path.name for path in (tmp_path / "y").iterdir() if path.is_file()] == ["z.html"]


def test_the_view_is_up_before_torch_is_imported() -> None:
    code = "import sys\nfrom fastcifar.cli.training import _progress\nwith _progress(None, quiet=True): "
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_command_of_a_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--recipe", "sgd92", "--epochs", "2", "--seed", "7", "--eval-images", "9", "--out", "x"]
    words += ["--data", "my data", "--no-compile", "--sync-bn", "--log", "tensorboard"]
    options = "--recipe sgd92 --data 'my data' --no-compile --sync-bn --logger tensorboard"
    with train.make_context("train", words):
        assert command_of_whole_run() == f"fastcifar train {options}"
        for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2}.items():
            monkeypatch.setenv(name, str(value))
        torchrun = "torchrun --nnodes 2 --nproc-per-node 2 -m"
        assert command_of_whole_run() == f"{torchrun} fastcifar train {options}"
