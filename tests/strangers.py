"""Networks of strangers in tests, and runs of theirs that take a second."""

import torch
from torch import nn

from distill import Runtime, StudentOptions, as_classifier
from inversion import CollectOptions, SynthesisOptions, TeacherOptions, load_teacher
from inversion.options import AdversaryOptions, GeneratorOptions, ObjectiveOptions

RUNTIME = Runtime(seed=1, device="cpu", quiet=True)
SYNTHESIS = SynthesisOptions(
    images=20,
    batch=16,
    calls=2,
    generator=GeneratorOptions(width=8, inner_steps=1, latent=16),
    objective=ObjectiveOptions(adversary_after=1),
    adversary=AdversaryOptions(steps=1, batch=8, student=StudentOptions("convnet-4")),
)
COLLECTION = CollectOptions(images=20, draws=2, short=("draw",), expose=0.0)
NORMAL = {"mean": 0.5, "std": 0.25}


def warm(network, channels=3, size=32):
    """Running statistics as of real data, and a head that decides."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
            module.reset_running_stats()
    network.train()
    with torch.no_grad():
        for _ in range(2):
            network(4 * torch.rand(8, channels, size, size) - 2)
    return network.eval()


def ours(network, size=32, channels=3, **said):
    return as_classifier(warm(network, channels, size), size=size, **NORMAL, **said)


class Body(nn.Module):
    """A small network that answers in whatever form."""

    def __init__(self, form=lambda z, h: z, channels=3, classes=10):
        super().__init__()
        self.form = form
        self.features = nn.Sequential(
            nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1)
        )
        self.head = nn.Linear(16, classes)
        nn.init.normal_(self.head.weight, std=2.0)

    def forward(self, x):
        hidden = self.features(x).mean((2, 3))
        return self.form(self.head(hidden), hidden)


def plain():
    body = Body()
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(body.features, *pool, body.head)


def checkpoint(wrap):
    """A network of the zoo, its weights wrapped as somebody's training left them."""

    def make(folder):
        network = warm(load_teacher(untrained=True).network, 1, 28)
        torch.save(wrap(network), folder / "w.pth")
        given = {"channels": 1, "size": 28}
        return load_teacher(TeacherOptions("convnet-32", str(folder / "w.pth"), **given))

    return make


def prefixed(prefix, network, **others):
    return {f"{prefix}{key}": value for key, value in network.state_dict().items()} | others


def own(form=lambda z, h: z, numbers=10, told=None, size=32, channels=3, **said):
    def make(folder):
        return ours(Body(form, channels, numbers), size, channels, classes=told, **said)

    return make
