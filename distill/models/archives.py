"""What lies in a file that torch wrote, without loading it.

Such files are ZIP archives. A checkpoint holds a pickle; an exported program holds a graph as JSON;
TorchScript holds source code of its own. torch's loaders trust all of them. So programs and scripts
count as code that their user trusts. What is known to reach beyond them is looked for here, and
refused, before the loaders are asked: a second line, and no proof.
"""

from __future__ import annotations

import io
import json
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from synthesis_kernels.errors import EchosetError, reason_of

Content = Literal["exported", "script", "checkpoint", "compiled"]
MOST_GRAPH = 256 * 2**20
"""Bytes of a graph, or of a script's code."""
OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims|quantized|quantized_decomposed|torchvision)"
    r"\.(?!from_file|save)\w+(\.\w+)?"
    r"|torch\.ops\.higher_order\.(cond|while_loop|scan|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|torch\.sym_\w+|math\.\w+"
    r"|_operator\.(abs|add|and_|eq|floordiv|ge|getitem|gt|le|lshift|lt|mod|mul|ne|neg|not_|or_|pos"
    r"|pow|rshift|sub|truediv)"
)
"""What a graph may call: what torch's own writer does."""
SYMBOL = re.compile(r"Symbol\('\w+'(, \w+=(True|False))*\)")
SIZE = re.compile(
    r"(([su]\d+|Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|IntTrueDiv|Where|Integer|True|False"
    r"|\d+)|[-+*/(),<>=! ])*"
)
"""A size that follows from another: torch evaluates it as Python."""
NAME = re.compile(r"[\w.]*|-Infinity")
FREE = ("metadata", "as_string", "as_strings", "torch_version", "guards_code")
"""Texts that never become code, as they are used here."""
SPECS = ("in_spec", "out_spec")
"""How arguments and answers are nested: JSON within the JSON."""
CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
SAMPLES = "data/sample_inputs/model.pt"
REFUSED_CODE = re.compile(
    r"\bfrom_file\b|\bsave\b|\bgetattr\b"
    r"|(?<![\w.])ops\b(?!\.(?:aten|prim|prims|quantized|torchvision)\.\w)"
)
"""In TorchScript: reading and writing files, and operators that torch does not have. Behind a dot,
`ops` is a part of a class's name.
"""
PLAIN_GETATTR = re.compile(r'getattr\((?:(?!getattr)[^"\',])*, "([^"\'\\]*)"\)')
"""How torch writes a module's part that is no identifier, such as a number."""


def content_of(path: Path) -> Content | None:
    """What torch wrote into a file; None where torch did not write it, or there is none."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return None
    try:
        names = set(_members(path))
    except Exception:  # zip's reader has several of a damaged file
        return None
    if any(name.startswith("data/aotinductor/") for name in names):
        return "compiled"
    if {"archive_format", "serialized_exported_program.json"} & names:
        return "exported"
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return "script"
    return "checkpoint" if "data.pkl" in names else None


def whole_network(path: Path) -> str | None:
    """The class of a network that `torch.save(network)` wrote whole, without loading it; None where
    a file holds something else.
    """
    if content_of(path) != "checkpoint":
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            return _pickled_class(archive.read(_members(path)["data.pkl"]))
    except Exception:  # of a damaged file: its reader says so
        return None


def _pickled_class(content: bytes) -> str | None:
    """The class of what a pickle holds, where it begins with one of its own."""
    for code, argument, _ in pickletools.genops(content):
        if code.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            return (
                None
                if module in ("collections", "argparse", "torch._utils")
                else f"{module}.{name}"
            )
        if code.name not in ("PROTO", "FRAME"):
            return None
    return None


def refuse_whole_network(path: Path) -> None:
    """Say how a network that was pickled whole can be given all the same."""
    kind = whole_network(path)
    if kind is None:
        return
    raise EchosetError(
        f"{path} is a whole network ({kind}), and loading it would run code from the file. Where "
        "you trust it, write mynet.py with the two lines\n"
        "    import torch\n"
        f"    def net(): return torch.load({str(path)!r}, weights_only=False)\n"
        "and give mynet:net as the model; or save model.state_dict() alone, best as .safetensors"
    )


def _members(path: Path) -> dict[str, zipfile.ZipInfo]:
    """What is in an archive, by its name below the archive's one folder, in lower case: torch's
    reader does not tell the cases apart.
    """
    with zipfile.ZipFile(path) as archive:
        return {_inner(info.filename).lower(): info for info in archive.infolist()}


def unpacked_size(path: Path) -> int:
    """Bytes of all that is in an archive, by its own account."""
    with zipfile.ZipFile(path) as archive:
        return sum(info.file_size for info in archive.infolist())


def _inner(name: str) -> str:
    _, slash, rest = name.partition("/")
    return rest if slash else name


def _is_usual(info: zipfile.ZipInfo) -> bool:
    """Whether torch could have written a name. Parts that it reads itself have none in capitals,
    but for the modules of a script, whose folders and files are called as their user's were.
    """
    name = _inner(info.filename)
    folder, slash, rest = name.partition("/")
    if folder.lower() == "extra":
        rest = ""
    elif folder == "code":
        rest = rest.rpartition(".")[2]
    fixed = f"{folder}{slash}{rest}"
    return fixed == fixed.lower() and info.orig_filename == info.filename


def _open(path: Path) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """An archive of which no part unpacks to more than it takes in the file, and no two parts have
    one name.
    """
    members = _members(path)
    archive = zipfile.ZipFile(path)
    if len(members) != len(archive.infolist()):
        raise EchosetError(f"{path} holds two parts of one name: it was not written by torch")
    odd = [info.orig_filename for info in members.values() if not _is_usual(info)]
    if odd:
        raise EchosetError(f"{path} holds {odd[0]!r:.80}: it was not written by torch")
    graph = 0
    for name, info in members.items():
        if name.endswith((".json", ".py")):
            graph += info.file_size
        elif info.file_size > info.compress_size + 2**20:
            raise EchosetError(
                f"{path}: {name} unpacks to {info.file_size:,} bytes; torch packs none"
            )
    if graph > MOST_GRAPH:
        raise EchosetError(
            f"{path} has a graph of {graph:,} bytes; at most {MOST_GRAPH:,} are read"
        )
    return archive, members


def read_program(path: Path) -> dict[str, Any]:
    """The description of an exported program, once nothing in the file could run code here."""
    with _blaming(path):
        return _read_program(path)


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Name the file that is not as torch writes it."""
    try:
        yield
    except EchosetError:
        raise
    except Exception as error:  # zip, zlib and json each have their own
        reason = reason_of(error)
        raise EchosetError(f"{path} is damaged, or was not written by torch: {reason}") from error


def _read_program(path: Path) -> dict[str, Any]:
    archive, members = _open(path)
    with archive:
        models = [name for name in members if name.startswith("models/")]
        if models != ["models/model.json"] or not {*CONFIGS, SAMPLES} <= members.keys():
            raise EchosetError(
                f"{path} does not hold one exported program in the present format: load it with "
                "the torch that wrote it, and save it by torch.export.save of torch 2.8 or newer"
            )
        unread = [name for name in members if name.endswith(".pt") and name != SAMPLES]
        if unread:
            raise _unsafe(path, f"{unread[0]} is a pickle")
        program = _json(archive, members["models/model.json"], path)
        for name in CONFIGS:
            _check_tensors(_json(archive, members[name], path), members, path)
        _check_samples(archive.read(members[SAMPLES]), path)
    for key, text in _texts(program):
        _check_text(key, text, path)
    return program


def _json(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> dict[str, Any]:
    try:
        return json.loads(archive.read(info))
    except (ValueError, RecursionError) as error:
        raise EchosetError(f"{path}: {info.filename} is damaged ({error})") from error


def _unsafe(path: Path, reason: str) -> EchosetError:
    return EchosetError(
        f"{path} could run code when it is loaded: {reason}. Save it by torch.export.save from a "
        "network of torch's own operators, or give the network's import path and its weights"
    )


def _check_tensors(config: dict[str, Any], members: Mapping[str, Any], path: Path) -> None:
    """Refuse tensors that are pickles, or that claim more memory than the file has bytes for."""
    for name, payload in config["config"].items():
        file = str(payload["path_name"])
        if payload["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", file):
            raise _unsafe(path, f"tensor {name:.80} is a pickle")
        record = members.get(f"data/weights/{file}") or members.get(f"data/constants/{file}")
        sizes = [size.get("as_int") for size in payload["tensor_meta"]["sizes"]]
        if record is None or (not record.file_size and 0 not in sizes):
            raise EchosetError(f"{path} has no bytes for tensor {name:.80}; it is damaged")


def _check_samples(content: bytes, path: Path) -> None:
    """Refuse example inputs for which torch would fall back to reading any pickle."""
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:  # a damaged file fails anywhere in torch's reader
        raise _unsafe(path, "its example inputs are no plain tensors") from error


def _texts(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a description, with the key that it is under; and every key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each, key)
    elif isinstance(value, dict):
        for name, each in value.items():
            yield "", name
            if name not in FREE:
                yield from _texts(each, name)


def _check_text(key: str, text: str, path: Path) -> None:
    """Refuse a text that torch would make more of than a name."""
    if key in ("target", "as_operator"):
        if not OPERATORS.fullmatch(text):
            raise _unsafe(path, f"it calls {text:.80}, which is no operator of torch's")
    elif key in SPECS:
        if "default_factory" in text:
            raise _unsafe(path, "its answer names a function")
    elif not NAME.fullmatch(text) and not SIZE.fullmatch(SYMBOL.sub("s0", text)):
        raise _unsafe(path, f"{text:.80} is no name")


def check_script(path: Path) -> None:
    """Refuse TorchScript whose code reads or writes files, or calls what torch does not have."""
    with _blaming(path):
        archive, members = _open(path)
    with archive, _blaming(path):
        for name, info in members.items():
            if not name.startswith("code/") or not name.endswith(".py"):
                continue
            called = REFUSED_CODE.search(_plain(archive.read(info).decode(errors="replace")))
            if called:
                raise EchosetError(
                    f"{path} is TorchScript that calls {called[0]}: it reads or writes files, or "
                    "needs a library of its own. Give the network's import path and its weights"
                )


def _plain(code: str) -> str:
    """A script's code with its parts called by their names alone."""
    changed = 1
    while changed:
        code, changed = PLAIN_GETATTR.subn(r"_.\1", code)
    return code
