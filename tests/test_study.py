import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, environment
from drawings import dots_in, pictures_of, words_in

from distill import Classifier, DistillOptions, StudentOptions, load_images
from distill.options import StudyOptions
from distill.runtime import Runtime
from distill.study import Cell, method_loss, plan, run_study, summarise
from inversion import MNIST_SLICE
from inversion.cli.main import main
from inversion.pages.study import grid, grids, write_study
from synthesis_kernels.errors import EchosetError

SHORT = DistillOptions(steps=3, batch=16, views_per_image=2)
SMALL = StudyOptions(methods=("plain", "hinton"), seeds=(0, 1), attacks=0)
NETWORK = StudentOptions("convnet-4")


@pytest.fixture(scope="module")
def few():
    return load_images(MNIST_SLICE).chosen(torch.arange(300))


def study(teacher, few, out, options=SMALL, distillation=SHORT, sets=None, **more):
    sets = {"real": few.chosen(torch.arange(100))} if sets is None else sets
    return run_study(
        teacher,
        sets,
        few,
        out,
        NETWORK,
        options,
        distillation,
        original=more.pop("original", None),
        runtime=Runtime(device="cpu", quiet=True, **more),
    )


def test_a_grid_is_filled_once(teacher, few, tmp_path):
    cells = study(teacher, few, tmp_path)
    assert [(cell["method"], cell["seed"]) for cell in cells] == [
        ("plain", 0),
        ("hinton", 0),
        ("plain", 1),
        ("hinton", 1),
    ]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").glob("[!.]*")}
    assert len(times) == 4
    again = study(teacher, few, tmp_path, replace(SMALL, methods=("plain", "hinton", "at")))
    assert len(again) == 6 and all(path.stat().st_mtime_ns == then for path, then in times.items())


def test_cells_of_other_options_are_not_mixed_in(teacher, few, tmp_path):
    study(teacher, few, tmp_path, replace(SMALL, seeds=(0,)))
    said = r"real--none--plain--0\.json was made .* \(distillation\.steps was 3 and is 4\)"
    with pytest.raises(EchosetError, match=said):
        study(teacher, few, tmp_path, replace(SMALL, seeds=(0,)), replace(SHORT, steps=4))
    both = tmp_path / "both"
    study(teacher, few, both, replace(SMALL, seeds=(1,)))
    with pytest.raises(EchosetError, match="was made with other options or data"):
        study(teacher, few, both, SMALL, replace(SHORT, steps=4))
    assert not list(both.glob("cells/*--0.json"))  # it was refused before any other was computed
    with pytest.raises(EchosetError, match=r"was made with other options or data \(another set\)"):
        study(
            teacher,
            few,
            tmp_path,
            replace(SMALL, seeds=(0,)),
            sets={"real": few.chosen(torch.arange(1, 101))},
        )


def test_cells_of_another_process_with_other_options_are_not_mixed_in(teacher, few, tmp_path):
    study(teacher, few, tmp_path, rank=1, world=2)
    with pytest.raises(EchosetError, match="was made with other options or data"):
        study(teacher, few, tmp_path, SMALL, replace(SHORT, steps=4), rank=0, world=2)


def test_another_normalisation_is_another_teacher(teacher, few, tmp_path):
    study(teacher, few, tmp_path, replace(SMALL, seeds=(0,)))
    other = Classifier(teacher.network, replace(teacher.spec, mean=(0.5,)))
    with pytest.raises(EchosetError, match="was made with other options or data"):
        study(other, few, tmp_path, replace(SMALL, seeds=(0,)))


@pytest.mark.parametrize("content", ["null", "{}", "{", '{"key": 1}'])
def test_a_damaged_cell_is_named(teacher, few, tmp_path, content):
    study(teacher, few, tmp_path, replace(SMALL, seeds=(0,)))
    (tmp_path / "cells" / "real--none--plain--0.json").write_text(content)
    with pytest.raises(
        EchosetError, match=r"real--none--plain--0\.json is not a cell of a study, or is damaged"
    ):
        study(teacher, few, tmp_path, replace(SMALL, seeds=(0,)))


def test_processes_share_a_grid(teacher, few, tmp_path):
    assert len(study(teacher, few, tmp_path / "a", rank=1, world=2)) == 2
    shared = study(teacher, few, tmp_path / "a", rank=0, world=2)
    alone = study(teacher, few, tmp_path / "b")
    for cell, other in zip(shared, alone, strict=True):
        assert (cell["accuracy"], cell["entropy"]) == (other["accuracy"], other["entropy"])


def test_damage_is_done_alike_to_all_methods_and_told(teacher, few, tmp_path):
    options = StudyOptions(
        ("plain", "hinton"), ("none", "noise=0.5", "imbalance=1"), (0,), images=100, attacks=0
    )
    cells = study(teacher, few, tmp_path, options, replace(SHORT, labels="data"), {"real": few})
    reports = {cell["corruption"]: cell["report"] for cell in cells}
    assert len({(cell["corruption"], cell["report"]) for cell in cells}) == 3
    assert (
        "labels drawn anew" in reports["noise=0.5"] and "by class [10, " in reports["imbalance=1"]
    )
    assert {cell["set_size"] for cell in cells if cell["corruption"] == "noise=0.5"} == {100}
    assert {cell["method"]: cell["loss"] for cell in cells} == {
        "plain": {"labels": 1.0},
        "hinton": {"hinton": 0.9, "labels": 0.1},
    }


@pytest.mark.parametrize(
    "change, message",
    [
        ({"methods": ("hintn",)}, "no method 'hintn'"),
        ({"seeds": ()}, "one seed"),
        ({"attacks": -1}, "attacks must be a number of at least 0"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_when_it_is_named(change, message):
    with pytest.raises(EchosetError, match=message):
        replace(SMALL, **change)


def test_rows_on_the_original_data_are_added_and_never_damaged(teacher, few, tmp_path):
    options = StudyOptions(("sp",), ("noise=0.5",), (0,), attacks=0)
    cells = study(teacher, few, tmp_path, options, replace(SHORT, labels="data"), original=few)
    assert [(cell["set"], cell["corruption"], cell["method"]) for cell in cells] == [
        ("original", "none", "plain"),
        ("original", "none", "hinton"),
        ("real", "noise=0.5", "sp"),
    ]
    assert cells[0]["set_size"] == 300 and cells[0]["labels"] == "data"


@pytest.mark.parametrize(
    "options, labels, sets, message",
    [
        (
            replace(SMALL, corruptions=("noise=0.2",)),
            "teacher",
            None,
            "add --distillation.labels data",
        ),
        (replace(SMALL, corruptions=("blur=1",)), "data", None, "'blur=1' is no corruption"),
        (replace(SMALL, images=500), "data", None, "images in its smallest class"),
        (replace(SMALL, methods=("plain", "dml+one")), "teacher", None, "choose one of them"),
        (SMALL, "teacher", {}, "a study needs a set"),
        (SMALL, "teacher", {"a/b": None}, "'a/b' can't be the name of a set"),
        (SMALL, "teacher", {"original": None}, "'original' is taken"),
    ],
)
def test_what_would_fail_later_is_refused_first(
    teacher, few, tmp_path, options, labels, sets, message
):
    with pytest.raises(EchosetError, match=message):
        study(teacher, few, tmp_path, options, replace(SHORT, labels=labels), sets)
    assert not (tmp_path / "cells").exists()


def test_methods_are_their_published_losses():
    assert method_loss("plain", True) == {"labels": 1.0}
    assert method_loss("hinton", False) == {"hinton": 1.0}
    assert method_loss("hinton", True) == {"hinton": 0.9, "labels": 0.1}
    assert method_loss("hinton+dml", True) == {
        "hinton": 1.0,
        "dml": 1.0,
    }  # and labels at 1 for all students
    assert method_loss("hinton+at", False) == {"hinton": 1.0, "at": 1000.0}


def test_seeds_are_outermost():
    cells = plan({"a": 0, "b": 0}, replace(SMALL, corruptions=("none", "noise=0.2")), original=True)
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    assert len(cells) == len(set(cells)) == 2 * (2 + 2 * 2 * 2)
    assert cells[0] == Cell("original", "none", "plain", 0)


def row(accuracy, seed, method="plain", **more):
    figures = dict.fromkeys(
        ("agreement", "ece", "entropy", "magnitude_similarity", "angle_similarity", "transfer")
    )
    return {
        "set": "real",
        "corruption": "none",
        "method": method,
        "seed": seed,
        "accuracy": accuracy,
        **figures,
        **more,
    }


def test_means_and_deviations_are_those_of_numpy(tmp_path):
    accuracies = [0.97, 0.98, 0.96]
    cells = [row(a, s) for s, a in enumerate(accuracies)] + [row(0.5, 0, "at")]
    plain, at = summarise(cells)
    assert plain["accuracy"] == pytest.approx(np.mean(accuracies)) and plain[
        "accuracy_sd"
    ] == pytest.approx(np.std(accuracies, ddof=1))
    assert plain["worst"] == 0.96 and at["accuracy_sd"] is None
    assert grid([{**plain, "entropy": 0.5}], "real", "entropy")[1] == ("plain", "0.500")
    assert grid([plain, at], "real") == [
        ("method", "none"),
        ("plain", "97.00 ± 1.00"),
        ("at", "50.00"),
    ]
    write_study([plain, at], "echoset study <b>", tmp_path / "s.html")
    page = (tmp_path / "s.html").read_text()
    assert "97.00 ± 1.00" in page and "<b>" not in page and "<script" not in page


def test_maps_have_a_table_of_mean_iou_beside_that_of_accuracy(tmp_path):
    ious = [0.25, 0.35]
    cells = [row(0.8, seed, own={"mean_iou": iou, "iou": []}) for seed, iou in enumerate(ious)]
    (mean,) = summarise(cells)
    assert mean["mean_iou"] == pytest.approx(0.3)
    assert mean["mean_iou_sd"] == pytest.approx(np.std(ious, ddof=1))
    assert list(grids([mean], "real")) == ["accuracy, %", "mean IoU, %"]
    assert "30.00 ± 7.07" in page_of(tmp_path, [mean])
    (classes,) = summarise([row(0.8, 0)])
    assert classes["mean_iou"] is None and list(grids([classes], "real")) == ["accuracy, %"]


def page_of(tmp_path, rows):
    write_study(rows, "echoset study", tmp_path / "s.html")
    return (tmp_path / "s.html").read_text()


def test_one_level_is_drawn_by_method_beside_the_references(tmp_path):
    references = [row(0.99, 0, "plain", set="original"), row(0.995, 0, "hinton", set="original")]
    cells = [row(0.97, 0), row(0.95, 1), row(0.5, 0, "at"), *references]
    page = page_of(tmp_path, summarise(cells))
    assert page.count("<svg") == 2  # of the set, and of the original data
    chart = pictures_of(page)[0]
    assert words_in(chart)[-4:] == ["plain", "at", "plain training", "KD on the original data"]
    # The better, the farther to the right.
    plain, at, reference, distilled = dots_in(chart)
    assert at < plain < reference < distilled
    assert "<td>plain training<td>99.00" in page and "<td>KD on the original data<td>99.50" in page


def test_levels_of_one_corruption_are_joined_and_others_stand_alone(tmp_path):
    damages = ("none", "noise=0.2", "imbalance=1")
    page = page_of(
        tmp_path,
        summarise(
            [row(0.9, 0, method, corruption=d) for d in damages for method in ("plain", "at")]
        ),
    )
    assert re.findall('aria-label="(.*?)"', page) == [
        "accuracy by noise",
        "accuracy by method, %, imbalance=1",
    ]


def test_a_line_follows_the_levels_by_number(tmp_path):
    damages = {"noise=0.4": 0.5, "noise=0.05": 0.7, "none": 0.9}
    page = page_of(
        tmp_path,
        summarise([row(accuracy, 0, corruption=damage) for damage, accuracy in damages.items()]),
    )
    assert words_in(pictures_of(page)[0])[:3] == ["none", "noise=0.05", "noise=0.4"]


def test_images_are_drawn_evenly_from_a_labelled_file(tmp_path, capsys):
    whole = load_images(MNIST_SLICE)
    np.savez(
        tmp_path / "set.npz",
        images=whole.images[:200, 0].numpy(),
        labels=whole.labels[:200].numpy(),
    )
    flags = [
        f"--sets={json.dumps({'mine': str(tmp_path / 'set.npz')})}",
        f"--out={tmp_path / 'out'}",
        "--images=40",
    ]
    flags += [
        "--study.seeds=[0]",
        "--study.attacks=0",
        "--student=convnet-4",
        '--study.methods=["hinton"]',
        "--device=cpu",
    ]
    assert (
        main(
            [
                "study",
                *flags,
                "--distillation.steps=2",
                "--distillation.batch=16",
                "--quiet",
                "--json",
            ]
        )
        == 0
    )
    assert json.loads((tmp_path / "out" / "study.json").read_text())["runs"][0]["set_size"] == 40


def test_a_killed_study_goes_on(tmp_path, capsys):
    digits = load_images(MNIST_SLICE)
    np.savez(tmp_path / "set.npz", images=digits.images[:200, 0].numpy())
    np.savez(
        tmp_path / "test.npz",
        images=digits.images[-100:, 0].numpy(),
        labels=digits.labels[-100:].numpy(),
    )
    sets = json.dumps({"mine": str(tmp_path / "set.npz")})
    flags = [
        f"--sets={sets}",
        f"--out={tmp_path / 'out'}",
        "--study.seeds=[0]",
        "--study.attacks=0",
        "--student=convnet-4",
    ]
    flags += [
        f"--data={tmp_path / 'test.npz'}",
        "--distillation.steps=60",
        "--distillation.batch=32",
        "--device=cpu",
    ]
    flags += ['--study.methods=["hinton","labels","at","sp"]']
    command = [sys.executable, "-m", "inversion.cli.main", "study", *flags, "--quiet"]
    process = subprocess.Popen(
        command, env=environment(), cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    first = tmp_path / "out" / "cells" / "mine--none--hinton--0.json"
    while not first.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    then = first.read_bytes()
    assert len(list(first.parent.glob("*.json"))) < 4
    assert main(["study", *flags, "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["cells"] == document["of"] == 4 and {r["method"] for r in document["rows"]} == {
        "hinton",
        "labels",
        "at",
        "sp",
    }
    assert first.read_bytes() == then and not [
        path for path in first.parent.iterdir() if path.is_dir()
    ]
    assert (tmp_path / "out" / "study.html").is_file() and len(
        json.loads((tmp_path / "out" / "study.json").read_text())["runs"]
    ) == 4
