"""Make a page's picture: twenty images of each class of a transfer set, evenly spread over the
stock.

    python tools/gallery.py runs/demo/set configs/results/gallery.png
"""

import numpy as np
from einops import rearrange
from PIL import Image
from verbs import new_parser

from distill import TransferSet

COLUMNS = 20


def gallery(transfer_set: TransferSet) -> Image.Image:
    """A row a class."""
    rows = []
    for label in range(transfer_set.classes):
        images = transfer_set.images[transfer_set.labels == label]  # (N, C, H, W)
        chosen = np.linspace(0, len(images) - 1, COLUMNS).astype(int)
        rows.append(images[chosen].numpy())
    pixels = rearrange(np.stack(rows), "k n c h w -> (k h) (n w) c")
    return Image.fromarray(pixels.squeeze())


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("set", help="folder of the transfer set")
    parser.add_argument("picture", help="file to write")
    given = parser.parse_args()
    picture = gallery(TransferSet.load(given.set))
    doubled = picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST)
    doubled.save(given.picture, optimize=True)
