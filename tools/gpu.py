"""Everything that wants a CUDA device, in one go: its tests, the benchmark, a real synthesis and distillation.

    python tools/gpu.py --out runs/gpu.json

Figures go to the file after each part, so that a part that fails or is cut off leaves the others' on record.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
ECHOSET = [sys.executable, "-m", "inversion.cli"]
PARTS = {
    "tests": [sys.executable, "-m", "pytest", "-q", "tests/test_gpu.py", "tests/test_triton_forms.py", "tests/test_kernels.py"],
    "bench": [*ECHOSET, "bench", "--device=cuda", "--repeats=15"],
    "demo": [*ECHOSET, "demo", "--device=cuda", "--out=runs/gpu-demo", "--json"],
}


def main(out: Path, limit: int) -> int:
    """Run the parts one after the other; the number of those that failed."""
    import torch

    if not torch.cuda.is_available():
        print("no CUDA device: torch sees none here", file=sys.stderr)
        return 1
    found: dict = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "python": sys.version.split()[0]}
    began, failed = time.monotonic(), 0
    out.parent.mkdir(parents=True, exist_ok=True)
    for name, command in PARTS.items():
        started = time.monotonic()
        left = max(limit - (started - began), 1)
        try:
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=left)
            lines, status = done.stdout.strip().splitlines() or [""], done.returncode
        except subprocess.TimeoutExpired:
            lines, status = [f"out of time after {left:.0f} s"], 124
        failed += status != 0
        print("\n".join(lines[-40:] if status else lines[:-1] if name != "tests" else lines[-3:]), flush=True)
        try:
            result = json.loads(lines[-1])
        except ValueError:
            result = lines[-1]
        found[name] = {"status": status, "seconds": round(time.monotonic() - started, 1), "result": result}
        out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"figures: {out}")
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu.json")
    parser.add_argument("--limit", type=int, default=480, help="seconds for everything")
    given = parser.parse_args()
    sys.exit(main(given.out, given.limit))
