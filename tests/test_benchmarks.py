import dataclasses
import json
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import baselines
import budget
import convolutions
import isolated
import measure
import numpy as np
import pipeline
import pytest
import scaling
import step_time
import throughput
import torch
from click.testing import CliRunner
from convolutions import Layer
from support.containers import TRAIN_IMAGES, TRAIN_LABELS
from support.tiny_benchmark import cut_short
from support.tiny_world import tiny_world

from fastcifar.data.beton import write_beton
from fastcifar.data.folder import Split, load_train
from fastcifar.distributed import ALONE
from fastcifar.recipes import get_recipe
from fastcifar.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["sgd92", "adam89"])
def test_contenders_train_the_same_network_to_the_same_loss(tmp_path: Path, name: str) -> None:
    """With symmetric images, no crop or rotation, and one batch, all contenders see the same input."""
    images = TRAIN_IMAGES.copy()
    images[:, :, 16:] = images[:, :, 15::-1]
    write_beton(tmp_path / "train.beton", images, TRAIN_LABELS)
    split = Split(images, TRAIN_LABELS, np.arange(len(images)))
    recipe = dataclasses.replace(get_recipe(name), global_batch_size=len(images), padding=0, max_angle_deg=0.0)
    losses: dict[str, list[float]] = {}
    for contender_name, approach in baselines.CONTENDERS.items():
        with tiny_world():
            contender = approach.build(recipe, split, tmp_path, CPU, precision="fp32", num_workers=1)
        for _ in range(2):
            for batch in contender.batches():
                contender.step(*batch)
            losses.setdefault(contender_name, []).append(contender.pop_loss())
    assert len(losses) == 7
    for before, after in losses.values():
        assert before == pytest.approx(losses["published"][0], rel=1e-4)
        # Adam turns a gradient that is only rounding error into a full step.
        assert after == pytest.approx(losses["published"][1], rel=0.01)
    assert losses["published"][0] != pytest.approx(losses["published"][1], rel=0.03)


def test_resident_eager_augments_like_ours(tiny_data: Path) -> None:
    """Not bit for bit, because grid_sample rounds differently, but with the same crops, flips and angles."""
    recipe = dataclasses.replace(get_recipe("sgd92"), global_batch_size=40, max_angle_deg=0.0)
    contender = baselines.ResidentEager(recipe, load_train(tiny_data), CPU, precision="fp32")
    ((images, _),) = contender.batches()
    black = (images == contender._black).all(1)
    rows, columns = black.all(2).sum(1), black.all(1).sum(1)
    assert 0 < rows.float().mean() < 4
    assert max(rows.max(), columns.max()) <= 4
    assert torch.equal(images.unique(), torch.cat([contender._images, contender._black.expand(1, 3, 32, 32)]).unique())


def run(command: Any, *arguments: str) -> str:
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_throughput_measures_and_writes(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_short(monkeypatch)
    few = {name: baselines.CONTENDERS[name] for name in ("published", "stock FFCV", "fastcifar resident")}
    monkeypatch.setattr(throughput, "CONTENDERS", few)  # the test above has all of them
    out = tmp_path / "throughput.json"
    output = run(
        throughput.main,
        "--recipe",
        "adam89",
        "--device",
        "cpu",
        "--batch-sizes",
        "8",
        "--rounds",
        "1",
        "--workers",
        "1",
        "--data",
        str(tiny_data),
        "--json",
        str(out),
    )
    assert "TFLOP/s" in output
    assert "this will take about" in output
    content = json.loads(out.read_text())
    ceiling = content["ceiling"]["convolutions"]
    assert [(row["in_channels"], row["count"], row["pass"]) for row in ceiling["rows"]] == [
        (32, 2, "f"), (32, 2, "i"), (32, 2, "w"), (3, 1, "f"), (3, 1, "w"),
    ]  # fmt: skip
    assert ceiling["img_per_s"] == pytest.approx(8e3 / ceiling["ms"])
    assert ceiling["img_per_s"] >= ceiling["torch_img_per_s"]
    (result,) = content["results"]
    assert (result["recipe"], result["batch_size"]) == ("adam89", 8)
    rows = {row["name"]: row for row in result["contenders"]}
    assert list(rows) == list(few)
    resident = rows["fastcifar resident"]
    for row in rows.values():
        rate = row["img_per_s"]["rounds"][0]
        assert rate > 0
        assert row["s_per_epoch"] == pytest.approx(40 / rate)
        assert row["fastcifar_is_faster_by"]["median"] == pytest.approx(resident["img_per_s"]["median"] / rate)
        assert 0 <= row["waiting_for_data"]["median"] < 1
        assert 0.1 < row["peak_memory_gib"] < 10
    assert content["machine"]["versions"]["ffcv"] == "1.0.2"
    assert out.with_suffix(".png").stat().st_size > 10_000


def test_our_gather_is_part_of_a_step_and_not_of_waiting_for_data(tiny_data: Path) -> None:
    read: list[int] = []
    build = baselines.CONTENDERS["fastcifar resident"].build
    recipe = dataclasses.replace(get_recipe("sgd92"), global_batch_size=20)
    contender = build(recipe, load_train(tiny_data), tiny_data, CPU, precision="fp32", num_workers=1)
    assert isinstance(contender, baselines.FastCifar)
    loader = contender._loader
    real_read = loader.read

    def record(step: torch.Tensor) -> Any:
        read.append(int(step))
        return real_read(step)

    loader.read = record  # type: ignore[method-assign]
    batches = contender.batches()
    batch = next(batches)
    assert read == []
    contender.step(*batch)
    assert read == [0]
    batches.close()


STEPS = dict.fromkeys(baselines.CONTENDERS, 2.0) | {"published": 4.0}
LEAST_S = 2 * (7 * 8 + 11 * 16.0)  # two recipes; 8 s to build each, 11 steps of each


def test_a_plan_takes_five_minutes_or_the_least_valid_time() -> None:
    plan = budget.make_plan(STEPS, ["sgd92", "adam89"])
    assert (plan.recipes, plan.contenders, plan.left_out) == (("sgd92", "adam89"), tuple(STEPS), ())
    assert plan.seconds == plan.least_s == LEAST_S
    fast = {name: step / 100 for name, step in STEPS.items()}
    assert budget.make_plan(fast, ["sgd92"]).seconds == 300


def test_a_short_plan_leaves_out_contenders_not_rounds() -> None:
    plan = budget.make_plan(STEPS, ["sgd92", "adam89"], given_s=LEAST_S / 2)
    assert (plan.recipes, plan.left_out, plan.seconds) == (("sgd92",), ("adam89",), LEAST_S / 2)
    plan = budget.make_plan(STEPS, ["sgd92", "adam89"], given_s=LEAST_S / 2 - 31)
    assert plan.left_out == ("adam89", "resident eager", "stock FFCV")
    plan = budget.make_plan(STEPS, ["sgd92"], given_s=1.0)
    assert plan.contenders == ("tuned PyTorch", "fastcifar resident")
    assert plan.seconds == plan.least_s == 2 * (8 + 11 * 2)


def test_steps_of_a_round() -> None:
    assert budget.steps_of_round(1.0, 10.0) == 9
    assert budget.steps_of_round(1.0, 0.5) == 2
    assert budget.steps_of_round(0.001, 10.0) == 50


def test_the_network_has_twenty_convolutions() -> None:
    layers = convolutions.find_layers()
    assert sum(layers.values()) == 20
    assert {layer: count for layer, count in layers.items() if layer.in_channels == layer.out_channels} == {
        Layer(64, 64, 3, 1, 32): 4,
        Layer(128, 128, 3, 1, 16): 3,
        Layer(256, 256, 3, 1, 8): 3,
        Layer(512, 512, 3, 1, 4): 3,
    }


def test_the_table_names_where_winograd_is_faster() -> None:
    def row(channels: int, name: str, **ms: float) -> dict[str, Any]:
        return {"in_channels": channels, "size": 8, "pass": name, "ms": ms}

    rows = [row(64, "f", torch=2.0, winograd=1.0), row(64, "i", torch=1.0, winograd=2.0), row(64, "w", torch=1.0)]
    assert convolutions.to_table(rows) == "64@8:f"
    assert convolutions.to_table(rows[1:]) == "torch"
    assert convolutions.to_table([*rows, row(512, "i", torch=3.0, winograd=2.0)]) == "64@8:f 512@8:i"


def test_a_contender_that_fails_is_told() -> None:
    task = isolated.Task(
        get_recipe("adam89"),
        Split(TRAIN_IMAGES, TRAIN_LABELS, np.arange(len(TRAIN_LABELS))),
        Path("nowhere"),
        CPU,
        "fp32",
        1,
    )
    with closing(isolated.IsolatedContender("stock FFCV")) as contender:
        contender.begin(task)
        with pytest.raises(RuntimeError, match="stock FFCV: "):
            contender.wait()
        contender._process.kill()
        contender._process.join()
        for ask in (contender.wait, lambda: contender.begin(task)):
            with pytest.raises(RuntimeError, match="stock FFCV: its process died"):
                ask()


class FakeContender:
    """Makes steps that take no time, or fails."""

    def __init__(self, *, fails: bool) -> None:
        self._fails = fails

    def begin(self, task: isolated.Task) -> None:
        if self._fails:
            raise RuntimeError("out of order")

    def wait(self) -> None: ...
    def close(self) -> None: ...

    def time_round(self, num_steps: int | None) -> isolated.Timing:
        return isolated.Timing(img_per_s=100.0, waiting=0.0, peak_memory_gib=1.0)


def test_a_contender_that_failed_once_is_told_in_every_result() -> None:
    contenders: Any = {"published": FakeContender(fails=True), "fastcifar resident": FakeContender(fails=False)}
    failures: dict[str, str] = {}
    split = Split(TRAIN_IMAGES, TRAIN_LABELS, np.arange(len(TRAIN_LABELS)))
    for name in ("sgd92", "adam89"):
        task = isolated.Task(get_recipe(name), split, Path("nowhere"), CPU, "fp32", 1)
        result = throughput.measure_recipe(contenders, failures, task, rounds=1, ceiling_img_per_s=200.0)
        assert [row["name"] for row in result["contenders"]] == ["fastcifar resident"]
        assert result["contenders"][0]["share_of_ceiling"] == 0.5
        assert result["failures"] == {"published": "out of order"}


def test_scaling_measures_and_writes(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = dataclasses.replace(get_recipe("sgd92"), global_batch_size=8)
    monkeypatch.setattr(scaling, "get_recipe", lambda name: recipe)
    assert scaling.measure_rate("sgd92", 1, tiny_data, ALONE, CPU) > 0
    rates = iter([100.0, 150.0, 110.0, 187.0, 90.0, 180.0])
    monkeypatch.setattr(scaling, "run_job", lambda *arguments: next(rates))
    out = tmp_path / "scaling.json"
    output = run(scaling.main, "--world-sizes", "1,2", "--data", str(tiny_data), "--json", str(out))
    one, two = json.loads(out.read_text())["results"]
    assert (one["img_per_s"]["median"], one["efficiency"]) == (100.0, 1.0)
    assert (two["img_per_s"]["median"], two["gain"]["median"], two["efficiency"]) == (180.0, 1.7, 0.85)
    assert "180.0" in output


def test_pipeline_measures_and_writes(tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "pipeline.json"
    run(
        pipeline.main,
        "--device",
        "cpu",
        "--rounds",
        "1",
        "--batch-size",
        "4",
        "--workers",
        "1",
        "--data",
        str(tiny_data),
        "--json",
        str(out),
    )
    rows = json.loads(out.read_text())["pipelines"]
    assert [row["num_images"] for row in rows] == [4, 4, 40, 40, 40, 40]
    reference = rows[0]["img_per_s"]["median"]
    for row in rows:
        assert row["faster_than_torchvision_v1_by"]["median"] == pytest.approx(row["img_per_s"]["median"] / reference)


def test_spread() -> None:
    assert measure.spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "rounds": [3.0, 1.0, 2.0]}


def event(name: str, milliseconds: float, parent: Any = None, shapes: Any = ()) -> Any:
    """An operator as torch's profiler describes it."""
    return SimpleNamespace(name=name, cpu_time_total=1e3 * milliseconds, cpu_parent=parent, input_shapes=shapes)


def test_an_operator_inside_a_counted_one_is_not_counted_again() -> None:
    step = event("step", 40)
    backward = event("aten::convolution_backward", 8, step, [[2, 64, 8, 8], [2, 64, 8, 8], [64, 64, 3, 3]])
    norm = event("aten::batch_norm", 5, step)
    events = [
        step,
        backward,
        event("aten::add_", 1, event("aten::detach", 2, backward)),
        event("aten::convolution", 4, step, [[2, 64, 8, 8], [128, 64, 3, 3]]),
        event("aten::convolution", 3, step, [[2, 64, 8, 8], [64, 64, 1, 1]]),
        norm,
        event("aten::native_batch_norm", 4, norm),
        event("aten::relu_", 2, step),
        event("aten::_fused_adam_", 6, step),
        event("aten::linear", 7, step),
    ]
    assert step_time.time_parts(events, 40) == {
        "3x3 stride-1 convolutions": 8,
        "other convolutions": 7,
        "batch norm": 5,
        "ReLU and additions": 2,
        "optimizer": 6,
        "the rest": 12,
    }


def test_every_part_of_a_step_is_found(tmp_path: Path) -> None:
    """Torch's profiler still names its operators as the parts are looked up, and none is counted twice."""
    with tiny_world():
        trainer = Trainer(get_recipe("adam89"), CPU, precision="fp32", compile=False)
    measured = step_time.measure_step({"torch": trainer}, batch_size=2, rounds=1)
    assert list(measured["torch"]) == list(step_time.PARTS)
    assert all(milliseconds > 0 for milliseconds in measured["torch"].values())
    step_time.draw(measured, "a step", tmp_path / "step.png")
    assert (tmp_path / "step.png").stat().st_size > 5_000
