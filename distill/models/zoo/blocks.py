"""Pieces that several networks of the zoo share."""

from collections.abc import Callable
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn

from synthesis_kernels.bn_train import activated, bn_train, bn_train_sum
from synthesis_kernels.conv3x3 import SIDE, has_layer
from synthesis_kernels.norm_conv3x3 import NormConv3x3, fits
from synthesis_kernels.strided_conv import StridedPair, are_pair

Norm = nn.BatchNorm1d | nn.BatchNorm2d
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class PooledNetwork(nn.Module):
    """Features, their average over the map, and a linear layer."""

    def __init__(self, features: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:  # (B, C, H, W) -> (B, K)
        return self.head(self.features(images).mean((2, 3)))


def norm_act(
    norm: nn.Module,
    x: Tensor,  # (B, C, *)
    slope: float | None = 0.0,
    residual: Tensor | None = None,  # (B, C, *)
) -> Tensor:  # (B, C, *)
    """`norm(x)`, plus the residual, through a LeakyReLU of this slope (0: a ReLU; None: nothing).

    A BatchNorm in training does all that in one kernel, where nobody would miss the steps between.
    """
    if trains_alone(norm, x):
        assert isinstance(norm, NORMS) and norm.momentum is not None
        assert norm.running_mean is not None and norm.running_var is not None
        kept = (norm.running_mean, norm.running_var, norm.momentum, norm.eps)
        return bn_train(x, norm.weight, norm.bias, *kept, slope, residual, norm.num_batches_tracked)
    return activated(norm(x), slope, residual)


def norm_act_conv(
    norm: nn.Module,
    convolution: nn.Module,
    x: Tensor,  # (B, I, H, W)
    residual: Tensor | None = None,  # (B, O, h, w)
) -> tuple[Tensor, Tensor | None]:  # (B, O, h, w) twice
    """`convolution(ReLU(norm(x)))` and the residual, as two parts of a sum. In training they are
    one, where there is one kernel for it all and nobody would miss the steps between.
    """
    if _are_one(norm, convolution, x, residual):
        return _as_one(norm, convolution, x, residual, passes=False), None
    return convolution(norm_act(norm, x)), residual


def norm_act_conv_beside(
    norm: nn.Module,
    convolution: nn.Module,
    x: Tensor,  # (B, I, H, W)
) -> tuple[Tensor, Tensor]:  # (B, O, h, w), (B, I, H, W)
    """`convolution(ReLU(norm(x)))`, and x for whoever adds it later: where there is one kernel, the
    gradient of both is summed up on the way.
    """
    if _are_one(norm, convolution, x, None):
        return _as_one(norm, convolution, x, None, passes=True)
    return convolution(norm_act(norm, x)), x


def _are_one(
    norm: nn.Module, convolution: nn.Module, x: Tensor, residual: Tensor | None
) -> TypeGuard[Norm]:
    precision = _precision_of(x)
    return (
        x.dtype is precision
        and precision in SIDE
        and trains_alone(norm, x)
        and has_layer(convolution, precision)
        and not is_heard(convolution)
        and fits(x, _vectors(norm), convolution.weight, convolution.bias, residual)
    )


def _as_one(
    norm: Norm, convolution: nn.Module, x: Tensor, residual: Tensor | None, passes: bool
) -> Any:
    own = (norm.num_batches_tracked, convolution.weight, convolution.bias)
    rates = (norm.momentum, norm.eps)
    return NormConv3x3.apply(x, *_vectors(norm), *own, residual, *rates, passes)


def two_convs(
    norm: nn.Module, first: nn.Module, second: nn.Module, x: Tensor
) -> tuple[Tensor, Tensor]:
    """`first(x)` and `second(x)`, x by way of the norm: as one in training, where nobody would miss
    either.
    """
    if (
        trains_alone(norm, x)
        and not is_heard(first)
        and not is_heard(second)
        and are_pair(first, second, x, _precision_of(x))
    ):
        return StridedPair.apply(x, first.weight, second.weight)
    return first(x), second(x)


def _precision_of(x: Tensor) -> torch.dtype:
    """What a convolution would compute in."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def sum_norm_act(
    norm: nn.Module,
    x: Tensor,  # (B, C, *), like the branch
    branch: Tensor | None,
) -> tuple[Tensor, Tensor]:  # (B, C, *) twice
    """x + branch, where there is one, and that through `norm_act`."""
    if branch is None:
        return x, norm_act(norm, x)
    if not trains_alone(norm, x):
        total = x + branch
        return total, norm_act(norm, total)
    return bn_train_sum(x, branch, *_kept(norm), batches=norm.num_batches_tracked)


def trains_alone(norm: nn.Module, x: Tensor) -> TypeGuard[Norm]:
    """Whether this is torch's own BatchNorm with all that it may have, in training; and neither is
    it listened to, nor are its operations recorded or transformed.
    """
    return (
        type(x) is Tensor
        and type(norm) in NORMS
        and norm.training
        and norm.momentum is not None
        and norm.weight is not None
        and norm.running_mean is not None
        and not is_heard(norm)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]  # torch's stub leaves it out
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def _vectors(norm: Norm) -> tuple[Tensor | None, ...]:
    return norm.weight, norm.bias, norm.running_mean, norm.running_var


def _kept(norm: Norm) -> tuple[Tensor, Tensor, Tensor, Tensor, float, float]:
    """What the kernel asks of a BatchNorm that trains alone."""
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.momentum is not None
    return norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.momentum, norm.eps


def is_heard(module: nn.Module) -> bool:
    """Whether a hook waits for what goes into the module, or comes out of it."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks) or bool(torch.nn.modules.module._has_any_global_hook())


class Listener(Protocol):
    """A forward hook that only listens to what a module gives: it can be told later, too."""

    only_listens: bool

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Hear the output; inputs are not looked at."""


def is_only_listened_to(module: nn.Module) -> bool:
    """Whether all that is heard of the module is its output, by those who only listen."""
    hooks = module._forward_hooks
    others = (module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    only = all(getattr(hook, "only_listens", False) for hook in hooks.values())
    return only and not any(others) and not torch.nn.modules.module._has_any_global_hook()


def tell(module: nn.Module | None, output: Tensor) -> None:
    """Give a module's output to those who only listen, where it ran in parts."""
    if module is not None:
        for hook in module._forward_hooks.values():
            hook(module, (), output)


class Layers(nn.Sequential):
    """One layer after another; a BatchNorm and the ReLU behind it together, as `norm_act` does."""

    def forward(self, x: Tensor) -> Tensor:
        layers = list(self)
        place = 0
        while place < len(layers):
            layer = layers[place]
            follower = layers[place + 1] if place + 1 < len(layers) else None
            alone = trains_alone(layer, x)
            if alone and type(follower) is nn.ReLU and not is_heard(follower):
                x = norm_act(layer, x)
                place += 2
            else:
                x = norm_act(layer, x, None) if alone else layer(x)
                place += 1
        return x


def conv_bn_relu(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution without bias, BatchNorm, ReLU; "same" padding."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return Layers(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def three_stages(block: Callable[..., nn.Module], channels: int, width: int) -> nn.Sequential:
    """Six blocks in three stages of `width`, 2 and 4 times `width` channels; only the first runs at
    full size. A block is built from its inputs, its outputs and perhaps a `stride`.
    """
    return nn.Sequential(
        block(channels, width),
        block(width, width, stride=2),
        block(width, 2 * width),
        block(2 * width, 2 * width, stride=2),
        block(2 * width, 4 * width),
        block(4 * width, 4 * width),
    )
