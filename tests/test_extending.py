"""What a user brings along from Python to a set: networks, terms, recipes, sources.
`tests/test_docs.py` runs the blocks of docs/extending.md; here is what they leave behind.
"""

import inspect
import itertools
from dataclasses import replace

import pytest
import torch
from conftest import tiny_options
from torch import nn

import distill
import inversion
from distill.runtime import Runtime
from inversion import CollectOptions, SynthesisOptions, collect, synthesize, synthesize_share
from inversion.recipes.ssdkd import SSDKD
from synthesis_kernels.errors import EchosetError

RUN = Runtime(seed=1, device="cpu", precision="float32", quiet=True)
SMALL = replace(tiny_options(), images=20, batch=20)


def network(channels=1, classes=10):
    layers = [nn.Conv2d(channels, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4 * 13 * 13, classes))


def generator():
    return nn.Sequential(nn.Linear(128, 784), nn.Sigmoid(), nn.Unflatten(1, (1, 28, 28)))


def rough(images, logits, wanted):
    return (images[..., 1:] - images[..., :-1]).abs().mean()


class Seen:
    def __init__(self):
        self.calls = []

    def log(self, figures, step):
        self.calls.append((step, figures))


@pytest.mark.parametrize("recipe", ["ssd-kd", "adversarial"])
def test_a_term_a_generator_and_an_adversary_make_a_set_that_names_them(teacher, recipe, tmp_path):
    options = replace(SMALL, recipe=recipe, calls=3)
    own = {"terms": {rough: 5.0}, "generator": generator(), "adversary": network()}
    seen = Seen()
    made = synthesize(teacher, options, tmp_path / "set", RUN, **own, log=seen)
    assert len(made) + sum(made.manifest["short"].values()) == 20
    assert made.manifest["own"]["terms"]["rough"][0] == 5.0
    assert {"terms", "generator", "adversary"} == set(made.manifest["own"])
    first, last = seen.calls[0][1], seen.calls[-1][1]
    assert last["synthesis/rough"] != first["synthesis/rough"]
    with pytest.raises(EchosetError, match="other options"):
        synthesize(teacher, options, tmp_path / "set", RUN, **{**own, "adversary": None})


def test_a_recipe_of_ones_own_makes_the_set_and_is_named(teacher, tmp_path):
    ranks = []

    class Surest(SSDKD):
        def take(self, made):
            images, logits, _, figures = made
            ranks.append(logits.softmax(1).amax(1))
            return super().take((images, logits, ranks[-1], figures))

    options = replace(SMALL, calls=2)
    made = synthesize(teacher, options, tmp_path / "set", RUN, recipe=Surest)
    assert ranks and made.manifest["own"]["recipe"].split()[0].endswith("Surest")
    with pytest.raises(EchosetError, match="other options"):
        synthesize(teacher, options, tmp_path / "set", RUN)


def test_a_heavier_term_smooths_what_the_generator_makes(teacher, tmp_path):
    options = replace(SMALL, calls=4)
    last = []
    for weight in (0.0, 1000.0):
        seen = Seen()
        synthesize_share(
            teacher, options, tmp_path / f"{weight}", RUN, terms={rough: weight}, log=seen
        )
        last.append(seen.calls[-1][1]["synthesis/rough"])
    assert last[1] < last[0]


def test_without_anything_of_ones_own_a_manifest_says_nothing_of_it(teacher, tmp_path):
    options = replace(SMALL, calls=1, images=10)
    assert "own" not in synthesize(teacher, options, tmp_path, RUN).manifest


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"generator": nn.Linear(128, 784)}, "the generator makes"),
        ({"generator": nn.Linear(64, 784)}, "does not take noise of shape"),
        (
            {"generator": nn.Sequential(generator(), nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))},
            "end it with a sigmoid",
        ),
        ({"adversary": network(channels=3)}, "does not take images of shape"),
        ({"terms": {"rough": 1.0}}, "a term is a function"),
        ({"terms": rough}, "terms are a mapping of functions"),
        ({"terms": {rough: float("nan")}}, "weight must be a number"),
        ({"terms": {lambda *_: 3.0: 1.0}}, "must give one number"),
    ],
)
def test_what_cannot_take_part_is_refused(teacher, own, message, tmp_path):
    options = replace(SMALL, calls=1, images=10)
    with pytest.raises(EchosetError, match=message):
        synthesize(teacher, options, tmp_path / "set", RUN, **own)


class Bars(torch.utils.data.Dataset):
    def __len__(self):
        return 60

    def __getitem__(self, index):
        return torch.eye(28).roll(index, 1)[None].cumsum(1).clamp(0, 1), index


class Grey:
    def draw(self, random, count, channels, height, width):
        return random.uniform(count, 1, 1, 1).expand(count, channels, height, width)


def test_sources_of_ones_own_are_walked_like_others(teacher, tmp_path):
    endless = (torch.rand(1, 28, 28) for _ in itertools.count())
    options = CollectOptions(images=30, balanced=False, draws=2, expose=0.0)
    made = collect(teacher, [Bars(), Grey(), "noise"], options, tmp_path / "set", RUN)
    assert made.manifest["collection"]["sources"] == ["Bars", "Grey", "noise"]
    seen = collect(teacher, [endless], options, tmp_path / "endless", RUN)
    assert len(seen) == 30
    both = collect(
        teacher,
        [Bars(), Bars()],
        CollectOptions(images=80, balanced=False, expose=0.0),
        tmp_path / "b",
        RUN,
    )
    assert both.manifest["collection"]["sources"] == ["Bars", "Bars #2"]
    with pytest.raises(EchosetError, match="int is no source"):
        collect(teacher, [3], options, tmp_path / "none", RUN)


def test_a_source_that_draws_otherwise_is_another(teacher, tmp_path):
    class Grey:
        def draw(self, random, count, channels, height, width):
            return random.uniform(count, channels, height, width) / 2

    options = CollectOptions(images=20, balanced=False, expose=0.0)
    collect(teacher, [globals()["Grey"]()], options, tmp_path, RUN)
    with pytest.raises(EchosetError, match="other options, sources"):
        collect(teacher, [Grey()], options, tmp_path, RUN)


def test_synthesize_makes_a_whole_set_or_says_who_shares_one(teacher):
    with pytest.raises(EchosetError, match="call synthesize_share"):
        synthesize(teacher, runtime=Runtime(rank=0, world=2))
    names = list(inspect.signature(synthesize).parameters)
    assert names == list(inspect.signature(synthesize_share).parameters)


def test_names_are_completed_and_signatures_are_short():
    for package in (distill, inversion):
        assert set(package.__all__) <= set(dir(package))
        for name in package.__all__:
            made = getattr(package, name)
            if inspect.isfunction(made):
                assert len(str(inspect.signature(made))) < 600, name
    assert repr(SynthesisOptions()) == "SynthesisOptions()"
    changed = SynthesisOptions(images=9, generator=inversion.options.GeneratorOptions(width=8))
    assert repr(changed) == "SynthesisOptions(images=9, generator=GeneratorOptions(width=8))"
    assert repr(Runtime(seed=3, rank=0, world=1)) == "Runtime(seed=3)"
