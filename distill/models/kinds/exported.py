"""A program that torch exported, `net.pt2`: a file that holds the network and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree

from distill.models.archives import content_of, read_program
from distill.models.kinds.kind import Constructor, Kind
from distill.models.kinds.layers import put_tensor, to_layers
from distill.models.modes import device_of
from distill.presence import looks_like_file
from distill.sizes import settle_size
from synthesis_kernels.errors import EchosetError, reason_of

SUFFIX = ".pt2"
aten = torch.ops.aten
SHAPING = (aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.expand.default)
"""What may have the number of images written into it."""


def takes(name: str) -> bool:
    """Whether a file is an exported program, or its name says so."""
    path = Path(name)
    if path.suffix == SUFFIX:
        return True
    return looks_like_file(name) and content_of(path) == "exported"


def constructor(name: str) -> Constructor:
    """What reads the file; a program is what it is, and takes no arguments."""
    path = _checked(name)

    def build() -> nn.Module:
        return load_program(path)

    return build


def _free_batch(network: fx.GraphModule, shape: list[int], path: Path) -> None:
    """Let a program that was exported with so many images take any number, or refuse it."""
    if _takes_more(network, shape):
        return
    graph = network.graph
    images = next(node for node in graph.nodes if node.op == "placeholder")
    with graph.inserting_after(images):
        count = graph.call_function(torch.ops.aten.sym_size.int, (images, 0))
    of_images = {images}
    for node in graph.nodes:
        if of_images.intersection(node.all_input_nodes):
            of_images.add(node)
        # A token of the network's own is repeated for each image.
        is_theirs = node in of_images or node.target is aten.expand.default
        sizes = node.args[1] if node.target in SHAPING and is_theirs else None
        if sizes and sizes[0] == shape[0]:
            node.args = (node.args[0], [count, *sizes[1:]], *node.args[2:])
    network.recompile()
    if not _takes_more(network, shape):
        raise EchosetError(
            f"{path} was exported for {shape[0]} images at once, and can't take more: give "
            "torch.export.export dynamic_shapes=({0: torch.export.Dim('batch')},)"
        )


def _takes_more(network: nn.Module, shape: list[int]) -> bool:
    """Whether one image more changes no answer to the others."""
    images = torch.rand(shape[0] + 1, *shape[1:])
    try:
        with torch.no_grad():
            many = _pytree.tree_leaves(network(images))[0]
            ones = [_pytree.tree_leaves(network(images[i : i + 1]))[0] for i in (0, shape[0])]
    except Exception:  # whatever an operator says of another shape
        return False
    if len(many) != len(images):
        return False
    return torch.allclose(many[[0, shape[0]]], torch.cat(ones), rtol=1e-3, atol=1e-3)


def _checked(name: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise EchosetError(f"no file at {path}")
    content = content_of(path)
    if content == "compiled":
        raise EchosetError(
            f"{path} holds machine code, which AOTInductor compiled, and nothing can be looked up "
            "in that: save the program itself by torch.export.save"
        )
    if content != "exported":
        raise EchosetError(f"{path} holds no program that torch.export.save wrote")
    return path


def contract(name: str, arguments: Mapping[str, Any], weights: str | None) -> dict[str, Any]:
    """Channels, size and classes, as far as the program is bound to them."""
    path = _checked(name)
    program = read_program(path)
    known: dict[str, Any] = {}
    images = _images(program)
    if images is not None and len(images) == 4:
        known["channels"] = images[1]
        if None not in images[2:]:
            known["size"] = settle_size(images[2:])
    graph = program["graph_module"]["graph"]
    answer = _shape(graph, graph["outputs"][-1])
    if answer is not None and len(answer) >= 2:
        known["classes"] = answer[1]
    return {key: value for key, value in known.items() if value is not None}


def _images(program: Mapping[str, Any]) -> list[int | None] | None:
    """The shape of the images: the last input, behind all that the program holds."""
    graph = program["graph_module"]["graph"]
    return _shape(graph, graph["inputs"][-1]) if graph["inputs"] else None


def _shape(graph: Mapping[str, Any], argument: Mapping[str, Any]) -> list[int | None] | None:
    """The shape of an input or an answer, None where a side may vary; None where it has none."""
    if "as_tensor" not in argument:
        return None
    described = graph["tensor_values"][argument["as_tensor"]["name"]]
    return [size.get("as_int") for size in described["sizes"]]


def load_program(path: Path) -> fx.GraphModule:
    """The network, with its BatchNorm, convolutions and linear layers as layers, for any number of
    images.
    """
    described = read_program(path)
    try:
        program = torch.export.load(str(path))
    except Exception as error:  # whatever torch's reader stumbles over
        reason = reason_of(error)
        raise EchosetError(
            f"{path} can't be loaded by torch {torch.__version__} ({reason:.200}); export it with "
            "this version"
        ) from error
    root = nn.Module()
    graph = _bind(program, root, path)
    for node in graph.nodes:
        if isinstance(node.meta.get("val"), Tensor):
            node.meta["dimensions"] = node.meta["val"].ndim
    network = to_layers(root, graph, str(path))
    _require_same(network, program, path)
    shape = _images(described)
    if shape is not None and None not in shape:
        _free_batch(network, [side for side in shape if side is not None], path)
    return network


def _require_same(
    network: fx.GraphModule, program: torch.export.ExportedProgram, path: Path
) -> None:
    """Refuse a network that answers otherwise than the program that it was made of."""
    original = program.module()
    for seed in range(2):
        leaves, images = _draw_inputs(program, network, seed)
        args, kwargs = _pytree.tree_unflatten(leaves, program.call_spec.in_spec)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            expected = original(*args, **kwargs)
            torch.manual_seed(seed)
            answer = network(images)
        try:
            torch.testing.assert_close(
                _pytree.tree_leaves(answer),
                _pytree.tree_leaves(expected),
                rtol=1e-3,
                atol=1e-3,
                equal_nan=True,
            )
        except AssertionError as error:
            raise EchosetError(
                f"{path} can't be made into layers: these answer otherwise than the program. Give "
                "the network's import path and its weights"
            ) from error


def _draw_inputs(
    program: torch.export.ExportedProgram, network: fx.GraphModule, seed: int
) -> tuple[list[Any], Tensor]:
    """Random inputs of the shapes that the program was exported with; and which are its images."""
    random = torch.Generator().manual_seed(seed)
    place = device_of(network)
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    leaves: list[Any] = []
    images = torch.empty(0)
    for spec in program.graph_signature.input_specs:
        if spec.kind is not InputKind.USER_INPUT:
            continue
        node = nodes[spec.arg.name]
        told = node.meta.get("val")
        if not isinstance(told, Tensor):
            leaves.append(getattr(spec.arg, "value", None))
            continue
        drawn = torch.rand([_side(side) for side in told.shape], generator=random)
        leaves.append(drawn.to(place, told.dtype))
        if node.users:
            images = leaves[-1]
    return leaves, images


def _side(side: int | torch.SymInt) -> int:
    """A side of a shape, or what it was when the program was exported."""
    return side if isinstance(side, int) else int(side.node.hint or 2)


def _bind(program: torch.export.ExportedProgram, root: nn.Module, path: Path) -> fx.Graph:
    """A graph of the images alone, whose tensors `root` holds."""
    signature = program.graph_signature
    specs = {spec.arg.name: spec for spec in signature.input_specs}
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    last = graph.graph_copy(program.graph, copies)
    images = []
    for node in program.graph.nodes:
        if node.op != "placeholder":
            continue
        copy = copies[node]
        spec = specs[node.name]
        if spec.kind is InputKind.USER_INPUT:
            images.append(copy)
            continue
        tensor = program.state_dict.get(spec.target)
        if tensor is None:
            tensor = program.constants[spec.target]
        with graph.inserting_before(copy):
            held = graph.get_attr(put_tensor(root, str(spec.target), tensor))
        held.meta.update(copy.meta)
        copy.replace_all_uses_with(held)
        graph.erase_node(copy)
    _require_one(images, path)
    kinds = [spec.kind for spec in signature.output_specs]
    if OutputKind.BUFFER_MUTATION in kinds:
        raise EchosetError(
            f"{path} was exported in training mode, and changes itself when it runs: call "
            "model.eval() before torch.export.export"
        )
    graph.output(_nested(last, program))
    return graph


def _require_one(inputs: list[fx.Node], path: Path) -> None:
    """Refuse a program that wants more than images."""
    used = [node for node in inputs if node.users]
    if len(used) != 1:
        raise EchosetError(
            f"{path} takes {len(used)} inputs, and a teacher is given images alone: export a "
            "network that takes them alone"
        )
    for node in inputs:
        if not node.users:
            node.graph.erase_node(node)


def _nested(answers: Any, program: torch.export.ExportedProgram) -> Any:
    """A program's answers as its network nested them."""
    spec = program.call_spec.out_spec
    answers = list(answers)
    if spec is None or spec.num_leaves != len(answers):
        return answers[0] if len(answers) == 1 else tuple(answers)
    return _pytree.tree_unflatten(answers, spec)


KIND = Kind(
    form="a program saved by torch.export.save, such as net.pt2",
    takes=takes,
    constructor=constructor,
    runs_user_code=True,
    comes_trained=True,
    contract=contract,
)
