"""Networks that answer in whatever form, by an import path of tests."""

from collections import namedtuple
from dataclasses import dataclass

import torch
from torch import nn

from inversion import TeacherOptions, load_teacher

Pair = namedtuple("Pair", "features scores")


@dataclass
class Answer:
    loss: None
    logits: torch.Tensor
    hidden: torch.Tensor


class Body(nn.Module):
    """A small network with BatchNorm that answers in whatever form."""

    def __init__(self, form="plain", channels: int = 1, classes: int = 4):
        super().__init__()
        torch.manual_seed(1)
        self.form = form
        self.features = nn.Sequential(
            nn.Conv2d(channels, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2)
        )
        self.head = nn.Linear(8, classes)
        self.features[1].running_mean.uniform_(-0.2, 0.2)
        self.features[1].running_var.uniform_(0.1, 0.3)
        nn.init.normal_(self.head.weight, std=4.0)

    def forward(self, x):
        hidden = self.features(x).mean((2, 3))
        return FORMS[self.form](self.head(hidden), hidden)


FORMS = {
    "plain": lambda z, h: z,
    "log": lambda z, h: z.log_softmax(1),
    "softmax": lambda z, h: z.softmax(1),
    "sigmoid": lambda z, h: z.sigmoid(),
    "dict": lambda z, h: {"features": h, "prediction": z},
    "named": lambda z, h: {"aux": z * 2, "logits": z},
    "out": lambda z, h: {"out": z, "aux": z * 2},
    "tuple": lambda z, h: (z, h),
    "list": lambda z, h: [h, z],
    "namedtuple": lambda z, h: Pair(h, z),
    "dataclass": lambda z, h: Answer(None, z, h),
    "nested": lambda z, h: {"heads": (z.softmax(1), h), "maps": None},
    "two": lambda z, h: (z, -z),
    "none": lambda z, h: {"features": h, "pooled": h},
    "two heads": lambda z, h: torch.cat([z[:, :2].sigmoid(), z[:, 2:].sigmoid()], 1),
    "by hand": lambda z, h: 1 / (1 + (-z).exp()),
    "hard": lambda z, h: torch.nn.functional.hardsigmoid(60 * z),
    "percent": lambda z, h: 100 * z.softmax(1),
    "point": lambda z, h: z[:, :, None, None],
    "squeezed": lambda z, h: z.squeeze(1),
    "squeezed sigmoid": lambda z, h: z.sigmoid().squeeze(1),
}


def make(form: str = "plain", channels: int = 1, classes: int = 4):
    return Body(form, channels, classes)


def load(form, classes=4, numbers=None, channels=1, size=20, **options):
    given = {"form": form, "channels": channels, "classes": numbers or classes}
    shape = {"channels": channels, "size": size, "classes": classes}
    return load_teacher(TeacherOptions("answering.make", None, given, **shape, **options))


IMAGES = torch.rand(6, 1, 20, 20, generator=torch.Generator().manual_seed(5))
