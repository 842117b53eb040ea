"""Everything that wants a CUDA device, in one go: a real synthesis and distillation, the
benchmark, the tests.

    python tools/gpu.py --out runs/gpu.json

Each part has its own limit of time. Figures go to the file after each, so that a part that fails or
is cut off leaves the others' on record.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
ECHOSET = [sys.executable, "-m", "inversion.cli.main"]
PYTEST = [sys.executable, "-m", "pytest", "-vv", "--tb=short", "-p", "no:cacheprovider"]
TESTS = [
    "tests/test_gpu.py",
    "tests/test_gpu_runs.py",
    "tests/test_triton_forms.py",
    "tests/test_kernels.py",
    "tests/test_forms_asked_for.py",
    "tests/test_bn_match.py",
    "tests/test_moment_target.py",
    "tests/test_divergence.py",
    "tests/test_view_forms.py",
    "tests/test_counter.py",
    "tests/test_priority.py",
    "tests/test_upsample_conv.py",
]
BENCH = "runs/gpu-bench.json"
"""What the benchmark has measured so far, where it is cut off."""
BENCHING = ["bench", "--device=cuda", "--repeats=9", f"--save={BENCH}", "--json"]
TAIL = 200
"""Lines that are kept of a part that failed."""


class Part(NamedTuple):
    """A command, and the seconds it may take."""

    name: str
    command: list[str]
    seconds: float


PARTS = (
    Part("demo", [*ECHOSET, "demo", "--device=cuda", "--out=runs/gpu-demo", "--json"], 150),
    Part("bench", [*ECHOSET, *BENCHING], 150),
    Part("tests", [*PYTEST, *TESTS], 180),
)
"""What tells most comes first; together they take eight minutes at most."""


def run_part(command: list[str], seconds: float) -> tuple[int, str]:
    """Exit status and output; when its time is up, a part ends with all that it has started."""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        # Where a part fails, this says why.
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as part:
        try:
            output, _ = part.communicate(timeout=seconds)
            return part.returncode, output
        except BaseException as reason:
            # Ctrl-C, too, doesn't reach a session of its own.
            os.killpg(part.pid, signal.SIGKILL)
            if not isinstance(reason, subprocess.TimeoutExpired):
                raise
            return 124, f"{part.communicate()[0]}\nout of time after {seconds:.0f} s"


def told_of(name: str, status: int, output: str) -> list[str]:
    """What is shown of a part: its table, the end of the tests, or where it failed."""
    lines = output.strip().splitlines() or [""]
    if status:
        return lines[-TAIL:]
    if name == "tests":
        return lines[-3:]
    return [line for line in lines if _document_in(line) is None]


def result_of(status: int, output: str) -> Any:
    """The document that a part prints last; its last line, or where it failed, if there is none."""
    lines = output.strip().splitlines() or [""]
    for line in reversed(lines):
        document = _document_in(line)
        if document is not None:
            return document
    return "\n".join(lines[-TAIL:]) if status else lines[-1]


def _document_in(line: str) -> dict[str, Any] | None:
    """The JSON object that a line is, if it is one."""
    if not line.startswith("{"):
        return None
    try:
        return json.loads(line)
    except ValueError:
        return None


def main(out: Path) -> int:
    """Run the parts one after the other; the number of those that failed."""
    import torch

    # From a checkout that isn't installed, too.
    sys.path.insert(0, str(ROOT))
    from distill.files import write_json

    if not torch.cuda.is_available():
        print("no CUDA device: torch sees none here", file=sys.stderr)
        return 1
    document: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
    }
    failed = 0
    for part in PARTS:
        began = time.monotonic()
        status, output = run_part(part.command, part.seconds)
        failed += status != 0
        print("\n".join(told_of(part.name, status, output)), flush=True)
        document[part.name] = {
            "status": status,
            "seconds": round(time.monotonic() - began, 1),
            "result": result_of(status, output),
        }
        write_json(out, document)
    print(f"figures: {out}")
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu.json")
    given = parser.parse_args()
    # As Ctrl-C, which ends a part.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main(given.out))
