"""Files of options by anybody: none is run, none hangs, and each is refused in a sentence."""

import re

import pytest

import distill.torchvision_shim  # noqa: F401 - before timm
from distill.models import ModelSpec, build_classifier, load_classifier, save_classifier
from inversion.cli.grammar import parse
from synthesis_kernels.errors import EchosetError

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
REFUSED = {
    "synthesis: 3": "synthesis is a group of options, each by its name, as in 'seed: 3', and got 3",
    "synthesis: []": "synthesis is a group of options",
    "synthesis:\n  generator:\n": "synthesis.generator is a group of options.*got nothing",
    "synthesis.generator: 3": "synthesis.generator is a group of options",
    "out: null": "out must have a value, and null is none",
    'out: "a\\0b"': "line 1: found a NUL character",
    f"seed: {'9' * 5000}": "found what can't be read: Exceeds the limit",
    "teacher: {arguments: &a {x: *a}}": "values, or an alias of itself",
    "&a\nteacher: *a": "values, or an alias of itself",
    BOMB: "line 6: found more than 100,000 values",
    "teacher: " + "[" * 5000: "line 1",
    "teacher: " + "[" * 40 + "]" * 40: "found more than 32 levels",
    "- 3": "it must hold options, each by its name",
    "": "it must hold options",
    "config: /etc/passwd": "a file of options names no other one",
    "teacher: {mean: [1" + "0" * 400 + "]}": "too large",
    "out: !!python/object/apply:os.system [false]": "line 1: could not determine a constructor",
    "synthesis: {images: 1000000000000}": "images must be at most 499,995,000: a set has up to",
    "synthesis: {generator: {blocks: 100000000}}": "generator.blocks must be at most 64",
}
"""What a file holds, and what is said of it."""


@pytest.mark.parametrize(("text", "said"), REFUSED.items(), ids=range(len(REFUSED)))
def test_a_file_that_holds_no_tree_of_options_is_refused(text, said, tmp_path, refused):
    file = tmp_path / "o.yaml"
    file.write_text(text)
    lines = refused("synthesize", "--config", file, status=2)
    assert re.search(said, lines, re.DOTALL), lines


def test_an_alias_that_repeats_little_is_read(tmp_path):
    file = tmp_path / "o.yaml"
    file.write_text("synthesis: {views: &v {flip: true}}\ndistillation: {views: *v}\n")
    options = parse("demo", ["--config", str(file)])
    assert options.synthesis.views.flip and options.distillation.views.flip


def test_a_file_that_is_no_text_is_refused(tmp_path, refused):
    (tmp_path / "o.yaml").write_bytes(b"out: \xe9")
    assert "is no text in UTF-8" in refused("synthesize", "--config", tmp_path / "o.yaml", status=2)


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module that notes that it was imported."""
    (tmp_path / "evil.py").write_text(
        f"open({str(tmp_path / 'RAN')!r}, 'w')\nclass X:\n    def __init__(self, **more): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "evil.X"
    assert not (tmp_path / "RAN").exists()


@pytest.mark.parametrize(
    "place",
    [
        "class_path: X",
        "synthesis: {class_path: X}",
        "synthesis: {generator: {class_path: X}}",
        "teacher: {class_path: X, init_args: {}}",
        "teacher: {model: resnet18, arguments: {norm_layer: {class_path: X}}}",
    ],
)
def test_no_class_is_imported_by_a_file_of_options(place, evil, tmp_path, refused):
    file = tmp_path / "o.yaml"
    file.write_text(place.replace("X", evil))
    assert "class_path names code" in refused("synthesize", "--config", file, status=2)
    file.write_text(place.replace("X", evil).removeprefix("teacher: "))
    refused("inspect", "--teacher", file)


def test_no_class_is_made_by_a_model_file(evil, tmp_path):
    pytest.importorskip("timm", reason="needs timm, the extra timm")
    classifier = build_classifier(ModelSpec("convnet-4", {}, 1, 8, 3))
    arguments = {"act_layer": {"class_path": evil, "init_args": {}}}
    classifier.spec = ModelSpec("timm:resnet18", arguments, 1, 32, 3)
    save_classifier(classifier, tmp_path / "net.safetensors")
    with pytest.raises(EchosetError, match="class_path names code"):
        load_classifier(tmp_path / "net.safetensors")


TEACHERS = {
    "model: mnist\narguments: &a {x: *a}": "an alias of itself",
    f"model: mnist\narguments:\n  {BOMB.replace(chr(10), chr(10) + '  ')}": "100,000 values",
    'model: mnist\nweights: "a\\0b"': "line 2: found a NUL character",
    "model: " + "[" * 3000: "line 1",
    "model: convnet-32\nmean: [" + "9" * 400 + "]": "too large to convert",
    "model: mnist\narguments: {a: {class_path: os.system}}": "class_path names code",
}


@pytest.mark.parametrize(("text", "said"), TEACHERS.items(), ids=range(len(TEACHERS)))
def test_a_teachers_file_is_refused_alike(text, said, tmp_path, refused):
    (tmp_path / "t.yaml").write_text(text)
    assert said in refused("inspect", "--teacher", tmp_path / "t.yaml")
