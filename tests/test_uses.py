"""The scripts about uses of sets, from end to end on pictures of stripes."""

import json
import runpy
import sys

import numpy as np
import pytest
import tables
from conftest import ROOT

from distill import ModelSpec, build_classifier, save_classifier
from inversion.cli.main import main

pytestmark = pytest.mark.slow


@pytest.fixture
def data(tmp_path):
    """A file of four kinds of stripes: 64 and 40 pictures."""
    random = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 64), ("test", 40)):
        labels = np.arange(count) % 4
        waves = [np.tile(np.arange(16) // width % 2 * 200, (16, 1)) for width in (1, 2)]
        kinds = np.stack([*waves, *(wave.T for wave in waves)])
        noisy = kinds[labels] + random.integers(0, 40, (count, 16, 16))
        arrays[f"{split}_images"] = noisy.astype(np.uint8)[..., None]
        arrays[f"{split}_labels"] = labels
    path = tmp_path / "stripes.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture
def use(data, tmp_path, monkeypatch):
    """Run a script as a user does; gives its rows."""

    def run(script, *flags, kinds=("ours", "noise")):
        out = tmp_path / f"{script}.json"
        tool = ROOT / "tools" / f"{script}.py"
        words = [f"--data={data}", f"--out={out}", "--seeds", "0", "--kinds", *kinds, *flags]
        monkeypatch.setattr(sys, "argv", [str(tool), *words])
        runpy.run_path(str(tool), run_name="__main__")
        return json.loads(out.read_text())

    return run


@pytest.fixture
def made(data, tmp_path):
    """A network, and a set of it."""
    teacher = tmp_path / "teacher.safetensors"
    spec = ModelSpec("convnet-4", channels=1, size=16, classes=4)
    save_classifier(build_classifier(spec, seed=0).eval(), teacher)
    words = ["collect", f"--out={tmp_path / 'set'}", f"--teacher={teacher}", "--images=16"]
    words += [f"--source={data}", "--collection.balanced=false", "--collection.expose=0"]
    assert main([*words, "--quiet"]) == 0
    return f"--teacher={teacher}", f"--set={tmp_path / 'set'}", "--images=8"


def cases(document):
    return [(row["case"], row["images"]) for row in document["uses"]]


def test_a_pruned_network_learns_again_and_rows_are_measured_once(use, made, capsys):
    document = use("use_pruning", *made, "--steps=2")
    pruned = "90% of the weights pruned"
    expected = [("not pruned", "none"), (pruned, "none"), (pruned, "ours"), (pruned, "noise")]
    assert cases(document) == expected
    assert "use_pruning.py" in document["command"] and "stripes.npz" not in document["command"]
    capsys.readouterr()
    assert use("use_pruning", *made, "--steps=2") == document
    assert not capsys.readouterr().err.count("noise")


def test_pruned_weights_stay_zero(made):
    from torch import nn, randint, uint8
    from use_pruning import prune_weights, recover

    from inversion import TeacherOptions, load_teacher

    teacher = load_teacher(TeacherOptions(made[0].partition("=")[2]))
    images = randint(256, (8, 1, 16, 16), dtype=uint8)
    before = prune_weights(teacher, 0.9)
    after = recover(teacher, 0.9, images, steps=3, seed=0)
    changed = False
    for layers in zip(before.modules(), after.modules(), strict=True):
        if isinstance(layers[0], nn.Conv2d):
            masks = [layer.weight_mask for layer in layers]
            assert masks[0].equal(masks[1])
            assert not layers[1].weight[masks[1] == 0].any()
            changed |= not layers[0].weight.equal(layers[1].weight)
    assert changed


def test_classes_are_learnt_two_at_a_time_beside_a_set_of_the_earlier_ones(use):
    flags = ("--network=convnet-4", "--steps=2", "--calls=2", "--images=8")
    document = use("use_replay", *flags, kinds=("real", "ours", "shaders"))
    assert [row["images"] for row in document["uses"]] == ["none", "real", "ours", "shaders"]
    assert all(0 <= row["accuracy"] <= 1 for row in document["uses"])


def test_a_network_is_quantised_in_every_case(use, made, monkeypatch):
    for package in ("onnxruntime", "onnxscript", "torchao"):
        pytest.importorskip(package)
    document = use("use_quantisation", *made)
    assert len(cases(document)) == 1 + 3 * 2
    monkeypatch.setattr(tables, "load", lambda name: document)
    assert len(tables.uses("any").splitlines()) == 2 + 4
