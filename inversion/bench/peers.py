"""The formulation that public data-free code uses, to measure against. Nothing else imports this.

Statistics by a forward hook on every BatchNorm (a permuted copy of its input, then `var`),
gradients left on for the teacher's weights, float32, channels first, the loss read back at every
step; a student that asks the teacher anew at every step with those hooks still on; a pool of PNG
files behind a DataLoader's worker processes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from distill.models import Classifier, ModelSpec
from synthesis_kernels.backend import kernel_form

WORKERS = 4


class StatisticsHook:
    """Keeps the distance of a BatchNorm's batch statistics from its running ones, at every forward
    pass.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.distance = torch.zeros(())
        layer.register_forward_hook(self._measure)

    def _measure(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.distance = hook_statistics(
            inputs[0], layer.get_buffer("running_mean"), layer.get_buffer("running_var")
        )


def hook_statistics(
    x: Tensor,  # (B, C, H, W)
    running_mean: Tensor,  # (C,)
    running_variance: Tensor,  # (C,)
) -> Tensor:
    """‖σ̂² − σ²‖₂ + ‖μ̂ − μ‖₂ of one input, by a permuted copy."""
    mean = x.mean([0, 2, 3])
    variance = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)
    return torch.norm(running_variance - variance, 2) + torch.norm(running_mean - mean, 2)


def hook_all(teacher: Classifier) -> list[StatisticsHook]:
    """A hook on every BatchNorm."""
    return [
        StatisticsHook(module) for module in teacher.modules() if isinstance(module, nn.BatchNorm2d)
    ]


class PlainGenerator(nn.Sequential):
    """The same layers and widths as our generator's at 8 to 32 pixels, as modules in a row."""

    def __init__(self, spec: ModelSpec, latent: int, width: int) -> None:
        side = spec.side // 4
        wide = 2 * width
        super().__init__(
            nn.Linear(latent, wide * side**2),
            nn.Unflatten(1, (wide, side, side)),
            nn.BatchNorm2d(wide),
            *_doubled(wide, wide),
            *_doubled(wide, width),
            nn.Conv2d(width, spec.channels, 3, padding=1),
            nn.Sigmoid(),
        )
        self.latent = latent


def _doubled(inputs: int, outputs: int) -> list[nn.Module]:
    """Layers that double the side of the maps."""
    return [
        nn.Upsample(scale_factor=2),
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.2),
    ]


def synthesis_step(
    teacher: Classifier, student: Classifier, generator: PlainGenerator, batch: int, weight: float
) -> Callable[[], None]:
    """One inner step of the generator, as a function to be timed."""
    hooks = hook_all(teacher.eval().requires_grad_(True))
    device = next(teacher.parameters()).device
    noise = torch.randn(batch, generator.latent, device=device, requires_grad=True)
    wanted = torch.arange(batch, device=device) % teacher.spec.classes
    groups: list[dict[str, Any]] = [
        {"params": list(generator.parameters())},
        {"params": [noise], "lr": 1e-2},
    ]
    optimiser = torch.optim.Adam(groups, 3e-3, betas=(0.5, 0.999))
    student.eval()

    def step() -> None:
        images = generator(noise)
        teacher_logits = teacher(images)
        bn = sum(hook.distance for hook in hooks)
        student_logits = student(images)
        agree = (student_logits.argmax(1) == teacher_logits.argmax(1)).float()
        terms = F.kl_div(
            F.log_softmax(student_logits, 1), F.softmax(teacher_logits, 1), reduction="none"
        ).sum(1)
        loss = weight * bn + F.cross_entropy(teacher_logits, wanted) - (terms * agree).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()

    return step


def distillation_step(
    teacher: Classifier, student: Classifier, images: Tensor, temperature: float
) -> Callable[[], None]:
    """One student step on a batch that is there already, as a function to be timed."""
    hook_all(teacher.eval())
    optimiser = torch.optim.SGD(student.train().parameters(), 0.1, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        with torch.no_grad():
            target = F.softmax(teacher(images) / temperature, 1)
        loss = (
            F.kl_div(F.log_softmax(student(images) / temperature, 1), target, reduction="batchmean")
            * temperature**2
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()

    return step


def freely(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """The step by the library alone, with none of our kernels, which networks of our zoo would take
    by themselves; on CUDA with cuDNN's fastest ones, TF32 among them, which ours are denied so that
    a seed fixes the result.
    """

    def run() -> None:
        with kernel_form("reference"):
            if device.type != "cuda":
                return step()
            with torch.backends.cudnn.flags(
                enabled=True, benchmark=True, deterministic=False, allow_tf32=True
            ):
                return step()

    return run


class PngFolder(torch.utils.data.Dataset[Tensor]):
    """Images as PNG files, cropped, flipped and normalised one by one."""

    def __init__(
        self, folder: Path, images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        from distill.torchvision_shim import torchvision

        transforms = torchvision.transforms
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(images.shape[-1], padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )
        self.paths = [folder / f"{number}.png" for number in range(len(images))]
        for path, image in zip(self.paths, images, strict=True):
            pixels = image.permute(1, 2, 0).numpy()
            if pixels.shape[-1] == 1:
                pixels = pixels.squeeze(-1)
            Image.fromarray(pixels).save(path)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.open(self.paths[index]))


def png_batches(data: PngFolder, batch: int) -> Generator[Tensor, None, None]:
    """Batches without end."""
    with warnings.catch_warnings():
        # More workers than cores: so it is done.
        warnings.simplefilter("ignore")
        loader = torch.utils.data.DataLoader(
            data, batch, shuffle=True, num_workers=WORKERS, drop_last=True, persistent_workers=True
        )
        # This warns once more.
        batches = iter(loader)
    while True:
        yield from batches
        batches = iter(loader)
