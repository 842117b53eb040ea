"""TorchScript, `net.pt`: a file of `torch.jit.save` that holds the network and its weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.models.archives import check_script, content_of
from distill.models.kinds.kind import Constructor, Kind
from distill.models.kinds.scripts import NotFollowedError, script_to_layers
from distill.presence import looks_like_file
from distill.sizes import Size, sides
from synthesis_kernels.backend import say_once
from synthesis_kernels.errors import EchosetError, reason_of

SUFFIXES = (".torchscript", ".ts")


def takes(name: str) -> bool:
    """Whether a file is TorchScript, or its name says so."""
    path = Path(name)
    if path.suffix in SUFFIXES:
        return True
    return looks_like_file(name) and content_of(path) == "script"


def constructor(name: str) -> Constructor:
    """What reads the file. The images' shape is needed to follow the script once."""
    path = Path(name)
    if not path.is_file():
        raise EchosetError(f"no file at {path}")
    if content_of(path) != "script":
        raise EchosetError(f"{path} holds no TorchScript that torch.jit.save wrote")

    def build(channels: int, size: Size) -> nn.Module:
        return load_script(path, torch.rand(2, channels, *sides(size)))

    return build


def load_script(path: Path, images: Tensor) -> nn.Module:
    """The network as layers; where its script can't be followed, the script as it is."""
    check_script(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is old, and torch says so at each use
            script = torch.jit.load(str(path), map_location="cpu").eval()
    except Exception as error:  # whatever torch's reader stumbles over
        reason = reason_of(error)
        raise EchosetError(f"{path} can't be read as TorchScript: {reason:.200}") from error
    try:
        return script_to_layers(script, images, str(path))
    except EchosetError:
        raise
    except Exception as error:  # what has no graph, or an image of a shape that it refuses
        reason = str(error) if isinstance(error, NotFollowedError) else type(error).__name__
        say_once(
            f"{path}: no layer of this TorchScript can be reached ({reason:.200}). It works where "
            "answers alone are asked for: echoset collect, or --synthesis.recipe adversarial"
        )
        return Script(script)


class Script(nn.Module):
    """TorchScript as it is. Its layers are not to be found: they can be neither heard nor
    replaced.
    """

    def __init__(self, script: torch.jit.ScriptModule) -> None:
        super().__init__()
        self._script = [script]  # in a list, so that it is no submodule
        self._hold()

    def _hold(self) -> None:
        """Show the script's tensors as this module's own."""
        script = self._script[0]
        for name, parameter in script.named_parameters():
            shown = nn.Parameter(parameter.detach(), parameter.requires_grad)
            self.register_parameter(name.replace(".", "_"), shown)
        for name, buffer in script.named_buffers():
            self.register_buffer(name.replace(".", "_"), buffer)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Script:
        self._script[0]._apply(fn)
        self._hold()
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Script:
        """A frozen copy shares the script: nobody trains it, and it can't be taken apart."""
        return Script(self._script[0])

    def forward(self, images: Tensor) -> Any:
        return self._script[0](images)


KIND = Kind(
    form="a TorchScript file saved by torch.jit.save, such as net.pt",
    takes=takes,
    constructor=constructor,
    runs_user_code=True,
    comes_trained=True,
)
