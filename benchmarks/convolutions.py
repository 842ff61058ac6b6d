"""Times every convolution of the network alone, in each pass, with each available implementation.

    python benchmarks/convolutions.py

The sum of the shortest times over the network is the time of a step if everything else took none: the true ceiling. On
a CPU the last line is the table for `fastcifar/training/convolution.py`: the passes in which Winograd's is faster.
"""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from measure import describe_machine, synchronise, write_results
from torch import Tensor, nn

from fastcifar.kernels import winograd
from fastcifar.terminal import print_table
from fastcifar.training.allocator import freed_memory_kept
from fastcifar.training.device import choose_precision, resolve_device
from fastcifar.training.model import build_model

PASSES = {winograd.FORWARD: "forward", winograd.INPUT_GRADIENT: "input grad", winograd.WEIGHT_GRADIENT: "weight grad"}

_CALLS_PER_GRAPH = 20


class Layer(NamedTuple):
    """A convolution's shape: square filters and images; `size` is the input's."""

    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    size: int

    def describe(self) -> str:
        """Describe it for a table."""
        return f"{self.in_channels}-{self.out_channels}, {self.kernel}x{self.kernel}/{self.stride} @ {self.size}"


def find_layers() -> Counter[Layer]:
    """The network's convolutions, and the number of each."""
    found: Counter[Layer] = Counter()

    def note(module: nn.Module, inputs: tuple[Tensor], _: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        shape = (module.in_channels, module.out_channels, module.kernel_size[0], module.stride[0], inputs[0].shape[-1])
        found[Layer(*shape)] += 1

    model = build_model(0).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    with torch.inference_mode():
        model(torch.zeros(1, 3, 32, 32))
    return found


def measure_convolutions(device: torch.device, precision: str, batch_size: int, *, seconds: float) -> dict[str, Any]:
    """Time the convolutions of a step.

    Args:
        device: the device to measure.
        precision: "bf16" or "fp32", of images; weights are cast to it before.
        batch_size: images per step.
        seconds: the least time for each shape and pass; each implementation takes at least three turns.

    Returns:
        `rows` (each with the milliseconds of one convolution by `implementation`), and for all convolutions of a step
        `ms` and `img_per_s` with the best implementation of each, and `torch_img_per_s` with torch's channels-last.
    """
    rows = []
    with freed_memory_kept(device.type):
        for layer, count in find_layers().items():
            for name, works in _build_work(layer, device, precision, batch_size).items():
                times = _time_in_turns(works, device, seconds)
                rows.append({**layer._asdict(), "count": count, "pass": name, "ms": times})
    best_ms = sum(row["count"] * min(row["ms"].values()) for row in rows)
    torch_ms = sum(row["count"] * row["ms"]["torch"] for row in rows)
    return {
        "rows": rows,
        "ms": best_ms,
        "img_per_s": batch_size / best_ms * 1e3,
        "torch_img_per_s": batch_size / torch_ms * 1e3,
    }


Works = dict[str, Callable[[], object]]  # by implementation


def _build_work(layer: Layer, device: torch.device, precision: str, batch_size: int) -> dict[str, Works]:
    """The functions to time, by pass."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    padding, out_size = layer.kernel // 2, layer.size // layer.stride

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)

    x = draw(batch_size, layer.in_channels, layer.size, layer.size).to(dtype)
    dy = draw(batch_size, layer.out_channels, out_size, out_size).to(dtype)
    weight = draw(layer.out_channels, layer.in_channels, layer.kernel, layer.kernel)

    def with_torch(x: Tensor, dy: Tensor, weight: Tensor) -> dict[str, Callable[[], object]]:
        def gradient(which: int) -> Callable[[], object]:
            mask = [which == position for position in range(3)]
            geometry = ([layer.stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, mask)
            return lambda: torch.ops.aten.convolution_backward(dy, x, weight, None, *geometry)

        return {
            "f": lambda: torch.conv2d(x, weight, stride=layer.stride, padding=padding),
            "i": gradient(0),
            "w": gradient(1),
        }

    implementations = {"torch": with_torch(x, dy, weight.to(dtype))}
    if device.type == "cpu":
        implementations["torch NCHW"] = with_torch(x.contiguous(), dy.contiguous(), weight.to(dtype).contiguous())
        if (layer.kernel, layer.stride) == (3, 1) and layer.in_channels > 3:
            everything = winograd.ALL_PASSES
            implementations["winograd"] = {
                "f": lambda: winograd.conv3x3(x, weight, everything),
                "i": lambda: winograd.conv3x3_input_gradient(dy, x, weight, everything),
                "w": lambda: winograd.conv3x3_weight_gradient(dy, x, weight, everything),
            }
    needed = [name for name in PASSES if name != winograd.INPUT_GRADIENT or layer.in_channels > 3]
    return {name: {kind: works[name] for kind, works in implementations.items()} for name in needed}


def _time_in_turns(works: Works, device: torch.device, seconds: float) -> dict[str, float]:
    """The shortest time of each, in milliseconds, after one turn to warm up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    num_calls = 1
    if device.type == "cuda":
        works, num_calls = {name: _captured(work) for name, work in works.items()}, _CALLS_PER_GRAPH
    end = time.perf_counter() + seconds
    while len(next(iter(times.values()))) < 3 or time.perf_counter() < end:
        for name, work in works.items():
            synchronise(device)
            start = time.perf_counter()
            work()
            synchronise(device)
            times[name].append((time.perf_counter() - start) * 1e3 / num_calls)
    return {name: min(values[1:]) for name, values in times.items()}


def _captured(work: Callable[[], object]) -> Callable[[], object]:
    """Several calls as one CUDA graph, as in a captured step: issuing a call takes longer than running it."""
    work()  # cuDNN chooses its algorithm
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_CALLS_PER_GRAPH):
            work()
    return graph.replay


def show(measured: dict[str, Any]) -> None:
    """Print the table."""
    kinds = list(dict.fromkeys(kind for row in measured["rows"] for kind in row["ms"]))
    rows = []
    for row in measured["rows"]:
        layer = Layer(*(row[name] for name in Layer._fields))
        gflop = 2e-9 * measured["batch_size"] * layer.in_channels * layer.out_channels * layer.kernel**2
        gflop *= (layer.size // layer.stride) ** 2
        best = min(row["ms"], key=row["ms"].__getitem__)
        times = [f"{row['ms'][kind]:.1f}" if kind in row["ms"] else "" for kind in kinds]
        rate = f"{gflop / row['ms'][best] * 1e3:,.0f}"
        rows.append([f"{row['count']} x {layer.describe()}", PASSES[row["pass"]], *times, best, rate])
    columns = ["convolution", "pass", *(f"{kind}, ms" for kind in kinds), "best", "GFLOP/s"]
    print_table(columns, rows, num_text_columns=2)
    print(f"all of a step: {measured['ms']:.0f} ms, {measured['img_per_s']:,.1f} img/s; ", end="")
    print(f"with torch's channels-last ones alone: {measured['torch_img_per_s']:,.1f} img/s")


def to_table(rows: list[dict[str, Any]]) -> str:
    """The shapes and passes in which Winograd's algorithm took less time than torch's; "torch" if there is none."""
    entries: dict[str, str] = {}
    for row in rows:
        if "winograd" in row["ms"] and row["ms"]["winograd"] < row["ms"]["torch"]:
            shape = f"{row['in_channels']}@{row['size']}"
            entries[shape] = entries.get(shape, "") + row["pass"]
    return " ".join(f"{shape}:{passes}" for shape, passes in entries.items()) or "torch"


@click.command(help=__doc__.splitlines()[0])
@click.option("--device", "device_name", default="auto", show_default=True)
@click.option("--precision", type=click.Choice(["bf16", "fp32"]), help="[default: as training chooses]")
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True)
@click.option("--seconds", default=2.0, show_default=True, help="Least time for each shape and pass.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write all times here.")
def main(device_name: str, precision: str | None, batch_size: int, seconds: float, out: Path | None) -> None:
    """Measure, print and write."""
    device = resolve_device(device_name)
    torch.backends.cudnn.benchmark = True
    precision = precision or choose_precision(device)
    machine = describe_machine(device)
    print(f"{machine['device']}, {precision}, batch size {batch_size}", flush=True)
    measured = measure_convolutions(device, precision, batch_size, seconds=seconds)
    measured |= {"machine": machine, "precision": precision, "batch_size": batch_size}
    show(measured)
    if device.type == "cpu":
        print(f"Winograd's are faster: {to_table(measured['rows'])}")
    if out is not None:
        write_results(out, measured)


if __name__ == "__main__":
    main()
