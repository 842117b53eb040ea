"""Networks of strangers that are refused with what to do, or doubted."""

import re
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from strangers import (
    COLLECTION,
    NORMAL,
    RUNTIME,
    SYNTHESIS,
    Body,
    checkpoint,
    ours,
    own,
    plain,
    prefixed,
    warm,
)
from torch import nn

from distill import as_classifier
from inversion import collect, synthesize
from inversion.health import examine
from synthesis_kernels.errors import EchosetError


class Fixed(Body):
    def __init__(self, count):
        super().__init__()
        self.count = count

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)).view(self.count, 16))


def fixed(count):
    return as_classifier(Fixed(count).eval(), size=32, classes=10, **NORMAL)


def damaged():
    network = warm(Body())
    network.features[3].weight.data[0, 0, 0, 0] = float("nan")
    return network


def quantised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(warm(Body()), {nn.Linear})


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(plain().eval())


def exported_module():
    return torch.export.export(plain().eval(), (torch.zeros(2, 3, 32, 32),)).module()


def given(network, **said):
    return as_classifier(network.eval(), channels=3, size=32, **NORMAL, **said)


REFUSED = {
    "pickled whole": (checkpoint(lambda n: n), "(?s)whole network.*mynet:net as the model"),
    "pickled within": (checkpoint(lambda n: {"model": n}), "save model.state_dict.. alone"),
    "several": (
        checkpoint(lambda n: prefixed("a.", n, **prefixed("b.", n))),
        "do not fit the model; missing",
    ),
    "nan": (lambda folder: given(damaged()), "parameter features.3.weight is not finite"),
    "untrained": (lambda folder: given(Body()), "statistics were never trained"),
    "16 images": (lambda folder: fixed(16), r"takes 16 images at once.*shape\[0\] does$"),
    "2 images": (lambda folder: fixed(2), r"takes 2 images at once"),
    "no gradient": (
        own(lambda z, h: F.one_hot(z.argmax(1), 10), output_form="logits"),
        "no gradient leads from the answer",
    ),
    "quantised": (lambda folder: given(quantised()), "as it was before it was quantised"),
    "scripted": (lambda folder: given(scripted()), "torch.jit.save it and name the file"),
    "exported module": (
        lambda folder: as_classifier(exported_module(), channels=3, size=32, **NORMAL),
        "torch.export.save the program and name the file",
    ),
    "many classes": (own(numbers=1000), "decided no image.*raise synthesis.calls"),
}


@pytest.mark.parametrize(("make", "said"), REFUSED.values(), ids=REFUSED)
def test_a_network_is_refused_with_what_to_do(make, said, tmp_path):
    with pytest.raises(EchosetError, match=said):
        synthesize(make(tmp_path), SYNTHESIS, tmp_path / "set", RUNTIME)


def test_pushing_needs_a_gradient(tmp_path):
    teacher = own(lambda z, h: z.detach())(tmp_path)
    options = replace(COLLECTION, short=("push",))
    with pytest.raises(EchosetError, match="--short draw"):
        collect(teacher, ["noise"], options, tmp_path / "set", RUNTIME)


class Alone(Body):
    def forward(self, x):
        hidden = self.features(x).mean((2, 3))
        return self.head(self.form(None, hidden))


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (lambda z, h: F.dropout(h), "differently each time.*F.dropout"),
        (lambda z, h: h - h.mean(0), "depends on the others in the batch"),
    ],
)
def test_answers_that_change_are_doubted(form, said, tmp_path):
    teacher = ours(Alone(form))
    assert any(re.search(said, line) for line in examine(teacher).warnings)
    assert not any("batch" in line for line in examine(own()(tmp_path)).warnings)
