"""Scripts that lie beside an export, run with nothing of this project's to import."""

import subprocess
import sys

from conftest import environment

ALONE = """
import runpy, sys
for name in ("distill", "echoset", "torchvision", "PIL", "safetensors"):
    sys.modules[name] = None  # can not be imported
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def train_alone(export, *flags):
    """What `train_elsewhere.py` of an export prints, run in the folder above it."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE, export / "train_elsewhere.py", *flags],
        capture_output=True,
        text=True,
        cwd=export.parent,
        env={name: value for name, value in environment().items() if name != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
