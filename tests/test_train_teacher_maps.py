"""The tool that trains teachers, on label maps."""

import numpy as np
import pytest
import torch
from roads import CLASSES, VOID, write_splits
from test_train_teacher import train_until
from train_teacher import TeacherRecipe, train, weigh_classes

from distill import load_classifier
from distill.options import ViewOptions
from synthesis_kernels.errors import EchosetError


@pytest.fixture(scope="module")
def roads(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("roads"))


def recipe(roads, out, **changes):
    usual = {
        "task": "segmentation",
        "void": VOID,
        "model": "roads.Dense",
        "mean": (0.5,) * 3,
        "std": (0.3,) * 3,
        "epochs": 20,
        "batch": 8,
        "names": "tar,kerb,sky",
        "views": ViewOptions(rotate=0, scale=0.3, shift=0.2, flip=True, cutmix=0.2),
        "device": "cpu",
        "precision": "float32",
    }
    return TeacherRecipe(str(roads), str(out), **usual | changes)


@pytest.mark.slow
@pytest.mark.parametrize("optimiser", ["muon", "adamw"])
def test_a_teacher_of_label_maps_is_trained(roads, tmp_path, capsys, optimiser):
    out = tmp_path / "t.safetensors"
    told = recipe(roads, out, optimiser=optimiser, class_weights="frequency", look=True)
    accuracy = train(told)
    notes = load_classifier(out, trust=True).spec.notes
    shown = capsys.readouterr().out
    assert notes["mean_iou"] > 0.85 and notes["accuracy"] == accuracy
    assert len(notes["iou"]) == CLASSES and notes["class_names"] == ["tar", "kerb", "sky"]
    assert f"mean IoU {notes['mean_iou']:.4f}, {accuracy:.2%} on the test set" in shown
    assert "epoch 20: of the training images, mean IoU" in shown
    assert notes["learning_rate"] == {"muon": 0.05, "adamw": 3e-3}[optimiser]


def test_rare_classes_count_more(roads, tmp_path):
    labels = torch.tensor([0] * 90 + [1] * 10 + [-100] * 50).view(1, 15, 10)
    told = recipe(roads, tmp_path / "t", class_weights="frequency")
    weights = weigh_classes(told, labels, 2)
    np.testing.assert_allclose(weights, 1 / np.log(1.02 + np.array([0.9, 0.1])), rtol=1e-6)


def test_recipes_are_chosen_on_another_split_and_shown_small(roads, tmp_path, capsys):
    train(recipe(roads, tmp_path / "t", epochs=2, judge="val", small=0.5))
    assert "on the val set" in capsys.readouterr().out


def test_a_stopped_training_goes_on_to_the_same_bytes(roads, tmp_path, monkeypatch):
    told = {"epochs": 2, "small": 0.5, "class_weights": "frequency"}
    train(recipe(roads, tmp_path / "whole", **told))
    train_until(4, recipe(roads, tmp_path / "stopped", **told), monkeypatch)
    train(recipe(roads, tmp_path / "stopped", **told))
    assert (tmp_path / "stopped").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize(
    "change, said",
    [
        ({"void": 255}, r"names.*3|value 9"),
        ({"void": 255, "names": ""}, "have 4 of the values 0 to 9: .*--void 9; .*--names"),
        (
            {"model": "unet-2", "task": "classification", "views": ViewOptions()},
            "segmentation: say --task segmentation",
        ),
        ({"model": "wrn-10-1"}, "expected"),
        ({"judge": "elsewhere"}, "no folder 'elsewhere'"),
        ({"task": "segmentatoin"}, "no task 'segmentatoin'.*did you mean segmentation"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(roads, tmp_path, change, said):
    with pytest.raises(EchosetError, match=said):
        train(recipe(roads, tmp_path / "t.safetensors", **change))
