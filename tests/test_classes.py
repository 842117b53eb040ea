"""A hundred and a thousand classes, in a few words and rows."""

import re

import numpy as np
import pytest
from conftest import last_json

from distill import ModelSpec, build_classifier, save_classifier
from inversion.classes import class_rows, say_short, say_spread
from inversion.pages.gallery import gallery
from inversion.parts.progress import show_counts


def test_few_classes_are_shown_one_by_one():
    assert show_counts([3, 0, 5], [5, 5, 5]) == "kept 8/15 [3 0 5]"
    assert class_rows([[3, 0], [5, 1]]) == [("0", "3", "5"), ("1", "0", "1")]


@pytest.mark.parametrize("classes", [100, 1000])
def test_many_classes_are_summed_up_in_a_line(classes):
    counts = [0] * (classes - 2) + [3, 200]
    line = show_counts(counts, [200] * classes)
    assert line == f"kept 203/{200 * classes}, 0 to 200 a class, {classes - 2} classes empty"
    assert len(line) <= 80
    rows = class_rows([counts, [1] * classes])
    assert len(rows) == 3
    assert rows[0] == (f"all {classes:,}", "203", f"{classes:,}")


def test_spreads_are_said():
    assert say_spread([4, 4]) == "4 a class"
    assert say_spread([0, 4]) == "0 to 4 a class, 1 class empty"


def test_a_sentence_names_ten_classes():
    assert say_short({"1": 2, "4": 1000}) == "class 1 lacks 2, class 4 lacks 1,000"
    many = say_short({str(label): 1 for label in range(812)})
    assert many.endswith("class 9 lacks 1 and 802 more classes some")


def test_a_gallery_shows_only_classes_with_pictures():
    images = np.zeros((60, 1, 8, 8), np.uint8)
    groups = np.arange(60) // 2 * 30 + 7
    shown = gallery(images, groups, 1000)
    assert [strip.label for strip in shown.strips] == list(range(7, 607, 30))
    assert shown.more == 10
    assert gallery(images[:4], groups[:4], 1000).more == 0


@pytest.fixture
def wide(tmp_path):
    """A network of a hundred classes."""
    path = tmp_path / "wide.safetensors"
    save_classifier(build_classifier(ModelSpec("convnet-gn-4", size=8, classes=100)), path)
    return path


@pytest.mark.slow
def test_the_verbs_tables_stay_short(run, wide, tmp_path):
    names = {str(label): f"a name for class {label}" for label in range(1000)}
    spec = ModelSpec("convnet-gn-4", size=8, classes=1000, notes={"names": names})
    save_classifier(build_classifier(spec), tmp_path / "thousand.safetensors")
    shown = run("inspect", f"--teacher={tmp_path / 'thousand.safetensors'}").stdout
    assert len(shown.splitlines()) < 40

    out = tmp_path / "set"
    flags = [f"--teacher={wide}", f"--out={out}", "--images=100", "--short=augment"]
    said = run("collect", "noise", *flags, "--collection.draws=1", "--json", status=1)
    assert len(said.stdout.splitlines()) < 20
    assert re.search(r"all 100 +│", said.stdout)
    assert len(last_json(said)["per_class"]) == 100
    assert re.search(r"class \d+ lacks 1 and \d+ more classes some", said.stderr)

    page = tmp_path / "r.html"
    run("report", f"--run={out}", f"--out={page}")
    assert "<td>all 100" in page.read_text()

    np.savez(tmp_path / "d.npz", images=np.zeros((60, 8, 8), np.uint8), labels=np.arange(60))
    judged = run("evaluate", f"--model={wide}", f"--data={tmp_path / 'd.npz'}").stdout
    assert len(judged.splitlines()) < 30
    assert "50 more classes" in judged
