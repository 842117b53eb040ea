"""What every drawn source has in common, and addresses."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from distill.data.pixels import fit_pixels
from distill.sets.shards import write_shard
from distill.sets.transfer_set import write_manifest
from inversion.sources import DRAWN
from inversion.sources.leaves import Leaves
from inversion.sources.noise import GaussianNoise, UniformNoise
from inversion.sources.stream import BLOCK, DrawnSource, StoredSource, open_source, open_sources
from synthesis_kernels.errors import EchosetError

CPU = torch.device("cpu")


FAST = [
    "noise",
    "gaussian",
    "smooth",
    "pink",
    "leaves:smallest=0.3,cover=0.5",
    "shaders",
    "fractals",
    "strokes:thickest=0.1",
]  # plain leaves take long


def test_every_drawn_source_is_tested():
    assert {address.partition(":")[0] for address in FAST} == set(DRAWN)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 28, 32, 33])
@pytest.mark.parametrize("address", FAST)
def test_blocks_have_the_shape_and_type_that_was_asked_for(address, size, channels):
    source = open_source(address, channels, size)
    block = source.block(0)
    assert block.shape == (BLOCK, channels, size, size)
    assert block.dtype == torch.uint8
    assert source.blocks is None
    # the range is used
    assert block.min() <= 2
    assert block.max() >= 253
    assert len(block.flatten(1).unique(dim=0)) > 0.9 * BLOCK  # and the pictures differ


def test_plain_leaves_too():
    block = open_source("leaves", 1, 8).block(0)
    assert block.shape == (BLOCK, 1, 8, 8)
    assert block.dtype == torch.uint8


@pytest.mark.parametrize("address", FAST)
def test_a_block_follows_from_source_seed_and_number_alone(address):
    one = open_source(address, 1, 8, seed=5)
    other = open_source(address, 1, 8, seed=5)
    state = torch.get_rng_state()
    third = one.block(2)
    first = one.block(0)
    assert torch.equal(torch.get_rng_state(), state)  # the global stream is nobody's business
    torch.manual_seed(1)
    assert torch.equal(other.block(0), first)
    assert torch.equal(other.block(2), third)
    assert not torch.equal(first, third)
    assert not torch.equal(open_source(address, 1, 8, seed=6).block(0), first)


def test_another_address_is_another_stream():
    assert not torch.equal(
        open_source("gaussian", 1, 8).block(0),
        open_source("gaussian:deviation=0.25", 1, 8).block(0),
    )


def picture(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_settings_are_read_from_the_address():
    assert open_source("leaves:smallest=0.1,cover=0.5", 1, 8).drawer == Leaves(0.1, 0.5)
    assert open_source("leaves:cover=0.25", 1, 8).drawer == Leaves(cover=0.25)
    assert open_source("gaussian:deviation=1", 1, 8).drawer == GaussianNoise(1.0)
    assert open_source("noise", 1, 8).drawer == UniformNoise()


@pytest.mark.parametrize(
    "address, message",
    [
        ("leaves:covr=0.5", "leaves has no setting 'covr'; it has smallest, cover"),
        ("noise:cover=0.5", "noise has no setting 'cover'; it has none"),
        ("leaves:cover=much", "leaves:cover: 'much' is not a number"),
        ("leaves:cover", "leaves:cover: '' is not a number"),
        ("leaves:cover=0", "leaves:cover must lie above 0 and up to 1, got 0"),
        ("gaussian:deviation=1.5", "gaussian:deviation must lie above 0 and up to 1, got 1.5"),
        ("gaussian:deviation=nan", "must lie above 0 and up to 1, got nan"),
        (
            "nois",
            "no source 'nois': it is neither noise, gaussian, smooth, pink, leaves, shaders, "
            "fractals, strokes, nor a file or folder",
        ),
    ],
)
def test_addresses_that_lead_nowhere_are_refused_by_name(address, message):
    with pytest.raises(EchosetError, match=re.escape(message)):
        open_source(address, 1, 8)


@pytest.mark.parametrize("addresses", [[], ["noise", "pink", "noise"]])
def test_sources_are_at_least_one_and_none_twice(addresses):
    with pytest.raises(EchosetError, match="name one source at least, and none twice"):
        open_sources(addresses, 1, 8, 0, CPU, True)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("labelled", [False, True])
def test_a_folder_of_any_pictures_is_a_source(tmp_path, channels, labelled):
    arrays = [picture(0, 20, 30), picture(1, 9, 9, 3), picture(2, 40, 12, 3)]
    for number, array in enumerate(arrays):
        folder = tmp_path / f"class{number % 2}" if labelled else tmp_path
        folder.mkdir(exist_ok=True)
        Image.fromarray(array).save(folder / f"{number}.png")
    source = open_source(str(tmp_path), channels, 10)
    block = source.block(0)
    assert block.shape == (3, channels, 10, 10)
    assert block.dtype == torch.uint8
    assert source.blocks == 1
    assert isinstance(source, StoredSource)
    pixels = [
        torch.from_numpy(a).permute(2, 0, 1) if a.ndim == 3 else torch.from_numpy(a)[None]
        for a in arrays
    ]
    expected = {fit_pixels(p[None], channels, 10).numpy().tobytes() for p in pixels}
    assert {image.numpy().tobytes() for image in block} == expected


def test_a_folder_that_is_called_like_a_source_is_given_with_a_dot(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noise").mkdir()
    Image.fromarray(picture(0, 8, 8)).save(tmp_path / "noise" / "0.png")
    assert isinstance(open_source("noise", 1, 8), DrawnSource)
    assert open_source("./noise", 1, 8).block(0)[0, 0].tolist() == picture(0, 8, 8).tolist()


def test_stored_images_come_in_an_order_that_follows_from_the_seed_and_each_once(tmp_path):
    number = np.arange(1100)
    images = np.zeros((1100, 8, 8), np.uint8)
    images[:, 0, 0] = number // 256
    images[:, 0, 1] = number % 256
    np.savez(tmp_path / "many.npz", images=images)

    def order(seed):
        source = open_source(str(tmp_path / "many.npz"), 1, 8, seed)
        assert source.blocks == 3
        blocks = [source.block(n) for n in (2, 0, 1)]
        assert [len(block) for block in blocks] == [76, 512, 512]
        both = torch.cat([blocks[1], blocks[2], blocks[0]])[:, 0, 0, :2].long()
        return (both[:, 0] * 256 + both[:, 1]).tolist()

    result = order(0)
    assert sorted(result) == number.tolist()
    assert result != number.tolist()
    assert order(0) == result
    assert order(1) != result


def test_a_transfer_set_is_a_source(tmp_path):
    images = torch.from_numpy(picture(4, 5, 1, 8, 8))
    logits = torch.eye(2)[[0, 1, 0, 1, 0]]
    zeros = torch.zeros(5)
    tensors = {
        "images": images,
        "labels": logits.argmax(1),
        "logits": logits,
        "priority": zeros,
        "round": zeros,
    }
    name = "shard-00000-of-00001.safetensors"
    entry = {"file": name, "sha256": write_shard(tmp_path / name, tensors), "count": 5}
    contract = {
        "channels": 1,
        "size": 8,
        "classes": 2,
        "task": "classification",
        "mean": [0.0],
        "std": [1.0],
    }
    manifest = {
        "code_version": "0",
        "config": {},
        "teacher": {},
        "input": contract,
        "counts": [3, 2],
        "shards": [entry],
    }
    write_manifest(tmp_path, manifest)
    block = open_source(str(tmp_path), 1, 8).block(0)
    assert {i.numpy().tobytes() for i in block} == {i.numpy().tobytes() for i in images}
    assert open_source(str(tmp_path), 3, 12).block(0).shape == (5, 3, 12, 12)


def test_a_folder_without_pictures_says_so(tmp_path):
    with pytest.raises(EchosetError, match=str(tmp_path)):
        open_source(str(tmp_path), 1, 8)
