import html
import json
import re
import shutil

import pytest
from drawings import curves_in, pictures_of

from distill.options import DistillOptions, StudentOptions
from inversion.pages.page import render
from inversion.pages.plots import lines
from inversion.pages.report import told_of, weights_given, write_report
from inversion.pages.run_sections import synthesis_section
from synthesis_kernels.errors import EchosetError


def unsealed(path):
    """What the file says, as it may be changed."""
    content = json.loads(path.read_text())
    content.pop("checksum")
    return content


def test_the_report_stands_alone(demo):
    page = (demo[1] / "report.html").read_text()
    assert not re.search(r"(src|href)=.?(https?:|/|\.)|<script", page)
    for part in (
        "data:image/png;base64",
        "<svg",
        "images per class",
        "agreement, by generator call",
        "Where the time went",
        "echoset demo",
    ):
        assert part in page
    assert page.count('alt="images of class') == 10
    assert "Accuracy by class" in page and "What the student gets wrong" in page


def test_a_page_does_not_vouch_for_weights_it_has_not_seen_made(demo, tmp_path):
    out = shutil.copytree(demo[1], tmp_path / "demo")
    assert "saw no real image" in write_report(out).read_text()
    told = unsealed(out / "summary.json")
    for unsure in (
        told | {"given_weights": ["mine.safetensors"]},
        {k: v for k, v in told.items() if k != "given_weights"},
    ):
        (out / "summary.json").write_text(json.dumps(unsure))
        assert "saw no real image" not in write_report(out).read_text()
    students = (
        StudentOptions("convnet-4"),
        StudentOptions("lenet5", weights="w.pth"),
        StudentOptions("mine.nets:Pretrained"),
    )
    assert weights_given(*students[:1]) == [] and weights_given(*students) == [
        "mine.nets:Pretrained",
        "w.pth",
    ]


def test_a_page_says_what_was_kept_and_whose_answers_taught(demo, tmp_path):
    out = shutil.copytree(demo[1], tmp_path / "demo")
    told = unsealed(out / "summary.json")
    assert (told["kept"], told["answers"]) == ("last step", "teacher")
    with open(out / "log.jsonl", "a") as log:  # so that there is a curve
        log.writelines(
            json.dumps({"event": "distill", "step": step, "agreement": 0.5, "loss": 1}) + "\n"
            for step in (50, 100)
        )
    for options, kept, answers in (
        (DistillOptions(), "last step", "teacher"),
        (DistillOptions(patience=3, ema=0.9), "best on held-out images of the set", "teacher"),
        (
            DistillOptions(ema=0.9, labels="data"),
            "running average of the student's weights",
            "teacher",
        ),
        (DistillOptions(loss={"dml": None}, labels="data"), "last step", "labels"),
        (DistillOptions(loss={"at": None}, labels="data"), "last step", "teacher"),
    ):
        (out / "summary.json").write_text(json.dumps(told | told_of(options)))
        page = html.unescape(write_report(out).read_text())
        assert (
            f"the {kept} is what is reported" in page
            and f"divergence from the {answers}, by step" in page
        )
    del told["kept"], told["answers"]  # as before these were told
    (out / "summary.json").write_text(json.dumps(told))
    page = write_report(out).read_text()
    assert (
        "the last step is what is reported" in page
        and "divergence from the teacher, by step" in page
    )


CALL = {
    "event": "call",
    "shard": 0,
    "call": 9,
    "seconds": 1.0,
    "generator_seconds": 0.5,
    "taken": 3,
    "counts": [1] * 10,
}
CALL |= {"held_out_agreement": 0.5, "agreement": 0.5, "bn": 1.0, "classes": 1.0}
"""A line of a synthesis' log."""


def test_a_page_names_the_file_it_cannot_show(demo, tmp_path):
    out = shutil.copytree(demo[1], tmp_path / "demo")
    told, made = (
        json.loads((out / name).read_text()) for name in ("summary.json", "set/manifest.json")
    )

    def without(document, key):
        return {k: v for k, v in document.items() if k != key}

    calls = [without(CALL, key) for key in ("shard", "seconds")]
    calls += [CALL | bad for bad in ({"call": []}, {"seconds": "1"}, {"bn": "much"}, {"counts": 7})]
    summaries = [
        [],
        without(told, "agreement"),
        told | {"agreement": None},
        told | {"seconds": {"evaluation": "1"}},
    ]
    sets = [made | {"collection": found} for found in ([1], {"sources": ["noise"], "taken": {}})]
    for name, contents in {
        "set/log.jsonl": calls,
        "summary.json": summaries,
        "set/manifest.json": sets,
    }.items():
        before = (out / name).read_bytes()
        for content in contents:
            (out / name).write_bytes(
                (before if content in calls else b"") + json.dumps(content).encode() + b"\n"
            )
            with pytest.raises(EchosetError, match=re.escape(str(out / name))):
                write_report(out)
        (out / name).write_bytes(before)
    (out / "summary.json").write_bytes(b"\xff")
    with pytest.raises(EchosetError, match=r"summary\.json is not as echoset writes it: "):
        write_report(out)


def test_figures_that_are_no_numbers_are_left_out_of_the_curves(demo, tmp_path):
    out = shutil.copytree(demo[1], tmp_path / "demo")
    calls = [
        CALL | {"call": call, "bn": bn}
        for call, bn in enumerate((float("nan"), 2.0, float("inf"), 1.0))
    ]
    (out / "set" / "log.jsonl").write_text("".join(json.dumps(call) + "\n" for call in calls))
    page = write_report(out).read_text()
    assert "<h2>Synthesis</h2>" in page
    losses = next(plot for plot in pictures_of(page) if "losses" in plot)
    batch_norm, classes = curves_in(losses)[:2]
    assert len(batch_norm) == 2 and len(classes) == 4
    assert batch_norm[0][0] == classes[1][0] and batch_norm[1] == classes[3]
    assert not curves_in(lines("title", [1, 2], {"nothing": [float("nan")] * 2}, "x", "y").svg)
    assert synthesis_section(calls, 2).title == "Synthesis, shard 0 of 2"


def test_a_page_is_written_where_a_path_is_not_utf_8():
    assert b"runs/?" in render("base.html.j2", title="runs/\udcff")
