"""Images in files of every form for `mutate.py`."""

from __future__ import annotations

import gzip
import io
import random
import zipfile
from pathlib import Path

import numpy as np
import torch
from mutations import change_bytes
from PIL import Image

from distill import load_images


class Pixels:
    """Images in a file of one of the forms that are read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
        self.labels = np.arange(4)
        self.whole = self.form()
        for name, data in self.whole.items():
            (folder / name).write_bytes(data)

    def form(self) -> dict[str, bytes]:
        """Files by their names, as they were before they were changed."""
        raise NotImplementedError

    def change(self, chance: random.Random) -> int:
        for old in self.folder.iterdir():
            old.unlink()
        made = dict(self.whole)
        name = chance.choice(list(made))
        made[name] = change_bytes(made[name], chance)
        for each, data in made.items():
            (self.folder / each).write_bytes(data)
        return sum(map(len, made.values()))

    def read(self) -> None:
        place = next(iter(self.folder.glob("*.npz")), self.folder)
        for shape in ((None, None), (1, 8)):
            data = load_images(place, "test", *shape, labelled=place != self.folder)
            assert data.images.dtype is torch.uint8
            assert data.images.ndim == 4


class Npz(Pixels):
    """NumPy's archive, packed."""

    def form(self) -> dict[str, bytes]:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, images=self.pixels, labels=self.labels)
        return {"d.npz": buffer.getvalue()}

    def change(self, chance: random.Random) -> int:
        if chance.random() < 0.5:
            return super().change(chance)
        name = chance.choice(("images", "labels"))
        with zipfile.ZipFile(io.BytesIO(self.whole["d.npz"])) as archive:
            members = {each: archive.read(each) for each in archive.namelist()}
        head, tail = members[f"{name}.npy"][:128], members[f"{name}.npy"][128:]
        if chance.random() < 0.7:
            shape = chance.choice((b"(10000000000, ", b"(-1, ", b"(), (", b"(0, ", b"(4.0, "))
            head = head.replace(b"(4, ", shape).replace(b"|u1", chance.choice((b"|O", b"|u1")))
        else:
            head = change_bytes(head, chance)
        members[f"{name}.npy"] = head + tail
        with zipfile.ZipFile(self.folder / "d.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for each, data in members.items():
                archive.writestr(each, data)
        return (self.folder / "d.npz").stat().st_size


class Idx(Pixels):
    """MNIST's two files, packed."""

    def form(self) -> dict[str, bytes]:
        head = bytes([0, 0, 8, 3]) + np.array([4, 8, 8], ">u4").tobytes()
        images = head + self.pixels[..., 0].tobytes()
        labels = bytes([0, 0, 8, 1]) + np.array([4], ">u4").tobytes() + bytes([0, 1, 2, 3])
        return {
            "t10k-images-idx3-ubyte.gz": gzip.compress(images),
            "t10k-labels-idx1-ubyte.gz": gzip.compress(labels),
        }

    def change(self, chance: random.Random) -> int:
        whole = self.whole
        if chance.random() < 0.5:  # within the packing
            opened = {name: gzip.decompress(data) for name, data in whole.items()}
            name = chance.choice(list(opened))
            opened[name] = change_bytes(opened[name], chance)
            self.whole = {each: gzip.compress(data) for each, data in opened.items()}
        try:
            return super().change(chance)
        finally:
            self.whole = whole


class Pictures(Pixels):
    """Pictures of the forms that are opened."""

    def form(self) -> dict[str, bytes]:
        files = {}
        for pixels, form in zip(self.pixels, ("PNG", "JPEG", "BMP", "WEBP"), strict=True):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, form)
            files[f"{form}.{form.lower()}"] = buffer.getvalue()
        return files
