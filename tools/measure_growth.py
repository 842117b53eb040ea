"""How the cost of a synthesis grows with resolution, classes and images, counted and measured.

    python tools/measure_growth.py

The preset `photos` makes two calls, of 16 images each, for a WRN-16-1 that was never trained: a
call costs the same whatever the network has learnt. A line of JSON for each size tells the
operations of a call, counted by torch (in plain torch; the kernels need fewer), the seconds that
the processor worked on it, with one thread and the usual kernels, and what an image takes in the
buffer. Options of `echoset synthesize` may follow.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from verbs import new_parser, plain_endings, read_options

from distill.models import ModelSpec, build_classifier
from distill.runtime import Runtime
from inversion.cli.schema import SynthesizeRun
from inversion.jobs import plan
from inversion.options import SynthesisOptions
from inversion.parts.own import Own
from inversion.recipes.ssdkd import SSDKD
from inversion.shards import Shard, size_of
from synthesis_kernels.backend import describe_device, kernel_form, repository_commit

SIZES = ((32, 10), (48, 10), (64, 10), (96, 10), (32, 100), (32, 1000))
"""Resolutions and classes."""
SMALL = (
    "--preset=photos",
    "--synthesis.images=1000",
    "--synthesis.batch=16",
    "--synthesis.objective.adversary_after=0",
    "--synthesis.adversary.steps=2",
    "--synthesis.adversary.batch=16",
)
NETWORK = "wrn-16-1"


def main() -> None:
    """Print a line for each size."""
    parser = new_parser(__doc__)
    _, flags = parser.parse_known_args()
    torch.set_num_threads(1)
    with plain_endings():
        run = read_options(SynthesizeRun, "synthesize", [*SMALL, "--device=cpu", *flags])
        for size, classes in SIZES:
            print(json.dumps(measure(run.synthesis, run, size, classes)), flush=True)


def measure(options: SynthesisOptions, runtime: Runtime, size: int, classes: int) -> dict[str, Any]:
    """One size's figures."""
    with kernel_form("reference"), FlopCounterMode(display=False) as counter:
        shard = _shard(options, runtime, size, classes)
        before = counter.get_total_flops()
        shard.step()
        counted = counter.get_total_flops() - before
    shard = _shard(options, runtime, size, classes)
    shard.step()  # it prepares much
    began = time.process_time()
    shard.step()
    seconds = time.process_time() - began
    state: Any = shard.recipe.state_dict()
    return {
        "size": size,
        "classes": classes,
        "batch": options.batch,
        "gigaflops": round(counted / 1e9, 1),
        "seconds": round(seconds, 2),
        "bytes_an_image": round(size_of(state["job"]["buffer"]) / options.images),
        "device": describe_device(torch.device("cpu")),
        "torch": torch.__version__,
        "commit": repository_commit(),
    }


def _shard(options: SynthesisOptions, runtime: Runtime, size: int, classes: int) -> Shard:
    """A shard that is to be made of an untrained network."""
    spec = ModelSpec(NETWORK, {}, 3, size, classes)
    teacher = build_classifier(spec).eval().requires_grad_(False)
    settled = SSDKD.settle(options, teacher)
    job = plan(settled, classes)[0]
    with TemporaryDirectory() as folder:
        return Shard(SSDKD, teacher, settled, runtime.resolve(), Path(folder), Own(), job)


if __name__ == "__main__":
    main()
