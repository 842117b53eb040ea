"""Pages: what they escape, that they stand alone, and what their plots show."""

import re
import subprocess
import sys
import tomllib
from importlib import resources

import pytest
import torch
from conftest import ROOT, environment
from drawings import curves_in, dots_in, pictures_of, words_in

from distill.sets.shards import write_shard
from distill.sets.transfer_set import write_manifest
from inversion.pages.plots import LONGEST, Dot, bars, dots, histogram, lines, scatter
from inversion.pages.report import write_report
from inversion.pages.run_sections import synthesis_seconds, synthesis_section
from inversion.pages.study import write_study

pytestmark = pytest.mark.filterwarnings("error")

SCRIPT = '<script>alert("1")</script>'


def write_set(folder, labels, **more):
    """A set of random pictures, of three classes."""
    random = torch.Generator().manual_seed(0)
    count = len(labels)
    tensors = {
        "images": torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8, generator=random),
        "labels": labels,
        "logits": torch.nn.functional.one_hot(labels, 3).half(),
        "priority": torch.ones(count),
        "round": torch.zeros(count, dtype=torch.int32),
    }
    name = "shard-00000-of-00001.safetensors"
    shard = {"file": name, "count": count, "sha256": write_shard(folder / name, tensors)}
    contract = {"channels": 1, "size": 8, "classes": 3, "mean": [0.5], "std": [0.25]}
    manifest = {
        "teacher": {"model": "m", "weight_hash": "a" * 64},
        "input": contract | {"task": "classification"},
        "counts": torch.bincount(labels, minlength=3).tolist(),
        "shards": [shard],
        "config": {},
        "code_version": "0",
    }
    write_manifest(folder, manifest | more)
    return folder


@pytest.mark.parametrize(
    "labels, short, said",
    [
        ([0, 1, 2] * 4, {}, "The set is balanced: 4 images for each of 3 classes."),
        ([0, 1, 2, 0], {}, "The set is balanced: 1 to 2 images for each of 3 classes."),
        (
            [0, 0, 0, 2],
            {"1": 1},
            "The set is not balanced: 0 to 3 images for each of 3 classes; class 1 lacks 1.",
        ),
    ],
)
def test_a_report_says_first_what_was_made_and_whether_it_is_balanced(
    labels, short, said, tmp_path
):
    page = write_report(write_set(tmp_path, torch.tensor(labels), short=short)).read_text()
    assert f"{len(labels)} synthetic images from one trained network." in page
    assert page.index(said) < page.index("<h2>")


def test_whatever_a_manifest_says_is_escaped(tmp_path):
    teacher = {"model": SCRIPT, "weight_hash": SCRIPT}
    parts = [{"collection": {"sources": [SCRIPT]}}]
    config = {"of": parts, SCRIPT: SCRIPT}
    labels = torch.tensor([0, 1, 2])
    folder = write_set(tmp_path, labels, teacher=teacher, config=config, code_version=SCRIPT)
    page = write_report(folder).read_text()
    assert "<script" not in page and page.count("&lt;script&gt;alert(&#34;1&#34;)") == 4


def test_names_in_tables_and_plots_of_a_study_are_escaped(tmp_path):
    figures = ("agreement", "ece", "magnitude_similarity", "angle_similarity", "transfer")
    row = {"set": SCRIPT, "accuracy": 0.5, "accuracy_sd": None} | dict.fromkeys(figures)
    rows = [
        row | {"corruption": damage, "method": method}
        for damage in ("none", "noise=0.5", SCRIPT)
        for method in (SCRIPT, "plain")
    ]
    write_study(rows, SCRIPT, tmp_path / "s.html")
    page = (tmp_path / "s.html").read_text()
    assert "<script" not in page and len(pictures_of(page)) == 2
    assert all(SCRIPT in words_in(picture) for picture in pictures_of(page))


def draw_all():
    """One plot of each kind."""
    return [
        lines("lines", [1, 2, 3], {"a": [0.1, 0.5, 0.2], "b": [1, 1, 2]}, "call", "loss"),
        bars("bars", [3, 4], "class", "images"),
        bars("many bars", list(range(100)), "class", "images"),
        histogram("histogram", [1, 5, 2], "margin", "images"),
        scatter("scatter", {"a": (1, 2), "b": (2, 1)}, "one rank", "other rank"),
        dots("dots", [Dot("a", 1.0, 0.1)], [Dot("b", 2.0, 0.0)], "accuracy (%)"),
    ]


def test_equal_values_are_drawn_as_equal_bytes_whatever_style_a_user_has_set():
    import matplotlib

    plain = draw_all()
    with matplotlib.rc_context({"font.size": 20, "axes.grid": False, "svg.fonttype": "path"}):
        assert draw_all() == plain


def test_plots_are_small_have_labels_and_carry_neither_fonts_nor_dates():
    for plot in draw_all():
        assert len(plot.svg) < 20_000
        assert "<metadata" not in plot.svg and "<glyph" not in plot.svg
        assert "http" not in plot.svg.replace("http://www.w3.org/", "")
    labels = ("call", "loss", "class", "images", "margin", "one rank", "accuracy (%)")
    told = {word for plot in draw_all() for word in words_in(plot.svg)}
    assert told.issuperset(labels)


def test_a_legend_names_the_lines_where_there_is_more_than_one():
    one = lines("title", [1, 2], {"alone": [1, 2]}, "x", "y")
    two = lines("title", [1, 2], {"_first": [1, 2], "$2$": [2, 1]}, "x", "y")
    assert "alone" not in words_in(one.svg)
    assert [word.strip() for word in words_in(two.svg)[-2:]] == ["_first", "$2$"]


def test_a_share_is_shown_in_per_cent():
    plot = lines("title", [1, 2], {"it": [0.25, 1]}, "x", "share (%)", share=True, limits=(0, 1))
    assert words_in(plot.svg)[-7:] == ["0", "20", "40", "60", "80", "100", "share (%)"]
    start, end = curves_in(plot.svg)[0]
    assert start[0] < end[0] and start[1] > end[1]  # SVG counts downwards


@pytest.mark.parametrize("name", ["n" * 300, "runs/\udcff", "two\nlines", "画像", "a & <b>", "_"])
def test_any_name_can_be_drawn(name):
    series = {name: [1, 2], "other": [2, 1]}
    for plot in (
        lines("title", [1, 2], series, "x", "y"),
        lines("title", [name, "other"], series, "x", "y"),
        scatter("title", {name: (1, 2), "other": (2, 1)}, "x", "y"),
        dots("title", [Dot(name, 1, 1)], [], "x"),
    ):
        assert max(len(word) for word in words_in(plot.svg)) <= LONGEST


def test_points_alike_are_still_drawn():
    assert len(dots_in(scatter("title", {"a": (1, 1), "b": (1, 1)}, "x", "y").svg)) == 2
    assert bars("title", [0, 0], "class", "images").svg
    assert curves_in(lines("title", [1, 2], {"level": [0.0, 0.0]}, "x", "y").svg)
    assert len(dots_in(dots("title", [Dot("a", 1, 0)], [Dot("b", 1, 0)], "x").svg)) == 2


def test_templates_and_style_are_packaged():
    folder = resources.files("inversion.pages") / "templates"
    names = {file.name for file in folder.iterdir()}
    assert {"base.html.j2", "report.html.j2", "scores.html.j2", "style.css"} <= names
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "pages/templates/*" in packaged["package-data"]["inversion"]


@pytest.mark.slow
@pytest.mark.process
def test_the_pages_load_no_plotting_before_they_draw():
    code = "import sys, inversion.pages.report, inversion.pages.scores, inversion.pages.study\n"
    code += "print('matplotlib' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), cwd=ROOT
    )
    assert done.stdout.strip() == "False", done.stderr


def test_templates_load_nothing():
    for file in (ROOT / "inversion" / "pages" / "templates").iterdir():
        text = file.read_text()
        assert not re.search(r"(src|href)=.?(https?:|/|\.)|<script|url\(|@import|\| *safe", text)


def test_a_recipe_is_shown_by_the_figures_it_logs():
    call = {"shard": 0, "counts": [1, 2], "seconds": 2.0, "taken": 3.0}
    call |= {"held_out_agreement": 0.5, "difference": 0.2, "generator": -0.1}
    calls = [call | {"call": number} for number in (1, 2)]
    growth, agreement, losses = synthesis_section(calls, 1).plots
    assert words_in(growth.svg)[-2:] == ["kept", "taken in"]
    assert "trained images" not in agreement.svg
    assert words_in(losses.svg)[-2:] == ["generator", "distance to the teacher"]
    assert synthesis_seconds(calls) == {"synthesis": 4.0}
