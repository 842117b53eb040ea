"""What a type checker sees of the public names, as somebody who builds on them does. `make lint`
checks it; nothing runs it.
"""

from pathlib import Path
from typing import assert_type

from torch import Tensor, nn

from distill import (
    Classifier,
    DistillOptions,
    DistillResult,
    Evaluation,
    Images,
    ModelSpec,
    StudentOptions,
    TransferSet,
    ViewOptions,
    build_student,
    distill,
    evaluate,
    export,
    from_dataset,
    load_classifier,
    load_images,
    merge,
    save_classifier,
    subsample,
)
from inversion import (
    MNIST_SLICE,
    CollectOptions,
    Inspection,
    Scorecard,
    SynthesisOptions,
    TeacherOptions,
    collect,
    inspect_teacher,
    load_teacher,
    score,
    synthesize,
    synthesize_share,
)


def whole_path(network: nn.Module) -> float:
    """Every stage, with the types it takes and gives."""
    mine = Classifier(
        network, ModelSpec("mine", channels=3, size=32, classes=10, mean=(0.5,), std=(0.25,))
    )
    teacher = load_teacher(TeacherOptions(model="mnist")) if mine.training else mine
    assert_type(inspect_teacher(teacher), Inspection)
    made = synthesize(teacher, SynthesisOptions(images=2000), out="runs/mine")
    assert_type(made, TransferSet)
    image, label, logits, _ = made[0]
    assert_type(image, Tensor)
    assert_type(logits, Tensor)
    assert_type([int(item.label) for item in made], list[int])
    chosen = collect(teacher, ["shaders"], CollectOptions(images=100), out=Path("runs/shaders"))
    assert_type(chosen, TransferSet)
    assert_type(score(chosen.images, teacher, "own"), Scorecard)
    both = subsample(merge([made, chosen]), 1000, seed=1)
    assert_type(export(both, "runs/out", "webdataset"), Path)
    student = build_student(StudentOptions("convnet-16"), both.manifest["input"])
    learnt = distill(
        student,
        both,
        teacher,
        DistillOptions(steps=100, views=ViewOptions(flip=True)),
        folder="runs/student",
    )
    assert_type(learnt, DistillResult)
    save_classifier(learnt.student, "runs/student.safetensors")
    data = load_images(MNIST_SLICE)
    assert_type(data, Images)
    assert_type(from_dataset([(image, label)], "mine"), Images)
    found = evaluate(load_classifier("runs/student.safetensors"), data, teacher)
    assert_type(found, Evaluation)
    assert_type(found.agreement, float | None)
    return found.accuracy


def mistakes(teacher: Classifier, made: TransferSet) -> None:
    """What has to be noticed; an `ignore` that nothing needs is an error itself."""
    SynthesisOptions(images="many")  # type: ignore[arg-type]
    SynthesisOptions(imagse=3)  # type: ignore[call-arg]
    export(made, "runs/out", "zip")  # type: ignore[arg-type]
    evaluate(teacher, made)  # type: ignore[arg-type]
    synthesize_share(teacher).images  # type: ignore[union-attr]  # noqa: B018 - other processes may not be done
