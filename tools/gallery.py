"""Make a page's picture: twenty images of each class of a transfer set, evenly spread over the
stock.

python tools/gallery.py runs/demo/set configs/results/gallery.png
"""

import argparse

import numpy as np
from einops import rearrange
from PIL import Image

from distill import TransferSet

COLUMNS = 20

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("set", help="folder of the transfer set")
    parser.add_argument("picture", help="file to write")
    given = parser.parse_args()
    transfer_set = TransferSet.load(given.set)
    classes = [
        transfer_set.images[transfer_set.labels == label] for label in range(transfer_set.classes)
    ]
    chosen = np.stack(
        [images[np.linspace(0, len(images) - 1, COLUMNS).astype(int)].numpy() for images in classes]
    )
    picture = Image.fromarray(rearrange(chosen, "k n c h w -> (k h) (n w) c").squeeze())
    picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST).save(
        given.picture, optimize=True
    )
