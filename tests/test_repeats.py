import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.command_line import call
from support.figure_parts import build_metrics, build_results, lines_of, text_of, texts, write_run

from fastcifar.errors import FastcifarError
from fastcifar.files import read_json
from fastcifar.results.repeats import Repeats, compare_repeats, read_groups, read_repeats
from fastcifar.results.run_dir import write_diverged
from fastcifar.results.seed_tables import build_tables
from fastcifar.results.strip_plot import draw_seeds, write_seeds


def write_seed(folder: Path, seed: int, accuracy: float, **config: Any) -> Path:
    """A finished run of 10 epochs: clean accuracy as given, augmented 2 points lower, official test 1 point higher."""
    results = build_results(accuracy, accuracy - 0.02)
    results = replace(results, test10k_accuracy=accuracy + 0.01, seconds=100.0 + seed)
    return write_run(folder / f"seed-{seed}", build_metrics(10), results, seed=seed, **config)


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for seed, accuracy in ((42, 0.60), (43, 0.62), (44, 0.64)):
        write_seed(tmp_path / "three", seed, accuracy)
    return tmp_path / "three"


def with_one_diverged(folder: Path) -> Path:
    write_diverged(
        write_run(folder / "seed-45", build_metrics(1), seed=45, epochs=10), "the loss is not finite in step 7"
    )
    return folder


def read(folder: Path) -> Repeats:
    return read_repeats(folder, 0.435)


def test_seeds_are_read_with_their_figures(three: Path) -> None:
    found = read(three)
    assert [(run.seed, run.state, run.seconds) for run in found.runs] == [
        (42, "finished", 142.0),
        (43, "finished", 143.0),
        (44, "finished", 144.0),
    ]
    assert found.values("test_accuracy") == [0.60, 0.62, 0.64]
    assert found.values("test_accuracy_augmented") == pytest.approx([0.58, 0.60, 0.62])
    assert found.values("test10k_accuracy") == pytest.approx([0.61, 0.63, 0.65])
    # Validation accuracies begin with 0.40, 0.41, 0.42, 0.43, 0.44: the fifth epoch is the first to reach 0.435.
    assert [run.epochs_to_target for run in found.runs] == [5, 5, 5]
    mean = found.means()["test_accuracy"]
    assert (mean.n, round(mean.mean, 9)) == (3, 0.62)
    assert mean.sd == pytest.approx(0.02)
    assert found.means()["epochs_to_target"].interval_95 == (5, 5)


def test_a_target_that_not_all_seeds_reach_has_no_mean(three: Path) -> None:
    found = read_repeats(three, 0.99)
    assert [run.epochs_to_target for run in found.runs] == [None, None, None]
    assert "epochs_to_target" not in found.means()
    (table,) = build_tables([found])
    assert [row[-1] for row in table.rows] == ["never", "never", "never", "", "", "", "", ""]


def test_a_diverged_seed_is_shown_and_counted(three: Path) -> None:
    found = read(with_one_diverged(three))
    assert [(run.seed, run.state) for run in found.runs][-1] == (45, "diverged")
    assert found.means()["test_accuracy"].n == 3
    (table,) = build_tables([found])
    assert table.rows[3] == ["45", "diverged", "", "", "", ""]
    assert table.remarks[:2] == [
        "seed 45 diverged: the loss is not finite in step 7",
        "the statistics cover the finished seeds only: 3 of 4",
    ]
    figure = draw_seeds([found])
    assert "Clean test accuracy 62.00% ± 4.97, 3 seeds, 1 diverged" in texts(figure)
    (crosses,) = lines_of(figure, "test_accuracy-1-diverged")
    assert len(crosses.get_xydata()) == 1  # type: ignore[arg-type]


def test_a_seed_with_results_is_finished(three: Path) -> None:
    write_diverged(three / "seed-44", "the loss is not finite")  # in an earlier try, on another machine
    assert [run.state for run in read(three).runs] == ["finished", "finished", "finished"]
    (three / "seed-44" / "results.json").unlink()
    assert [(run.state, run.reason) for run in read(three).runs][2] == ("diverged", "the loss is not finite")


def test_the_table_of_one_folder(three: Path) -> None:
    (table,) = build_tables([read(three)])
    assert table.title == "three: adam89 · 10 epochs · 4,096 of 50,000 training images · bf16 on Some CPU"
    assert table.columns == ["seed", "clean", "augmented", "official test", "seconds", "epochs to 43.5%"]
    assert table.rows == [
        ["42", "60.00%", "58.00%", "61.00%", "142", "5"],
        ["43", "62.00%", "60.00%", "63.00%", "143", "5"],
        ["44", "64.00%", "62.00%", "65.00%", "144", "5"],
        ["mean", "62.00%", "60.00%", "63.00%", "143.0", "5.0"],
        ["standard deviation", "2.00", "2.00", "2.00", "1.0", "0.0"],
        ["standard error", "1.15", "1.15", "1.15", "0.6", "0.0"],
        ["95% interval from", "57.03%", "55.03%", "58.03%", "140.5", "5.0"],  # 62 - 4.302653 * 2 / sqrt(3)
        ["to", "66.97%", "64.97%", "67.97%", "145.5", "5.0"],
    ]
    # d = 0.25 takes 253 a group (tables of power); 0.05 and 0.1 by 2 (1.959964 + 0.841621)^2 / d^2 = 6280, 1570, and
    # one more for Student's t.
    telling = "seeds of each needed to detect 0.1, 0.2, 0.5 points of clean accuracy: 6,281, 1,571, 253"
    assert table.remarks == [f"{telling} (power 0.8 at the 0.05 level)"]


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    write_seed(tmp_path, 42, 0.6)
    found = read_repeats(tmp_path)
    (table,) = build_tables([found])
    assert [row[0] for row in table.rows] == ["42", "mean"]
    assert table.remarks == ["with one seed there is no standard deviation and no interval"]
    figure = draw_seeds([found])
    assert text_of(figure, "test_accuracy-1-label") == "60.00%"
    assert lines_of(figure, "test_accuracy-1-interval") == []


def test_only_diverged_seeds_can_be_shown(tmp_path: Path) -> None:
    found = read_repeats(with_one_diverged(tmp_path / "bad"))
    (table,) = build_tables([found])
    assert table.rows == [["45", "diverged", "", "", ""]]
    assert "No seed is finished, 1 diverged" in texts(draw_seeds([found]))


def test_the_picture_shows_each_seed_the_mean_and_its_interval(three: Path) -> None:
    figure = draw_seeds([read(three)])
    (dots,) = lines_of(figure, "test_accuracy_augmented-1")
    assert list(dots.get_xdata()) == pytest.approx([0.58, 0.60, 0.62])  # type: ignore[arg-type]
    (interval,) = lines_of(figure, "test_accuracy_augmented-1-interval")
    assert list(interval.get_xdata()) == pytest.approx([0.5503, 0.6497], abs=1e-4)  # type: ignore[arg-type]
    (mean,) = lines_of(figure, "test10k_accuracy-1-mean")
    assert list(mean.get_xdata()) == pytest.approx([0.63])  # type: ignore[arg-type]
    assert text_of(figure, "test_accuracy-1-label") == "62.00% ± 4.97"


def test_two_folders_are_compared_by_welch_or_seed_by_seed(three: Path, tmp_path: Path) -> None:
    # 2.1, 2.0 and 1.9 points better seed by seed, and another seed that the first folder does not have.
    for seed, accuracy in ((42, 0.621), (43, 0.640), (44, 0.659), (50, 0.640)):
        write_seed(tmp_path / "better", seed, accuracy, recipe="sgd92", epochs=10)
    groups = [read(three), read(tmp_path / "better")]
    found = compare_repeats(*groups)
    clean = found.differences["test_accuracy"]
    assert (clean.n, round(clean.difference, 9)) == ((3, 4), 0.02)
    assert dict(found.differing) == {"recipe": ("adam89", "sgd92")}
    found = compare_repeats(*groups, by_seed=True)
    clean = found.differences["test_accuracy"]
    assert (clean.n, round(clean.difference, 9), round(clean.sd, 9)) == ((3, 3), 0.02, 0.001)
    *_, table = build_tables(groups, found)
    assert table.title == "better minus three, points of accuracy (paired t test, 3 and 3 seeds)"
    # t = 20 sqrt(3) with 2 degrees of freedom: p = 1 - t / sqrt(2 + t^2); half width 4.302653 * 0.1 / sqrt(3).
    assert table.rows[0] == ["clean", "+2.00", "+1.75 to +2.25", "0.00083"]
    assert table.remarks[-1] == "settings that differ: recipe adam89 and sgd92"
    headline = "Clean test accuracy +2.00 points (+1.75 to +2.25), p = 0.00083"
    assert headline in texts(draw_seeds(groups, found))


def test_a_summary_holds_it_all(three: Path, tmp_path: Path) -> None:
    groups = [read(with_one_diverged(three))]
    written = write_seeds(tmp_path / "out", groups)
    names = ["summary.json", "charts/seeds.png", "charts/seeds.svg"]
    assert [path.relative_to(tmp_path / "out").as_posix() for path in written] == names
    (group,) = json.loads(written[0].read_text())["groups"]
    assert (group["num_finished"], group["num_diverged"], group["devices"]) == (3, 1, ["Some CPU"])
    assert [run["seed"] for run in group["runs"]] == [42, 43, 44, 45]
    clean = group["statistics"]["test_accuracy"]
    assert clean["interval_95"] == pytest.approx([0.5703, 0.6697], abs=1e-4)
    assert clean["seeds_needed"] == {"0.001": 6281, "0.002": 1571, "0.005": 253}
    assert group["settings"]["recipe"] == "adam89"


def test_folders_that_cannot_be_read_together_are_refused(three: Path, tmp_path: Path) -> None:
    with pytest.raises(FastcifarError, match=rf"{tmp_path}/none holds no seeds"):
        read_repeats(tmp_path / "none")
    write_seed(tmp_path / "few", 42, 0.6, num_eval_images=10)
    with pytest.raises(FastcifarError, match="were tested on None and on 10 images"):
        compare_repeats(read(three), read(tmp_path / "few"))
    write_seed(tmp_path / "one", 45, 0.6)
    with pytest.raises(FastcifarError, match=r"one has 1 finished seed: a comparison needs 2 of each"):
        compare_repeats(read(three), read(tmp_path / "one"))
    with pytest.raises(FastcifarError, match="paired needs at least 2 seeds that both folders have finished, not 0"):
        compare_repeats(read(three), read(tmp_path / "one"), by_seed=True)
    write_seed(three, 46, 0.6, epochs=11, learning_rate=0.2)
    with pytest.raises(
        FastcifarError, match=r"seed-46 has other settings: epochs 11 and 10, learning_rate 0.2 and None"
    ):
        read_repeats(three)


def test_another_machine_with_the_same_settings_is_welcome(three: Path) -> None:
    write_seed(three, 45, 0.6, device_name="Another CPU", num_threads=96)
    assert read_repeats(three).devices == ("Some CPU", "Another CPU")


def test_the_command_summarises_folders(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(monkeypatch, capsys, "repeat", "three", "--target-accuracy", "0.435")
    assert (code, err) == (0, "")
    assert out.splitlines()[1] == "seed                 clean  augmented  official test  seconds  epochs to 43.5%"
    assert out.splitlines()[-3:] == ["three/summary.json", "three/charts/seeds.png", "three/charts/seeds.svg"]
    write_seed(tmp_path / "other", 42, 0.7)
    write_seed(tmp_path / "other", 43, 0.7)
    assert call(monkeypatch, capsys, "repeat", "three", "other", "--quiet") == (0, "seeds-compared\n", "")
    assert Path("seeds-compared/charts/seeds.png").stat().st_size > 10_000
    for arguments, message in (
        (["three", "--epochs", "3"], "FOLDER is trained already: leave out --epochs"),
        (["three", "three"], "give one recipe or folder, or two different ones to compare"),
        (["three", "--paired"], "--paired compares two recipes or two folders"),
        ([], "Missing option '--recipe'. Choose from: sgd92, adam89"),
        (["nowhere"], "nowhere holds no seeds: `fastcifar repeat` makes such a folder"),
        (["other", "three", "--paired", "--recipe", "sgd92"], "FOLDER is trained already: leave out --recipe"),
    ):
        assert call(monkeypatch, capsys, "repeat", *arguments) == (2, "", f"Error: {message}\n")


def test_the_command_compares_two_folders_seed_by_seed(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, accuracy in ((43, 0.640), (44, 0.659), (50, 0.640)):
        write_seed(tmp_path / "better", seed, accuracy)
    code, out, err = call(monkeypatch, capsys, "repeat", "three", "better", "--paired", "--out", "compared")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    title = lines.index("better minus three, points of accuracy (paired t test, 2 and 2 seeds)")
    # 2.0 and 1.9 points: 1.95 with a standard error of 0.05, and Student's t of 12.7062 with 1 degree of freedom.
    assert lines[title + 2].split() == ["clean", "+1.95", "+1.31", "to", "+2.59", "0.016"]
    comparison = json.loads(Path("compared/summary.json").read_text())["comparison"]
    assert comparison["test"] == "paired t"
    assert comparison["differences"]["test_accuracy"]["difference"] == pytest.approx(0.0195)


@pytest.fixture
def compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as `repeat` with two recipes fills it, `sgd92` first; the current folder is the one that holds it."""
    for minute, (recipe, accuracies) in enumerate({"sgd92": (0.60, 0.62, 0.64), "adam89": (0.64, 0.66)}.items()):
        for seed, accuracy in enumerate(accuracies, start=42):
            path = write_seed(tmp_path / "compared" / recipe, seed, accuracy, recipe=recipe) / "config.json"
            path.write_text(json.dumps(read_json(path) | {"begun": f"2026-11-01T12:0{minute}:00+00:00"}))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "compared"


def test_two_folders_of_seeds_are_reported_with_their_difference(
    compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, capsys, "report", "compared") == (0, "compared/report.html\n", "")
    assert call(monkeypatch, capsys, "report", "compared/sgd92", "compared/adam89") == (0, "report.html\n", "")
    page = (compared / "report.html").read_text()
    assert (tmp_path / "report.html").read_text() == page
    assert "<title>sgd92 and adam89 compared</title>" in page
    assert page.count("data:image/svg+xml;base64,") == 1
    groups = [read_repeats(compared / name) for name in ("sgd92", "adam89")]
    difference = compare_repeats(*groups)
    assert difference.differences["test_accuracy"].difference == pytest.approx(0.03)
    assert "mean and 95% interval. Clean test accuracy +3.00 points (" in page
    tables = build_tables(groups, difference)
    assert len(tables) == 3
    for cells in (cells for table in tables for cells in table.rows):
        texts_of_row = [f'<td class="figure">{cell}</td>' for cell in cells[1:]]
        assert f'<tr><th scope="row">{cells[0]}</th>{"".join(texts_of_row)}</tr>' in page
    assert "adam89 minus sgd92, points of accuracy (Welch&#39;s t test, 2 and 3 seeds)" in page
    assert "<p>settings that differ: recipe sgd92 and adam89</p>" in page
    assert '<tr><th scope="row">recipe</th><td>sgd92</td><td>adam89</td></tr>' in page
    assert '<tr><th scope="row">epochs</th><td>10</td><td>10</td></tr>' in page
    # The other way round by name too, as it is asked for.
    assert call(monkeypatch, capsys, "report", "compared/adam89", "compared/sgd92")[0] == 0
    assert "sgd92 minus adam89, points of accuracy" in (tmp_path / "report.html").read_text()


def test_two_folders_with_too_few_seeds_are_reported_without_a_difference(
    compared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (compared / "adam89" / "seed-43" / "results.json").unlink()
    assert call(monkeypatch, capsys, "report", "compared")[0] == 0
    page = (compared / "report.html").read_text()
    problem = "compared/adam89 has 1 finished seed: a comparison needs 2 of each"
    assert f"<p>No difference is given: {problem}.</p>" in page
    assert "mean and 95% interval. Too few finished seeds for a difference." in page
    assert "minus" not in page
    for name in ("sgd92", "adam89"):
        assert f"<h2>{name}</h2>" in page


def test_folders_that_do_not_fit_on_a_page_are_refused(
    compared: Path, three: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_seed(compared.parent / "others", 42, 0.6, num_eval_images=10)
    for arguments, message in (
        (["three", "others"], "three and others were tested on None and on 10 images, so they cannot be compared"),
        (["three", "others", "compared"], "4 folders of seeds are too many for one page: give one or two"),
        (["three", "../" + compared.parent.name + "/three"], "three is given twice"),
        (["three", "three/seed-42"], "three/seed-42 is a run and three a folder of seeds: a page shows only one kind"),
        (["three", "nowhere"], "cannot read nowhere/config.json: No such file or directory"),
        (["nowhere"], "cannot read nowhere/config.json: No such file or directory"),
    ):
        assert call(monkeypatch, capsys, "report", *arguments) == (2, "", f"Error: {message}\n")
    assert not Path("report.html").exists()
    write_seed(compared.parent, 42, 0.6).rename("run")  # beside folders of seeds: which is meant?
    code, _, err = call(monkeypatch, capsys, "report", ".")
    assert (code, err) == (2, "Error: cannot read config.json: No such file or directory\n")


def test_folders_of_one_name_are_told_apart(three: Path, tmp_path: Path) -> None:
    for seed, accuracy in ((42, 0.62), (43, 0.64)):
        write_seed(tmp_path / "new" / "three", seed, accuracy)
    groups = read_groups([three, tmp_path / "new" / "three"])
    assert [group.name for group in groups] == [str(three), str(tmp_path / "new" / "three")]
    *_, table = build_tables(groups, compare_repeats(*groups))
    assert table.title.startswith(f"{tmp_path}/new/three minus {three}, points of accuracy")
    assert [group.name for group in read_groups([three])] == ["three"]


def test_a_folder_of_seeds_is_reported_as_one_page(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with_one_diverged(three)
    assert call(monkeypatch, capsys, "report", "three") == (0, "three/report.html\n", "")
    page = (three / "report.html").read_text()
    assert "<title>three</title>" in page
    assert page.count("data:image/svg+xml;base64,") == 1
    assert "Clean test accuracy 62.00% ± 4.97, 3 seeds, 1 diverged." in page
    (table,) = build_tables([read_repeats(three)])
    for cells in table.rows:
        texts_of_row = [f'<td class="figure">{cell}</td>' for cell in cells[1:]]
        assert f'<tr><th scope="row">{cells[0]}</th>{"".join(texts_of_row)}</tr>' in page
    for remark in table.remarks:
        assert f"<p>{remark}</p>" in page
    assert '<tr><th scope="row">recipe</th><td>adam89</td></tr>' in page
    assert "trained on Some CPU." in page
