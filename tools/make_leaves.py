"""Make a file of dead-leaves pictures: flat random shapes over one another, a procedural set that knows nothing of any task.

    python tools/make_leaves.py --out runs/leaves.npz --images 2000 --size 28 --channels 1

Circles, squares, triangles and quadrilaterals in uniform colours; radii with density r⁻³ between 3 % and 100 % of the side,
drawn until the canvas is covered. With --smallest and --cover the shapes are larger, and fewer on black, which suits teachers
of figures on a ground: to the bundled teacher every picture of the full sort is an eight.
A distillation can learn from it: echoset distill --set runs/leaves.npz
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from distill.loop import StepProgress

FINER = 4  # pictures are drawn so many times larger and then averaged


def leaves(
    random: np.random.Generator,
    size: int,
    channels: int,
    smallest: float,
    cover: float,
) -> np.ndarray:  # (size, size, channels) uint8
    """One picture. Later shapes hide earlier ones, so once every pixel was hit nothing of the background is left."""
    side = size * FINER
    picture, bare = Image.new("RGB", (side, side)), Image.new("L", (side, side), 255)
    while np.asarray(bare).mean() > 255 * (1 - cover):
        # r⁻³ between the smallest and 1, by inversion of its distribution function.
        radius = side * (smallest**-2 - random.random() * (smallest**-2 - 1)) ** -0.5
        x, y = random.random(2) * side
        kind = random.choice(["circle", "square", "triangle", "quadrilateral"])
        count = 3 if kind == "triangle" else 4
        angles = random.random() * 2 * np.pi + np.arange(count) * 2 * np.pi / count
        angles = np.sort(random.random(4) * 2 * np.pi) if kind == "quadrilateral" else angles
        points = [(x + radius * np.cos(angle), y + radius * np.sin(angle)) for angle in angles]
        colour = tuple(int(value) for value in random.integers(0, 256, 3))
        for canvas, fill in ((ImageDraw.Draw(picture), colour), (ImageDraw.Draw(bare), 0)):
            if kind == "circle":
                canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
            else:
                canvas.polygon(points, fill=fill)
    pixels = picture.resize((size, size), Image.Resampling.BOX)
    return np.asarray(pixels.convert("L"))[..., None] if channels == 1 else np.asarray(pixels)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--channels", type=int, default=1, choices=(1, 3))
    parser.add_argument("--smallest", type=float, default=0.03, help="least radius, as a part of the side")
    parser.add_argument("--cover", type=float, default=1.0, help="part of the canvas to cover")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if not given.out.endswith(".npz"):
        parser.error("--out should end in .npz")
    random = np.random.default_rng(given.seed)
    Path(given.out).parent.mkdir(parents=True, exist_ok=True)
    pictures = []
    with StepProgress("drawing", given.images) as progress:
        for number in range(given.images):
            pictures.append(leaves(random, given.size, given.channels, given.smallest, given.cover))
            progress.update(number + 1)
    np.savez_compressed(given.out, images=np.stack(pictures))
    print(f"{given.out}: {given.images} pictures of {given.size}×{given.size}×{given.channels}")
