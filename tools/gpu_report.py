"""Everything we claim of a GPU, measured by one command, in stages that each take less than ten minutes.

    python tools/gpu_report.py --out DIR [--stage tests --stage agreement ...]

A stage that is finished leaves `DIR/<stage>.json` and is not run again; `DIR/report.md` tells of all finished ones.
Without a GPU it runs on the CPU, for a trial of the command itself; give tiny sizes then.
"""

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]  # a GPU host may have a bare checkout only

import throughput  # noqa: E402
from measure import choose_device, choose_precision, describe_machine, load_images, spread, synchronise  # noqa: E402

from fastcifar.data import cifar10  # noqa: E402
from fastcifar.data.folder import Split, is_untouched  # noqa: E402
from fastcifar.data.prepare import prepare_data  # noqa: E402
from fastcifar.files import read_json, replacing, write_json  # noqa: E402
from fastcifar.pipeline.augment import NUM_LEVELS, AugmentParams, crop_flip_rotate, sample_augmentation  # noqa: E402
from fastcifar.pipeline.loader import EpochPlanner, ResidentLoader  # noqa: E402
from fastcifar.recipes import RECIPES, Recipe  # noqa: E402
from fastcifar.results.records import LAST_FILE, RESULTS_FILE  # noqa: E402
from fastcifar.terminal import RunView  # noqa: E402
from fastcifar.training.run import resume_training, train_model  # noqa: E402
from fastcifar.training.settings import resolve_settings  # noqa: E402
from fastcifar.training.trainer import Trainer  # noqa: E402

Result = dict[str, Any]
LOGIT_TOLERANCE, LOSS_TOLERANCE = 2e-3, 2e-2  # absolute, and relative; float32 against float32


@dataclass(frozen=True)
class Variant:
    """How a step is built; torch.compile's mode None is its default."""

    compiles: bool = True
    captures: bool = True
    mode: str | None = None
    is_foreach: bool = False  # else the optimizer is the fused one


VARIANTS = {
    "ours: compiled, captured, fused optimizer": Variant(),
    "eager": Variant(compiles=False, captures=False),
    "compiled, not captured": Variant(captures=False),
    "reduce-overhead": Variant(captures=False, mode="reduce-overhead"),
    "max-autotune, captured": Variant(mode="max-autotune-no-cudagraphs"),
    "foreach optimizer, not captured": Variant(captures=False, is_foreach=True),  # SGD's asks the device for its rate
}
CPU_VARIANTS = ("eager",)


@dataclass(frozen=True)
class Options:
    """What the stages share."""

    out: Path
    data_dir: Path
    device: torch.device
    num_images: int | None
    batch_sizes: str
    rounds: int
    epochs: int | None
    num_seeds: int
    minutes: float

    def training_split(self) -> Split:
        """The images to measure on."""
        return load_images(self.data_dir, self.num_images)

    def loader(self, split: Split, batch_size: int, device: torch.device) -> ResidentLoader:
        """A resident loader of the split, as training has it."""
        indices = torch.from_numpy(split.indices).to(device)
        planner = EpochPlanner(indices, batch_size, seed=42, padding=4, max_angle_deg=15)
        images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels).long()
        compiles = device.type == "cuda"
        return ResidentLoader(images.to(device), labels.to(device), planner, compile=compiles)


def run_tests(options: Options) -> Result:
    """The tests marked gpu; without a GPU those of the augmentation, for a trial."""
    chosen = ["-m", "gpu"] if options.device.type == "cuda" else ["tests/test_augment.py", "-k", "golden"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *chosen], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {"passed": done.returncode == 0, "last_line": done.stdout.strip().splitlines()[-1:], "output": done.stdout}


def compare_with_cpu(options: Options) -> Result:
    """Pixels of all angle levels, logits, and the losses of 20 steps: this device against the CPU."""
    device, cpu = options.device, torch.device("cpu")
    split = options.training_split()
    images = torch.from_numpy(split.images[:NUM_LEVELS])
    num_different = 0
    for levels in torch.arange(NUM_LEVELS).split(len(images)):
        batch = images[: len(levels)]
        found = []
        for where in (cpu, device):
            drawn = sample_augmentation(42, 0, levels.to(where))
            params = AugmentParams(drawn.dy, drawn.dx, drawn.flip, levels.to(where), 4, 15)
            found.append(crop_flip_rotate(batch.to(where), params).cpu())
        num_different += int((found[0] != found[1]).flatten(1).any(1).sum())
    result: Result = {"angle_levels": NUM_LEVELS, "images_that_differ": num_different}
    batch_size = min(128, len(images))
    recipe = RECIPES["adam89"]
    torch.backends.cudnn.allow_tf32 = False
    is_cuda = device.type == "cuda"
    for name, where, precision, compiles in (
        ("cpu", cpu, "fp32", False),
        ("device", device, "fp32", False),
        ("device_compiled", device, "fp32", is_cuda),
        ("device_bf16", device, "bf16", is_cuda),
    ):
        trainer = Trainer(replace(recipe, global_batch_size=batch_size), where, precision=precision, compile=compiles)
        losses, previous = [], 0.0
        loader = options.loader(split, batch_size, where)
        trainer.model.eval()
        with torch.no_grad():
            inputs, _ = next(loader.epoch(0))
            logits = trainer.model((inputs.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5)
        result[f"{name}_logits"] = logits[:16].float().cpu().tolist()
        if compiles:
            trainer.warm_up()
        trainer.begin_epoch()
        for step, (batch, labels) in enumerate(loader.epoch(0)):
            if step == 20:
                break
            trainer.step(batch, labels)
            total = float(trainer.totals[0])
            losses.append((total - previous) / batch_size)
            previous = total
        result[f"{name}_losses"] = losses
    torch.backends.cudnn.allow_tf32 = True  # torch's default
    logit_error = (torch.tensor(result["cpu_logits"]) - torch.tensor(result["device_logits"])).abs().max()
    result["largest_logit_difference"] = float(logit_error)
    result["largest_relative_loss_difference"] = max(
        abs(ours - theirs) / theirs
        for name in ("device", "device_compiled")
        for theirs, ours in zip(result["cpu_losses"], result[f"{name}_losses"], strict=True)
    )
    result["within_tolerance"] = bool(
        num_different == 0
        and result["largest_logit_difference"] <= LOGIT_TOLERANCE
        and result["largest_relative_loss_difference"] <= LOSS_TOLERANCE
    )
    return result


def measure_throughput(options: Options) -> Result:
    """Both recipes against the baselines, by the benchmark itself."""
    out = options.out / "throughput-table.json"
    arguments = [
        "--device",
        str(options.device),
        "--rounds",
        str(options.rounds),
        "--data",
        str(options.data_dir),
        "--batch-sizes",
        options.batch_sizes.split(",")[0],
        "--json",
        str(out),
    ]
    if options.num_images:
        arguments += ["--images", str(options.num_images)]
    throughput.main(arguments, standalone_mode=False)
    return dict(read_json(out))


def time_variants(options: Options) -> Result:
    """Our step by batch size, and by how it is compiled, captured and updated, in interleaved rounds."""
    device, split = options.device, options.training_split()
    rows = []
    for batch_size in map(int, options.batch_sizes.split(",")):
        torch._dynamo.reset()  # with every size's graphs it would reach its limit, and go on uncompiled
        loader = options.loader(split, batch_size, device)
        for recipe in RECIPES.values():
            trainers: dict[str, Trainer] = {}
            found: dict[str, Result] = {}
            for name, variant in VARIANTS.items():
                if device.type == "cuda" or name in CPU_VARIANTS:
                    found[name] = {"batch_size": batch_size, "recipe": recipe.name, "variant": name, "rounds": []}
                    with failure_noted(found[name]):
                        start = time.perf_counter()
                        trainers[name] = build_variant(variant, replace(recipe, global_batch_size=batch_size), device)
                        trainers[name].train_epoch(loader, 0, lambda step: None)
                        found[name]["first_epoch_s"] = time.perf_counter() - start
            for epoch in range(1, options.rounds + 1):
                for name, trainer in trainers.items():
                    with failure_noted(found[name]):
                        synchronise(device)
                        start = time.perf_counter()
                        trainer.train_epoch(loader, epoch, lambda step: None)
                        rate = loader.num_steps * batch_size / (time.perf_counter() - start)
                        found[name]["rounds"].append(rate)
            for row in found.values():
                rates = row.pop("rounds")
                rows.append(row | ({} if "error" in row else {"img_per_s": spread(rates)}))
                print(rows[-1], flush=True)
    return {"precision": choose_precision(device), "rows": rows}


@contextlib.contextmanager
def failure_noted(row: Result) -> Iterator[None]:
    """A variant that fails is a finding, not the end of the report."""
    try:
        yield
    except Exception as error:
        row["error"] = (str(error).strip().splitlines() or [repr(error)])[0]


def build_variant(variant: Variant, recipe: Recipe, device: torch.device) -> Trainer:
    """A trainer with one thing chosen otherwise."""
    trainer = Trainer(recipe, device, precision=choose_precision(device), compile=variant.compiles)
    if variant.mode is not None:
        trainer.forward = torch.compile(trainer.compute_loss, mode=variant.mode, dynamic=False)
    for group in trainer.optimizer.param_groups:
        group["fused"], group["foreach"] = not variant.is_foreach, variant.is_foreach
    if variant.captures:
        trainer.warm_up()
    return trainer


def profile_step(options: Options) -> Result:
    """Where a step's time goes: the kernels with the greatest share."""
    from torch.profiler import ProfilerActivity, profile

    device, split = options.device, options.training_split()
    batch_size = int(options.batch_sizes.split(",")[0])
    trainer = Trainer(RECIPES["sgd92"], device, precision=choose_precision(device), compile=device.type == "cuda")
    loader = options.loader(split, batch_size, device)
    if device.type == "cuda":
        trainer.warm_up()
    trainer.train_epoch(loader, 0, lambda step: None)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    num_steps = 0
    with profile(activities=activities, acc_events=True) as profiler:
        for batch in loader.epoch(1):
            trainer.step(*batch)
            num_steps += 1
            if num_steps == 10:
                break
        synchronise(device)
    times: dict[str, float] = {}
    for event in profiler.key_averages():
        on_cuda = event.device_type.name == "CUDA"
        if on_cuda == (device.type == "cuda"):
            spent = event.self_device_time_total if on_cuda else event.self_cpu_time_total
            times[event.key] = times.get(event.key, 0.0) + spent
    total = sum(times.values())
    top = sorted(times.items(), key=lambda item: -item[1])[:10]
    return {
        "batch_size": batch_size,
        "kernel_ms_per_step": total / 1e3 / num_steps,
        "top": [
            {"name": name[:120], "ms_per_step": spent / 1e3 / num_steps, "share": spent / total} for name, spent in top
        ],
    }


def train_in_full(name: str) -> Callable[[Options], Result]:
    """A stage: a recipe trained, over as many seeds as fit."""

    def stage(options: Options) -> Result:
        start = time.perf_counter()
        rows: list[Result] = []
        for seed in range(42, 42 + options.num_seeds):
            if rows and time.perf_counter() - start + rows[-1]["seconds"] > 60 * options.minutes:
                break
            run_dir = options.out / f"{name}-seed{seed}"
            if not (run_dir / RESULTS_FILE).exists():
                settings = resolve_settings(
                    RECIPES[name],
                    device=str(options.device),
                    seed=seed,
                    epochs=options.epochs,
                    global_batch_size=int(options.batch_sizes.split(",")[0]),
                    num_train_images=options.num_images,
                    num_eval_images=options.num_images and min(options.num_images, cifar10.SPEC.num_test // 2),
                )
                with RunView() as console:
                    if (run_dir / LAST_FILE).exists():  # the stage was cut off
                        resume_training(run_dir, options.data_dir, console)
                    else:
                        train_model(settings, options.data_dir, run_dir, console)
            rows.append({"seed": seed, **read_json(run_dir / RESULTS_FILE)})
        accuracies = {
            key: [row["last"][key] for row in rows] for key in ("test_accuracy", "test_accuracy_augmented")
        } | {"test10k_accuracy": [row["test10k_accuracy"] for row in rows]}
        return {
            "runs": rows,
            "mean": {key: statistics.mean(values) for key, values in accuracies.items()},
            "std": {key: statistics.stdev(values) if len(values) > 1 else None for key, values in accuracies.items()},
            "seconds": spread([row["seconds"] for row in rows]),
            "img_per_s": spread([row["img_per_s"] for row in rows]),
        }

    return stage


STAGES: dict[str, Callable[[Options], Result]] = {
    "tests": run_tests,
    "agreement": compare_with_cpu,
    "throughput": measure_throughput,
    "variants": time_variants,
    "profile": profile_step,
    **{name: train_in_full(name) for name in RECIPES},
}


def write_report(out: Path) -> None:
    """`report.md`, of the stages that are finished."""
    done = {name: json.loads((out / f"{name}.json").read_text()) for name in STAGES if (out / f"{name}.json").exists()}
    machine = next(iter(done.values()))["machine"]
    lines = [
        f"# {machine['device']}",
        "",
        f"torch {machine['versions']['torch']}, Python {machine['python']}, "
        f"{machine['cpu']}, {machine['measured'][:10]}",
    ]
    if not machine["is_gpu"]:
        lines += ["", "**Not measured on a GPU**: a trial of the command on a CPU."]
    for name, stage in done.items():
        lines += ["", f"## {name} ({stage['stage_seconds']:.0f} s)", "", *_describe(name, stage)]
    with replacing(out / "report.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _describe(name: str, stage: Result) -> list[str]:
    if name == "tests":
        return [f"{'Passed' if stage['passed'] else 'FAILED'}: {''.join(stage['last_line'])}"]
    if name == "agreement":
        return [
            f"{stage['images_that_differ']} of {stage['angle_levels']:,} augmented images differ from the CPU's; "
            f"logits by at most {stage['largest_logit_difference']:.2g}; the losses of 20 steps by at most "
            f"{stage['largest_relative_loss_difference']:.2%}. Within tolerance: {stage['within_tolerance']}."
        ]
    if name == "throughput":
        top = stage["ceiling"]
        lines = [
            f"Ceiling: {top['matmul_tflop_per_s']:.4g} TFLOP/s, {top['copy_gb_per_s']:,.0f} GB/s, "
            f"{top['convolutions']['img_per_s']:,.0f} img/s by the convolutions alone."
        ]
        for result in stage["results"]:
            lines += ["", f"{result['recipe']}, batch size {result['batch_size']}", ""]
            lines += ["| | img/s | spread | fastcifar is | of ceiling | waiting |", "|---|---|---|---|---|---|"]
            for row in result["contenders"]:
                rate = row["img_per_s"]
                lines.append(
                    f"| {row['name']} | {rate['median']:,.0f} | {rate['min']:,.0f}–{rate['max']:,.0f} "
                    f"| {row['fastcifar_is_faster_by']['median']:.2f}× | {row['share_of_ceiling']:.1%} "
                    f"| {row['waiting_for_data']['median']:.2%} |"
                )
        return lines
    if name == "variants":
        lines = ["| batch size | recipe | variant | img/s | spread |", "|---|---|---|---|---|"]
        for row in stage["rows"]:
            rate = row.get("img_per_s")
            measured = (
                f"{rate['median']:,.0f} | {rate['min']:,.0f}–{rate['max']:,.0f}"
                if rate
                else (f"failed | {row['error']}")
            )
            lines.append(f"| {row['batch_size']} | {row['recipe']} | {row['variant']} | {measured} |")
        return lines
    if name == "profile":
        return [
            f"{stage['kernel_ms_per_step']:.3f} ms of kernels a step at batch size {stage['batch_size']}.",
            "",
            "| kernel | ms a step | share |",
            "|---|---|---|",
        ] + [f"| `{row['name']}` | {row['ms_per_step']:.3f} | {row['share']:.1%} |" for row in stage["top"]]
    mean, std = stage["mean"], stage["std"]
    shown = {key: f"{value:.2%}" + ("" if std[key] is None else f" ± {std[key]:.2%}") for key, value in mean.items()}
    return [
        f"{len(stage['runs'])} seeds, last weights: test {shown['test_accuracy']}, augmented "
        f"{shown['test_accuracy_augmented']}, all 10,000 test images {shown['test10k_accuracy']}; "
        f"{stage['seconds']['median']:.1f} s a run, {stage['img_per_s']['median']:,.0f} img/s."
    ]


@click.command(help=__doc__.splitlines()[0])
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--stage", "stages", type=click.Choice(list(STAGES)), multiple=True, help="[default: all, in this order]")
@click.option("--device", default="auto", show_default=True)
@click.option("--data", "data_dir", type=click.Path(path_type=Path), default="data", show_default=True)
@click.option("--images", "num_images", type=click.IntRange(1), help="Of the training set.  [default: all]")
@click.option("--batch-sizes", default="128,256,512,1024", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--epochs", type=click.IntRange(1), help="[default: the recipe's]")
@click.option("--seeds", "num_seeds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--minutes", type=float, default=8.0, show_default=True, help="After which no further seed is begun.")
def main(stages: tuple[str, ...], device: str, **options: Any) -> None:
    """Run the stages that are not finished yet, then write the report."""
    chosen = Options(device=choose_device(device), **options)
    torch.backends.cudnn.benchmark = True  # as `train.train_model` sets it
    if is_untouched(chosen.data_dir):
        prepare_data(chosen.data_dir, report=click.echo)
    for name in stages or STAGES:
        path = chosen.out / f"{name}.json"
        if path.exists():
            print(f"{name}: finished before", flush=True)
            continue
        print(f"{name}: begins", flush=True)
        start = time.perf_counter()
        result = STAGES[name](chosen)
        machine = describe_machine(chosen.device) | {"is_gpu": chosen.device.type == "cuda"}
        write_json(path, {"machine": machine, "stage_seconds": time.perf_counter() - start, **result})
        write_report(chosen.out)
    print(f"report: {chosen.out / 'report.md'}")


if __name__ == "__main__":
    main()
