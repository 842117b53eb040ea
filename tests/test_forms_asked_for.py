"""A form that is asked for by name must run: each in a process of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from conftest import needs_native

from synthesis_kernels import backend
from synthesis_kernels.native import find_compiler


def in_a_process(code, **environment):
    """What `code` prints, run with these variables (None removes one)."""
    merged = os.environ | {"PYTHONPATH": str(Path(backend.__file__).parents[1])} | environment
    merged = {name: value for name, value in merged.items() if value is not None}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=merged)
    assert done.returncode == 0, done.stderr
    return done.stdout


ASK = """
import torch
from synthesis_kernels.backend import describe_forms, kernel_form, name_form, pick_form
from synthesis_kernels.bn_match import bn_match
from synthesis_kernels.errors import EchosetError
x = torch.randn(4, 3)
with kernel_form("{form}"):
    for ask in (lambda: bn_match(x, torch.ones(3), torch.zeros(3)), lambda: describe_forms(x.device)):
        try:
            ask()
        except EchosetError as error:
            print(error)
bn_match(x, torch.ones(3), torch.zeros(3))
print(pick_form(x), "|", describe_forms(x.device))
print(name_form(x.device))
"""


def test_a_form_asked_for_by_name_must_run():
    said = in_a_process(ASK.format(form="triton"), TRITON_INTERPRET=None).splitlines()
    reason = "needs a CUDA device" if importlib.util.find_spec("triton") else "not installed"
    assert all("in their triton form, but triton" in line and reason in line for line in said[:2])


def test_without_a_compiler_kernels_are_plain_torch_unless_native_was_asked_for(tmp_path):
    *asked, automatic, name = in_a_process(
        ASK.format(form="native"), CXX="/bin/false", ECHOSET_CACHE=str(tmp_path)
    ).splitlines()
    assert len(asked) == 2 and all(
        "native form, but it can't be compiled here" in line for line in asked
    )
    assert automatic.startswith(
        "reference | kernels: reference (plain torch), because it can't be compiled here"
    )
    assert name == "reference"  # a stopped run may go on though the compiler's words differ


@needs_native
def test_native_kernels_do_without_a_home_and_take_a_compiler_of_several_words(tmp_path):
    """Without a folder to keep them in, they are compiled for this process alone; CXX may carry
    options, as for make.
    """
    nowhere = {
        "HOME": "/proc/none",
        "XDG_CACHE_HOME": None,
        "ECHOSET_CACHE": None,
        "TMPDIR": str(tmp_path),
    }
    assert (
        in_a_process(
            ASK.format(form="native"), **nowhere, CXX=f"{find_compiler()} -DNONE"
        ).splitlines()[-1]
        == "native"
    )
    assert not list(tmp_path.iterdir())
