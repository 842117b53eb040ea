"""Train a student on the set beside this file, with numpy and torch alone.

    python train_elsewhere.py                        # writes student.pt
    python train_elsewhere.py --test some_test.npz   # and tells its accuracy there
    python train_elsewhere.py --batch 16             # where images are large

A teacher has looked at V views of each of the N images, and set.npz has what it answered. The
student sees the same views, and learns to answer alike (Hinton et al. 2015). No true label is used.

A view is made here as the teacher's was: the image is turned, shifted or mirrored by a matrix of
its own, and a rectangle of another image may be pasted upon it.

Where the teacher has answered for every pixel, the student does so too.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE = 4.0
Lessons = dict[str, Tensor]


def load(path: str | Path) -> Lessons:
    """The file's arrays as tensors, images as (N, C, H, W)."""
    with np.load(path) as file:
        names = [name for name in file.files if name != "class_names"]
        lessons = {name: torch.from_numpy(file[name]) for name in names}
    lessons["images"] = channels_first(lessons["images"])
    if not {"answers", "logits"} & lessons.keys():
        raise SystemExit(f"{path} has no answers; the set's maker gets them with --answers")
    if "answers" not in lessons:  # the teacher has seen the images themselves, and no views
        lessons["answers"] = lessons["logits"][:, None]
    return lessons


def channels_first(images: Tensor) -> Tensor:
    """(N, H, W) or (N, H, W, C) as (N, C, H, W)."""
    if images.ndim == 3:
        return images[:, None]
    return images.movedim(-1, 1).contiguous()


def make_views(lessons: Lessons, image: Tensor, view: Tensor) -> Tensor:
    """View `view[b]` of image `image[b]` as the teacher saw it: (B, C, H, W) in [0, 1]."""
    if "views" in lessons:  # stored as pictures
        return channels_first(lessons["views"][image, view]).float() / 255
    seen = lessons["images"][image].float() / 255
    if "turns" not in lessons:
        return seen
    grid = F.affine_grid(lessons["turns"][image, view], list(seen.shape), align_corners=False)
    seen = F.grid_sample(seen, grid, align_corners=False)
    other = lessons["images"][lessons["partners"][image, view].long()].float() / 255
    top, bottom, left, right = lessons["boxes"][image, view].T[..., None]  # (B, 1) each
    row = torch.arange(seen.shape[2])
    column = torch.arange(seen.shape[3])
    in_rows = (top <= row) & (row < bottom)  # (B, H)
    in_columns = (left <= column) & (column < right)  # (B, W)
    pasted = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    return torch.where(pasted, other, seen)


class Student(nn.Module):
    """Six 3×3 convolutions in three stages, average, linear: put your own network here."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, channels: int, classes: int, mean: Tensor, std: Tensor, width: int = 16
    ) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float().view(1, -1, 1, 1))
        self.register_buffer("std", std.float().view(1, -1, 1, 1))
        layers: list[nn.Module] = []
        strides = (1, 2, 1, 2, 1, 1)
        widths = (width, width, 2 * width, 2 * width, 4 * width, 4 * width)
        for stride, outputs in zip(strides, widths, strict=True):
            layers.append(nn.Conv2d(channels, outputs, 3, stride, padding=1, bias=False))
            layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.ReLU(inplace=True))
            channels = outputs
        self.features = nn.Sequential(*layers)
        self.channels = channels
        self.head: nn.Module = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, K)."""
        features = self.features((images - self.mean) / self.std)
        return self.head(features.mean((2, 3)))


class MapStudent(Student):
    """The same with an answer for each pixel, computed at a quarter of the size."""

    def __init__(self, channels: int, classes: int, mean: Tensor, std: Tensor) -> None:
        super().__init__(channels, classes, mean, std)
        self.head = nn.Conv2d(self.channels, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, K, H, W)."""
        answers = self.head(self.features((images - self.mean) / self.std))
        return F.interpolate(answers, size=images.shape[2:], mode="bilinear")


def train(student: nn.Module, lessons: Lessons, steps: int, batch: int, rate: float) -> None:
    """Draw views, and bring the student's answers near to the teacher's."""
    count, views = lessons["answers"].shape[:2]
    optimiser = torch.optim.AdamW(student.parameters(), weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps, pct_start=0.15)
    student.train()
    for step in range(1, steps + 1):
        image = torch.randint(count, (batch,))
        view = torch.randint(views, (batch,))
        wanted = lessons["answers"][image, view].float()
        given = student(make_views(lessons, image, view))
        if wanted.shape != given.shape:  # maps are kept at the teacher's own size
            wanted = F.interpolate(wanted, size=given.shape[2:], mode="bilinear")
        loss = TEMPERATURE**2 * F.kl_div(
            F.log_softmax(given / TEMPERATURE, 1),
            F.log_softmax(wanted / TEMPERATURE, 1),
            reduction="batchmean",
            log_target=True,
        )
        loss = loss / wanted[0, 0].numel()  # pixels, where each has an answer
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            agreement = (given.argmax(1) == wanted.argmax(1)).float().mean().item()
            print(f"step {step} of {steps}: agrees on {agreement:.1%} of the views", flush=True)


@torch.no_grad()
def count_decisions(student: nn.Module, images: Tensor, labels: Tensor, classes: int) -> Tensor:
    """How often each class, down, is decided for each, across; labels that are none of the classes
    count nowhere.
    """
    student.eval()
    table = torch.zeros(classes * classes, dtype=torch.long)
    for part, truth in zip(images.split(100), labels.split(100), strict=True):
        known = (truth >= 0) & (truth < classes)
        pairs = truth[known] * classes + student(part.float() / 255).argmax(1)[known]
        table += pairs.bincount(minlength=len(table))
    return table.view(classes, classes)


def accuracy(table: Tensor) -> float:
    """The part that was decided rightly."""
    return (table.diagonal().sum() / table.sum()).item()


def mean_iou(table: Tensor) -> float:
    """Intersection over union, its mean over the classes that there are."""
    both = table.diagonal()
    either = table.sum(0) + table.sum(1) - both
    return (both / either)[table.sum(1) > 0].mean().item()


def main() -> None:
    """Load, train, save, and test where there is something to test on."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--set", default=Path(__file__).with_name("set.npz"))
    parser.add_argument("--out", default="student.pt")
    parser.add_argument("--test", help="an .npz of images, uint8 (N,H,W[,C]), and labels")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=0.01, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    lessons = load(options.set)
    channels = lessons["images"].shape[1]
    classes = lessons["answers"].shape[2]
    has_maps = lessons["answers"].ndim > 3
    kind = MapStudent if has_maps else Student
    student = kind(channels, classes, lessons["mean"], lessons["std"])
    train(student, lessons, options.steps, options.batch, options.rate)
    torch.save(student.state_dict(), options.out)
    print(f"saved {options.out}")
    if options.test:
        with np.load(options.test) as test:
            images = channels_first(torch.from_numpy(test["images"]))
            labels = torch.from_numpy(test["labels"].astype(np.int64))
        table = count_decisions(student, images, labels, classes)
        if has_maps:
            print(f"mean IoU {mean_iou(table):.2%} on {options.test}")
        print(f"accuracy {accuracy(table):.2%} on {options.test}")


if __name__ == "__main__":
    main()
