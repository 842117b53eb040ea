"""What is named and is not there is told before torch is imported."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
from conftest import environment

from distill.models.kinds import all_kinds, find_kind, kind_of, torchvision
from distill.presence import require_file, require_there
from distill.zoo_names import USUAL_NETWORKS
from inversion.cli import early
from inversion.cli.early import check_names
from inversion.cli.lists import BUNDLED, ZOO
from inversion.cli.schema import InspectRun
from inversion.options import TeacherOptions
from synthesis_kernels.errors import EchosetError

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # an import of it fails
from inversion.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def refused_early(place, *arguments):
    """What a command says that never imports torch; it runs in a folder."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments],
        capture_output=True,
        text=True,
        cwd=place,
        env=environment(),
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("distill --set sett", "no data at sett; did you mean set?"),
        ("verify sett", "no data at sett; did you mean set?"),
        ("verify --set run/set", "no data at run/set; did you mean runs/set?"),
        ("score set other=sat", "no data at sat; did you mean set?"),
        ("evaluate --data nowhere/deep", "no data at nowhere/deep\n"),
        ("report runs/demo", "no run at runs/demo\n"),
        ("report set runz", "no run at runz; did you mean runs?"),
        ("distill --set set --beside runz", "no data at runz; did you mean runs?"),
        ("inspect --teacher nett.yaml", "no file of a teacher's options at nett.yaml"),
        ("collect shadrs", "nor a file or folder; did you mean shaders?"),
        ("collect ./sett", "nor a file or folder; did you mean set?"),
        ("inspect --teacher mnst", "no model named 'mnst'. Did you mean mnist?"),
        ("inspect --teacher wrn-40-x", "no model named 'wrn-40-x'. Did you mean wrn-40-2"),
        ("inspect --teacher nett.pth", "no model file at nett.pth; did you mean net.pth?"),
        (
            "inspect --teacher resnet18 --teacher.weights nett.pth",
            "no weights file at nett.pth; did",
        ),
        ("evaluate --model runs/net.safetensors", "no model file at runs/net.safetensors\n"),
        ("demo --student convnt-8", "no model named 'convnt-8'. Did you mean convnet-"),
        (
            "demo --synthesis.adversary.student.model lenet",
            "no model named 'lenet'. Did you mean len",
        ),
    ],
)
def test_a_name_that_leads_nowhere_is_told_at_once(arguments, message, tmp_path):
    (tmp_path / "runs" / "set").mkdir(parents=True)
    (tmp_path / "set").mkdir()
    (tmp_path / "net.pth").touch()
    assert message in refused_early(tmp_path, *arguments.split())


@pytest.mark.parametrize(
    "name",
    ["resnet18", "lraspp_mobilenet_v3_large", "nobody_s", "my.Net", "hf:there", "unet-3", "n.py"],
)
def test_names_that_may_be_networks_pass_the_early_check(name):
    assert check_names(InspectRun(teacher=TeacherOptions(name, "DEFAULT"))) is None


def test_where_timm_is_installed_its_names_count_too(monkeypatch):
    close = InspectRun(teacher=TeacherOptions("resnt18"))
    monkeypatch.setattr(early, "find_spec", lambda name: name != "timm" and find_spec(name))
    with pytest.raises(EchosetError, match="Did you mean resnet18"):
        check_names(close)
    monkeypatch.setattr(early, "find_spec", lambda name: True)
    check_names(close)


def test_names_known_early_are_those_that_there_are():
    for name in USUAL_NETWORKS:
        assert find_kind(name) is not None
    zoo = next(all_kinds())
    assert zoo.form == ", ".join(ZOO) and {*USUAL_NETWORKS} <= {*zoo.names()}
    assert {*early.torchvision_names()} == {*torchvision.names()}
    for name in BUNDLED:
        assert find_kind(name) is None  # a network is not called so
    with pytest.raises(EchosetError, match="no model file at nowhere/net"):
        kind_of("nowhere/net")


def test_a_folder_is_no_file_and_what_can_not_be_read_suggests_nothing(tmp_path):
    with pytest.raises(EchosetError, match="no model file at "):
        require_file(tmp_path, "model file")
    (tmp_path / "abc").touch()
    with pytest.raises(EchosetError, match=r"no data at .*abd/x$"):
        require_there(tmp_path / "abd" / "x", "data")
