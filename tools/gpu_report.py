"""All measurements on a GPU by one command, in stages that each take less than 8.5 minutes.

    python tools/gpu_report.py --out DIR [--stage tests --stage switches ...]

A stage writes `DIR/<stage>.json` after each measurement. If it was stopped or had no time left, the same command
continues it. `DIR/report.md` shows all of them. Without a GPU it runs on the CPU, as a trial of the command; give tiny
sizes then. docs/gpu-day.md has the commands for half an hour on a GPU.
"""

import gc
import importlib.util
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]  # a GPU host may have a bare checkout only

from measure import describe_machine, load_images, spread, synchronise  # noqa: E402

from fastcifar.data import cifar10  # noqa: E402
from fastcifar.data.folder import Split  # noqa: E402
from fastcifar.distributed import World  # noqa: E402
from fastcifar.errors import Interrupted, reason  # noqa: E402
from fastcifar.files import read_json, write_json, write_text  # noqa: E402
from fastcifar.kernels.gather import gather_augmented  # noqa: E402
from fastcifar.pipeline.augment import NUM_LEVELS, affine_coeffs, sample_augmentation  # noqa: E402
from fastcifar.pipeline.loader import EpochPlanner, ResidentLoader  # noqa: E402
from fastcifar.recipes import RECIPES  # noqa: E402
from fastcifar.results.records import LAST_FILE, RESULTS_FILE  # noqa: E402
from fastcifar.terminal import RunView  # noqa: E402
from fastcifar.training.compiled_network import StepOptions  # noqa: E402
from fastcifar.training.device import choose_precision, resolve_device, use_fast_kernels  # noqa: E402
from fastcifar.training.gradients import GradientAverage  # noqa: E402
from fastcifar.training.run import resume_training, train_model  # noqa: E402
from fastcifar.training.settings import resolve_settings  # noqa: E402
from fastcifar.training.trainer import Trainer  # noqa: E402

Result = dict[str, Any]
_OFF: dict[str, Any] = {field.name: 1 if field.name == "steps_per_graph" else False for field in fields(StepOptions)}
_STAGE_S = 510.0  # a command on a lent GPU may be stopped after ten minutes
_PYTEST_S = 300.0
# The files with tests marked gpu, the most important first; other files import packages that a GPU host may lack.
GPU_TESTS = [
    f"tests/test_{name}.py" for name in ("trainer", "batch_norm", "evaluate", "loader", "augment", "run", "distributed")
]
# Between a CPU and a GPU, or captured and not, the first step's loss differs by TF32's rounding of factors, 2**-11, in
# 20 layers at most. Later ones differ by what training makes of it, and cuDNN's gradients differ from run to run.
_FIRST_STEP, _MEAN_OF_STEPS = 20 * 2.0**-11, 0.1
_ON: dict[str, Any] = {name: 10 if name == "steps_per_graph" else True for name in _OFF}


@dataclass(frozen=True)
class Campaign:
    """The common parts of the stages."""

    out: Path
    data_dir: Path
    device: torch.device
    num_images: int | None
    batch_size: int
    rounds: int
    epochs: int | None
    num_seeds: int
    random_images: bool

    @property
    def is_cuda(self) -> bool:
        """Whether this is a real measurement, not a trial."""
        return self.device.type == "cuda"

    def load_split(self) -> Split:
        """The training images, or random ones, on which a step takes the same time."""
        if not self.random_images:
            return load_images(self.data_dir, self.num_images)
        num_images, random = self.num_images or cifar10.SPEC.num_train, np.random.default_rng(0)
        images = random.integers(0, 256, (num_images, cifar10.IMAGE_SIZE, cifar10.IMAGE_SIZE, 3), np.uint8)
        return Split(images, random.integers(0, cifar10.NUM_CLASSES, num_images, np.uint8), np.arange(num_images))

    def loader(self, batch_size: int, device: torch.device) -> ResidentLoader:
        """A resident loader, as in training."""
        split = self.load_split()
        recipe = replace(RECIPES["sgd92"], global_batch_size=batch_size)
        planner = EpochPlanner(torch.from_numpy(split.indices).to(device), recipe)
        images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels).long()
        return ResidentLoader(images.to(device), labels.to(device), planner)

    def trainer(self, recipe: str, batch_size: int, options: StepOptions | None = None) -> Trainer:
        """A trainer, as in training."""
        return Trainer(
            replace(RECIPES[recipe], global_batch_size=batch_size),
            self.device,
            precision=choose_precision(self.device),
            compile=self.is_cuda,
            options=options,
        )


Measurements = dict[str, Callable[[], Any]]  # by name; each returns its row for the stage's file


def tests(campaign: Campaign) -> Measurements:
    """The tests marked gpu (without a GPU those of the draws), and agreement with the CPU."""

    def run_pytest() -> Result:
        chosen = ["-m", "gpu", *GPU_TESTS] if campaign.is_cuda else ["tests/test_augment.py", "-k", "golden"]
        command = [sys.executable, "-m", "pytest", "-v", "--durations=15", "--continue-on-collection-errors", *chosen]
        environment = dict(os.environ)
        if campaign.is_cuda and importlib.util.find_spec("xdist"):  # one after the other, compiling takes too long
            command += ["-n", "4", "--dist", "loadfile", "-p", "no:benchmark"]
            environment["TORCHINDUCTOR_COMPILE_THREADS"] = "4"
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=_PYTEST_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # a test may have started other processes
            output, _ = process.communicate()
            output += f"\nstopped after {_PYTEST_S:.0f} s"
        return {"passed": process.returncode == 0, "output": output[-20_000:]}

    def compare_pixels() -> Result:
        loader = campaign.loader(campaign.batch_size, torch.device("cpu"))
        images, cpu = loader._images, torch.device("cpu")
        num_different = 0
        for levels in torch.arange(NUM_LEVELS).split(4096):
            params = replace(sample_augmentation(42, 0, levels), angle_level=levels)
            positions, coeffs = levels % len(images), affine_coeffs(params)
            ours, theirs = (
                gather_augmented(images.to(where), positions.to(where), coeffs.to(where)).cpu()
                for where in (campaign.device, cpu)
            )
            num_different += int((ours != theirs).flatten(1).any(1).sum())
        return {"angle_levels": NUM_LEVELS, "images_that_differ": num_different}

    def compare_losses() -> Result:
        """Compare the losses of five steps in float32."""
        losses = {}
        for where in (torch.device("cpu"), campaign.device):
            recipe = replace(RECIPES["adam89"], global_batch_size=campaign.batch_size)
            trainer = Trainer(recipe, where, precision="fp32", compile=False)
            losses[str(where)] = first_losses(trainer, campaign.loader(campaign.batch_size, where), 5)
        return compared(losses)

    return {"pixels": compare_pixels, "losses": compare_losses, "pytest": run_pytest}


def first_losses(trainer: Trainer, loader: ResidentLoader, num_steps: int) -> list[float]:
    """The mean losses of an epoch's first steps."""
    totals = [0.0]
    trainer.begin_epoch()
    for step in loader.epoch(0):
        if step == num_steps:
            break
        trainer.step(loader)
        totals.append(trainer.totals[0].item())
    size = loader.read(torch.zeros(1, dtype=torch.int64, device=trainer.totals.device))[1].numel()
    return [(after - before) / size for before, after in itertools.pairwise(totals)]


def compared(losses: dict[str, list[float]]) -> Result:
    """Losses of each side by name, and whether they agree; without a GPU there is one side."""
    if len(losses) == 1:
        return {"losses": losses, "not done": "there is no GPU to compare with"}
    ours, theirs = losses.values()
    first, mean = abs(ours[0] / theirs[0] - 1), abs(sum(ours) / sum(theirs) - 1)
    agree = first <= _FIRST_STEP and mean <= _MEAN_OF_STEPS
    return {"losses": losses, "first_differs_by": first, "mean_differs_by": mean, "agree": agree}


def profile(campaign: Campaign) -> Measurements:
    """The time of a step by kernel, and the L2 hit rates of its kernels if ncu is installed."""

    def kernels() -> Result:
        from torch.profiler import ProfilerActivity
        from torch.profiler import profile as profiled

        trainer = campaign.trainer("sgd92", campaign.batch_size)
        loader = campaign.loader(campaign.batch_size, campaign.device)
        if campaign.is_cuda:
            trainer.warm_up(loader)
        trainer.begin_epoch()
        epoch, num_steps = loader.epoch(1), 0
        next(epoch)  # it plans the epoch, which is not part of a step
        trainer.step(loader)
        synchronise(campaign.device)
        with profiled(activities=[ProfilerActivity.CUDA if campaign.is_cuda else ProfilerActivity.CPU]) as profiler:
            for _ in itertools.islice(epoch, 10):
                trainer.step(loader)
                num_steps += 1
            synchronise(campaign.device)
        kind = "CUDA" if campaign.is_cuda else "CPU"
        events = [event for event in profiler.key_averages() if event.device_type.name == kind]  # not calls by the host
        spent = {e.key: e.self_device_time_total if campaign.is_cuda else e.self_cpu_time_total for e in events}
        top = sorted(spent.items(), key=lambda item: -item[1])[:25]
        return {
            "ms_per_step": sum(spent.values()) / 1e3 / num_steps,
            "launches_per_step": sum(event.count for event in events) / num_steps,
            "top": [{"name": name[:120], "ms_per_step": time_us / 1e3 / num_steps} for name, time_us in top],
        }

    def l2_hit_rates() -> Result:
        if shutil.which("ncu") is None or not campaign.is_cuda:
            return {"not done": "needs ncu and a GPU"}
        metrics = "lts__t_sector_hit_rate.pct,dram__bytes.sum"
        names = "regex:batch_norm|_statistics|_apply"
        command = ["ncu", "--csv", "--metrics", metrics, "--kernel-name", names, "--launch-count", "200"]
        with tempfile.TemporaryDirectory() as folder:
            command += [sys.executable, __file__, "--out", folder, "--data", str(campaign.data_dir), "--stage", "steps"]
            command += ["--batch-size", str(campaign.batch_size), *["--random-images"] * campaign.random_images]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
        return {"csv": done.stdout[-200_000:], "returncode": done.returncode}

    return {"kernels": kernels, "l2": l2_hit_rates}


def steps(campaign: Campaign) -> Measurements:
    """A few compiled steps, not captured, to run under ncu."""

    def measure() -> list[float]:
        loader = campaign.loader(campaign.batch_size, campaign.device)
        return first_losses(campaign.trainer("sgd92", campaign.batch_size), loader, 5)

    return {"steps": measure}


def switches(campaign: Campaign) -> Measurements:
    """The step by default, with all switches on, off, on but one; then all off and on at 512; in interleaved rounds."""
    variants = {"defaults": StepOptions(), "all on": StepOptions(**_ON), "all off": StepOptions(**_OFF)}
    variants |= {f"all on but {name}": StepOptions(**_ON | {name: off}) for name, off in _OFF.items()}
    sizes = dict.fromkeys(variants, campaign.batch_size)
    sizes |= {f"{name} at {4 * campaign.batch_size}": 4 * campaign.batch_size for name in ("all off", "all on")}

    built: dict[str, tuple[Trainer, ResidentLoader, Result]] = {}  # kept for the second turn

    def prepare(name: str, size: int) -> tuple[Trainer, ResidentLoader, Result]:
        torch._dynamo.reset()  # otherwise the variants' graphs reach its limit, and it stops compiling
        gc.collect()
        loader = campaign.loader(size, campaign.device)
        trainer = campaign.trainer("sgd92", size, variants[name.split(" at ")[0]])
        start = time.perf_counter()
        if campaign.is_cuda:
            trainer.warm_up(loader)
        return trainer, loader, {"warm_up_s": time.perf_counter() - start, "capture_failure": trainer.capture_failure}

    def build(name: str, size: int) -> Callable[[], Result]:
        def measure() -> Result:
            if name not in built:
                built[name] = prepare(name, size)
            trainer, loader, row = built[name]
            rates = []
            for epoch in range(campaign.rounds + 1):
                start = time.perf_counter()
                loss, _ = trainer.train_epoch(loader, epoch, lambda step: None)
                rates.append(loader.num_steps * size / (time.perf_counter() - start))
            return row | {"img_per_s": spread(rates[1:]), "loss": loss}

        return measure

    # Each variant is measured twice, first in this order and then in reverse: a drift of the clock shows.
    names = list(sizes) if campaign.is_cuda else ["all on", "all off"]
    turns = [(name, 1) for name in names] + [(name, 2) for name in reversed(names)]
    return {f"{name}, turn {turn}": build(name, sizes[name]) for name, turn in turns}


def throughput(campaign: Campaign) -> Measurements:
    """Both recipes against the baselines, with the throughput benchmark."""

    def build(recipe: str) -> Callable[[], Result]:
        def measure() -> Result:
            import throughput as benchmark

            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder, "table.json")
                arguments = ["--recipe", recipe, "--device", str(campaign.device), "--rounds", str(campaign.rounds),
                             "--data", str(campaign.data_dir), "--batch-sizes", str(campaign.batch_size),
                             "--json", str(out)]  # fmt: skip
                if campaign.num_images:
                    arguments += ["--images", str(campaign.num_images)]
                benchmark.main(arguments, standalone_mode=False)
                return dict(read_json(out))

        return measure

    return {name: build(name) for name in RECIPES}


def recipes(campaign: Campaign) -> Measurements:
    """Both recipes in full, seed after seed."""

    def build(name: str, seed: int) -> Callable[[], Result]:
        def measure() -> Result:
            run_dir = campaign.out / f"{name}-seed{seed}"
            if not (run_dir / RESULTS_FILE).exists():
                settings = resolve_settings(
                    RECIPES[name],
                    device=str(campaign.device),
                    seed=seed,
                    epochs=campaign.epochs,
                    global_batch_size=campaign.batch_size,
                    num_train_images=campaign.num_images,
                    num_eval_images=campaign.num_images and min(campaign.num_images, cifar10.SPEC.num_test // 2),
                )
                with RunView() as view:
                    if (run_dir / LAST_FILE).exists():  # the stage was cut off
                        resume_training(run_dir, campaign.data_dir, view)
                    else:
                        train_model(settings, campaign.data_dir, run_dir, view)
            return dict(read_json(run_dir / RESULTS_FILE))

        return measure

    seeds = range(42, 42 + campaign.num_seeds)
    return {f"{name}, seed {seed}": build(name, seed) for seed in seeds for name in RECIPES}


def distributed(campaign: Campaign) -> Measurements:
    """The all-reduce inside a CUDA graph, in an NCCL group of one rank: 100 replays against the uncaptured step."""

    def measure() -> Result:
        if not campaign.is_cuda:
            return {"not done": "NCCL needs a GPU; two ranks over gloo are in tests/test_distributed.py"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}
        dist.init_process_group("cpu:gloo,cuda:nccl", rank=0, world_size=1)
        losses = {}
        try:
            for is_captured in (True, False):
                loader = campaign.loader(campaign.batch_size, campaign.device)
                trainer = campaign.trainer("sgd92", campaign.batch_size)
                trainer._average = GradientAverage(list(trainer.model.parameters()), _WorldOfOne())
                if is_captured:
                    trainer.warm_up(loader)
                losses["captured" if is_captured else "uncaptured"] = first_losses(trainer, loader, 100)
                assert trainer.is_captured == is_captured, trainer.capture_failure
        finally:
            dist.destroy_process_group()
        return compared(losses)

    return {"nccl, one rank": measure}


class _WorldOfOne(World):
    """A world of one rank that still makes the all-reduce."""

    def all_reduce_sum(self, tensor: torch.Tensor) -> None:
        dist.all_reduce(tensor)


STAGES: dict[str, Callable[[Campaign], Measurements]] = {
    stage.__name__: stage for stage in (tests, switches, throughput, recipes, steps, profile, distributed)
}
_NEED_DATA = ("throughput", "recipes")


def run_stage(name: str, campaign: Campaign) -> None:
    """Make the missing measurements; a failure is recorded, and the stage continues."""
    if name in _NEED_DATA and campaign.random_images:
        print(f"{name}: left out, because it needs CIFAR-10", flush=True)
        return
    path = campaign.out / f"{name}.json"
    machine = describe_machine(campaign.device) | {"is_gpu": campaign.is_cuda}
    rows: Result = read_json(path) if path.exists() else {"machine": machine}
    longest_s = max((row["seconds"] for key, row in rows.items() if key != "machine"), default=0.0)
    begun, num_made = time.monotonic(), 0
    measurements = STAGES[name](campaign).items()
    for key, measure in sorted(measurements, key=lambda item: item[0] in rows):  # what failed before comes last
        if key in rows and not _has_failed(rows[key]):
            print(f"{name}, {key}: measured before", flush=True)
            continue
        if num_made and time.monotonic() + longest_s > begun + _STAGE_S:
            print(f"{name}: no time for {key}: repeat the command for what is left", flush=True)
            return
        start = time.perf_counter()
        try:
            row = measure()
        except Interrupted as error:  # the repeated command goes on with it
            raise click.ClickException(str(error)) from error
        except Exception as error:
            row = {"error": f"{type(error).__name__}: {reason(error)}", "traceback": traceback.format_exc()[-4000:]}
        rows[key] = {"seconds": time.perf_counter() - start, "found": row, "random_images": campaign.random_images}
        longest_s, num_made = max(longest_s, rows[key]["seconds"]), num_made + 1
        write_json(path, rows)
        print(f"{name}, {key}: {json.dumps(row)[:300]}", flush=True)
        if isinstance(row, dict) and row.get("capture_failure"):  # torch may keep memory: the next needs a new process
            print(f"{name}: repeat the command for what is left", flush=True)
            return


def _has_failed(row: Result) -> bool:
    return isinstance(row["found"], dict) and "error" in row["found"]


def write_report(out: Path) -> None:
    """Write `report.md`: every measurement of every stage, with long ones shortened."""
    lines = ["# GPU report", ""]
    for name in STAGES:
        path = out / f"{name}.json"
        if path.exists():
            rows = read_json(path)
            machine = rows.pop("machine")
            note = "" if machine["is_gpu"] else " **Not measured on a GPU**: a trial of the command on a CPU."
            lines += [f"## {name}", "", f"{machine['device']}, torch {machine['versions']['torch']}.{note}", ""]
            if any(row["random_images"] for row in rows.values()):
                lines += ["Some of it on random images.", ""]
            lines += ["| measurement | seconds | found |", "|---|---|---|"]
            for key, row in rows.items():
                found = json.dumps(row["found"])[:600].replace("|", "/")
                lines.append(f"| {key} | {row['seconds']:.1f} | `{found}` |")
            lines.append("")
    write_text(out / "report.md", "\n".join(lines) + "\n")


@click.command(help=__doc__.splitlines()[0])
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--stage", "stages", type=click.Choice(list(STAGES)), multiple=True, help="[default: all, in this order]")
@click.option("--device", default="auto", show_default=True)
@click.option("--data", "data_dir", type=click.Path(path_type=Path), default="data", show_default=True)
@click.option("--images", "num_images", type=click.IntRange(1), help="Training images.  [default: all]")
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--epochs", type=click.IntRange(1), help="[default: the recipe's]")
@click.option("--seeds", "num_seeds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--random-images", is_flag=True, help="Use no data; skips throughput and recipes.")
def main(stages: tuple[str, ...], device: str, **options: Any) -> None:
    """Make the missing measurements of the stages, then write the report."""
    campaign = Campaign(device=resolve_device(device), **options)
    campaign.out.mkdir(parents=True, exist_ok=True)
    use_fast_kernels(campaign.device)
    for name in stages or STAGES:
        run_stage(name, campaign)
        write_report(campaign.out)


if __name__ == "__main__":
    main()
