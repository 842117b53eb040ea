"""Teachers named by a file of options, or by a set that they made.

`teacher.yaml` holds the fields of `TeacherOptions`. A set's folder holds one, too, so that the set
knows its teacher; the manifest has the hash of the weights, which says whether it still is the one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from distill.files import write_atomically
from distill.models import Classifier, read_spec
from distill.models.classifier import spec_of
from distill.models.kinds import find_kind
from distill.models.kinds.hf import PREFIX
from distill.plain_files import read_text, refuse_classes
from distill.presence import require_file
from distill.sets.transfer_set import is_set, read_manifest
from inversion.options import TeacherOptions
from inversion.plain_yaml import parse_yaml, register, say_problem
from synthesis_kernels.errors import EchosetError, TrustError

TEACHER_FILE = "teacher.yaml"
"""In a set's folder: how its teacher was named."""
ENDINGS = (".yaml", ".yml")
HEAD = "# The teacher of this set. `echoset distill --set` and others find it here.\n"


class Named(NamedTuple):
    """A teacher's options, and which set says that it is this one."""

    options: TeacherOptions
    folder: str | None = None
    """The set's."""
    weight_hash: str | None = None
    """What the weights were when the set was made."""

    def check(self, teacher: Classifier) -> None:
        """Refuse a teacher that has changed since it made the set."""
        if self.weight_hash is None:
            return
        weight_hash = teacher.weight_hash()
        if weight_hash != self.weight_hash:
            file = self.options.weights or self.options.model
            raise EchosetError(
                f"{self.folder} was made by a teacher with weights {self.weight_hash[:16]}…, and "
                f"{file} has {weight_hash[:16]}… now: it has changed since; put the old file back, "
                "name it with --teacher, or make the set anew"
            )


def spell_out(options: TeacherOptions, bundled: Mapping[str, Path], trust: bool) -> Named:
    """The options that are meant where the model is a file of options, or the folder of a set.

    Options given beside such a name win over those of the file.
    """
    path = Path(options.model)
    if path.suffix in ENDINGS:
        told = _joined(read_teacher(path), options)
        _require_trust(told, path, trust)
        return Named(told)
    if not is_set(path):
        return Named(options)
    manifest = read_manifest(path)
    told = _joined(_teacher_of(path, manifest, bundled), options)
    _require_trust(told, path, trust)
    return Named(told, str(path), str(manifest["teacher"].get("weight_hash")))


def _require_trust(told: TeacherOptions, path: Path, trust: bool) -> None:
    """Refuse a teacher that is code, where a file or a set names it and not the user."""
    kind = find_kind(told.model)
    if kind is not None and kind.runs_user_code and not trust:
        raise TrustError(
            f"the teacher of {path} is '{told.model}', and loading it could run code that "
            f"{path} names. Where you trust it, add --trust, or name the teacher yourself with "
            f"--teacher {told.model}"
        )


def read_teacher(path: Path) -> TeacherOptions:
    """The options in a YAML file. A file that it names may lie beside it."""
    import jsonargparse

    require_file(path, "file of a teacher's options")
    try:
        content = parse_yaml(read_text(path))
    except yaml.YAMLError as error:
        raise EchosetError(f"{path} is not readable YAML: {say_problem(error)}") from error
    if isinstance(content, dict) and isinstance(content.get("teacher"), dict):
        content = content["teacher"]  # as in a file for --config
    if not isinstance(content, dict) or not content:
        raise EchosetError(f"{path} must hold a teacher's options, such as 'model: resnet18'")
    known = [field.name for field in dataclasses.fields(TeacherOptions)]
    unknown = [str(key) for key in content if key not in known]
    if unknown:
        raise EchosetError(
            f"{path}: a teacher has no option '{unknown[0]}'; it has {', '.join(known)}"
        )
    refuse_classes(content, str(path))
    parser = jsonargparse.ArgumentParser(exit_on_error=False, parser_mode=register())
    parser.add_class_arguments(TeacherOptions)
    try:
        options = TeacherOptions(**vars(parser.parse_object(content)))
    except (jsonargparse.ArgumentError, EchosetError, TypeError, OverflowError) as error:
        raise EchosetError(f"{path}: {' '.join(str(error).split())}") from error
    return _with_places(options, path.parent)


def write_teacher(folder: Path, teacher: Classifier) -> None:
    """Note in a set's folder how its teacher was named, if it was loaded by a name."""
    path = folder / TEACHER_FILE
    if teacher.named is None:
        path.unlink(missing_ok=True)
        return
    named = dict(teacher.named)
    if teacher.spec.output_form not in (None, "logits"):  # found out, and not to be doubted again
        named["output_form"] = teacher.spec.output_form
    write_atomically(path, (HEAD + yaml.safe_dump(named, sort_keys=False)).encode())


def as_named(options: TeacherOptions) -> dict[str, Any]:
    """What the options say otherwise than usual, files by their whole paths."""
    usual = TeacherOptions()
    told: dict[str, Any] = {"model": _whole(options.model)}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name == "model" or value == getattr(usual, field.name):
            continue
        told[field.name] = list(value) if isinstance(value, tuple) else value
    if options.weights:
        told["weights"] = _whole(options.weights)
    return told


def _teacher_of(
    folder: Path, manifest: Mapping[str, Any], bundled: Mapping[str, Path]
) -> TeacherOptions:
    """The teacher that the folder names; of a set that names none, the bundled one it may be."""
    file = folder / TEACHER_FILE
    if file.is_file():
        options = read_teacher(file)
        for path in (options.weights, options.model):
            if path and Path(path).is_absolute() and not Path(path).exists():
                raise EchosetError(
                    f"the teacher of {folder} was {path}, which is gone; name it with --teacher"
                )
        return options
    maker = manifest["teacher"].get("model")
    for name, asset in bundled.items():
        spec = read_spec(asset)
        if spec and spec.model == maker and spec_of(manifest["input"]) == _bare(spec):
            return TeacherOptions(name)
    raise EchosetError(
        f"{folder} doesn't say where its teacher is ('{maker}'): name it with --teacher"
    )


def _bare(spec: Any) -> Any:
    """A spec's contract alone."""
    return dataclasses.replace(spec, model="", arguments={}, notes={})


def _joined(told: TeacherOptions, given: TeacherOptions) -> TeacherOptions:
    """A file's options, with what was given beside its name."""
    usual = TeacherOptions()
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(given):
        value = getattr(given, field.name)
        if field.name != "model" and value != getattr(usual, field.name):
            changes[field.name] = value
    return dataclasses.replace(told, **changes)


def _with_places(options: TeacherOptions, folder: Path) -> TeacherOptions:
    """The options with paths that lead to files beside the one that names them."""
    changes: dict[str, Any] = {}
    for name in ("model", "weights"):
        value = getattr(options, name)
        with suppress(OSError):  # too long for a path
            if value and (folder / value).is_file():
                changes[name] = str(folder / value)
    return dataclasses.replace(options, **changes)


def _whole(name: str) -> str:
    """A file, or a folder of Hugging Face's, by its whole path; any other name as it is."""
    prefix = PREFIX if name.startswith(PREFIX) else ""
    path = Path(name.removeprefix(prefix))
    is_there = path.is_dir() if prefix else path.is_file()
    return f"{prefix}{path.resolve()}" if is_there else name
