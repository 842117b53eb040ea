"""The verbs: what each does, and which of its options matter first. Nothing is imported here."""

from __future__ import annotations

from typing import NamedTuple


class Verb(NamedTuple):
    """A verb of the command line; `inversion/cli/verbs/NAME.py` does its work."""

    sentence: str
    """What it does."""
    options: str
    """Keys of the options that its help shows, in this order; the docstrings say the rest."""
    words: str = ""
    """What may follow the verb without an option."""
    shared: bool = False
    """Whether several processes can share its work."""
    light: bool = False
    """Whether it computes nothing, and needs no torch."""


VERBS = {
    "demo": Verb(
        "the whole path on the bundled MNIST teacher, or on yours: set, student, accuracy, report",
        "teacher.model data student.model out preset synthesis.images distillation.loss "
        "distillation.steps distillation.patience beside.images",
        "[TEACHER]",
    ),
    "inspect": Verb(
        "say what a teacher is, and whether a set can be made from it",
        "teacher.model teacher.weights teacher.channels teacher.size "
        "teacher.classes teacher.task teacher.mean teacher.std estimate json",
        "[TEACHER]",
    ),
    "synthesize": Verb(
        "make a class-balanced transfer set from a teacher",
        "teacher.model teacher.weights out preset synthesis.images synthesis.calls synthesis.batch "
        "synthesis.patience shortage answers.per_image",
        "[TEACHER]",
        shared=True,
    ),
    "collect": Verb(
        "choose a class-balanced transfer set from procedural pictures, folders or other sets",
        "sources teacher.model out collection.images collection.balanced collection.confidence "
        "collection.only collection.short collection.draws answers.per_image",
        "[SOURCE …]",
        shared=True,
    ),
    "distill": Verb(
        "train a student on a transfer set, or on any images, by any of the published methods",
        "set beside teacher.model student.model out preset distillation.loss "
        "distillation.labels distillation.steps distillation.patience",
        "[SET]",
        shared=True,
    ),
    "evaluate": Verb(
        "measure a model on labelled images: accuracy, calibration, nearness to a teacher",
        "model.model model.weights model.names data void against.model against.weights page "
        "trust json",
        "[MODEL]",
    ),
    "report": Verb(
        "write one self-contained HTML page about a run, or about two side by side",
        "run against out quiet json",
        "[RUN [RUN]]",
    ),
    "export": Verb(
        "merge transfer sets, draw a part of one, write it for other trainers",
        "sets out form views images license seed quiet json",
        "[SET …]",
    ),
    "export-student": Verb(
        "write a student as a program for other runtimes: an ONNX file, or torch.export's",
        "student.model student.weights out quiet json",
        "[STUDENT]",
    ),
    "verify": Verb(
        "check a transfer set: hashes, shapes, balance, and the teacher's answers",
        "set teacher.model teacher.weights device quiet json",
    ),
    "study": Verb(
        "compare methods on sets, under label noise and imbalance, over seeds",
        "sets teacher.model student.model data out study.methods study.corruptions study.seeds "
        "study.images original",
        shared=True,
    ),
    "score": Verb(
        "say what sets are worth to a distillation, from the teacher alone, and whether that holds",
        "sets teacher.model images out validate data student.model seeds original json",
        "[[NAME=]SET …]",
        shared=True,
    ),
    "list": Verb(
        "list what there is to choose from: teachers, students, recipes, sources, methods, presets",
        "kinds quiet json",
        "[teachers|students|recipes|sources|methods|presets …]",
        light=True,
    ),
    "bench": Verb(
        "time the kernels and both loops against their definitions and the usual formulation",
        "teacher.model student.model batch images epochs views repeats save against json",
    ),
}

SHORT = {
    "teacher.model": "--teacher",
    "student.model": "--student",
    "model.model": "--model",
    "against.model": "--against",
    "synthesis.images": "--images",
    "collection.images": "--images",
    "study.images": "--images",
    "distillation.patience": "--patience",
    "synthesis.patience": "--patience",
    "distillation.loss": "--loss",
    "collection.short": "--short",
    "shortage": "--short",
    "sources": "--source",
    "answers.per_image": "--answers",
}
"""Short names of keys. Of two keys of one verb that share a name, the first here has it."""


def short_names(keys: list[str]) -> dict[str, str]:
    """The short names that a verb with these keys has: key to name."""
    names: dict[str, str] = {}
    for key, name in SHORT.items():
        if key in keys and name not in names.values():
            names[key] = name
    return names
