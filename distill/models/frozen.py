"""A network made ready to be asked many times and never trained: frozen, fused, and telling its
BatchNorm moments.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor, nn

from distill.models.classifier import Classifier
from distill.models.fusing import Ear, fuse
from distill.models.joining import Joined, Tap, join_convolutions
from synthesis_kernels import strided_conv
from synthesis_kernels.backend import forward_pass
from synthesis_kernels.bn_match import Moments, add_and_apply
from synthesis_kernels.conv3x3 import has_layer
from synthesis_kernels.errors import EchosetError
from synthesis_kernels.frozen_conv3x3 import Norm
from synthesis_kernels.moment_target import MomentTarget, fold_batch_norm


class NormLayer(nn.Module):
    """A layer that keeps running statistics, as a type checker sees it.

    Layers are recognised by what they hold and not by class, so that SyncBatchNorm and frozen
    variants of torchvision, timm and detectron2 count as well; none need be an instance of this.
    """

    running_mean: Tensor  # (C,)
    running_var: Tensor  # (C,)
    weight: Tensor | None
    bias: Tensor | None
    eps: float


def find_batch_norms(network: nn.Module) -> dict[str, NormLayer]:
    """Every layer that keeps running statistics, by name."""
    return {name: layer for name, layer in network.named_modules() if _is_norm_layer(layer)}


def _is_norm_layer(layer: nn.Module) -> TypeGuard[NormLayer]:
    mean = getattr(layer, "running_mean", None)
    variance = getattr(layer, "running_var", None)
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        return False
    is_instance_norm = isinstance(layer, nn.modules.instancenorm._InstanceNorm)
    return mean.ndim == 1 and mean.shape == variance.shape and not is_instance_norm


class Frozen(nn.Module):
    """A copy of a classifier in evaluation mode; `frozen(images)` gives float32 logits.

    Every BatchNorm is replaced by `bn_match`, together with the ReLU where a ReLU is all that
    follows it; on a CPU with the 3×3 convolution behind it, and the sum behind that. Weights are
    shared with the original, except that in bfloat16 those are cast once which no kernel of ours
    reads. The original is never touched, so there is nothing to switch off. `refresh()` takes over
    what changed in it.
    """

    def __init__(
        self,
        original: Classifier,
        precision: torch.dtype = torch.float32,
        layers: Sequence[str] = (),
        head: str | None = None,
    ) -> None:
        """`layers` and `head`, the last linear one, are those that `with_features` tells of."""
        super().__init__()
        self.precision = precision
        # Not submodules: the original is not ours to move, save or train.
        self._norms = find_batch_norms(original.network)
        for name in (*original.unused, *original.pooled):
            self._norms.pop(name, None)
        classifier = _copy_sharing_weights(original).eval()
        self._moments: Moments | None = None
        self._tokens: dict[str, Tensor] = {}
        self._taps: dict[str, _Tap] = {}
        self._channels = 0
        for name, layer in self._norms.items():
            self._taps[name] = _Tap(name, layer, self, self._channels)
            self._channels += len(layer.running_mean)
        network = classifier.network
        _replace(network, {id(network.get_submodule(name)): t for name, t in self._taps.items()})
        self._ears = [Ear(name) for name in layers]
        self._embedding: Tensor | None = None
        if head:
            network.get_submodule(head).register_forward_pre_hook(self._keep_embedding)
        network = fuse(network, partial(join_convolutions, precision=precision), self._ears)
        self._casts: list[tuple[Tensor, Tensor]] = []
        if precision is not torch.float32:
            self._cast(network)
        classifier.network = network
        self.classifier = classifier

    def _cast(self, network: nn.Module) -> None:
        """Cast weights once, not at every pass as autocast would; the native convolutions read them
        as they are.
        """
        for layer in network.modules():
            if has_layer(layer, self.precision) or strided_conv.has_layer(layer, self.precision):
                continue
            if "weight" not in layer._parameters:
                continue  # computed from others at every pass, as by weight_norm
            if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear):
                layer.weight = self._cast_one(layer.weight)
                if layer.bias is not None:
                    layer.bias = self._cast_one(layer.bias)

    def _cast_one(self, parameter: Tensor) -> nn.Parameter:
        cast = nn.Parameter(parameter.to(self.precision), requires_grad=False)
        self._casts.append((cast, parameter))
        return cast

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the original's present weights and statistics, where they are not the same
        memory.
        """
        if self._casts:
            casts, originals = zip(*self._casts, strict=True)
            torch._foreach_copy_(casts, originals)
        for layer in self.modules():
            if isinstance(layer, Joined):
                layer.packed.clear()
        for name, norm in self._norms.items():
            self._taps[name].take(norm)

    def prepare(self, images: Tensor) -> Tensor:  # (B, C, H, W) in [0, 1] -> (B, C, H, W)
        """Images as the network itself takes them, for all networks that prepare alike."""
        normal = (images - self.classifier.mean) / self.classifier.std
        return normal if self.precision is torch.float32 else normal.to(self.precision)

    def prepares_alike(self, other: Frozen) -> bool:
        """Whether images prepared for this network will do for the other."""
        ours = self.classifier
        theirs = other.classifier
        same_range = torch.equal(ours.mean, theirs.mean) and torch.equal(ours.std, theirs.std)
        return same_range and self.precision is other.precision

    # (B, C, H, W) in [0, 1], or prepared -> (B, K, *places)
    def forward(self, images: Tensor, prepared: bool = False) -> Tensor:
        ask = self.classifier.ask if prepared else self.classifier
        with forward_pass(images.device, self.precision):
            return ask(images).float()

    def with_moments(
        self,
        images: Tensor,  # (B, C, H, W) in [0, 1], or prepared
        groups: int | None = None,
        prepared: bool = False,
    ) -> tuple[Tensor, Tensor]:  # (B, K, *places), (2, ΣC)
        """Logits, and the batch's means and biased variances at the inputs of all BatchNorm layers,
        end to end. With `groups`, the batch is that many batches one after the other, and the
        moments are (groups, 2, ΣC).

        Differentiable in the images.
        """
        if not self._norms:
            raise EchosetError("the network has no BatchNorm layer whose moments could be matched")
        moments = Moments(images, self._channels, groups)
        logits, tokens = self._listen(moments, images, prepared)
        missing = [name for name in self._norms if name not in tokens]
        if missing:
            raise EchosetError(
                f"BatchNorm layer {missing[0]} took no part in the forward pass, so it can't be "
                "matched"
            )
        return logits, moments.finish(list(tokens.values()))

    def _listen(
        self, moments: Moments, images: Tensor, prepared: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and the token of every layer that ran."""
        self._moments = moments
        try:
            return self(images, prepared), self._tokens
        finally:
            self._moments = None
            self._tokens = {}

    def find_unused(self, images: Tensor) -> tuple[str, ...]:  # (B, C, H, W) in [0, 1]
        """BatchNorm layers that take no part in a pass: an auxiliary head's, say."""
        _, tokens = self._listen(Moments(images, self._channels), images, prepared=False)
        return tuple(name for name in self._norms if name not in tokens)

    # (B, C, H, W) in [0, 1] -> (B, K, *places), of (B, C, h, w), (B, D)
    def with_features(self, images: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Logits; maps at the layers, as they are computed; and the embedding in float32, which is
        what the head reads, or the last map's average.
        """
        logits = self(images)
        maps = [ear.take() for ear in self._ears]
        embedding = self._embedding
        self._embedding = None
        if embedding is None:
            return logits, maps, maps[-1].float().mean((2, 3))
        return logits, maps, embedding.float()

    def _keep_embedding(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._embedding = inputs[0]

    def target(self, relative: bool = False) -> MomentTarget:
        """What those moments should be: the statistics the layers keep."""
        means = [layer.running_mean for layer in self._norms.values()]
        variances = [layer.running_var for layer in self._norms.values()]
        return MomentTarget(means, variances, relative)


def _copy_sharing_weights(original: Classifier) -> Classifier:
    """A copy whose parameters are the same memory and take no gradient."""
    shared: dict[int, Tensor] = {id(buffer): buffer for buffer in original.buffers()}
    for parameter in original.parameters():
        shared[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    return copy.deepcopy(original, shared)


def _replace(network: nn.Module, new: Mapping[int, nn.Module]) -> None:
    """Put new modules in the place of those with these ids, at every name that one has."""
    for name, layer in list(network.named_modules(remove_duplicate=False)):
        if id(layer) in new:
            owner, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(owner), attribute, new[id(layer)])


class _Tap(Tap):
    """Stands in for one BatchNorm layer."""

    scale: Tensor  # (C,)
    shift: Tensor  # (C,)

    def __init__(self, name: str, layer: NormLayer, owner: Frozen, start: int) -> None:
        super().__init__()
        self.name = name
        self.start = start
        self._owner = [owner]  # in a list, so that it is no submodule
        # A subclass may do more than normalise (timm's also activates): then it runs itself, and
        # only its input is measured.
        kind: type[nn.Module] = type(layer)
        known = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
        only_normalises = kind in known or kind.__name__ == "FrozenBatchNorm2d"
        self.layer = None if only_normalises else layer
        self.register_buffer("scale", torch.ones_like(layer.running_mean, dtype=torch.float32))
        self.register_buffer("shift", torch.zeros_like(self.scale))
        self.take(layer)

    @torch.no_grad()
    def take(self, layer: NormLayer) -> None:
        """Fold the layer's statistics and affine map."""
        if self.layer is None:
            scale, shift = fold_batch_norm(
                layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.eps
            )
            self.scale.copy_(scale)
            self.shift.copy_(shift)

    @property
    def fuses(self) -> bool:
        return self.layer is None

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        owner = self._owner[0]
        if owner._moments is None:
            y, total = add_and_apply(x, other, self.scale, self.shift, self.relu)
        else:
            self._check_once()
            layer = (self.scale, self.shift, self.relu, self.start)
            y, token, total = owner._moments.match(x, *layer, other)
            owner._tokens[self.name] = token
        if self.keeps_total:
            self.total = total
        return y if self.layer is None else self.layer(y)

    def _check_once(self) -> None:
        if self.name in self._owner[0]._tokens:
            raise EchosetError(
                f"BatchNorm layer {self.name} runs twice in one forward pass; its statistics can't "
                "be matched"
            )

    def norm(self) -> Norm:
        self._check_once()
        return Norm(self.scale, self.shift, self.relu, self._owner[0]._moments, self.start)

    def give_token(self, token: Tensor) -> None:
        self._owner[0]._tokens[self.name] = token
