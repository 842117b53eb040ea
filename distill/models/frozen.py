"""A network made ready to be asked many times and never trained: frozen, fused, and telling its
BatchNorm moments.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from distill.models.classifier import Classifier
from synthesis_kernels.backend import forward_pass
from synthesis_kernels.bn_match import MomentTarget, bn_match, fold_batch_norm
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.frozen_conv3x3 import FrozenConv3x3, pays


def find_batch_norms(network: nn.Module) -> dict[str, nn.Module]:
    """Every layer that keeps running statistics, by name.

    Recognised by what they hold and not by class, so that SyncBatchNorm and frozen variants of
    torchvision, timm and detectron2 count as well.
    """
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(getattr(module, "running_mean", None), Tensor)
        and isinstance(getattr(module, "running_var", None), Tensor)
        and module.running_mean.ndim == 1
        and module.running_mean.shape == module.running_var.shape
        and not isinstance(module, nn.modules.instancenorm._InstanceNorm)
    }


class Frozen(nn.Module):
    """A copy of a classifier in evaluation mode; `frozen(images)` gives float32 logits.

    Every BatchNorm is replaced by `bn_match`, together with the ReLU where a ReLU is all that
    follows it. Weights are shared with the original, except those of convolutions and linear layers
    where it computes in bfloat16: they are cast once, and wide 3×3 convolutions run as
    `FrozenConv3x3`. The original is never touched, so there is nothing to switch off. `refresh()`
    takes over what changed in it.
    """

    def __init__(self, original: Classifier, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.precision = precision
        # Not submodules: the original is not ours to move, save or train.
        self._norms = find_batch_norms(original.network)
        shared: dict[int, Tensor] = {id(t): t for t in original.buffers()}
        shared |= {
            id(p): nn.Parameter(p.detach(), requires_grad=False) for p in original.parameters()
        }  # the same memory
        network = copy.deepcopy(original, shared).eval()
        self._seen: dict[str, tuple[Tensor, Tensor]] | None = None
        self._taps = {name: _Tap(name, layer, self) for name, layer in self._norms.items()}
        taps = {id(network.network.get_submodule(name)): tap for name, tap in self._taps.items()}
        _replace(network.network, taps)
        network.network = _fuse_relu(network.network)
        self._casts: list[tuple[nn.Parameter, nn.Parameter]] = []
        self._convolutions: list[tuple[FrozenConv3x3, nn.Module]] = []
        if precision is not torch.float32:
            self._cast(network.network)
        self.classifier = network

    def _cast(self, network: nn.Module) -> None:
        """Cast weights once, not at every pass as autocast would; convolutions with a faster form
        get it.
        """
        fast = {}
        for layer in network.modules():
            if pays(layer):
                fast[id(layer)] = FrozenConv3x3(layer)
                self._convolutions.append((fast[id(layer)], layer))
            elif isinstance(layer, nn.modules.conv._ConvNd | nn.Linear):
                weight = layer.weight
                layer.weight = nn.Parameter(weight.to(self.precision), requires_grad=False)
                self._casts.append((layer.weight, weight))
        _replace(network, fast)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the original's present weights and statistics, where they are not the same
        memory.
        """
        for cast, weight in self._casts:
            cast.copy_(weight)
        for fast, layer in self._convolutions:
            fast.take(layer)
        for name, layer in self._norms.items():
            self._taps[name].take(layer)

    def forward(self, images: Tensor) -> Tensor:  # (B, C, H, W) in [0, 1] -> (B, K)
        with forward_pass(images.device, self.precision):
            return self.classifier(images).float()

    def with_moments(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # (B, K), (ΣC,), (ΣC,)
        """Logits, and the batch's mean and biased variance at the inputs of all BatchNorm layers,
        end to end.

        Differentiable in the images.
        """
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        self._seen = seen
        try:
            logits = self(images)
        finally:
            self._seen = None
        missing = [name for name in self._norms if name not in seen]
        if missing:
            raise EchosetError(
                f"BatchNorm layer {missing[0]} took no part in the forward pass, so it can't be "
                "matched"
            )
        means, variances = zip(*(seen[name] for name in self._norms), strict=True)
        return logits, torch.cat(means), torch.cat(variances)

    def target(self, relative: bool = False) -> MomentTarget:
        """What those moments should be: the statistics the layers keep."""
        layers = self._norms.values()
        return MomentTarget(
            [m.running_mean for m in layers], [m.running_var for m in layers], relative
        )


def _replace(network: nn.Module, new: dict[int, nn.Module]) -> None:
    """Put new modules in the place of those with these ids, at every name that one has."""
    for name, layer in list(network.named_modules(remove_duplicate=False)):
        if id(layer) in new:
            owner, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(owner), attribute, new[id(layer)])


class _Tap(nn.Module):
    """Stands in for one BatchNorm layer."""

    def __init__(self, name: str, layer: nn.Module, owner: Frozen) -> None:
        super().__init__()
        self.name, self.relu = name, False
        self._owner = [owner]  # in a list, so that it is no submodule
        # A subclass may do more than normalise (timm's also activates): then it runs itself, and
        # only its input is measured.
        exact = type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
        self.layer = None if exact or type(layer).__name__ == "FrozenBatchNorm2d" else layer
        self.register_buffer("scale", torch.ones_like(layer.running_mean, dtype=torch.float32))
        self.register_buffer("shift", torch.zeros_like(self.scale))
        self.take(layer)

    @torch.no_grad()
    def take(self, layer: nn.Module) -> None:
        """Fold the layer's statistics and affine map."""
        if self.layer is None:
            scale, shift = fold_batch_norm(
                layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.eps
            )
            self.scale.copy_(scale)
            self.shift.copy_(shift)

    def forward(self, x: Tensor) -> Tensor:
        seen = self._owner[0]._seen
        y, mean, variance = bn_match(x, self.scale, self.shift, self.relu)
        if seen is not None:
            if self.name in seen:
                raise EchosetError(
                    f"BatchNorm layer {self.name} runs twice in one forward pass; its statistics "
                    "can't be matched"
                )
            seen[self.name] = (mean, variance)
        return y if self.layer is None else self.layer(y)


class _OneInput(nn.Module):
    """The network with its images alone: fx would make a proxy of every optional argument, too,
    which is then not None.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, _Tap) or super().is_leaf_module(module, name)


def _fuse_relu(network: nn.Module) -> nn.Module:
    """The network with a ReLU that alone follows a tap moved into the tap; unchanged where it can't
    be traced.
    """
    whole, network = network, _OneInput(network)
    try:
        graph = _Tracer().trace(network)
    except Exception:  # whatever a module's own Python does when no tensor comes through it
        return whole
    taps = {
        node: network.get_submodule(node.target) for node in graph.nodes if node.op == "call_module"
    }
    taps = {
        node: module
        for node, module in taps.items()
        if isinstance(module, _Tap) and module.layer is None
    }
    if len(set(taps.values())) < len(taps):
        return whole  # a layer that runs twice, perhaps with a ReLU behind one of the two
    for node, tap in taps.items():
        follower = next(iter(node.users), None)
        if len(node.users) == 1 and follower is not None and _is_relu(follower, network):
            tap.relu = True
            follower.replace_all_uses_with(node)
            graph.erase_node(follower)
    return fx.GraphModule(network, graph)


def _is_relu(node: fx.Node, network: nn.Module) -> bool:
    if node.op == "call_module":
        return type(network.get_submodule(node.target)) is nn.ReLU
    return (node.op == "call_function" and node.target in (F.relu, torch.relu, torch.relu_)) or (
        node.op == "call_method" and node.target in ("relu", "relu_")
    )
