"""Names of classes: from where they come, where they are shown, and folders matched with them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import last_json
from PIL import Image

from distill import (
    ModelSpec,
    TransferSet,
    as_classifier,
    build_classifier,
    evaluate,
    load_images,
    merge,
)
from distill import export as export_set
from distill.data.matching import match_folders
from distill.files import unseal
from distill.models import load_classifier, save_classifier
from distill.names import folder_ending, printable, read_names, show_class
from inversion import load_teacher
from inversion.options import TeacherOptions
from synthesis_kernels.errors import EchosetError

NAMES = ("ant", "cat", "dog", "hot dog")
GREYS = {"ant": 20, "cat": 90, "dog": 160, "hot dog": 230}


class Greys(torch.nn.Module):
    """Tells four greys apart."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Conv2d(3, 4, 1)
        level = torch.tensor(list(GREYS.values())) / 255
        self.head.weight.data = (level[:, None] / 3).expand(4, 3)[:, :, None, None] * 40
        self.head.bias.data = -(level**2) / 2 * 40

    def forward(self, images):
        return self.head(images).mean((2, 3))


NET = "test_names:Greys"
OPTIONS = TeacherOptions(NET, size=8, classes=4)


def flags(option, *names):
    """The flags of a verb for the network, and for the names of its classes."""
    flags = [f"--{option}={NET}", f"--{option}.size=8", f"--{option}.classes=4"]
    return [*flags, f"--{option}.names={','.join(map(str, names))}"] if names else flags


@pytest.fixture
def names_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\n".join(NAMES) + "\n")
    return path


def write_folders(root, folders, images=3):
    """A folder of pictures for each name, in the grey of the class that is given for it."""
    random = np.random.default_rng(0)
    for folder, name in folders.items():
        (root / folder).mkdir(parents=True)
        for number in range(images):
            pixels = GREYS[name] + random.integers(-5, 5, (8, 8, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / folder / f"{number}.png")
    return root


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("names.txt", "ant\ncat\r\ndog\nhot dog\n\n"),
        ("names.txt", "\ufeffant\ncat\ndog\nhot dog"),
        ("names.json", '["ant", "cat", "dog", "hot dog"]'),
        ("names.json", '{"1": "cat", "0": "ant", "3": "hot dog", "2": "dog"}'),
        ("names.json", '{"cat": 1, "ant": 0, "hot dog": 3, "dog": 2}'),
    ],
)
def test_names_are_read_from_files(tmp_path, file, text):
    (tmp_path / file).write_text(text, encoding="utf-8")
    assert read_names(str(tmp_path / file)) == NAMES


def test_names_are_given_themselves_or_by_folders(tmp_path):
    assert read_names("ant, cat,dog,hot dog") == NAMES
    assert read_names(list(NAMES)) == NAMES
    for folder in ("train/b", "train/a", "train/.c", "test/d"):
        (tmp_path / folder).mkdir(parents=True)
    assert read_names(str(tmp_path)) == ("a", "b")
    for folder in ("0-b", "1-a"):
        (tmp_path / "exported" / folder).mkdir(parents=True)
    assert read_names(str(tmp_path / "exported")) == ("b", "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ant\n\ndog", "class 1 has no name"),
        ('{"0": "ant", "2": "cat"}', "2 names and none for class 1"),
        ('["ant", 3]', "class 1 has no name"),
        ("[1,", "not readable JSON"),
        (b"\xff\xfe\x80", "no text in UTF-8"),
        ("ant", "1 names"),
    ],
)
def test_names_that_are_none_are_refused(tmp_path, text, message):
    path = tmp_path / "names"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(EchosetError, match=message):
        read_names(str(path))


def test_a_missing_file_of_names_and_a_wrong_number_are_refused():
    with pytest.raises(EchosetError, match=r"names 'nams\.txt': no such file"):
        load_teacher(replace(OPTIONS, names="nams.txt"))
    with pytest.raises(EchosetError, match=r"3 names \(a to c\) for the 4 classes"):
        load_teacher(replace(OPTIONS, names="a,b,c"))


def test_names_tell_the_number_of_classes(tmp_path):
    net = build_classifier(ModelSpec("lenet5", classes=3)).network
    torch.save(net.state_dict(), tmp_path / "net.pt")
    options = TeacherOptions("lenet5", str(tmp_path / "net.pt"), channels=1, size=28, names="a,b,c")
    assert load_teacher(options).class_names == ("a", "b", "c")


def test_inspect_shows_names_from_a_list_in_a_file(run, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(
        f"teacher: {{model: '{NET}', size: 8, classes: 4, names: [ant, cat, dog, hot dog]}}\n"
    )
    said = run("inspect", f"--config={config}", "--json")
    assert "ant, cat, dog, hot dog" in said.stdout
    assert last_json(said)["spec"]["notes"]["class_names"] == list(NAMES)


def test_a_subset_of_folders_is_matched_by_name(run, names_file, tmp_path):
    data = write_folders(tmp_path / "data", {"Hot_Dog": "hot dog", "cat": "cat"})
    said = run("evaluate", *flags("model", names_file), f"--data={data}", "--json")
    judged = last_json(said)
    assert judged["accuracy"] == 1
    assert judged["per_class"] == [None, 1, None, 1]
    assert judged["folders"] == "2 of 4 classes, taken by name"
    assert "2 of 4 classes, taken by name" in said.stdout
    assert "class 3 (hot dog)" in said.stdout


def test_without_names_a_subset_is_not_guessed_at(refused, tmp_path):
    data = write_folders(tmp_path / "data", {"cat": "cat", "dog": "dog"})
    said = refused("evaluate", *flags("model"), f"--data={data}")
    assert "has 2 folders of classes ('cat', …), and the network knows 4 classes" in said
    assert "--model.names" in said and "0 to 3" in said


@pytest.mark.parametrize("folders", [("3", "1"), ("3-sausage", "1-tiger"), ("003", "001")])
def test_numbered_folders_are_their_classes(tmp_path, folders):
    data = write_folders(tmp_path, dict(zip(folders, ("hot dog", "cat"), strict=True)))
    images = load_images(data, channels=3, size=8)
    result = evaluate(load_teacher(OPTIONS), images)
    assert (result.accuracy, result.per_class) == (1, [None, 1, None, 1])


def test_a_folder_of_another_name_is_refused_with_the_nearest(refused, tmp_path):
    data = write_folders(tmp_path, {"cat": "cat", "d\x1b[31mogg": "dog"})
    arguments = (*flags("model", *NAMES), f"--data={data}")
    said = refused("evaluate", *arguments)
    assert "the folder 'd [31mogg' bears the name of no class; the nearest is 2 (dog)" in said
    assert "\x1b" not in said


def test_folders_are_matched_as_far_as_they_can_be_told_apart(capsys):
    def match(folders, names, classes=None):
        return match_folders(folders, classes or len(names), names, "DATA").labels

    birds = ["crane", "crane", "tench, Tinca tinca", "c++", "c#"]
    assert match(["tench", "c#", "C++"], birds) == [2, 4, 3]
    assert match(["0-crane", "1-crane"], birds) == [0, 1]
    with pytest.raises(EchosetError, match=r"0 \(crane\) and 1 \(crane\); put .* '0-crane'"):
        match(["crane"], birds)
    with pytest.raises(EchosetError, match=r"'Dog' and 'dog' are both for class 1 \(dog\)"):
        match(["Dog", "dog"], ["cat", "dog"])
    # Of another network, whose classes stand in another order
    assert match(["0-cat", "1-dog"], ["dog", "cat"]) == [1, 0]
    with pytest.raises(EchosetError, match=r"'1-bird' bears the name of no class; the nearest is"):
        match(["1-bird", "0-fish"], ["dog", "cat"])
    # ImageNet's folders are named otherwise, and in the order of the classes
    imagenet = ["n01440764", "n01443537"]
    assert match(imagenet, ["tench", "goldfish"]) == [0, 1]
    with pytest.raises(EchosetError, match=r"none of its 2 folders .* nearest to 'n01440764' is"):
        match(imagenet, ["tench", "goldfish", "shark"])
    # One a class, but who knows in which order
    with pytest.raises(EchosetError, match=r"none of its 2 folders bears the name of a class"):
        match(["a", "b"], ["tench", "goldfish"])
    with pytest.raises(EchosetError, match=r"named by numbers, and classes are 0 to 1"):
        match(["1", "2"], ["tench", "goldfish"])
    with pytest.raises(EchosetError, match=r"'12' is for no class; the network knows 0 to 9"):
        match(["1", "12"], None, 10)
    # 1 to 12: not numbers of classes from 0, and one a class
    assert match(["1", "10", "11", "12", "2"], None, 5) == [0, 1, 2, 3, 4]
    folders = sorted(map(str, range(11)))
    assert match(folders, None, 11) == [0, 1, 10, *range(2, 10)]
    assert "DATA: folders are taken by number" in capsys.readouterr().err
    assert match(folders, folders) == list(range(11))  # as ImageFolder had them


@pytest.fixture
def named_set(run, tmp_path):
    """The folder of a set that was finished without names and has got them since, and what was
    said then.
    """
    out = tmp_path / "set"
    command = ["collect", "gaussian", f"--out={out}", "--images=8", "--seed=1"]
    said = run(*command, *flags("teacher"))
    bare = (out / "manifest.json").read_bytes()
    assert b"class_names" not in bare
    assert "3 (" not in said.stdout
    said = run(*command, *flags("teacher", *NAMES))
    named = unseal(json.loads((out / "manifest.json").read_text()))
    assert named["input"].pop("class_names") == list(NAMES)
    assert named == unseal(json.loads(bare))
    assert "3 (hot dog)" in said.stdout
    return out


def test_names_go_with_the_set_and_its_exports(run, named_set, tmp_path):
    assert "3 (hot dog)" in run("verify", f"--set={named_set}", *flags("teacher")).stdout
    run("report", f"--run={named_set}")
    assert "<td>3 (hot dog)" in (named_set / "report.html").read_text()

    pictures = tmp_path / "pictures"
    run("export", named_set, f"--out={pictures}")
    folders = sorted(path.name for path in pictures.iterdir() if path.is_dir())
    assert folders == ["0-ant", "1-cat", "2-dog", "3-hot_dog"]
    said = run("evaluate", *flags("model"), f"--data={pictures}", "--json")
    assert last_json(said)["accuracy"] == 1

    export_set(TransferSet.load(named_set), tmp_path / "npz", "npz")
    with np.load(tmp_path / "npz" / "set.npz", allow_pickle=False) as arrays:
        assert arrays["class_names"].tolist() == list(NAMES)


def test_sets_with_names_and_without_are_merged(named_set):
    named = TransferSet.load(named_set)
    manifest = dict(named.manifest)
    manifest["input"] = {**manifest["input"]}
    del manifest["input"]["class_names"]
    assert merge([named, replace(named, manifest=manifest)]).class_names == NAMES


def test_a_student_has_its_teachers_names(run, named_set, tmp_path):
    learning = ["--student=convnet-gn-4", "--distillation.steps=1", f"--out={tmp_path}"]
    run("distill", f"--set={named_set}", *flags("teacher", *NAMES), *learning)
    assert load_classifier(tmp_path / "student.safetensors").class_names == NAMES


def test_a_manifest_with_other_names_than_classes_is_refused(named_set):
    manifest = named_set / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"hot dog"', '"hot dog", "bee"'))
    with pytest.raises(EchosetError, match=r"'input': class_names must be 4 names"):
        TransferSet.load(named_set)


def test_names_obey_no_terminal(tmp_path, run):
    names = ["\x1b[2Jant", "b\u202ee\x07\ne"]
    spec = ModelSpec("convnet-gn-4", size=8, classes=2, notes={"class_names": names})
    path = tmp_path / "net.safetensors"
    save_classifier(build_classifier(spec), path)
    assert load_classifier(path).class_names == ("[2Jant", "b e e")
    data = tmp_path / "d.npz"
    np.savez(data, images=np.zeros((4, 8, 8), np.uint8), labels=np.arange(4) % 2)
    shown = run("inspect", f"--teacher={path}").stdout
    shown += run("evaluate", f"--model={path}", f"--data={data}").stdout
    assert "[2Jant" in shown
    assert not {"\x1b", "\u202e", "\x07"} & set(shown)


def test_names_are_made_safe():
    assert printable(" a\tb\x00\u200bc ") == "a b c"
    assert folder_ending("../et c\\x:*") == "-et_c_x"
    assert folder_ending("..") == ""
    assert len(folder_ending("ä" * 999)) == 61
    assert show_class(3, None) == "3"
    assert show_class(1, ["0", "1"]) == "1"
    assert show_class(1, ["a", "b" * 90]) == f"1 ({'b' * 39}…)"


def test_python_names_a_network_and_labels_without_names_are_none():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    known = {"channels": 3, "size": 8, "mean": 0, "std": 1}
    assert as_classifier(network, **known, names=["a", "b"]).class_names == ("a", "b")
    spec = ModelSpec("lenet5", classes=2, notes={"class_names": ["LABEL_0", "LABEL_1"]})
    assert build_classifier(spec).class_names is None
