"""Tiny runs of everything, and a SHA-256 of what each leaves: the bytes that a rebuild must keep.

    make golden                                        # print the hashes
    python tools/golden.py --save /tmp/before.json     # before a rebuild: keep them
    python tools/golden.py --against /tmp/before.json  # after it: compare, and name what differs
    python tools/golden.py --only demo score           # some of the runs; combines with both

With --against the exit status is 1 where a hash differs.

A hash covers tensors (name, type, shape and bytes) and figures (every digit of a float). Seconds,
devices, versions, paths and the files' own bytes don't count. Each run has a process of its own
with one thread, so neither the load of the machine nor --processes changes anything.

Another processor or another torch gives other bytes. Compare hashes on the machine that made them,
and keep none in the repository. A saved file says which machine it was, and the precision its runs
computed in.

The runs are in `golden_runs.py` and `golden_parts.py`. What a rebuild renames is renamed there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from golden_parts import prepare
from golden_runs import RUNS
from hashing import digest
from processes import in_processes

from synthesis_kernels.backend import (
    describe_device,
    name_form,
    repository_commit,
    resolve_precision,
)

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""What a processor may have that decides how torch computes on it."""
FAILED = "failed"
"""In place of the hash of a run that raised an error."""


def run(name: str, folder: Path) -> tuple[str, float]:
    """One run's hash and seconds."""
    began = time.perf_counter()
    value = digest(RUNS[name](folder))
    return value, time.perf_counter() - began


def tell_run(name: str, folder: Path) -> str:
    """One run's hash, or `FAILED`; its time, or what went wrong, is told on standard error."""
    try:
        [(value, seconds)] = in_processes([(run, name, folder)])
    except Exception:
        # Whatever a rebuild has broken; the other runs shall tell, too.
        traceback.print_exc()
        return FAILED
    print(f"{name}: {seconds:.1f} s", file=sys.stderr, flush=True)
    return value


def make_runs(names: Sequence[str], processes: int) -> dict[str, str]:
    """The hashes of these runs, so many made at once."""
    hashes = {}
    with TemporaryDirectory(prefix="golden-") as folder, ThreadPoolExecutor(processes) as pool:
        in_processes([(prepare, Path(folder))])
        values = pool.map(lambda name: tell_run(name, Path(folder) / name), names)
        for name, value in zip(names, values, strict=True):
            hashes[name] = value
            print(f"{value}  {name}", flush=True)
    return hashes


def machine() -> dict[str, Any]:
    """What hashes depend on beside the code, and the commit of the code."""
    device = torch.device("cpu")
    return {
        "device": describe_device(device).partition(",")[0],
        "flags": [flag for flag in FLAGS if flag in processor_flags()],
        "precision": str(resolve_precision(device)).removeprefix("torch."),
        "kernels": name_form(device),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "commit": repository_commit(),
    }


def processor_flags() -> set[str]:
    """The processor's features as Linux lists them; none are known elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    for line in lines:
        if line.startswith("flags"):
            return set(line.split())
    return set()


def compare(now: dict[str, Any], before: dict[str, Any], some: bool) -> bool:
    """Tell which hashes are not those saved before, and what else is another machine's."""
    here = now["machine"]
    hashes = now["runs"]
    for key in sorted(here.keys() - {"commit"}):
        then = before["machine"].get(key)
        if here[key] != then:
            print(f"other {key}: {here[key]} now, {then} before", file=sys.stderr)
    names = list(hashes)
    if not some:
        # A run that is gone differs, too.
        names += [name for name in before["runs"] if name not in hashes]
    changed = [name for name in names if hashes.get(name) != before["runs"].get(name)]
    if changed:
        print(f"differ: {', '.join(changed)}")
    else:
        print(f"{len(hashes)} runs, all as before")
    return not changed


def main(given: argparse.Namespace) -> int:
    """Make the runs, print their hashes, and save or compare them."""
    os.environ["OMP_NUM_THREADS"] = "1"
    began = time.perf_counter()
    before = None
    if given.against:
        before = json.loads(given.against.read_text())
    here = machine()
    print(json.dumps(here), file=sys.stderr, flush=True)
    names = [name for name in RUNS if not given.only or name in given.only]
    hashes = make_runs(names, given.processes)
    print(f"all: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    now = {"machine": here, "runs": hashes}
    failed = FAILED in hashes.values()
    if given.save and not failed:
        given.save.write_text(json.dumps(now, indent=1) + "\n")
    same = before is None or compare(now, before, bool(given.only))
    return 0 if same and not failed else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=RUNS, metavar="NAME", help=", ".join(RUNS))
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the hashes to this file")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with a saved file")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="runs at once")
    sys.exit(main(parser.parse_args()))
