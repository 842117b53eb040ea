"""Networks in the user's own modules, as they lie in the user's folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

from distill import ModelSpec, build_classifier
from synthesis_kernels.errors import EchosetError

NET = """
from torch import nn
from layers_of_mine import WIDTH

def net():
    import head_of_mine  # when it is called
    body = [nn.Conv2d(1, WIDTH, 3), nn.BatchNorm2d(WIDTH), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, head_of_mine.head(WIDTH))
"""
OURS = ("distill", "inversion", "synthesis_kernels")
PLACES = f"{ROOT}:{ROOT / 'inversion' / 'public'}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a network, and with scripts that have our packages' names."""
    (tmp_path / "net_of_mine.py").write_text(NET)
    (tmp_path / "layers_of_mine.py").write_text("WIDTH = 4")
    (tmp_path / "head_of_mine.py").write_text(
        "from torch import nn\ndef head(width): return nn.Linear(width, 3)"
    )
    for name in OURS:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not ours')")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("net_of_mine", "layers_of_mine", "head_of_mine"):
        sys.modules.pop(name, None)


def test_a_module_in_the_current_folder_is_found(folder):
    spec = ModelSpec("net_of_mine:net", classes=3, size=8)
    assert build_classifier(spec).answer_shape == (3,)


def test_a_file_s_name_is_no_module_s(folder):
    (folder / "net_of_mine.py").write_text("raise SystemExit('ran')")
    for name in ("net_of_mine.py:net", "net_of_mine.py.net"):
        with pytest.raises(EchosetError, match=r"say net_of_mine:net$"):
            build_classifier(ModelSpec(name))


def test_a_file_hidden_by_a_package_is_named(folder):
    with pytest.raises(EchosetError, match=r"\./distill\.py is hidden by .*another name"):
        build_classifier(ModelSpec("distill:net"))


@pytest.mark.process
@pytest.mark.slow
def test_torchvision_is_mended_before_the_user_s_module_is_imported(folder):
    (folder / "net_of_mine.py").write_text(
        "import torchvision\ndef net(): return torchvision.models.resnet18(num_classes=3)"
    )
    code = (
        "from distill import ModelSpec, build_classifier;"
        "build_classifier(ModelSpec('net_of_mine:net', channels=3, classes=3))"
    )
    # Not from the current folder, where `distill` is another.
    script = folder / "elsewhere" / "script.py"
    script.parent.mkdir()
    script.write_text(code)
    done = python(script)
    assert done.returncode == 0, done.stderr


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("start", [["-m", "echoset"], ["-c", "{main}"]])
def test_scripts_of_our_names_break_nothing(folder, start):
    main = "import sys; from echoset.__main__ import main; sys.exit(main())"
    shape = ["--teacher.channels=1", "--teacher.size=8", "--teacher.classes=3"]
    given = ["bench", "--help"] if start[0] == "-m" else ["inspect", "--teacher=net_of_mine:net"]
    arguments = [part.format(main=main) for part in start] + given
    if given[0] == "inspect":
        arguments += shape
    done = python(*arguments, folder=folder)
    assert "not ours" not in done.stderr and "Traceback" not in done.stderr
    if given[0] == "inspect":  # it got as far as the network
        assert "never trained" in done.stderr
    else:
        assert done.returncode == 0


@pytest.mark.process
@pytest.mark.slow
def test_echoset_offers_what_the_packages_do(folder):
    """Quickly: nothing is imported before it is used."""
    code = (
        "import sys, echoset;"
        "assert {'load_teacher', 'distill', 'TransferSet', 'EchosetError'} <= set(dir(echoset));"
        "assert 'torch' not in sys.modules;"
        "import distill, inversion;"
        "assert echoset.distill is distill.distill and echoset.plan is inversion.plan;"
        "assert all(hasattr(echoset, name) for name in dir(echoset));"
        "assert not hasattr(echoset, 'nothing')"
    )
    done = python("-c", code, folder=folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.process
@pytest.mark.slow
def test_a_module_that_hides_ours_is_named(folder):
    (folder / "distill.py").write_text("")
    done = python("-c", "import distill, echoset", folder=folder)
    assert "distill.py here, which hides echoset's package" in done.stderr


def python(*arguments, folder=None):
    """Run Python in a folder that it looks for modules in."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder or Path.cwd(),
        env={"PYTHONPATH": PLACES, "PATH": "/usr/bin:/bin", "HOME": "/tmp", "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.process
@pytest.mark.slow
def test_a_wheel_holds_the_public_names_beside_the_packages(tmp_path):
    pytest.importorskip("setuptools", minversion="77", reason="builds with setuptools, of 77 on")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in OURS:
        passed_over = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, source / name, ignore=passed_over)
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    assert {f"{name}/__init__.py" for name in ("echoset", *OURS)} <= names
    assert not [name for name in names if "public" in name]
    code = "import echoset; print(echoset.Classifier, echoset.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
    )
    assert str(tmp_path / "installed" / "echoset") in done.stdout, done.stderr
