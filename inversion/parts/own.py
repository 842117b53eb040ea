"""What a user brings along from Python to a synthesis: terms of the generator's loss, a generator,
an adversarial student, a recipe.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from distill.models import Classifier, ModelSpec
from distill.models.description import hash_tensors
from distill.models.modes import device_of
from distill.own import identify
from synthesis_kernels.errors import EchosetError, reason_of

# (B, C, H, W) in [0, 1], (B, K, *places), (B,) -> ()
Term: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A term of the generator's loss, of its images, the teacher's logits for what it saw of them, and
the class that each image was made for.
"""


@dataclass(frozen=True)
class Own:
    """What a user brings along. Each shard begins with copies of the networks, as they came."""

    terms: Mapping[Term, float] = field(default_factory=dict)
    """Terms of the loss and their weights."""
    generator: nn.Module | None = None
    """Makes images (B, C, H, W) in [0, 1] of a latent (B, L)."""
    adversary: Classifier | None = None
    """The adversarial student."""
    recipe: type | None = None
    """How the set is made, in place of the recipe that the options name."""

    def __bool__(self) -> bool:
        brought = (self.generator, self.adversary, self.recipe)
        return bool(self.terms) or any(thing is not None for thing in brought)

    def check(self) -> None:
        """Refuse terms that are no functions, or share a name, and weights that are no numbers."""
        if not isinstance(self.terms, Mapping):
            raise EchosetError(
                "terms are a mapping of functions to weights, such as {smoothness: 0.1}, not a "
                f"{type(self.terms).__name__}"
            )
        for term, weight in self.terms.items():
            if not callable(term):
                raise EchosetError(
                    "a term is a function of images, logits and wanted classes, not a "
                    f"{type(term).__name__}"
                )
            if not math.isfinite(weight):
                raise EchosetError(f"a term's weight must be a number, got {weight}")
        self.named_terms  # noqa: B018 - which refuses names that are given twice

    @property
    def named_terms(self) -> dict[str, tuple[Term, float]]:
        """Terms and weights, by the functions' names."""
        named = {}
        for term, weight in self.terms.items():
            name = getattr(term, "__name__", type(term).__name__)
            if name in named:
                raise EchosetError(f"two terms are called {name}; give one another name")
            named[name] = (term, weight)
        return named

    @cached_property
    def record(self) -> dict[str, Any]:
        """The same in words, for the manifest; it names whatever the set follows from."""
        told: dict[str, Any] = {}
        if self.terms:
            named = self.named_terms.items()
            told["terms"] = {name: [weight, identify(term)] for name, (term, weight) in named}
        for name in ("generator", "adversary"):
            network = getattr(self, name)
            if network is not None:
                told[name] = _describe(network)
        if self.recipe is not None:
            told["recipe"] = identify(self.recipe)
        return told


def _describe(network: nn.Module) -> str:
    """A network's class, and a hash of its layers and weights."""
    inner = network.network if isinstance(network, Classifier) else network
    content = f"{inner} {hash_tensors(inner.state_dict())}"
    return f"{identify(inner)} {hashlib.sha256(content.encode()).hexdigest()[:16]}"


NOTHING = Own()
NO_TERMS: Mapping[str, tuple[Term, float]] = MappingProxyType({})


def ask_term(
    term: Term,
    images: Tensor,  # (B, C, H, W) in [0, 1]
    logits: Tensor,  # (B, K, *places)
    wanted: Tensor,  # (B,)
) -> Tensor:  # ()
    """A user's own term of the loss."""
    value = term(images, logits, wanted)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        name = getattr(term, "__name__", type(term).__name__)
        raise EchosetError(
            f"the term {name} must give one number that follows from the images or the logits, as "
            "a tensor"
        )
    return value.reshape(())


class OwnGenerator(nn.Module):
    """A user's generator, which knows no classes: the wanted class's learned embedding is added to
    its noise.
    """

    def __init__(self, network: nn.Module, classes: int, latent: int, conditioning: float) -> None:
        super().__init__()
        self.latent = latent
        self.network = network
        self.embedding = nn.Embedding(classes, latent)
        nn.init.normal_(self.embedding.weight, std=conditioning)

    # (B, latent), (B,), (B, *places) -> (B, C, H, W)
    def forward(self, noise: Tensor, wanted: Tensor, targets: Tensor) -> Tensor:
        return self.network(noise + self.embedding(wanted)).float()

    def learned(self) -> list[nn.Parameter]:
        """What is learned from call to call: everything."""
        return list(self.parameters())


def wrap_generator(
    network: nn.Module, spec: ModelSpec, latent: int, seed: int, conditioning: float
) -> OwnGenerator:
    """A copy of a user's generator, for images and classes as in the spec."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        copied = copy.deepcopy(network).requires_grad_(True)
        return OwnGenerator(copied, spec.classes, latent, conditioning)


def check_generator(network: nn.Module, spec: ModelSpec, latent: int) -> None:
    """Refuse a generator that does not make the teacher's images."""
    shape = spec.shape
    probe = copy.deepcopy(network)
    place = device_of(network)
    noise = torch.randn(4, latent, generator=torch.Generator().manual_seed(0)).to(place)
    try:
        with torch.no_grad():
            images = probe(noise)
    except Exception as error:  # whatever the network raises
        reason = reason_of(error)
        raise EchosetError(
            f"the generator does not take noise of shape {tuple(noise.shape)}: {reason}; the "
            "latter number is generator.latent of the options"
        ) from error
    if not isinstance(images, Tensor) or tuple(images.shape[1:]) != shape:
        given = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise EchosetError(
            f"the generator makes {given} of noise {tuple(noise.shape)}, and the teacher takes "
            f"images of {shape}"
        )
    low, high = images.min().item(), images.max().item()
    if not (low >= 0 and high <= 1):
        raise EchosetError(
            f"the generator makes values from {low:.3g} to {high:.3g}, and images lie in [0, 1]; "
            "end it with a sigmoid"
        )
