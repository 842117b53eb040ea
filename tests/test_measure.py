"""The tools that measure, with verbs that are pretended or tiny."""

import json
import runpy
import sys
from argparse import Namespace
from types import SimpleNamespace

import measure
import measure_curve
import measure_reweighting
import measure_sources
import pytest
import results
import torch
from conftest import ROOT

from distill.data.images import Images
from inversion.cli.main import parse
from synthesis_kernels.backend import describe_device, resolve_device
from synthesis_kernels.errors import EchosetError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where result files are."""
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    return tmp_path


def demo_document():
    """What `echoset demo` prints, as far as it is kept."""
    return {
        "teacher_accuracy": 0.9,
        "student_accuracy": 0.9,
        "adversary_accuracy": 0.9,
        "agreement": 0.9,
        "start": "fresh",
        "beside": None,
        "images": 20,
        "per_class": [10, 10],
        "test_images": "a few",
        "device": describe_device(resolve_device()),
        "torch": "2",
        "seconds": {"total": 9.0},
    }


def test_runs_judged_on_other_images_are_not_pooled(folder):
    early = {"runs": [{"name": "default", "seed": 0}], "test_images": "full test set"}
    (folder / "mine.json").write_text(json.dumps(early))
    with pytest.raises(SystemExit, match="runs judged on full test set"):
        measure.measure("mine", [], [1], None, [])


def test_runs_are_kept_beside_those_of_another_process_and_not_made_again(folder, monkeypatch):
    path = folder / "mine.json"

    def beside_another_process(*command):
        seed = len(results.read_runs(path)["runs"])
        other = {"name": "theirs", "seed": seed, "device": demo_document()["device"]}
        results.add_run(path, other, {"test_images": "a few"})
        return demo_document()

    monkeypatch.setattr(measure, "run_verb", beside_another_process)
    flags = ["--images=20"]
    measure.measure("mine", [], [0, 1], None, flags)
    runs = measure.measure("mine", [], [0, 1], None, flags)
    names = [(run["name"], run["seed"]) for run in runs]
    assert names == [("theirs", 0), ("default", 0), ("theirs", 2), ("default", 1)]
    assert runs[1]["command"] == "echoset demo --seed 0 --images=20" and runs[1]["balanced"]
    with pytest.raises(SystemExit, match="runs of default with other options"):
        measure.measure("mine", [], [2], None, ["--images=30"])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "name, refusal",
    [
        ("default", "runs of default with other options"),
        ("another", "runs made on cuda: a GPU, and this is"),
    ],
)
def test_runs_of_unknown_options_or_another_device_are_not_pooled(
    folder, monkeypatch, seed, name, refusal
):
    monkeypatch.setattr(measure, "run_verb", lambda *command: demo_document())
    early = {"runs": [{"name": name, "seed": 0}], "test_images": "a few", "device": "cuda: a GPU"}
    (folder / "mine.json").write_text(json.dumps(early))
    with pytest.raises(SystemExit, match=refusal):
        measure.measure("mine", [], [seed], None, [])


def test_every_set_s_command_is_given_each_time(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(
        measure_sources, "run_verbs", lambda commands, processes=1: given.extend(commands)
    )
    for place in ("0/noise/manifest.json", "score-0/validation.json"):
        path = tmp_path / place
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    made = {"noise": ["collect", "--images", "20", "--source", "noise"]}
    assert measure_sources.measure([0], made, "DIR", tmp_path, 1, 10) == [{}]
    assert given[0] == [*made["noise"], "--seed", "0", "--out", str(tmp_path / "0" / "noise")]
    assert [command[0] for command in given] == ["collect", "score"]


def test_sources_are_published_without_places(tmp_path, monkeypatch):
    monkeypatch.setattr(measure_sources, "RESULTS", tmp_path)
    made = measure_sources.sets("/digits", "/photos", 20)
    made = {name: made[name] for name in ("real", "photos", "photos-unbalanced")}
    cards = {}
    for number, name in enumerate(made):
        cell = dict.fromkeys(measure_sources.JUDGED, 0) | {"set": name, "accuracy": number / 10}
        path = measure_sources.cell_file(tmp_path, name, 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(cell | {"device": "a CPU", "torch": "2"}))
        collection = dict.fromkeys(measure_sources.KEPT) | {"drawn": {"/digits": 20}}
        manifest = tmp_path / "0" / name / "manifest.json"
        manifest.parent.mkdir(parents=True)
        manifest.write_text(json.dumps({"counts": [10, 10], "collection": collection}))
        cards[name] = {"values": {"coverage": 0.5, "coverage_raw": None}, "overall": 0.25}
    test = {"title": "overall", "claim": "", "rho": 0.5, "low": 0.1, "high": 0.9}
    document = {"sets": cards, "validation": {"overall": test, "scores": [test | {"rho": None}]}}
    cells = measure_sources.publish([document], [0], made, tmp_path, {"command": "a tool"})
    assert cells[0]["collection"]["drawn"] == {"DIR": 20}
    assert cells[1]["command"] == "echoset collect --images 20 --source PHOTOS"
    stored = json.loads((tmp_path / "sources.json").read_text())
    assert stored["study"] == cells and stored["device"] == "a CPU"
    shown = measure_sources.tables(cells, [document])
    assert "| photos-unbalanced | 20.00 | 20.00 | – | 0.50 | 0.250 |" in shown
    assert "| photos | 10.00 | 20.00 |" in shown
    assert "| **overall** | | 0.50 (0.10 to 0.90) |" in shown.replace("|  |", "| |")


@pytest.fixture
def curve(tmp_path, monkeypatch):
    """Draw a curve with other arguments than the usual ones, as if at a commit, by a study that is
    pretended; what was asked of it, and the synthetic set's manifest.
    """
    pictures = Images(torch.zeros(20, 1, 1, 1).byte(), None, "pictures")
    manifest = {"shards": [{"sha256": "first set"}]}
    made = SimpleNamespace(images=pictures.images, manifest=manifest)
    folders = []

    def run_study(teacher, sets, test, out, student, options, distillation, **more):
        folders.append(out.as_posix())
        method = options.methods[0]
        cell = dict.fromkeys(("accuracy", "agreement"), 0.9) | {
            "corruption": "none",
            "method": method,
            "seed": 0,
            "loss": {method: 1.0},
            "set_size": options.images,
            "steps": distillation.steps,
            "seconds": 1.5,
            "device": "a CPU",
            "torch": "2",
            "key": "…",
        }
        return [cell | {"set": name} for name in sets]

    def draw(commit="a commit", steps=7, method="hinton"):
        words = ["--set", "s", "--data", "d", "--steps", str(steps)]
        monkeypatch.setattr(sys, "argv", ["measure_curve.py", *words])
        monkeypatch.setattr(measure_curve, "repository_commit", lambda: commit)
        config = str(ROOT / "configs" / "cifar10-small.yaml")
        given = {"config": config, "set": "s", "data": "d", "sizes": [10], "seeds": [0]}
        measure_curve.measure(Namespace(**given, steps=steps, name="curve", method=method))
        return json.loads((tmp_path / "curve.json").read_text())["study"]

    monkeypatch.setattr(measure_curve, "RESULTS", tmp_path)
    monkeypatch.setattr(measure_curve, "run_study", run_study)
    monkeypatch.setattr(measure_curve, "load_images", lambda *given: pictures)
    monkeypatch.setattr(measure_curve, "load_teacher", lambda options: None)
    monkeypatch.setattr(measure_curve, "TransferSet", SimpleNamespace(load=lambda place: made))
    return SimpleNamespace(draw=draw, folders=folders, manifest=manifest)


def test_rows_of_a_curve_say_where_they_come_from(curve):
    curve.draw("first", steps=7)
    curve.draw("second", steps=9)
    rows = curve.draw("third", steps=7)
    assert curve.folders == [f"runs/curve/curve/hinton-10-{steps}" for steps in (7, 9, 7)]
    assert [(row["set"], row["steps"], row["commit"]) for row in rows] == [
        ("real", 7, "first"),
        ("real", 9, "second"),
        ("synthetic", 7, "first"),
        ("synthetic", 9, "second"),
    ]
    assert rows[1]["command"] == "python tools/measure_curve.py --set SET --data DIR --steps 9"
    assert rows[2]["set_hashes"] == ["first set"] and "set_hashes" not in rows[0]
    assert "key" not in rows[0]


def test_a_curve_by_another_loss_has_rows_of_its_own(curve):
    curve.draw()
    assert [row["method"] for row in curve.draw(method="at")] == ["at"] * 2 + ["hinton"] * 2


def test_a_curve_is_of_one_synthetic_set(curve):
    curve.draw()
    curve.manifest["shards"][0]["sha256"] = "another set"
    with pytest.raises(EchosetError, match="rows of another synthetic set"):
        curve.draw()


@pytest.mark.parametrize("seeds", [["0"], ["0", "0"], ["0", "1", "0"]])
def test_ways_to_draw_need_two_seeds(monkeypatch, capsys, seeds):
    monkeypatch.setattr(
        sys, "argv", ["measure_reweighting.py", "--name=x", "--data=DIR", "--seeds", *seeds]
    )
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "tools" / "measure_reweighting.py"), run_name="__main__")
    assert "no two of them equal" in capsys.readouterr().err


def test_ways_to_draw_are_options_of_the_demo():
    for name, flags in measure_reweighting.ways([0.5, *[0.0] * 6]).items():
        replay = parse("demo", flags).synthesis.replay
        assert replay.sampling == ("policy" if name == "transferred" else name)
        assert (replay.policy_rate, len(replay.policy)) == (
            (0, 7) if name == "transferred" else (0.1, 0)
        )
