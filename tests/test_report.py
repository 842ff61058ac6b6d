import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from support.figure_parts import build_metrics, build_results, write_run

from fastcifar import __version__
from fastcifar.errors import FastcifarError
from fastcifar.files import locked, read_json, write_json
from fastcifar.results.records import (
    CONFIG_FILE,
    METRICS_FILE,
    PREDICTIONS_FILE,
    RESULTS_FILE,
    read_config,
    write_config,
)
from fastcifar.results.report import build_report, write_report
from fastcifar.results.run_dir import write_diverged

VOID = {"meta", "img"}
# Where |x - p| = 1.96 sqrt(x (1 - x) / 1000), by bisection.
INTERVALS = {0.677: "64.74% to 70.53%", 0.648: "61.79% to 67.70%"}


class Reader(HTMLParser):
    """A page's tables as rows of cells, its facts, texts, links and images; tags must close in order."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.facts: dict[str, str] = {}
        self.words: list[str] = []
        self.links: list[str] = []
        self.anchors: list[str] = []
        self.images: list[dict[str, str]] = []
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self.feed(content)
        self.close()
        assert self._open == []
        assert len(self.anchors) == len(set(self.anchors))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        assert not [name for name in values if name.startswith("on")]
        if tag not in VOID:
            self._open.append(tag)
        if "id" in values:
            self.anchors.append(values["id"])
        if values.get("role") == "region":
            self._rows = self.tables.setdefault(values["aria-label"], [])
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")
        if tag == "img":
            self.images.append(values)
        for name in ("href", "src"):
            if name in values:
                self.links.append(values[name])

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.words.append(data)
        if {"td", "th"} & set(self._open):
            self._rows[-1][-1] += data
        elif "dt" in self._open:
            self._fact = data
        elif "strong" in self._open:
            self.facts[self._fact] = data
        elif "dd" in self._open:
            self.facts[self._fact] += f" | {data}"

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def test_a_finished_run(tmp_path: Path) -> None:
    metrics = [
        replace(line, img_per_s=rate, seconds=30.0)
        for line, rate in zip(build_metrics(3), (90.0, 120.0, 110.0), strict=True)
    ]
    odd = {"mean": [0.5, 1], "note": {"more": {"deep": None}}}
    run_dir = write_run(tmp_path / "a run", metrics, build_results(0.677, 0.648), **odd)
    content = build_report([run_dir])
    assert build_report([run_dir]) == content
    page = Reader(content)
    assert page.facts == {
        "Test accuracy, clean": f"67.70% | 95% interval {INTERVALS[0.677]}; best weights (epoch 2), 1,000 images",
        "Test accuracy, augmented": f"64.80% | 95% interval {INTERVALS[0.648]}; best weights (epoch 2), 1,000 images",
        "Published": "89% | by the recipe's authors, very likely on augmented images",
        "Throughput": "110 img/s | training, median of 3 epochs (90 to 120)",
    }
    assert page.tables["Accuracies"] == [
        ["weights", "validation", "test, clean", "test, augmented"],
        *(
            [which, "60.00%", f"67.70% {INTERVALS[0.677]}", f"64.80% {INTERVALS[0.648]}"]
            for which in ("best (epoch 2)", "last (epoch 3)")
        ),
    ]
    assert page.tables["Throughput"] == [
        ["", "median", "least", "greatest"],
        ["training, img/s", "110", "90", "120"],
        ["epoch with validation, s", "30.0", "30.0", "30.0"],
    ]
    assert "3 epochs took 1 min 30 s, the whole run 1 min 15 s." in page.text
    assert "A short run: 3 of the recipe's 55 epochs, 4,096 of 50,000 training images." in page.text
    assert page.tables["Every epoch"][2] == ["2", "1.0000", "31.00%", "0.9000", "41.00%", "0.1", "120", "30.0"]
    assert ["num_train_images", "4096"] in page.tables["Settings"]
    assert page.tables["Settings"][-3:] == [
        ["mean", "0.5, 1"],
        ["note more deep", "None"],
        ["convolution", "torch"],  # for a run that does not record it
    ]
    assert ["versions fastcifar", __version__] in page.tables["Environment"]
    assert [image["alt"] for image in page.images] == [
        "Loss, accuracy and learning rate over the epochs. Best validation accuracy 42.00%, epoch 3.",
        "Confusion matrix of the test images. Test accuracy 95.00%  (95% interval 76.39% to 99.11%).",
        "Test images with their predicted classes. 1 of 20 test images classified wrongly.",
        "Reliability diagram: accuracy over confidence. Expected calibration error 56.46%.",
        "Test images whose label the model finds least plausible. The least plausible label.",
    ]
    assert "--resume" not in page.text


def test_a_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    run_dirs = [write_run(tmp_path / name, build_metrics(2), build_results(0.5, 0.4)) for name in "ab"]
    for chosen in (run_dirs[:1], run_dirs):
        content = build_report(chosen)
        page = Reader(content)
        assert len(page.images) == (5 if len(chosen) == 1 else 11)
        for link in page.links:
            assert link.startswith(("#", "data:image/svg+xml;base64,"))
            if link.startswith("#"):
                assert link[1:] in page.anchors
            else:
                ElementTree.fromstring(base64.b64decode(link.partition(",")[2], validate=True))
        rest = re.sub(r'src="data:[^"]*"', "", content)
        assert "http:" not in rest
        assert "https:" not in rest
        assert "url(" not in rest
        assert "<script" not in rest


def test_a_page_is_complete_and_allows_nothing_from_outside(tmp_path: Path) -> None:
    found: dict[str, dict[str, str | None]] = {}

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            values = dict(attributes)
            found[values.get("name") or values.get("http-equiv") or tag] = values

    content = build_report([write_run(tmp_path / "run", build_metrics(1), build_results(0.5, 0.4))])
    Parser().feed(content)
    assert content.startswith("<!DOCTYPE html>\n")
    assert content.endswith("</html>\n")
    assert found["html"]["lang"] == "en"
    assert found["viewport"]["content"] == "width=device-width, initial-scale=1"
    policy = found["Content-Security-Policy"]["content"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert "<title>run</title>" in content
    assert "<h1>run</h1>" in content
    assert "prefers-color-scheme: dark" in content
    assert '<th scope="col">weights</th><th scope="col" class="figure">validation</th>' in content
    assert '<tr><th scope="row">best (epoch 2)</th><td class="figure">60.00%</td>' in content


def test_names_in_a_report_are_escaped(tmp_path: Path) -> None:
    name = '<b>&"x'
    results = build_results(0.5, 0.4)
    first = write_run(
        tmp_path / name,
        build_metrics(2),
        results,
        device_name="<i>\u202e\n\x1b[31m{{ 7 * 7 }}",
        note={"<u>": ["</u>", 1]},
    )
    second = write_run(tmp_path / "it's", build_metrics(1), None, epochs=2)
    one, many = build_report([first]), build_report([first, second])
    for content in (one, many):
        assert "<b>" not in content
        assert "<i>" not in content
        assert "<u>" not in content
        assert "\u202e" not in content
        assert "\x1b" not in content
        assert "&lt;i&gt;\\u202e\\n\\x1b[31m{{ 7 * 7 }}" in content
        assert ["note <u>", "</u>, 1"] in Reader(content).tables["Settings"]
    assert "<title>&lt;b&gt;&amp;&#34;x</title>" in one
    assert Reader(many).tables["Runs"][1][0] == name
    page = Reader(many)
    assert f"fastcifar train --resume '{tmp_path}/it'\"'\"'s'" in page.text
    undecodable = tmp_path / "caf\udce9"
    first.rename(undecodable)
    write_report([undecodable], tmp_path / "out.html")
    assert "<title>caf\\udce9</title>" in (tmp_path / "out.html").read_text(encoding="utf-8")


def test_an_unfinished_run_says_how_to_go_on(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", build_metrics(7), epochs=20, published_accuracy=None)
    page = Reader(build_report([run_dir]))
    assert page.facts == {
        "Best validation accuracy so far": "44.00% | epoch 5",
        "Throughput": "100 img/s | training, median of 7 epochs (100 to 100)",
    }
    command = f"fastcifar train --resume {run_dir}"
    assert f"This run is not finished: it has trained 7 of its 20 epochs. Continue with {command}." in page.text
    assert "Confusion matrix and samples follow when the run is finished." in page.text
    assert len(page.images) == 1
    assert "Accuracies" not in page.tables
    with locked(run_dir, ""):
        page = Reader(build_report([run_dir]))
    assert "it has trained 7 of its 20 epochs. It is still being trained." in page.text
    assert "--resume" not in page.text


def test_a_diverged_run_says_why_and_not_to_go_on(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", build_metrics(1), epochs=20)
    write_diverged(run_dir, "the loss is not finite in step 7 of epoch 2")
    page = Reader(build_report([run_dir]))
    why = "It has diverged: the loss is not finite in step 7 of epoch 2."
    assert f"This run is not finished: it has trained 1 of its 20 epochs. {why}" in page.text
    assert "--resume" not in page.text
    assert "when the run is finished" not in page.text


def test_seeds_are_summed_up(tmp_path: Path) -> None:
    def add(name: str, accuracy: float, augmented: float, rate: float, **config: Any) -> Path:
        metrics = [replace(line, img_per_s=rate) for line in build_metrics(3)]
        return write_run(tmp_path / name, metrics, build_results(accuracy, augmented), **config)

    run_dirs = [
        add("one", 0.50, 0.40, 100.0, seed=1),
        add("two", 0.52, 0.43, 104.0, seed=2),
        add("three", 0.57, 0.43, 108.0, seed=3, device_name="Another CPU", num_threads=96),
        add("other", 0.60, 0.55, 50.0, seed=1, learning_rate=0.5),
        write_run(tmp_path / "stopped", build_metrics(2), epochs=3, seed=4),
    ]
    content = build_report(run_dirs)
    page = Reader(content)
    # (50 + 52 + 57) / 3 = 53; sqrt((9 + 1 + 16) / 2) = 3.606; (40 + 43 + 43) / 3 = 42; sqrt((4 + 1 + 1) / 2) = 1.732
    assert page.tables["Mean and standard deviation"] == [
        ["runs", "n", "seeds", "test, clean", "test, augmented", "img/s"],
        ["one, two, three", "3", "1, 2, 3", "53.00% ± 3.61%", "42.00% ± 1.73%", "104 ± 4"],
        ["other", "1", "1", "60.00%", "55.00%", "50"],
    ]
    assert page.tables["What differs"] == [
        ["", "one", "two", "three", "other", "stopped"],
        ["seed", "1", "2", "3", "1", "4"],
        ["device_name", "Some CPU", "Some CPU", "Another CPU", "Some CPU", "Some CPU"],
        ["num_threads", "-", "-", "96", "-", "-"],
        ["learning_rate", "-", "-", "-", "0.5", "-"],
    ]
    rows = page.tables["Runs"]
    assert rows[0] == [
        "run",
        "state",
        "recipe",
        "seed",
        "epochs",
        "best validation",
        "test, clean",
        "test, augmented",
        "img/s",
        "time",
    ]
    assert rows[2] == [
        "two",
        "finished",
        "adam89",
        "2",
        "3/3",
        "42.00%",
        "52.00% 48.90% to 55.08%",
        "43.00% 39.96% to 46.09%",
        "104",
        "3.0 s",
    ]
    assert rows[5] == ["stopped", "stopped", "adam89", "4", "2/3", "41.00%", "", "", "100", "2.0 s"]
    assert "<title>5 runs compared</title>" in content
    assert page.images[0]["alt"].endswith("Best validation accuracy 42.00%: one.")


def test_two_equal_runs_differ_in_nothing(tmp_path: Path) -> None:
    page = Reader(build_report([write_run(tmp_path / name, build_metrics(1), epochs=2) for name in "ab"]))
    assert "Nothing: the runs have the same settings and environment." in page.text
    assert "None of the runs is finished." in page.text


def test_a_resumed_run_tells_of_its_parts(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", build_metrics(2), build_results(0.5, 0.4))
    settings = read_config(run_dir).settings
    for resumed_at in (1, 2):
        write_config(run_dir, settings, resumed_at=resumed_at)
    page = Reader(build_report([run_dir]))
    assert "Resumed after 1 epoch in the same environment:" in page.text
    assert "Resumed after 2 epochs in the same environment:" in page.text
    assert len([row for row in page.tables["Environment"] if row[0] == "begun"]) == 3
    assert len([row for row in page.tables["Environment"] if row[0] == "cpu"]) == 1


@pytest.mark.parametrize("name", [CONFIG_FILE, METRICS_FILE, PREDICTIONS_FILE, RESULTS_FILE])
def test_nothing_is_written_of_a_damaged_run(tmp_path: Path, name: str) -> None:
    run_dirs = [write_run(tmp_path / folder, build_metrics(2), build_results(0.5, 0.4)) for folder in "ab"]
    (run_dirs[1] / name).write_text("{")
    with pytest.raises(FastcifarError, match=rf"^{run_dirs[1] / name} is damaged[:,] [^\n]+$"):
        write_report(run_dirs, tmp_path / "out" / "report.html")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("odd", "name"),
    [
        ({"environment": 3}, "environment"),
        ({"resumed": [1]}, "resumed[0]"),
        ({"resumed": [{"num_epochs": "x"}]}, "resumed[0].num_epochs"),
        ({"published_accuracy": "high"}, "published_accuracy"),
        ({"begun": "yesterday"}, "begun"),
        ({"begun": "2026-11-25T20:00:00"}, "begun"),  # without an offset it cannot be ordered
    ],
)
def test_a_configuration_that_no_run_wrote_is_refused(tmp_path: Path, odd: dict[str, Any], name: str) -> None:
    path = write_run(tmp_path / "run", build_metrics(2), build_results(0.5, 0.4)) / CONFIG_FILE
    write_json(path, read_json(path) | odd)
    with pytest.raises(
        FastcifarError, match=rf"^{path} is damaged, or not a run's configuration: {re.escape(name)} is"
    ):
        build_report([path.parent])


def test_a_recipe_of_the_users_own_is_reported(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", build_metrics(2), build_results(0.5, 0.4), recipe="mine")
    page = Reader(build_report([run_dir]))
    assert page.facts["Test accuracy, clean"].startswith("50.00%")
    assert "A short run" not in page.text
