import json
import math
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, environment, last_json
from convolving import hearing

from distill.models import ModelSpec, build_classifier
from inversion.bench import bench as benchmark
from inversion.bench import peers
from inversion.bench.limits import count
from inversion.cli.main import main
from inversion.parts.generator import Generator

SMALL = [
    "--teacher=wrn-10-1",
    "--student=wrn-10-1",
    "--batch=8",
    "--images=16",
    "--epochs=1",
    "--views=1",
    "--device=cpu",
]
RUN = [sys.executable, "-m", "inversion.cli.main", "bench", *SMALL, "--json"]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """One real run: what it printed, and the file it saved."""
    path = tmp_path_factory.mktemp("bench") / "first.json"
    command = [*RUN, "--repeats=2", f"--save={path}"]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(), cwd=ROOT, check=True
    ), path


@pytest.fixture(scope="module")
def second(first):
    """Another, in the kernels' reference form, compared with the first."""
    command = [*RUN, "--repeats=1", "--kernels=reference", f"--against={first[1]}", "--quiet"]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(), cwd=ROOT, check=True
    )


@pytest.fixture
def fail(monkeypatch, capsys):
    """Run a bench that must be refused before it measures anything; what it says."""

    def measured(*_, **__):
        raise AssertionError("the bench measured before it refused")

    def run(*arguments):
        monkeypatch.setattr(benchmark.Bench, "compare", measured)
        assert main(["bench", *SMALL, "--quiet", *map(str, arguments)]) == 1
        return capsys.readouterr().err

    return run


def times(document):
    """Every measured triple in the document."""
    if isinstance(document, dict):
        if "least_ms" in document:
            yield document
        for value in document.values():
            yield from times(value)


def test_the_headlines_are_figures_of_the_details(first):
    document = last_json(first[0])
    for name in (
        "synthesis_step.speedup",
        "distillation_step.speedup",
        "pool.speedup",
        "bn_match.speedup",
        "synthesis_step.memory_ratio",
        "synthesis_step.share_of_limit",
    ):
        part, figure = name.split(".")
        assert document[name] == document[part][figure]
        assert math.isfinite(document[name]) and document[name] > 0


def test_every_median_lies_between_the_extremes(first):
    found = list(times(last_json(first[0])))
    assert len(found) > 20
    assert all(0 < each["least_ms"] <= each["ms"] <= each["most_ms"] for each in found)
    assert any(each["least_ms"] < each["most_ms"] for each in found)


def test_speedups_are_ratios_of_medians(first):
    document = last_json(first[0])
    for part in (document["bn_match"], document["pool"], document["synthesis_step"]):
        assert part["speedup"] == part["peers"]["ms"] / part["ours"]["ms"]
    step = document["distillation_step"]
    assert step["steps"] == 2  # 16 images in batches of 8, once
    bank = step["bank_chunk"]["ms"] / 2  # one chunk holds all images
    assert step["whole_ms"] == pytest.approx(step["ours"]["ms"] + bank)
    assert step["speedup"] == step["peers"]["ms"] / step["whole_ms"]
    for name, part in document["kernels"].items():
        assert part["speedup"] == part["definition"]["ms"] / part["ours"]["ms"], name


def test_our_step_needs_fewer_multiplications_than_the_peers(first):
    """It leaves out the gradients of the teacher's weights, and doubles images after a convolution,
    not before.
    """
    step = last_json(first[0])["synthesis_step"]
    assert 0 < step["gmac"] < 0.75 * step["peers_gmac"]


@pytest.mark.parametrize("step", ["synthesis_step", "adversary_step", "distillation_step"])
def test_every_step_is_counted(first, step):
    """In the document, and in the table."""
    done, _ = first
    part = last_json(done)[step]
    assert part["operations"] > 50 and part["ours"]["ms"] > 0
    assert 0 < part["gmac"] < 3 and 0 < part["gigabytes"] < 3
    assert f"{part['operations']:,} operations" in done.stdout


def test_counts_are_those_of_one_step():
    """A product of matrices: 2·3·4 multiply-adds, and three matrices of float32."""
    a, b = torch.randn(2, 3), torch.randn(3, 4)
    found = count(lambda: a @ b)
    assert found == {"operations": 1, "gmac": 24e-9, "gigabytes": 4 * (6 + 12 + 8) / 1e9}


def test_kernels_say_how_near_the_limit_they_come(first):
    document = last_json(first[0])
    copy = document["limit"]["copy_gb_per_s"]
    for name, part in [*document["kernels"].items(), ("bn_match", document["bn_match"])]:
        assert part["gb_per_s"] > 0, name
        assert part["share_of_limit"] >= part["gb_per_s"] / copy * 0.999, name


def test_a_run_that_is_cut_off_leaves_what_it_has_measured(tmp_path, monkeypatch):
    path = tmp_path / "bench.json"

    def stop(*_):
        raise KeyboardInterrupt

    limit = {"float32_gflops": 1.0, "bfloat16_gflops": 1.0, "copy_gb_per_s": 1.0}
    monkeypatch.setattr(benchmark, "ceilings", lambda _: limit)
    monkeypatch.setattr(benchmark, "kernel_times", lambda *_: {"a kernel": {}})
    monkeypatch.setattr(benchmark, "bn_match_times", stop)
    assert main(["bench", *SMALL, "--quiet", f"--save={path}"]) == 130
    assert json.loads(path.read_text())["kernels"] == {"a kernel": {}}


def test_the_document_says_what_was_measured(first):
    document = last_json(first[0])
    assert document["device"].startswith("cpu: ") and document["torch"] == torch.__version__
    assert document["teacher"] == document["student"] == "wrn-10-1"
    assert (document["batch"], document["repeats"], document["step"]) == (8, 2, "eager")
    assert document["precision"] in ("float32", "bfloat16")
    assert document["limit"].keys() == {
        "float32_gflops",
        f"{document['precision']}_gflops",
        "copy_gb_per_s",
    }
    assert all(rate > 0 for rate in document["limit"].values())


def test_the_saved_file_is_the_printed_document(first):
    done, path = first
    assert json.loads(path.read_text()) == last_json(done)
    assert "/ peers" in done.stdout


def test_nothing_warns(first):
    assert "Warning" not in first[0].stderr


def test_against_a_saved_file_it_tells_the_changes(first, second):
    before, after = last_json(first[0]), last_json(second)
    assert (
        after["against"]["file"] == str(first[1]) and after["against"]["device"] == before["device"]
    )
    assert after["against"]["differs"] == {
        "kernel_forms": [before["kernel_forms"], after["kernel_forms"]]
    }
    assert after["against"]["change"].keys() == set(benchmark.HEADLINES)
    for name, change in after["against"]["change"].items():
        assert change == after[name] / before[name]


def test_what_two_files_do_not_share_stands_under_the_table(first, monkeypatch, capsys):
    document = last_json(first[0]) | {"against": {"change": {}, "differs": {"batch": [64, 128]}}}
    monkeypatch.setattr(benchmark, "bench", lambda run: document)
    assert main(["bench"]) == 0
    assert "the earlier file has another batch: 64, now 128" in " ".join(
        capsys.readouterr().out.split()
    )


def test_the_reference_form_is_measured_where_asked(second):
    assert last_json(second)["kernel_forms"] == "kernels: reference, as asked"


def test_quiet_prints_the_document_alone(second):
    assert len(second.stdout.splitlines()) == 1 and "measuring" not in second.stderr


@pytest.mark.parametrize(
    "content",
    [
        None,
        b'{"pool.speedup": 2',
        b"\xff\xfe\x00",
        b"[1, 2]",
        b'{"accuracy": 0.9}',
        b'{"pool.speedup": "fast"}',
    ],
    ids=["missing", "cut off", "no text", "no document", "another document", "no figure"],
)
def test_a_file_that_is_no_result_is_named(fail, tmp_path, content):
    path = tmp_path / "earlier.json"
    if content is not None:
        path.write_bytes(content)
    assert str(path) in fail(f"--against={path}")


def test_a_graph_on_a_cpu_is_refused(fail):
    assert "needs a CUDA device" in fail("--step=graph")


@pytest.mark.parametrize("nonsense", ["--teacher=wrn-9-1", "--teacher.size=64"])
def test_networks_that_cannot_be_measured_are_refused(fail, nonsense):
    assert fail(nonsense).startswith("echoset: ")


@pytest.mark.parametrize(
    "nonsense", ["--repeats=0", "--batch=1", "--views=0", "--epochs=0", "--images=7"]
)
def test_numbers_that_measure_nothing_are_refused(refused, nonsense):
    assert "must be at least" in refused("bench", nonsense, status=2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_the_gpu_tool_says_that_there_is_no_device(tmp_path):
    command = [sys.executable, ROOT / "tools" / "gpu.py", "--out", tmp_path / "gpu.json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=tmp_path)
    assert done.returncode == 1 and done.stderr == "no CUDA device: torch sees none here\n"
    assert not (tmp_path / "gpu.json").exists()


# The peers' form


def test_the_peers_run_none_of_our_kernels():
    torch.manual_seed(0)
    spec = ModelSpec("wrn-10-1", channels=3, size=16, classes=10)
    device = torch.device("cpu")
    images = torch.rand(8, 3, 16, 16)
    teacher, student = build_classifier(spec), build_classifier(spec)
    generator = peers.PlainGenerator(spec, 16, 8)
    steps = [
        peers.distillation_step(teacher, student, images, 4.0),
        peers.synthesis_step(teacher, student, generator, 8, 1.0),
    ]
    with hearing() as names:
        for step in steps:
            peers.freely(step, device)()
    assert names == []


def test_the_peers_hook_measures_the_distance_of_the_statistics():
    torch.manual_seed(0)
    x, mean, variance = 3 + 2 * torch.randn(6, 5, 4, 3), torch.randn(5), torch.rand(5)
    exact = x.double().transpose(0, 1).flatten(1)
    off_mean = exact.sum(1) / 72 - mean
    off_variance = (exact - exact.mean(1, keepdim=True)).square().sum(1) / 72 - variance
    expected = off_variance.square().sum().sqrt() + off_mean.square().sum().sqrt()
    torch.testing.assert_close(peers.hook_statistics(x, mean, variance), expected.float())


def test_the_peers_hooks_watch_the_input_of_every_batch_norm():
    teacher = build_classifier(ModelSpec("wrn-10-1")).eval()
    hooks = peers.hook_all(teacher)
    layers = [module for module in teacher.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    seen = []
    for layer in layers:
        layer.register_forward_hook(lambda layer, inputs, _: seen.append((layer, inputs[0])))
    spec = teacher.spec
    teacher(torch.rand(4, spec.channels, spec.size, spec.size))
    assert len(hooks) == len(layers) == len(seen)
    distance = {
        layer: peers.hook_statistics(x, layer.running_mean, layer.running_var) for layer, x in seen
    }
    assert [hook.distance for hook in hooks] == [distance[layer] for layer in layers]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_peers_folder_gives_normalised_images(tmp_path, channels):
    images = torch.full((3, channels, 32, 32), 255, dtype=torch.uint8)
    data = peers.PngFolder(tmp_path, images, (0.5,) * channels, (0.25,) * channels)
    assert len(data) == len(list(tmp_path.glob("*.png"))) == 3
    image = data[2]
    assert image.shape == (channels, 32, 32) and image.dtype == torch.float32
    # White is (1 − 0.5)/0.25 = 2; what the crop shifted in is black, −2, and at most 4 pixels wide.
    assert set(image.unique().tolist()) <= {2.0, -2.0}
    assert (image[:, 4:-4, 4:-4] == 2).all()


def test_the_peers_generator_has_our_generators_size():
    spec = ModelSpec("wrn-10-1", channels=3, size=32)
    ours, theirs = Generator(3, 32, 10, latent=16, width=8), peers.PlainGenerator(spec, 16, 8)
    images = theirs(torch.randn(2, 16))
    assert images.shape == (2, 3, 32, 32) and images.min() >= 0 and images.max() <= 1
    convolutions = [
        [p.shape for p in network.parameters() if p.ndim == 4] for network in (ours, theirs)
    ]
    assert convolutions[0] == convolutions[1]
