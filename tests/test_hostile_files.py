"""Files that claim, name or hold what they should not: each is refused before it costs anything."""

import gzip
import io
import json
import os
import re
import resource
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from distill import load_images
from distill.data.pixels import fit_pixels
from distill.data.readers.folders import _fit
from distill.models import ModelSpec, build_classifier, load_classifier, save_classifier
from distill.models.weights import read_weights
from distill.torchvision_shim import torchvision
from inversion.jobs import claim
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.terminal import plain

LIMIT = r"MB of memory, and the file has .* set ECHOSET_LIMIT_MB=\d+ in the environment"
CODES = "\x1b[31mcat\x1b]0;title\x07"


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.fixture
def spec():
    return ModelSpec("convnet-4", {}, 1, 8, 3)


def saved(folder, network, spec):
    network.spec = spec
    save_classifier(network, folder / "net.safetensors")
    return folder / "net.safetensors"


def test_an_archive_that_unpacks_to_much_is_refused(tmp_path):
    file = tmp_path / "d.npz"
    images = np.zeros((1, 1024, 1024, 3), np.uint8)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (800, 1024, 1024, 3)}
    )
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header.getvalue() + images.tobytes())
    before = peak()
    with pytest.raises(EchosetError, match=rf"d\.npz: 'images' of shape.*2,517 {LIMIT}"):
        load_images(file)
    assert peak() - before < 2e8


def test_packed_raw_files_that_unpack_to_much_are_refused(tmp_path):
    head = bytes([0, 0, 8, 3]) + np.array([1000, 1000, 400], ">u4").tobytes()
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + bytes(1000)))
    labels = bytes([0, 0, 8, 1]) + np.array([1000], ">u4").tobytes() + bytes(1000)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    with pytest.raises(EchosetError, match=rf"1000 × 1000 × 400 values would take 400 {LIMIT}"):
        load_images(tmp_path)


def test_the_limit_can_be_raised_and_lowered(tmp_path, monkeypatch):
    file = tmp_path / "d.npz"
    np.savez_compressed(file, images=np.zeros((2, 1000, 1000, 1), np.uint8))
    assert len(load_images(file, labelled=False)) == 2
    monkeypatch.setenv("ECHOSET_LIMIT_MB", "1")
    with pytest.raises(EchosetError, match=LIMIT):
        load_images(file, labelled=False)
    monkeypatch.setenv("ECHOSET_LIMIT_MB", "much")
    with pytest.raises(EchosetError, match="must be a whole number of megabytes, got 'much'"):
        load_images(file, labelled=False)


def test_a_large_picture_is_refused_and_a_pipe_not_waited_for(tmp_path):
    Image.new("1", (7070, 7070)).save(tmp_path / "x.png")
    with pytest.raises(EchosetError, match=rf"x\.png: its 7,070 × 7,070 pixels.*{LIMIT}"):
        load_images(tmp_path, channels=3, size=8, labelled=False)
    Image.new("1", (14_000, 14_000)).save(tmp_path / "x.png")
    with pytest.raises(EchosetError, match=r"x\.png: Image size .*raise ECHOSET_LIMIT_MB"):
        load_images(tmp_path, channels=3, size=8, labelled=False)
    (tmp_path / "x.png").unlink()
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(EchosetError, match=r"x\.png is no file"):
        load_images(tmp_path, labelled=False)
    (tmp_path / "x.png").rename(tmp_path / "x.npz")
    with pytest.raises(EchosetError, match=r"x\.npz is no file"):
        load_images(tmp_path / "x.npz")


def test_a_large_picture_is_fitted_to_the_same_bytes(monkeypatch):
    monkeypatch.setattr("distill.data.readers.folders.LARGE", 1)
    pixels = torch.randint(256, (120, 90, 3), dtype=torch.uint8).permute(2, 0, 1)
    assert torch.equal(_fit(pixels, 3, 32), fit_pixels(pixels[None], 3, 32)[0])


@pytest.mark.parametrize("content", ["empty", "bytes", "objects"])
def test_members_that_are_no_arrays_are_refused(content, tmp_path):
    file = tmp_path / "d.npz"
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}]), allow_pickle=True)
    inner = {"empty": b"", "bytes": b"no array at all", "objects": buffer.getvalue()}[content]
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("images.npy", inner)
    with pytest.raises(EchosetError, match=r"d\.npz is not a readable \.npz file"):
        load_images(file)


def test_a_small_file_of_a_large_network_is_refused(tmp_path, spec):
    network = build_classifier(spec)
    file = saved(tmp_path, network, ModelSpec("convnet-4", {}, 1, 8192, 3))
    before = peak()
    with pytest.raises(EchosetError, match=f"layers make of an image of 8192 .*{LIMIT}"):
        load_classifier(file)
    file = saved(tmp_path, network, ModelSpec("regnet_y_128gf", {}, 3, 32, 3))
    with pytest.raises(EchosetError, match="do not fit the model"):
        load_classifier(file)
    assert peak() - before < 5e8


@pytest.mark.parametrize("mean", [2**64, 10**400, float("nan"), True, "0"])
def test_what_no_pixel_could_have_is_no_mean(mean, tmp_path, spec):
    file = saved(tmp_path, build_classifier(spec), spec)
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    told = json.loads(header["__metadata__"]["echoset"])
    del told["checksum"]
    header["__metadata__"]["echoset"] = json.dumps({**told, "mean": [mean]})
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(EchosetError, match=r"net\.safetensors: mean must be a list of numbers"):
        load_classifier(file)


KINDS = {
    "sparse or nested": lambda: torch.eye(3).to_sparse(),
    "on the device meta": lambda: torch.empty(3, device="meta"),
    "larger than its bytes": lambda: torch.zeros(1).expand(1_000_000_000),
    "of complex numbers": lambda: torch.zeros(3, dtype=torch.complex64),
}


@pytest.mark.parametrize(("said", "make"), KINDS.items(), ids=KINDS)
def test_weights_that_are_no_plain_numbers_are_named(said, make, tmp_path):
    torch.save({"state_dict": {"head.bias": make()}}, tmp_path / "w.pth")
    with pytest.raises(EchosetError, match=rf"w\.pth: head\.bias is .*{said}.*not quantised"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore")
def test_quantised_weights_are_named(tmp_path):
    quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    torch.save({"a": quantised}, tmp_path / "w.pth")
    with pytest.raises(EchosetError, match="a is quantised"):
        read_weights(tmp_path / "w.pth")


def test_a_packed_checkpoint_that_unpacks_to_much_is_refused(tmp_path):
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(100)}, buffer)
    with (
        zipfile.ZipFile(buffer) as old,
        zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, bytes(300_000_000) if name.endswith("data/0") else content)
    with pytest.raises(EchosetError, match=f"what it unpacks to would take 300 {LIMIT}"):
        read_weights(tmp_path / "w.pth")


def test_a_mark_that_is_no_text_is_another_sets(tmp_path):
    (tmp_path / ".job").write_bytes(b"\xff\xfe\0")
    with pytest.raises(EchosetError, match="holds a set made with other options"):
        claim(tmp_path, {"seed": 0})


def broken(spec, change):
    network = build_classifier(spec)
    with torch.no_grad():
        for _ in range(3):
            network.train()(torch.rand(8, 1, 8, 8))
    change(network.eval())
    return network


BROKEN = {
    "parameter head.weight is not finite": lambda net: net.network.head.weight.data.fill_(
        float("nan")
    ),
    r"BatchNorm layer features.\d.1 has running statistics": lambda net: [
        module for module in net.modules() if isinstance(module, nn.BatchNorm2d)
    ][1].running_var.fill_(float("inf")),
}
"""What is said, and what is wrong."""


@pytest.mark.parametrize(("said", "change"), BROKEN.items(), ids=["nan", "inf"])
@pytest.mark.parametrize(
    "verb",
    [
        "inspect --teacher NET",
        "synthesize --teacher NET --out OUT",
        "collect noise --teacher NET --out OUT",
        "distill --set noise.npz --teacher NET --out OUT",
        "evaluate --model NET --data noise.npz",
        "evaluate --model mnist --against NET --data noise.npz",
        "study --teacher NET --data noise.npz --out OUT",
        "score noise.npz --teacher NET --out OUT.html",
        "demo --teacher NET --out OUT",
    ],
)
def test_broken_numbers_are_found_by_every_verb_and_named(
    verb, said, change, spec, tmp_path, refused, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, broken(spec, change), spec)
    np.savez("noise.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.arange(4) % 3)
    words = verb.replace("NET", "net.safetensors").replace("OUT", "out").split()
    assert re.search(said, refused(*words)), verb


def test_names_can_give_the_terminal_no_orders(tmp_path, spec, run, refused):
    named = ModelSpec(
        "convnet-4", {}, 1, 8, 3, notes={"note" + CODES: CODES, "class_names": [CODES, "b", "c"]}
    )
    file = saved(tmp_path, broken(spec, lambda net: None), named)
    said = run("inspect", "--teacher", file)
    np.savez(tmp_path / f"{CODES}.npz", images=np.zeros((4, 8, 8), np.uint8), labels=[0, 1, 2, 0])
    told = run("evaluate", "--model", file, "--data", tmp_path / f"{CODES}.npz")
    lost = refused("evaluate", "--model", file, "--data", tmp_path / f"{CODES}.nowhere")
    wrong = refused("evaluate", "--model", file, f"--{CODES}=3", status=2)
    for text in (said.stdout, said.stderr, told.stdout, told.stderr, lost, wrong):
        assert "\x1b" not in text and "\x07" not in text
    assert "\\x1b[31mcat" in "".join(told.stdout.split())


def test_letters_stay_and_orders_are_shown():
    assert plain("é ×, 猫 🐈\n\tनमस्‍ते") == "é ×, 猫 🐈\n\tनमस्‍ते"
    assert plain("a\u202eb\x9b1m\u2028c\r") == "a\\u202eb\\x9b1m\\u2028c\\r"


def test_a_page_shows_names_as_they_are_written(tmp_path, spec, run):
    bad = "<script>alert(1)</script>"
    named = ModelSpec("convnet-4", {}, 1, 8, 3, notes={"class_names": [bad, bad + "2", "c"]})
    file = saved(tmp_path, broken(spec, lambda net: None), named)
    np.savez(tmp_path / "d.npz", images=np.zeros((4, 8, 8), np.uint8), labels=[0, 1, 2, 0])
    page = tmp_path / "page.html"
    run("evaluate", "--model", file, "--data", tmp_path / "d.npz", "--page", page)
    assert "<script" not in page.read_text() and "alert(1)" in page.read_text()


def test_torchvisions_sets_open_pictures_alone_and_unpickle_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    picture = tmp_path / "a" / "x.png"
    Image.new("L", (8, 8), 3).save(picture)
    assert load_images(f"torchvision:ImageFolder:{tmp_path}").images.unique().tolist() == [3]
    opened = Image.open
    Image.new("RGB", (8, 8)).save(picture, "EPS")
    with pytest.raises(EchosetError, match="cannot identify image file"):
        load_images(f"torchvision:ImageFolder:{tmp_path}")
    Image.new("1", (7070, 7070)).save(picture)
    with pytest.raises(EchosetError, match=LIMIT):
        load_images(f"torchvision:ImageFolder:{tmp_path}")
    assert Image.open is opened
    assert hasattr(torchvision.datasets, "LSUN")
    with pytest.raises(EchosetError, match=r"unpickles a file.*one folder per class"):
        load_images(f"torchvision:LSUN:{tmp_path}")
