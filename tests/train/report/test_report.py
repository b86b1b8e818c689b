"""The pages of runs and comparisons: what they hold, what they leave out, and how they fail."""

import base64
import html
import json
import re
import shutil
import sys

import numpy as np
import pytest
from etils import epath
from matplotlib.figure import Figure

from configs import digits_resnet20
from nam_jax.inspection import GateStatistics
from tests.helpers import commands, fake_run, tiny
from tests.helpers.commands import run_process
from train.compare.runs import read_runs
from train.core import plotting
from train.core.engine import loop
from train.core.engine.experiment import build_experiment
from train.core.errors import ConfigError, RunError
from train.core.workdir import gates
from train.core.workdir.storage import write_json
from train.report import comparison_page, curves, gate_plot, weight_plots
from train.report.write_report import write_report

ROWS = list(fake_run.rows(3))
RUN_PLOTS = {
    *("loss", "errors", "learning_rate", "images_per_second", "data_wait", "small_weights"),
    *("sorted_channels", "heat_map_channels", "sorted_pixels", "heat_map_pixels", "maps"),
}


@pytest.fixture
def quick_plots(monkeypatch):
    """For tests of the text alone."""
    monkeypatch.setattr(plotting, "png", lambda *_: b"png")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run with NAM, and its report."""
    workdir = fake_run.write(tmp_path_factory.mktemp("whole"), saved=fake_run.params())
    write_report(workdir)
    return workdir


def text_of(workdir):
    return (workdir / "report.html").read_text()


def cells_of(text, row):
    """The cells of the row of a table that begins with a text."""
    line = next(line for line in text.splitlines() if f'<th scope="row">{row}<' in line)
    return re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line)


def test_page_holds_its_plots_in_both_themes(whole):
    text = text_of(whole)
    names = [f"{name}-{theme}" for name in RUN_PLOTS for theme in ("light", "dark")]
    assert {path.name for path in (whole / "report").iterdir()} == {f"{n}.png" for n in names}
    for name in names:
        png = (whole / "report" / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        assert text.count(base64.b64encode(png).decode()) == 1
    assert text.count("<img ") == text.count("<source media=") == len(RUN_PLOTS)
    assert len(set(re.findall(r' alt="([^"]{40,})"', text))) == len(RUN_PLOTS)


def test_page_asks_for_nothing_from_outside(whole):
    text = text_of(whole)
    sources = re.findall(r'\b(?:src|srcset|href)="([^"]*)"', text)
    assert len(sources) == 2 * len(RUN_PLOTS) + 1
    assert all(source.startswith("data:") for source in sources)
    assert "<script" not in text
    assert "url(" not in text


def test_result_config_and_environment_of_a_run(whole):
    text = text_of(whole)
    assert "<p>Finished after 30 steps.</p>" in text
    assert cells_of(text, "params") == ["params", "270,610"]
    assert cells_of(text, "epochs") == ["epochs", "30", "200"]
    assert cells_of(text, "data.mean") == ["data.mean", "[0.306]", "[0.5]"]
    assert cells_of(text, "optimizer.momentum") == ["optimizer.momentum", "0.9", ""]
    assert '<tr class="marked"><th scope="row">epochs<' in text
    assert cells_of(text, "device_kind") == ["device_kind", "cpu"]
    assert len(cells_of(text, "versions.nam_jax")[1]) > 2


def test_names_of_the_classes(tmp_path, whole):
    assert "Classes" not in text_of(whole)
    workdir = fake_run.write(tmp_path / "run", epochs=0, finished=False)
    dataset = {"num_classes": 2, "class_names": ["<cat>", "猫"], "image_shape": [8, 8, 3]}
    write_json(workdir / "dataset.json", dataset)
    write_report(workdir)
    text = text_of(workdir)
    assert "Names (2)" in text
    assert cells_of(text, "0") == ["0", "&lt;cat&gt;"]
    assert cells_of(text, "1") == ["1", "猫"]


def test_small_weights_by_layer(whole):
    text = text_of(whole)
    assert cells_of(text, "block10/attention/channel")[1:5] == ["channels", "20", "2", "10.00"]
    assert cells_of(text, "block9/attention/spatial")[1:5] == ["pixels", "16", "0", "0.00"]
    assert cells_of(text, "all channels")[1:4] == ["60", "3", "5.00"]
    assert cells_of(text, "all pixels")[1:4] == ["48", "0", "0.00"]
    assert cells_of(text, "all weights")[1:4] == ["108", "3", "2.78"]
    assert text.index(">block9/attention/channel<") < text.index(">block10/attention/channel<")


@pytest.mark.usefixtures("quick_plots")
def test_gates_of_each_layer(tmp_path, whole):
    assert "python -m train.evaluate --gates looks at them" in text_of(whole)
    workdir = fake_run.write(tmp_path, epochs=1)
    near, far = {"low": 0.49, "high": 0.51, "near_half": 1.0}, {"low": 0.0, "high": 0.9}
    spread = {"mean": 0.5, "between": 0.003, "within": 0.004, "near_half": 0.25}
    layers = {"layer1_0/attention/channel": spread | near, "layer2_0/attention": spread | far}
    whose = {"step": 10, "which": "best", "split": "test"}
    errors = {"top1_error": 45.0, "half_gates_top1_error": 46.25}
    gates.write(workdir, {**whose, **errors, "gates": layers})
    write_report(workdir)
    text = text_of(workdir)
    assert "Of the best checkpoint, step 10, on the split test. Its top-1 error is 45.00 %" in text
    assert "with every gate replaced by 0.5 46.25 %" in text
    assert cells_of(text, "layer2_0/attention")[1:] == [
        *("0.5000", "0.0030", "0.0040", "0.0000", "0.9000", "25.00")
    ]
    assert (workdir / "report" / "gates-dark.png").exists()

    for lost in (*whose, "top1_error", "half_gates_top1_error", "gates"):
        kept = {**whose, **errors, "gates": layers}
        del kept[lost]
        gates.write(workdir, kept)
        with pytest.raises(RunError, match=r"gates\.json is damaged: python -m train\.evaluate"):
            write_report(workdir)


def test_plot_of_gates_is_on_the_whole_of_their_scale():
    statistics = {"mean": 0.5, "between": 0.03, "within": 0.04, "near_half": 0.25}
    layer = GateStatistics(**statistics, low=0.1, high=0.7)
    (axes,) = drawn(gate_plot.spread({"a/attention": layer, "b": layer}).draw).axes
    assert axes.get_xlim() == (0, 1)
    ends = [line.get_segments()[0][:, 0] for line in axes.collections]
    np.testing.assert_allclose(ends, [[0.1, 0.7], [0.45, 0.55]] * 2)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b"]


@pytest.mark.usefixtures("quick_plots")
def test_run_that_goes_on(tmp_path):
    workdir = fake_run.write(tmp_path, finished=False, epochs=1)
    write_report(workdir)
    text = text_of(workdir)
    assert "<p>Not finished: at step 10, epoch 1.00, of 30 epochs.</p>" in text
    assert "None yet: the run is not finished." in text
    assert f"Left out: there is no last checkpoint in {workdir}/checkpoints yet; " in text
    assert text.count("<img ") == 5


@pytest.mark.usefixtures("quick_plots")
def test_run_that_has_just_begun(tmp_path):
    workdir = fake_run.write(tmp_path, finished=False)
    (workdir / "metrics.jsonl").unlink()
    (workdir / "environment.json").unlink()
    write_report(workdir)
    text = text_of(workdir)
    assert "No curves: no step is reported yet." in text
    assert "there is no environment.json" in text
    assert "<img " not in text


@pytest.mark.parametrize("kept", ["train", "eval"])
def test_rows_of_one_split_alone(tmp_path, kept):
    workdir = fake_run.write(tmp_path, epochs=1)
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(x for x in lines if f'"{kept}"' in x))
    write_report(workdir)
    assert text_of(workdir).count("<img ") == {"train": 5, "eval": 2}[kept]


@pytest.mark.usefixtures("quick_plots")
def test_texts_are_escaped(tmp_path):
    config = digits_resnet20.get_config()
    config.data.name = config.data.dir = '"><b>&'
    write_report(fake_run.write(tmp_path, config))
    assert "<b>" not in text_of(tmp_path)
    title = re.search("<title>(.*)</title>", text_of(tmp_path))[1]
    assert html.unescape(title) == 'resnet20 with attention nam on "><b>&'


@pytest.mark.usefixtures("quick_plots")
def test_damaged_checkpoint_is_left_out(tmp_path):
    workdir = fake_run.write(tmp_path, saved=fake_run.params())
    shutil.rmtree(workdir / "checkpoints" / "30" / "state")
    write_report(workdir)
    assert (
        f"Left out: the checkpoint of step 30 in {workdir}/checkpoints cannot be read: "
        in text_of(workdir)
    )
    assert text_of(workdir).count("<img ") == 5


@pytest.mark.slow
@pytest.mark.usefixtures("quick_plots")
def test_trained_network_without_nam(tmp_path, monkeypatch):
    tiny.use(monkeypatch)
    config = digits_resnet20.get_config()
    config.steps, config.log_every_steps, config.optimizer.sparsity = 2, 1, 0.0
    loop.train(build_experiment(config), tmp_path)
    write_report(epath.Path(tmp_path))
    text = text_of(tmp_path)
    assert "Finished after 2 steps" in text
    assert "Left out: the network has no NAM scales." in text
    assert text.count("<img ") == 5


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison with one run that goes on, and its report."""
    workdir = fake_run.write_comparison(tmp_path_factory.mktemp("compared"))
    (workdir / "nam-seed0" / "report.html").write_text("")
    write_report(workdir)
    return workdir


def test_page_of_a_comparison(compared):
    text = text_of(compared)
    assert "<title>resnet20 on digits: attentions compared</title>" in text
    assert "runs: 3 finished, 1 begun." in text
    assert cells_of(text, "none")[1] == "2"
    assert cells_of(text, "nam")[6] == "-2.25 (–)"
    names = {"results-light.png", "results-dark.png", "variants-light.png", "variants-dark.png"}
    assert {path.name for path in (compared / "report").iterdir()} == names
    assert text.count("<img ") == 2


def test_runs_of_a_comparison(compared):
    text = text_of(compared)
    _, link, state, *errors = cells_of(text, "nam-seed0")
    assert (state, errors) == ("finished after 30 steps", ["20.25", "6.75"])
    assert link == '<a href="nam-seed0/report.html">report</a>'
    _, link, state, *errors = cells_of(text, "nam-seed1")
    assert (link, errors) == ("–", ["31.50", "10.50"])
    assert state == "not finished: at step 10, epoch 1.00, of 30 epochs"


def test_mean_errors_are_those_of_finished_runs_and_common_epochs(compared):
    runs = read_runs(compared)
    rows = {run.name: list(fake_run.rows(3)) for run in runs}
    rows["none-seed0"] = list(fake_run.rows(4, start=60.0))
    errors = comparison_page.mean_errors(runs, rows)
    assert list(errors) == ["none (2)", "nam (1)"]
    assert errors["none (2)"][0] == [1, 2, 3]
    np.testing.assert_allclose(errors["none (2)"][1], np.divide(75, [2, 3, 4]))


@pytest.mark.usefixtures("quick_plots")
def test_comparison_before_the_first_run_is_finished(tmp_path):
    workdir = fake_run.write_comparison(tmp_path, finished=False)
    write_report(workdir)
    text = text_of(workdir)
    assert "None yet: no run is finished." in text
    assert text.count("<img ") == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "there is neither a run nor a comparison in it"),
        ({"config.json": "[]"}, "config.json is not the config of a run"),
        ({"config.json": '{"epochs": 3}'}, "model.attention is missing, data.name is missing"),
    ],
)
def test_directory_of_something_else_is_refused(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=f"^--workdir {re.escape(str(tmp_path))}.*{message}"):
        write_report(epath.Path(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == files.keys()


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_directory_that_is_none_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="there is no such directory"):
        write_report(epath.Path(tmp_path / name))


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"{}", b'{"steps": 3}', b'{"steps": "3"}', b"\xff"]
)
def test_damaged_summary_is_named(tmp_path, content):
    workdir = fake_run.write(tmp_path)
    (workdir / "summary.json").write_bytes(content)
    with pytest.raises(
        ConfigError, match=r"summary\.json is not that of a run \(.+\); where"
    ) as error:
        write_report(workdir)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("field", "value"), [("steps", "x"), ("epochs", None), ("model.attention", ["nam"])]
)
def test_field_of_another_type_is_named(tmp_path, field, value):
    workdir = fake_run.write(tmp_path)
    config = json.loads((workdir / "config.json").read_text())
    *part, name = field.split(".")
    (config[part[0]] if part else config)[name] = value
    write_json(workdir / "config.json", config)
    with pytest.raises(
        ConfigError, match=re.escape(f"is not the config of a run; {field} is {value!r}.")
    ):
        write_report(workdir)


def test_damaged_rows_are_named(tmp_path):
    workdir = fake_run.write(tmp_path)
    (workdir / "metrics.jsonl").write_text("{\n")
    with pytest.raises(RunError, match=f"^{workdir}/metrics.jsonl is damaged: "):
        write_report(workdir)


@pytest.mark.usefixtures("quick_plots")
@pytest.mark.parametrize("content", [b"{", b"[]", b"3", b"\xff"])
def test_damaged_environment_is_left_out(tmp_path, content):
    workdir = fake_run.write(tmp_path)
    (workdir / "environment.json").write_bytes(content)
    write_report(workdir)
    assert "Not known: environment.json is damaged." in text_of(workdir)


@pytest.mark.parametrize("command", ["compare", "report", "visualize"])
def test_missing_matplotlib_is_an_error(monkeypatch, command):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = commands.call(command)
    assert result.code == 2
    assert "pictures need the package matplotlib; get it with pip install" in result.err


@pytest.mark.slow
def test_command_on_a_machine_with_other_devices(tmp_path):
    # The checkpoint is written with four devices; the command has one.
    workdir = fake_run.write(tmp_path / "run", saved=fake_run.params())
    result = run_process("--workdir", str(workdir), command="train.report")
    assert result.returncode == 0, result.stderr
    # Where it takes long it says so, and nothing else.
    assert all(line.startswith("writing the report: ") for line in result.stderr.splitlines())
    assert result.stdout == f"{workdir}/report.html\n"
    assert len(list((workdir / "report").iterdir())) == 2 * len(RUN_PLOTS)


def drawn(draw):
    figure = Figure()
    draw(figure)
    return figure


def test_heat_map_shows_the_sorted_weights_of_each_layer():
    weights = {"a": np.array([0.7, 0.01, 0.29]), "b": np.full((2, 2), 0.25), "c": np.zeros(5)}
    figure = drawn(weight_plots.heat_map(weights, "channels").draw)
    (image,) = figure.axes[0].images
    shown = image.get_array()
    np.testing.assert_allclose(shown[0, [0, -1]], [2.1, 0.03])
    assert (np.diff(shown[0]) <= 0).all()
    np.testing.assert_allclose(shown[1:, [0, 100, -1]], [[1, 1, 1], [0, 0, 0]])
    # The third of `a` and all of `c`.
    marks = [line.get_segments()[0][0] for line in figure.axes[0].collections]
    np.testing.assert_allclose(marks, [[100 * 2 / 3, -0.5], [0, 1.5]])


def test_sorted_weights_and_maps_of_a_single_layer():
    weights = {"spatial": np.full((2, 3), 1 / 6)}
    (axes,) = drawn(weight_plots.sorted_weights(weights, "pixels").draw).axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 1)
    *grid, _ = drawn(weight_plots.maps(weights).draw).axes
    assert [len(axes.images) for axes in grid] == [1, 0, 0, 0]


def test_small_weights_lie_below_the_line():
    (axes, _) = drawn(
        weight_plots.sorted_weights({"a": np.ones(2), "b": np.ones(3)}, "x").draw
    ).axes
    *_, line = axes.lines
    assert set(line.get_ydata()) == {weight_plots.SMALL_WEIGHT}


def test_curve_of_a_single_point_is_seen_and_told():
    rows = list(fake_run.rows(1))
    plot = curves.loss([row for row in rows if row["split"] == "eval"])
    (line,) = drawn(plot.draw).axes[0].lines
    assert line.get_marker() == "o"
    assert "evaluation: from 1.125 to 1.125" in plot.alt


def points(split, field, factor=1):
    rows = [row for row in ROWS if row["split"] == split]
    return [[row["epoch"], factor * row[field]] for row in rows]


@pytest.mark.parametrize(
    ("plot", "expected"),
    [
        (curves.loss(ROWS), [("train", "loss"), ("eval", "loss")]),
        (
            curves.errors(ROWS),
            [("train", "top1_error"), ("eval", "top1_error"), ("eval", "top5_error")],
        ),
        (curves.learning_rate(ROWS), [("train", "learning_rate")]),
        (curves.images_per_second(ROWS), [("train", "images_per_second")]),
        (curves.data_wait(ROWS), [("train", "data_wait", 100)]),
        (curves.small_weights(ROWS, 0.1), [("eval", "small_weights")]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_curves_of_a_run(plot, expected):
    (axes,) = drawn(plot.draw).axes
    for line, wanted in zip(axes.lines, expected, strict=True):
        np.testing.assert_allclose(line.get_xydata(), points(*wanted))


def test_what_the_font_lacks_is_drawn_without_a_warning():
    assert plotting.png(lambda figure: figure.suptitle("猫"), 1, 1).startswith(b"\x89PNG")
