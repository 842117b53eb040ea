import json
import os
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import numpy as np
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # A worker a core: a thread each, and in the processes that they start.
    os.environ["OMP_NUM_THREADS"] = "1"

import torch

if not torch.cuda.is_available():
    # Triton reads it when it is first imported, by whatever module.
    os.environ["TRITON_INTERPRET"] = "1"

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tools"))

from forms import device  # noqa: F401 - a fixture
from tiny import TINY

from distill import load_images
from inversion import MNIST_SLICE, SynthesisOptions, load_teacher
from synthesis_kernels.native import library

needs_native = pytest.mark.skipif(
    not library(), reason=f"the native kernels can't be compiled here: {library.problem}"
)
# A busy machine draws slowly: that says nothing about a test.
PATIENT = [hypothesis.HealthCheck.too_slow]
hypothesis.settings.register_profile(
    "same", derandomize=True, deadline=None, suppress_health_check=PATIENT
)
hypothesis.settings.load_profile("same")


SLOW = {
    "test_abreast",
    "test_adversary",
    "test_docs::test_python_blocks_run",
    "test_scorecard::test_neither_order_nor_chunks_matter",
    "test_conv3x3::test_it_is_right_whatever_a_register_holds",
    "test_conv3x3_taken::test_a_network_trains_on_it_as_on_the_librarys_convolutions",
    "test_conv3x3_taken::test_it_can_be_compiled_and_traced",
    "test_conv3x3_taken::test_teachers_students_and_generators_run_on_it",
    "test_bench",
    "test_bn_train::test_gradient_by_finite_differences",
    "test_bn_train::test_gradient_with_a_sum_by_finite_differences",
    "test_call_graphs",
    "test_boundary_attack::test_every_sample_marked_found_holds_on_the_teacher_itself",
    "test_cli::test_every_config_in_the_repository_is_accepted",
    "test_cli::test_help_names_every_option_and_never_imports_torch",
    "test_cli_demo::test_a_demo_stopped_before_its_report_is_no_finished_one",
    "test_cli_demo::test_a_demo_stopped_before_its_student_goes_on_to_the_same_bytes",
    "test_cli_demo::test_a_demo_whose_student_starts_from_the_adversarial_one",
    "test_cli_demo::test_a_failed_demo_keeps_the_finished_one",
    "test_cli_demo::test_a_finished_demo_is_made_anew",
    "test_cli_demo::test_a_growing_pool_and_real_images_teach_the_student_that_learnt_along",
    "test_cli_demo::test_a_teacher_is_not_written_over",
    "test_cli_demo::test_demo_prints_its_json_last_and_names_the_report",
    "test_cli_demo::test_distill_with_both_sets_teaches_the_student_of_the_demo",
    "test_cli_demo::test_pictures_beside_the_set_teach_too",
    "test_cli_pages::test_a_page_does_not_vouch_for_weights_it_has_not_seen_made",
    "test_cli_pages::test_a_page_names_the_file_it_cannot_show",
    "test_cli_pages::test_a_page_says_what_was_kept_and_whose_answers_taught",
    "test_cli_pages::test_figures_that_are_no_numbers_are_left_out_of_the_curves",
    "test_cli_pages::test_the_report_stands_alone",
    "test_cli_verbs::test_a_set_goes_with_its_teacher_and_a_student_that_takes_its_images",
    "test_cli_verbs::test_a_set_is_balanced_if_its_task_says_so",
    "test_cli_verbs::test_a_student_goes_on_from_weights",
    "test_cli_verbs::test_distilling_from_any_images_by_several_losses",
    "test_cli_verbs::test_evaluate_measures_nearness_to_the_teacher",
    "test_cli_verbs::test_other_teachers_are_not_judged_on_mnist_unasked",
    "test_cli_verbs::test_sets_are_merged_drawn_from_and_exported",
    "test_cli_verbs::test_the_verbs_work_on_each_others_files",
    "test_cli_verbs::test_verify_fails_on_a_damaged_set",
    "test_collect_stopped::test_a_run_stopped_after_any_block_goes_on_to_the_same_bytes",
    "test_collect_stopped::test_a_stopped_process_goes_on_to_the_same_bytes",
    "test_collect::test_figures_are_exposed_where_the_teacher_tells_more_of_them",
    "test_collect_command::test_the_last_line_is_the_whole_account",
    "test_collect_command::test_verify_and_distill_take_a_collected_set",
    "test_collect_command::test_verify_forgives_what_rounding_decides_and_no_more",
    "test_data::test_the_bundled_slice_is_real_mnist_and_the_teacher_reads_it",
    "test_distill::test_a_stopped_distillation_goes_on_to_the_same_student",
    "test_distill::test_a_student_learns_to_decide_as_its_teacher",
    "test_distill::test_same_seed_same_student",
    "test_distill::test_teacher_and_student_may_be_of_different_families",
    "test_distill::test_views_and_mixup_change_what_is_learnt",
    "test_forms_asked_for",
    "test_generator",
    "test_gpu_setup",
    "test_kinds::test_the_zoo_needs_no_torchvision",
    "test_layers_compared::test_features_of_other_families_are_compared",
    "test_learner::test_a_student_comes_to_the_teachers_logits_by_mse",
    "test_learner::test_every_method_changes_the_student_with_either_kind_of_label",
    "test_measure_students::test_students_of_one_set_are_measured_once",
    "test_outputs_kept::test_a_set_is_made_and_taught_by_probabilities_as_by_logits",
    "test_policy::test_a_run_learns_a_policy_and_another_can_start_from_it",
    "test_recipes::test_fast_datafree_keeps_every_image_and_says_so",
    "test_replay::test_likeness_is_of_correlations_within_a_class",
    "test_score_command::test_validation_is_one_command_shared_and_continued",
    "test_student_training::test_every_optimiser_learns",
    "test_student_training::test_patience_stops_and_keeps_the_student_that_agreed_most",
    "test_study::test_a_grid_is_filled_once",
    "test_study::test_a_killed_study_goes_on",
    "test_study::test_processes_share_a_grid",
    "test_synthesis",
    "test_synthesis_options",
    "test_synthesis_replay",
    "test_synthesis_stopped",
    "test_teacher::test_layers_of_two_names",
    "test_toy::test_the_set_teaches_nearly_what_the_teacher_knows",
    "test_tools::test_a_part_out_of_time_ends_with_what_it_has_started",
    "test_train_teacher::test_a_teacher_learns_and_says_how_it_was_made",
    "test_triton_forms",
    "test_unusual_networks::test_networks_of_other_channels_are_served",
    "test_waits::test_a_call_waits_once",
    "test_waits::test_a_call_of_the_adversarial_recipe_waits_once",
}
"""Files, and tests of other files, that take more than about two seconds each."""


def pytest_collection_modifyitems(items):
    """Mark what `make fast` leaves out: see the markers in pyproject.toml."""
    for item in items:
        name = f"{item.path.stem}::{item.originalname}"
        if item.path.stem in ("test_gpu", "test_gpu_runs"):
            item.add_marker("gpu")
        if "echoset" in item.fixturenames:
            item.add_marker("process")
        # Interpreted, a kernel takes a second or more.
        is_interpreted = hasattr(item, "callspec") and "triton" in item.callspec.params.values()
        if name in SLOW or item.path.stem in SLOW or is_interpreted:
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def teacher():
    return load_teacher()


@pytest.fixture(scope="session")
def stripes(tmp_path_factory):
    """A file of two splits of stripes, upright and lying: 64 and 32 of them."""
    random = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 64), ("test", 32)):
        labels = np.arange(count) % 2
        upright = np.tile(np.arange(16) // 2 % 2 * 200, (count, 16, 1))
        pixels = np.where(labels[:, None, None] == 1, upright, upright.transpose(0, 2, 1))
        noisy = pixels + random.integers(0, 40, pixels.shape)
        arrays[f"{split}_images"] = noisy.astype(np.uint8)[..., None]
        arrays[f"{split}_labels"] = labels
    path = tmp_path_factory.mktemp("stripes") / "stripes.npz"
    np.savez(path, **arrays)
    return path


def tiny_options():
    """The whole method on a scale of seconds, with calls enough for the generator to learn."""
    return replace(
        TINY,
        calls=14,
        patience=99,
        objective=replace(TINY.objective, adversary_after=1),
        adversary=replace(TINY.adversary, batch=16),
    )


@pytest.fixture
def tiny():
    return tiny_options()


def flags_of(options, prefix):
    """The flags that give these options, but for those at their defaults."""
    usual = type(options)()
    flags = []
    for field in fields(options):
        name = f"{prefix}.{field.name}"
        value = getattr(options, field.name)
        if value == getattr(usual, field.name):
            continue
        flags += flags_of(value, name) if is_dataclass(value) else [f"{name}={value}"]
    return flags


USUAL = SynthesisOptions()
LIKE_USUAL = replace(tiny_options(), images=USUAL.images, held_out=USUAL.held_out)
TINY_FLAGS = ["--images=30", "--seed=3", *flags_of(LIKE_USUAL, "--synthesis")]
"""The same for the command line, with as many images held out as usual."""


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


SHORT = ["--distillation.steps=20", "--distillation.views_per_image=2"]
"""A student that learns little, in a second."""
STUDENT = "student.safetensors"
SHARD = "set/shard-00000-of-00001.safetensors"


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the command line in this process: most of a command's time would go into the imports of a
    new one.
    """
    from inversion.cli.main import main

    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments, status=0):
        try:
            ended = main(list(map(str, arguments)))
        except SystemExit as exited:
            ended = exited.code
        said = capsys.readouterr()
        assert ended == status, f"status {ended}\n{said.out}\n{said.err}"
        return SimpleNamespace(stdout=said.out, stderr=said.err)

    return run


@pytest.fixture
def refused(run):
    """What a command that must fail says."""
    return lambda *arguments, status=1: run(*arguments, status=status).stderr


@pytest.fixture(scope="session")
def few(tmp_path_factory):
    """200 digits to judge on, where the accuracy does not matter."""
    data = load_images(MNIST_SLICE)
    path = tmp_path_factory.mktemp("few") / "few.npz"
    np.savez(path, images=data.images[::10, 0].numpy(), labels=data.labels[::10].numpy())
    return path


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """A finished demo: the process that made it, and its folder, which is to stay as it is."""
    out = tmp_path_factory.mktemp("run") / "demo"
    flags = [f"--out={out}", "--json", *TINY_FLAGS, *SHORT]
    done = subprocess.run(
        [sys.executable, "-m", "inversion.cli.main", "demo", *flags],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=ROOT,
        check=True,
    )
    return done, out
