import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import hypothesis
import pytest

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # a worker a core: a thread each, and in the processes that they start
    os.environ["OMP_NUM_THREADS"] = "1"

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = (
        "1"  # Triton reads it when it is first imported, by whatever module
    )

from inversion import SynthesisOptions, load_teacher
from inversion.options import AdversaryOptions, GeneratorOptions, ObjectiveOptions
from synthesis_kernels.native import find_compiler, library

ROOT = Path(__file__).parent.parent
COMPILER = find_compiler()
HEADERS = Path(sysconfig.get_path("include"), "Python.h").is_file()
needs_native = pytest.mark.skipif(
    not library(), reason=f"the native kernels can't be compiled here: {library.problem}"
)
needs_inductor = pytest.mark.skipif(
    not (COMPILER and HEADERS), reason="torch.compile needs a C++ compiler and Python's headers"
)
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.load_profile("same")


SLOW = set()


def pytest_collection_modifyitems(items):
    """Mark what `make fast` leaves out: see the markers in pyproject.toml."""
    for item in items:
        name = f"{item.path.stem}::{item.originalname}"
        if item.path.stem == "test_gpu":
            item.add_marker("gpu")
        if "echoset" in item.fixturenames:
            item.add_marker("process")
        if name in SLOW or item.path.stem in SLOW:
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def teacher():
    return load_teacher()


def tiny_options():
    """The whole method on a scale of seconds."""
    return SynthesisOptions(
        images=30,
        batch=40,
        calls=14,
        patience=99,
        held_out=0.34,
        generator=GeneratorOptions(
            inner_steps=3,
            width=8,
            latent_rate=0.1,
            learning_rate=0.01,
            meta_rate=0.05,
            conditioning=2.0,
        ),
        objective=ObjectiveOptions(adversary_after=1, classes=5.0, bn=2),
        adversary=AdversaryOptions(steps=3, batch=16),
    )


@pytest.fixture
def tiny():
    return tiny_options()


TINY_FLAGS = [
    "--images=30",
    "--seed=3",
    "--synthesis.batch=40",
    "--synthesis.calls=14",
    "--synthesis.patience=99",
    "--synthesis.generator.inner_steps=3",
    "--synthesis.generator.width=8",
    "--synthesis.generator.latent_rate=0.1",
    "--synthesis.generator.learning_rate=0.01",
    "--synthesis.generator.meta_rate=0.05",
    "--synthesis.generator.conditioning=2.0",
    "--synthesis.objective.adversary_after=1",
    "--synthesis.objective.classes=5",
    "--synthesis.objective.bn=2",
    "--synthesis.adversary.steps=3",
    "--synthesis.adversary.batch=16",
]


@pytest.fixture
def echoset():
    """Run the command line as a user does, in a process of its own."""

    def run(*arguments, status=0):
        done = subprocess.run(
            [sys.executable, "-m", "inversion.cli.main", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment(),
        )
        assert done.returncode == status, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    return run


def environment():
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return kept | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}


def last_json(done):
    return json.loads(done.stdout.strip().splitlines()[-1])


def assert_learnt(student, before):
    """Every weight moved and is a number, and so are the answers of the network that is handed
    back.
    """
    for was, now in zip(before, student.parameters(), strict=True):
        assert now.isfinite().all() and not torch.equal(was, now)
    assert not student.training
    logits = student(torch.rand(4, 1, 28, 28))
    assert logits.shape == (4, 10) and logits.isfinite().all() and logits.std() > 0
