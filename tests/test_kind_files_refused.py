"""Networks in files that are refused: programs that can't teach or would run code, and pickles."""

import zipfile

import pytest
import torch
import torch.nn.functional as F
from test_kind_files import SHAPE, Net, export, export_fixed, script, trained
from torch import nn

from distill.models.archives import check_script
from distill.models.frozen import find_batch_norms
from inversion import TeacherOptions, load_teacher
from synthesis_kernels.errors import EchosetError

pytestmark = [
    pytest.mark.slow,  # torch.export takes seconds to begin
    *[pytest.mark.filterwarnings(f"ignore::{kind}Warning") for kind in ("Deprecation", "Future")],
]


class TwoInputs(Net):
    """Takes more than images."""

    def forward(self, images, scale):
        return self.answer(images * scale)


def save_two_inputs(path):
    inputs = (torch.rand(2, 1, 12, 12), torch.tensor(2.0))
    torch.export.save(torch.export.export(trained(TwoInputs()), inputs), path)


class OneImage(Net):
    """Has the number of images written into it."""

    def forward(self, images):
        x = F.adaptive_avg_pool2d(self.stem(images), 1)
        return self.head(x.reshape(images.shape[0] * 8).reshape(-1, 8))


def save_one_image(path):
    export_fixed(trained(OneImage()), path)


def save_training(path):
    export(trained(Net()).train(), path, dynamic=False)


def save_nothing(path):
    path.write_bytes(b"nothing")


def save_no_program(path):
    torch.save({"a": torch.zeros(1)}, path)


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (save_two_inputs, "takes 2 inputs.*images alone"),
        (save_one_image, "exported for 1 images at once.*dynamic_shapes="),
        (save_training, r"training mode.*model\.eval\(\)"),
        (save_nothing, "holds no program that torch.export.save wrote"),
        (save_no_program, "holds no program that torch.export.save wrote"),
        (lambda path: None, "no file at"),
    ],
)
def test_programs_that_cannot_teach_say_why(tmp_path, save, message):
    save(tmp_path / "net.pt2")
    with pytest.raises(EchosetError, match=message):
        load_teacher(TeacherOptions(str(tmp_path / "net.pt2")))


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def repack(path, change):
    """Write an archive again, each part as `change` makes it of its name and content."""
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in parts.items():
            new.writestr(name, change(name, content))


def in_json(part, old, new):
    """A change of text in one part of an archive."""

    def change(name, content):
        return content.replace(old.encode(), new.encode()) if name.endswith(part) else content

    return change


@pytest.mark.parametrize(
    ("part", "old", "new"),
    [
        ("model.json", "torch.ops.aten.relu.default", "torch.os.system"),
        ("model.json", "torch.ops.aten.relu.default", "torch.ops.aten.from_file.default"),
        ("model.json", "torch.ops.aten.relu.default", "torch.ops.aten.save.default"),
        ("model.json", "torch.ops.aten.relu.default", "_operator.attrgetter"),
        ("model.json", "Symbol('", "__import__('os').system('"),
        ("model.json", '"name": "linear"', '"name": "linear; import os"'),
        ("weights_config.json", '"use_pickle": false', '"use_pickle": true'),
        ("weights_config.json", "weight_0", "opaque_0"),
    ],
)
def test_a_program_that_would_run_code_is_refused(tmp_path, part, old, new):
    path = tmp_path / "net.pt2"
    export(trained(Net()), path)
    load_teacher(TeacherOptions(str(path)))
    repack(path, in_json(part, old, new))
    with pytest.raises(EchosetError, match="could run code when it is loaded"):
        load_teacher(TeacherOptions(str(path)))


def test_a_program_with_a_pickle_in_its_example_is_refused(tmp_path):
    path = tmp_path / "net.pt2"
    export(trained(Net()), path)
    torch.save(Bomb(tmp_path / "ran"), tmp_path / "bomb.pt")
    bomb = (tmp_path / "bomb.pt").read_bytes()
    repack(path, lambda name, content: bomb if "sample_inputs" in name else content)
    with pytest.raises(EchosetError, match="could run code when it is loaded"):
        load_teacher(TeacherOptions(str(path)))
    assert not (tmp_path / "ran").exists()


def test_compiled_code_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "net.pt2", "w") as archive:
        archive.writestr("net/archive_format", "pt2")
        archive.writestr("net/data/aotinductor/model/net.so", "")
    with pytest.raises(EchosetError, match="machine code, which AOTInductor compiled"):
        load_teacher(TeacherOptions(str(tmp_path / "net.pt2")))


def test_a_program_that_unpacks_to_more_than_it_is_is_refused(tmp_path):
    path = tmp_path / "net.pt2"
    export(trained(Net()), path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data/weights/weight_99", bytes(2**22))
    with pytest.raises(EchosetError, match="unpacks to 4,194,304 bytes"):
        load_teacher(TeacherOptions(str(path)))


class Writer(nn.Module):
    """Writes a file when it answers."""

    def forward(self, images):
        torch.save(images, "written.pt")
        return images


def test_a_script_that_writes_files_is_refused(tmp_path):
    torch.jit.script(Writer()).save(str(tmp_path / "net.pt"))
    with pytest.raises(EchosetError, match=r"calls save.*import path"):
        load_teacher(TeacherOptions(str(tmp_path / "net.pt"), **SHAPE))


@pytest.mark.parametrize(
    "call",
    [
        'torch . from_file("x", True, 4)',
        'torch\\\n.from_file("x", True, 4)',
        'getattr(torch, "from_file")("x", True, 4)',
        'getattr(torch, "\\146rom_file")("x", True, 4)',
        'getattr(getattr(torch, "0"), "\\146rom_file")("x", True, 4)',
        "ops . mine.run(x)",
    ],
)
def test_a_call_is_found_however_a_script_writes_it(tmp_path, call):
    path = tmp_path / "net.pt"
    script(trained(Net()), str(path))
    check_script(path)
    repack(path, in_json("test_kind_files.py", "return ", f"y = {call}\n    return "))
    with pytest.raises(EchosetError, match="is TorchScript that calls"):
        check_script(path)


def double(path, old, new):
    """Put a part of an archive into it once more, under a name that differs in case."""
    with zipfile.ZipFile(path, "a") as archive:
        name = next(name for name in archive.namelist() if name.endswith(old))
        archive.writestr(name.removesuffix(old) + new, archive.read(name))


@pytest.mark.parametrize(
    ("save", "old", "new"),
    [
        (export, "models/model.json", "MODELS/model.json"),
        (export, "models/model.json", "models/model.JSON"),
        (export, "models/model.json", "models/OTHER.json"),
        (script, "test_kind_files.py", "test_kind_files.PY"),
        (script, "test_kind_files.py", "other.PY"),
    ],
)
def test_names_that_torch_would_confuse_are_refused(tmp_path, save, old, new):
    path = tmp_path / ("net.pt2" if save is export else "net.pt")
    save(trained(Net()), str(path))
    double(path, old, new)
    with pytest.raises(EchosetError, match="not written by torch"):
        load_teacher(TeacherOptions(str(path), **SHAPE))


@pytest.mark.parametrize("place", ["model", "weights"])
def test_a_whole_pickled_network_is_refused_with_the_lines_to_write(tmp_path, place, monkeypatch):
    """And the lines work."""
    network = trained(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)))
    path = tmp_path / "net.pt"
    torch.save(network, path)
    options = (
        {"model": str(path)} if place == "model" else {"model": "lenet5", "weights": str(path)}
    )
    with pytest.raises(EchosetError, match=r"torch\.nn\.modules\.container") as error:
        load_teacher(TeacherOptions(**options))
    lines = [line[4:] for line in str(error.value).splitlines() if line.startswith("    ")]
    (tmp_path / f"my_{place}.py").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    teacher = load_teacher(TeacherOptions(f"my_{place}:net", **SHAPE))
    assert list(find_batch_norms(teacher.network)) == ["1"]


@pytest.mark.parametrize("save", [export, script])
def test_a_network_is_no_file_of_weights(tmp_path, save):
    path = str(tmp_path / "net.pt2")
    save(trained(Net()), path)
    with pytest.raises(EchosetError, match="give it as the model"):
        load_teacher(TeacherOptions("lenet5", path, channels=1))


def test_a_checkpoint_is_no_network(tmp_path):
    torch.save(Net().state_dict(), tmp_path / "net.pt")
    with pytest.raises(EchosetError, match="is a file, not a network"):
        load_teacher(TeacherOptions(str(tmp_path / "net.pt")))


def test_a_checkpoint_of_more_than_weights_is_no_whole_network(tmp_path):
    torch.save({"model": Net().state_dict(), "extra": Bomb(tmp_path / "ran")}, tmp_path / "net.pt")
    with pytest.raises(EchosetError, match="holds more than weights"):
        load_teacher(TeacherOptions("lenet5", str(tmp_path / "net.pt")))
    assert not (tmp_path / "ran").exists()
