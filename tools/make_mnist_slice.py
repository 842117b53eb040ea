"""Make the bundled MNIST test slice: every fifth image of the test set, 2,000 of 10,000, in order.

    python tools/make_mnist_slice.py /path/to/folder/with/MNIST

The images are Yann LeCun's and Corinna Cortes's MNIST (CC BY-SA 3.0), unchanged.
"""

import numpy as np
from verbs import new_parser

from distill.data.images import load_images
from inversion import MNIST_SLICE

if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("data", help="folder with MNIST's test set")
    data = load_images(parser.parse_args().data, "test")
    if data.labels is None:
        raise SystemExit(f"{data.name} has no labels")
    images = data.images[::5, 0].numpy()
    labels = data.labels[::5].numpy().astype(np.uint8)
    np.savez_compressed(MNIST_SLICE, test_images=images, test_labels=labels)
    print(
        f"{MNIST_SLICE}: {len(images)} images, per class {np.bincount(labels).tolist()}, "
        f"{MNIST_SLICE.stat().st_size:,} bytes"
    )
