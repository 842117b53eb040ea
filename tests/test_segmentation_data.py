"""Pictures and label maps in folders, as people have them: read in pairs, or refused by name."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from roads import CLASSES, SIZE, VOID, write_pairs, write_splits

from distill import Maps, load_images
from synthesis_kernels.errors import EchosetError

MAPS = Maps(VOID, CLASSES)
UNKNOWN = -100


def write_map(path, values, **options):
    Image.fromarray(np.asarray(values)).save(path, **options)


@pytest.mark.parametrize("split, count", [("train", 24), ("val", 6), ("test", 8)])
def test_pairs_of_a_split_are_read(tmp_path, split, count):
    data = load_images(write_splits(tmp_path), split, maps=MAPS)
    assert data.images.shape == (count, 3, *SIZE) and data.images.dtype is torch.uint8
    assert data.labels.shape == (count, *SIZE) and data.labels.dtype is torch.int64
    assert (data.labels[:, :, 3] == UNKNOWN).all()
    known = data.labels >= 0
    assert known.sum() == count * SIZE[0] * (SIZE[1] - 1)
    told = (data.images.float().mean(1) - 40).div(80).round().long()
    assert torch.equal(told[known], data.labels[known])


def test_a_folder_without_splits_is_taken_whole(tmp_path):
    write_splits(tmp_path)
    named = load_images(tmp_path / "val", "test", maps=MAPS)
    assert torch.equal(named.labels, load_images(tmp_path, "val", maps=MAPS).labels)


def test_maps_are_resized_with_their_pictures_as_pillow_does_by_the_nearest(tmp_path):
    folder = write_pairs(tmp_path, 4)
    for size in ((6, 8), (8, 4), (24, 32)):
        data = load_images(folder, channels=3, size=size, maps=MAPS)
        assert data.images.shape == (4, 3, *size) and data.labels.shape == (4, *size)
        for number, labels in enumerate(data.labels):
            with Image.open(folder / "labels" / f"{number:03d}.png") as picture:
                expected = np.array(picture.resize(size[::-1], Image.Resampling.NEAREST)).astype(
                    int
                )
            expected = np.where(expected == VOID, UNKNOWN, expected)
            assert np.array_equal(labels.numpy(), expected)
    whole = load_images(folder, maps=MAPS)
    assert torch.equal(whole.fitted(3, (24, 32)).labels, data.labels)


def test_pictures_of_several_sizes_need_one(tmp_path):
    folder = write_pairs(tmp_path, 2)
    write_pairs(tmp_path / "other", 1, size=(24, 16))
    for name in ("images", "labels"):
        (tmp_path / "other" / name / "000.png").rename(folder / name / "009.png")
    with pytest.raises(EchosetError, match=r"009\.png is 24×16, the maps before it 12×16"):
        load_images(folder, maps=MAPS)
    assert load_images(folder, channels=1, size=8, maps=MAPS).labels.shape == (3, 8, 8)


def test_grey_and_indexed_maps_of_any_depth_mean_their_values(tmp_path, monkeypatch):
    folder = write_pairs(tmp_path, 1)
    file = folder / "labels" / "000.png"
    values = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % CLASSES
    expected = torch.from_numpy(values)[None]

    def read():
        return load_images(folder, maps=MAPS).labels

    write_map(file, values.astype(np.uint16))
    assert torch.equal(read(), expected)
    for bits in (2, 4, 8):
        indexed = Image.fromarray(values.astype(np.uint8), "P")
        indexed.putpalette([9, 200, 7] * 256)
        indexed.save(file, bits=bits)
        assert torch.equal(read(), expected)
    for bits in (2, 4):
        file.write_bytes(grey_png(values, bits))
        assert torch.equal(read(), expected)
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile, "_Tile", lambda *parts: parts, raising=False)  # Pillow 10
            assert torch.equal(read(), expected)
    write_map(file, values > 0)
    assert torch.equal(read(), (expected > 0).long())


def grey_png(values, bits):
    """A grey PNG of few bits, which Pillow reads but doesn't write."""
    height, width = values.shape
    numbers = (values[..., None] >> np.arange(bits)[::-1]) & 1
    rows = np.packbits(numbers.reshape(height, -1).astype(np.uint8), axis=1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    return png(width, height, bits, lines)


def png(width, height, bits, lines):
    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def test_where_classes_are_not_known_any_value_is_one(tmp_path):
    folder = write_pairs(tmp_path, 2)
    assert int(load_images(folder, maps=Maps()).labels.max()) == VOID


def spoil_value(folder):
    write_map(folder / "labels" / "001.png", np.full(SIZE, 7, np.uint8))


def spoil_size(folder):
    write_map(folder / "labels" / "001.png", np.zeros((16, 12), np.uint8))


def spoil_map(folder):
    (folder / "labels" / "001.png").unlink()


def spoil_picture(folder):
    (folder / "images" / "001.png").unlink()


def spoil_known(folder):
    write_map(folder / "labels" / "001.png", np.full(SIZE, VOID, np.uint8))


def spoil_colour(folder):
    write_map(folder / "labels" / "001.png", np.zeros((*SIZE, 3), np.uint8))


def spoil_bytes(folder):
    (folder / "labels" / "001.png").write_bytes(b"no picture")


def spoil_end(folder):
    file = folder / "labels" / "001.png"
    file.write_bytes(file.read_bytes()[:60])


def spoil_stem(folder):
    (folder / "images" / "001.jpg").write_bytes((folder / "images" / "001.png").read_bytes())


def spoil_labels(folder):
    (folder / "labels").rename(folder / "masks")


def spoil_images(folder):
    for file in (folder / "images").iterdir():
        file.unlink()


def spoil_kind(folder):
    (folder / "labels" / "001.png").rename(folder / "labels" / "000.jpg")


def spoil_splits(folder):
    spoil_images(folder)
    (folder / "images" / "test").mkdir()


def spoil_room(folder):
    (folder / "labels" / "001.png").write_bytes(png(40_000, 40_000, 8, b""))


@pytest.mark.parametrize(
    "spoil, said",
    [
        (spoil_value, r"labels/001\.png has the value 7, and the classes are 0 to 2.*--void 7"),
        (spoil_size, r"labels/001\.png is 16×12, and its picture .*images/001\.png 12×16"),
        (spoil_map, r"images/001\.png has no label map .*labels/001\.png"),
        (spoil_kind, r"images/001\.png has no label map .*labels/001\.png; 000\.jpg is the first"),
        (spoil_splits, r"images has no pictures in it; splits have .* own, test/images"),
        (spoil_picture, r"labels/001\.png is the label map of no picture in"),
        (
            spoil_known,
            r"labels/001\.png: no place of this label map is known, all are 9; .*--void .*take the map",
        ),
        (
            spoil_colour,
            r"labels/001\.png is a picture of kind RGB; a label map is a PNG, grey or.* turn each colour",
        ),
        (spoil_bytes, r"labels/001\.png is not a readable picture"),
        (spoil_end, r"labels/001\.png is not a readable picture"),
        (spoil_stem, r"images/001\.jpg and .*images/001\.png would have one label map"),
        (spoil_labels, r"has no folder 'labels' with a label map for each"),
        (spoil_images, r"images has no pictures in it"),
        (spoil_room, r"labels/001\.png.*ECHOSET_LIMIT_MB"),
    ],
)
def test_what_makes_no_pairs_is_refused_by_name(tmp_path, spoil, said):
    spoil(write_pairs(tmp_path / "test", 3))
    with pytest.raises(EchosetError, match=said):
        load_images(tmp_path, maps=MAPS)


def test_splits_and_layouts_that_are_not_there_are_refused(tmp_path):
    write_pairs(tmp_path / "roads" / "val", 1)
    with pytest.raises(EchosetError, match="has no folder 'test', but val"):
        load_images(tmp_path / "roads", maps=MAPS)
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "flat" / "a.png")
    with pytest.raises(EchosetError, match=r"expected an \.npz file, or folders 'images' and"):
        load_images(tmp_path / "flat", maps=MAPS)
    with pytest.raises(EchosetError, match="no data at"):
        load_images(tmp_path / "nowhere", maps=MAPS)


def test_without_labels_the_maps_are_no_pictures_to_learn_from(tmp_path):
    folder = write_splits(tmp_path / "roads")
    data = load_images(folder, "train", maps=MAPS, labelled=False)
    assert data.labels is None and len(data) == 24
    (folder / "val" / "labels").rename(tmp_path / "labels")
    assert len(load_images(folder, "val", maps=MAPS, labelled=False)) == 6
    for depth in ("a", "a/b"):
        write_pairs(tmp_path / "deep" / depth / "c", 2)
    flat = load_images(tmp_path / "deep" / "a" / "c" / "images", maps=MAPS, labelled=False)
    assert len(flat) == 2


def test_whoever_wants_pictures_alone_gets_no_label_maps(tmp_path):
    folder = write_splits(tmp_path / "roads")
    paired = load_images(folder, "train", maps=MAPS).images
    assert torch.equal(load_images(folder, "train", labelled=False).images, paired)
    (folder / "train" / "labels").rename(folder / "train" / "others")
    for name in ("val", "test"):
        (folder / name / "labels").rename(folder / name / "others")
    everything = load_images(folder, "train", channels=3, size=SIZE, labelled=False)
    assert len(everything) == 2 * len(paired)


def test_archives_have_label_maps_too(tmp_path):
    folder = write_pairs(tmp_path, 3)
    data = load_images(folder, maps=MAPS)
    labels = np.where(data.labels == UNKNOWN, VOID, data.labels).astype(np.uint8)
    file = tmp_path / "roads.npz"
    np.savez(file, images=data.images.permute(0, 2, 3, 1).numpy(), labels=labels)
    read = load_images(file, channels=3, size=(6, 8), maps=MAPS)
    assert torch.equal(read.labels, load_images(folder, channels=3, size=(6, 8), maps=MAPS).labels)
    with pytest.raises(EchosetError, match=r"roads\.npz, labels\[\d\] has the value 9"):
        load_images(file, maps=Maps(255, CLASSES))
    labels[1] = VOID
    dark = tmp_path / "dark.npz"
    np.savez(dark, images=data.images.permute(0, 2, 3, 1).numpy(), labels=labels)
    with pytest.raises(EchosetError, match=r"dark\.npz, labels\[1\]: no place of this label map"):
        load_images(dark, maps=MAPS)
    with pytest.raises(EchosetError, match=r"expected integers \(N,\)"):
        load_images(file)
