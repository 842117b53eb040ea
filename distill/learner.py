"""A student with everything its losses bring along: adapters, peers, branches, and the teacher they
ask.

The methods themselves are functions in `distill/losses/`; here they are given what they compare,
and added up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from distill.methods.attention import attention_loss
from distill.methods.boundary import choose_bases, push_over, soft_loss
from distill.methods.ensemble import ensemble_loss, gated, ramp
from distill.methods.fitnet import fitnet_loss
from distill.methods.fsp import fsp_loss
from distill.methods.hinton import hinton_loss
from distill.methods.hints import hint_loss
from distill.methods.mutual import mutual_loss
from distill.methods.relational import angle_loss, distance_loss, relational_loss
from distill.methods.similarity import similarity_loss
from distill.models import Classifier, build_classifier
from distill.models.frozen import Frozen
from distill.options import DistillOptions
from distill.runtime import Step
from distill.taps import Stages, Taps, find_stages
from distill.views import at_once
from synthesis_kernels.backend import forward_pass
from synthesis_kernels.errors import EchosetError

PUBLISHED = {
    **{"hinton": 1.0, "labels": 1.0, "fitnet": 100.0, "at": 1000.0, "fsp": 50.0, "sp": 3000.0},
    **{"rkd": 1.0, "rkd-d": 25.0, "rkd-a": 50.0, "bss": 1.0, "dml": 1.0, "one": 1.0},
    "hints": 20.0,
}
"""Every loss and the weight it was published with; `hints` are ours."""
ON_EMBEDDINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rkd": relational_loss,
    "rkd-d": distance_loss,
    "rkd-a": angle_loss,
}
ON_MAPS = {"fitnet", "at", "fsp", "sp", "hints"}
ON_FEATURES = {*ON_MAPS, *ON_EMBEDDINGS}
WITHOUT_TEACHER = {"labels", "dml", "one"}
ATTACKED = 0.25
"""Part of a batch that bss pushes over the boundary."""
ATTACKS_END = 0.75
"""Part of the training after which bss leaves the boundary alone."""


def full_loss(loss: Mapping[str, float | None]) -> dict[str, float]:
    """The losses asked for, checked, with labels added where nothing else would teach the
    classes.
    """
    if unknown := [name for name in loss if name not in PUBLISHED]:
        raise EchosetError(f"no loss '{unknown[0]}'; there are {', '.join(PUBLISHED)}")
    loss = {name: PUBLISHED[name] if weight is None else weight for name, weight in loss.items()}
    if bad := [name for name, weight in loss.items() if not 0 <= weight < float("inf")]:
        raise EchosetError(
            f"the weight of loss '{bad[0]}' must be a number from 0, got {loss[bad[0]]}"
        )
    used = {name: weight for name, weight in loss.items() if weight}
    if not used:
        raise EchosetError("no loss has a weight above 0")
    if {"dml", "one"} <= used.keys():
        raise EchosetError(
            "dml and one each replace the student's training by their own; choose one of them"
        )
    # Peers and branches have nothing to say before labels have taught them; and a weight of 0 that
    # was named stays 0.
    wants = "hinton" not in used or {"dml", "one"} & used.keys()
    return {"labels": 1.0, **used} if wants and "labels" not in loss else used


def asks_teacher(options: DistillOptions) -> bool:
    """Whether anything comes from the teacher: its decisions as labels, or what a loss compares
    with.
    """
    return options.labels == "teacher" or bool(full_loss(options.loss).keys() - WITHOUT_TEACHER)


def _like(student: Classifier, seed: int) -> Classifier:
    """Another network of the student's kind, with weights of its own."""
    try:
        other = build_classifier(student.spec, seed)
        same = {k: v.shape for k, v in other.state_dict().items()} == {
            k: v.shape for k, v in student.state_dict().items()
        }
    except EchosetError:
        same = False
    if not same:
        raise EchosetError(
            f"dml and one train further networks like the student, and '{student.spec.model}' "
            "doesn't say how to build it: give "
            "the student by a name of the zoo or an import path"
        )
    return other


class Learner(nn.Module):
    """`learner(…)` gives a batch's loss, the student's logits, and the answers they are measured
    by.

    What is trained are this module's parameters; `student` is what is kept. Under `dml` and `one`
    the student is the first peer or branch, fixed beforehand: nothing chooses among them by any
    accuracy.
    """

    def __init__(
        self,
        student: Classifier,
        teacher: Classifier | None,
        options: DistillOptions,
        precision: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.student, self.options, self.precision = student, options, precision
        self.weights = full_loss(options.loss)
        self._teacher = [teacher]  # in a list, so that it is no submodule and nothing trains it
        self._frozen = (
            [Frozen(teacher, precision)]
            if "bss" in self.weights and teacher is not None
            else [None]
        )
        self.attacks = "bss" in self.weights  # switched off by the loop at ATTACKS_END
        self.network: Callable[[Tensor], Tensor] = student.__call__  # or a compiled form of it
        self.unit = sum(student.spec.std) / len(student.spec.std)
        self.on_features = bool(ON_FEATURES & self.weights.keys())
        self._check(teacher)
        if self.on_features:
            self._pair_stages(student, teacher)
        if "dml" in self.weights:
            self.peers = nn.ModuleList(
                _like(student, seed + 1 + peer) for peer in range(options.peers - 1)
            )
        if "one" in self.weights:
            self._grow_branches(student, seed)

    def _check(self, teacher: Classifier | None) -> None:
        if teacher is None and asks_teacher(self.options):
            needs = sorted(self.weights.keys() - WITHOUT_TEACHER)
            raise EchosetError(
                f"loss {', '.join(needs) or 'labels'} needs a teacher; without one use "
                "labels='data'"
            )
        for name, least in (("peers", 2), ("branches", 2)):
            if getattr(self.options, name) < least:
                raise EchosetError(
                    f"{name} must be at least {least}, got {getattr(self.options, name)}"
                )

    def _pair_stages(self, student: Classifier, teacher: Classifier) -> None:
        maps = bool(ON_MAPS & self.weights.keys())
        mine = find_stages(student, self.options.student_layers, maps)
        theirs = find_stages(teacher, self.options.teacher_layers, maps)
        # Rkd compares embeddings: what a last linear layer reads, or the mean of the one map found
        # instead
        if not maps:
            self.mine, self.theirs, self.adapters = mine, theirs, nn.ModuleList()
            return
        if (
            self.options.student_layers
            and self.options.teacher_layers
            and len(mine.layers) != len(theirs.layers)
        ):
            raise EchosetError(
                f"{len(mine.layers)} student_layers and {len(theirs.layers)} teacher_layers make "
                "no pairs"
            )
        count = min(len(mine.layers), len(theirs.layers))
        if "fsp" in self.weights and count < 2:
            raise EchosetError(
                "fsp compares two stages with each other, and only one pair was found; name more "
                "layers"
            )
        self.mine, self.theirs = _last(mine, count), _last(theirs, count)
        pairs = zip(self.mine.channels, self.theirs.channels, strict=True)
        if "hints" in self.weights:
            widths = zip(_widths(student, self.mine), _widths(teacher, self.theirs), strict=True)
            self.readers = nn.ModuleList(_reader(*pair) for pair in widths)
        wanted = {"fitnet", "fsp"} & self.weights.keys()
        self.adapters = nn.ModuleList(
            nn.Identity() if ours == given or not wanted else nn.Conv2d(ours, given, 1, bias=False)
            for ours, given in pairs
        )

    def _grow_branches(self, student: Classifier, seed: int) -> None:
        stages = find_stages(student, self.options.student_layers)
        if len(stages.layers) < 2:
            only = f"{student.spec.model} has one stage only"
            raise EchosetError(
                f"one branches before the last stage, and {only}; name two student_layers"
            )
        trunk = stages.layers[-2]
        self.trunk = Stages((trunk,), stages.channels[-2:-1], stages.sides[-2:-1], None)
        fresh = [_like(student, seed + 1 + branch) for branch in range(self.options.branches - 1)]
        self.tails = nn.ModuleList(cut_after(network, trunk) for network in fresh)
        count = self.options.branches
        self.gate = nn.Sequential(
            nn.Linear(stages.channels[-2], count), nn.BatchNorm1d(count), nn.ReLU(), nn.Softmax(1)
        )

    @property
    def takes_answers(self) -> bool:
        """Whether the teacher's answers come with the lesson; losses on features ask it themselves,
        unless hints are kept.
        """
        return not self.on_features and asks_teacher(self.options)

    @property
    def takes_hints(self) -> bool:
        """Whether the teacher's hints can come with the lesson, and its answers with them: no other
        loss looks at its features.
        """
        return ON_FEATURES & self.weights.keys() == {"hints"}

    @torch.no_grad()
    def ask_for_hints(
        self, images: Tensor
    ) -> list[Tensor]:  # (B, C, H, W) -> (B, K), then (B, C, h, w) each
        """The teacher's answers and, in bfloat16, its hints."""
        parts = (self._ask_teacher(part) for part in images.split(at_once(images.shape[-1])))
        small = (
            [answers, *(each.bfloat16() for each in self._hints(*features))]
            for answers, *features in parts
        )
        return [torch.cat(each) for each in zip(*small, strict=True)]

    def compare_hints(self, looks: Taps, hints: Sequence[Tensor]) -> Tensor:  # ()
        """The loss `hints`: how much of the teacher's the student's maps and embedding, in the pass
        `looks` saw, don't explain.
        """
        mine = self._hints(looks.maps, looks.embedding)
        apart = [
            hint_loss(read(m), t.float())
            for read, m, t in zip(self.readers, mine, hints, strict=True)
        ]
        return sum(apart) / len(apart)

    def _hints(self, maps: list[Tensor], embedding: Tensor) -> list[Tensor]:  # of (B, C, h, w)
        """Maps averaged down to the smallest of the teacher's, and the embedding as a map of one
        pixel.
        """
        side = min(self.theirs.sides)
        small = [
            F.adaptive_avg_pool2d(each, side) if each.shape[2] > side else each for each in maps
        ]
        return [*small, embedding[:, :, None, None]]

    def check_step(self, step: Step) -> None:
        """Refuse to compile a student that the losses look into."""
        if step == "compiled" and (self.on_features or "one" in self.weights):
            raise EchosetError(
                f"step 'compiled' can't be had with the losses {', '.join(self.weights)}; use "
                "--step eager"
            )

    @property
    def draws(self) -> bool:
        """Whether a loss chooses at random."""
        return "bss" in self.weights

    def forward(
        self,
        images: Tensor,  # (B, C, H, W) in [0, 1], as the student shall see them
        # (B, K) the teacher's logits for them; (0,) where it is asked here, or nobody has one
        answers: Tensor,
        # (B, K) the data's labels as probabilities; (0,) where the teacher's decisions are the
        # labels
        labels: Tensor,
        share: Tensor,  # () part of the training that is over
        draws: Tensor,  # (B,) in [0, 1), for losses that choose at random
        # (B, C, h, w) the teacher's, where they and the answers come with the lesson
        *hints: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # (), (B, K), (B, K)
        looks = Taps(self.student, self.mine) if self.on_features else nullcontext()
        trunk = Taps(self.student, self.trunk) if "one" in self.weights else nullcontext()
        with looks, trunk:
            logits = self._answer(self.network, images)
        everyone, terms = [logits], {}
        if self.on_features:
            if not hints:
                answers, theirs, their_embedding = self._ask_teacher(images)
                terms = self._compare(looks, theirs, their_embedding)
                hints = self._hints(theirs, their_embedding) if "hints" in self.weights else ()
            if hints:
                terms["hints"] = self.compare_hints(looks, hints)
        if "one" in self.weights:
            everyone += [self._answer(tail, trunk.maps[0]) for tail in self.tails]
            ensemble = gated(everyone, self.gate(trunk.maps[0].mean((2, 3))))
            terms["one"] = ramp(share) * ensemble_loss(everyone, ensemble)
            everyone.append(ensemble)
        if "dml" in self.weights:
            everyone += [self._answer(peer, images) for peer in self.peers]
            terms["dml"] = mutual_loss(everyone)
        labels = labels if labels.numel() else self._decisions(answers)
        if "labels" in self.weights:
            terms["labels"] = sum(F.cross_entropy(each, labels) for each in everyone)
        if "hinton" in self.weights:
            terms["hinton"] = hinton_loss(logits, answers, self.options.temperature)
        if "bss" in self.weights:
            terms["bss"] = self._boundary(images, logits, answers, labels, share, draws)
        loss = sum(self.weights[name] * term for name, term in terms.items())
        # Labels as logits, where there are no answers: what follows compares decisions and
        # divergences.
        return loss, logits, answers if answers.numel() else labels.clamp_min(1e-9).log()

    def _answer(
        self, network: Callable[[Tensor], Tensor], images: Tensor
    ) -> Tensor:  # (B, C, H, W) -> (B, K) float32
        with forward_pass(images.device, self.precision):
            return network(images).float()

    def _decisions(self, answers: Tensor) -> Tensor:  # (B, K) -> (B, K)
        if self.options.label_temperature:
            return (answers / self.options.label_temperature).softmax(1)
        return F.one_hot(answers.argmax(1), answers.shape[1]).float()

    def _ask_teacher(self, images: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        teacher = self._teacher[0]
        with torch.no_grad(), Taps(teacher, self.theirs) as taps:
            answers = self._answer(teacher, images)
        return answers, taps.maps, taps.embedding

    def _compare(
        self, taps: Taps, theirs: list[Tensor], their_embedding: Tensor
    ) -> dict[str, Tensor]:
        """One term for each loss on features that has a weight."""
        maps = taps.maps
        terms = {
            name: loss(taps.embedding, their_embedding)
            for name, loss in ON_EMBEDDINGS.items()
            if name in self.weights
        }
        pairs = list(zip(maps, theirs, strict=True)) if ON_MAPS & self.weights.keys() else []
        if {"fitnet", "fsp"} & self.weights.keys():
            adapted = [
                adapter(features) for adapter, features in zip(self.adapters, maps, strict=True)
            ]
        if "fitnet" in self.weights:
            terms["fitnet"] = sum(
                fitnet_loss(a, t) for a, t in zip(adapted, theirs, strict=True)
            ) / len(theirs)
        if "at" in self.weights:
            terms["at"] = sum(attention_loss(s, t) for s, t in pairs)
        if "fsp" in self.weights:
            flows = zip(pairwise(adapted), pairwise(theirs), strict=True)
            terms["fsp"] = sum(fsp_loss(s, t) for s, t in flows)
        if "sp" in self.weights:
            terms["sp"] = similarity_loss(*pairs[-1])
        return terms

    def _boundary(
        self,
        images: Tensor,
        logits: Tensor,
        answers: Tensor,
        labels: Tensor,
        share: Tensor,
        draws: Tensor,
    ) -> Tensor:
        """r·KL + r_a·KL on pushed images, both at T = 3; r falls from 4 to 1, r_a from 2 to 0 at
        three quarters.
        """
        loss = (1 + 3 * (1 - share)) * soft_loss(logits, answers).mean()
        if not self.attacks:
            return loss
        truth, count = labels.argmax(1), max(int(len(images) * ATTACKED), 2)
        chosen, target, fit = choose_bases(logits.detach(), answers, truth, count, draws[:count])
        frozen = self._frozen[0]
        pushed, crossed = push_over(frozen, images[chosen], truth[chosen], target, self.unit)
        with statistics_kept(
            self.student
        ):  # pushed images are no part of what the student will see
            ours = self._answer(self.network, pushed)
        with torch.no_grad():
            theirs = frozen(pushed)
        counts = (fit & crossed).float()
        apart = (soft_loss(ours, theirs) * counts).sum() / counts.sum().clamp_min(1)
        return loss + 2 * (1 - share / ATTACKS_END).clamp_min(0) * apart


@contextmanager
def statistics_kept(network: nn.Module) -> Iterator[None]:
    """Forward passes in training leave the running statistics of BatchNorm layers alone."""
    layers = [
        layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    ]
    usual = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, usual, strict=True):
            layer.momentum = momentum


def cut_after(classifier: Classifier, layer: str) -> fx.GraphModule:
    """What follows `layer` in the network, as a network of its own that takes that layer's map."""
    name = f"network.{layer}"

    class Tracer(fx.Tracer):
        def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
            return qualified_name == name or super().is_leaf_module(module, qualified_name)

    model = classifier.spec.model
    try:
        tail = fx.GraphModule(classifier, Tracer().trace(classifier))
    except (
        Exception
    ) as error:  # whatever a module's own Python does when no tensor comes through it
        raise EchosetError(
            f"one needs a network that torch.fx can trace, and {model} can't be: {error}"
        ) from error
    graph = tail.graph
    end = next(
        (node for node in graph.nodes if node.op == "call_module" and node.target == name), None
    )
    if end is None:
        raise EchosetError(f"{model} has no layer '{layer}' to branch after")
    with graph.inserting_before(end):
        entrance = graph.placeholder("features")
    end.replace_all_uses_with(entrance)
    graph.eliminate_dead_code()
    for node in [n for n in graph.nodes if n.op == "placeholder" and n is not entrance]:
        if node.users:
            raise EchosetError(
                f"{model} has connections around '{layer}', so one cannot branch there; name "
                "student_layers"
            )
        graph.erase_node(node)
    tail.delete_all_unused_submodules()
    tail.recompile()
    return tail


def _reader(ours: int, given: int) -> nn.Conv2d:
    """A 1×1 convolution that tells the teacher's channels from the student's; of as many it begins
    as the same ones.
    """
    reader = nn.Conv2d(ours, given, 1)
    if ours == given:
        nn.init.dirac_(reader.weight)
        nn.init.zeros_(reader.bias)
    return reader


def _widths(classifier: Classifier, stages: Stages) -> tuple[int, ...]:
    """Channels of the maps, and numbers in the embedding."""
    embedding = (
        classifier.network.get_submodule(stages.head).in_features
        if stages.head
        else stages.channels[-1]
    )
    return *stages.channels, embedding


def _last(stages: Stages, count: int) -> Stages:
    kept = slice(len(stages.layers) - count, None)
    return Stages(stages.layers[kept], stages.channels[kept], stages.sides[kept], stages.head)
