"""Options of the synthesis stage. No torch here: `--help` reads this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distill.brief import Brief
from distill.options import StudentOptions, ViewOptions
from distill.ranges import (
    require_least,
    require_most,
    require_positive,
    require_shards,
    require_within,
)
from inversion.options.teacher import TeacherViewOptions
from synthesis_kernels.errors import EchosetError


@dataclass(frozen=True, repr=False)
class GeneratorOptions(Brief):
    """The generator, and how it learns."""

    latent: int = 128
    """Length of the noise vector."""
    conditioning: float = 0.0
    """Size at which the wanted class's learned embedding starts; it is added to unit noise."""
    width: int = 32
    """Channels at full size; twice as many at all smaller sizes."""
    blocks: int = 0
    """3×3 convolutions before the seed grows: each lets a place depend on the seed's cells one
    further away.
    """
    smooth: float = 0.0
    """How the pictures in the seed map fall off with frequency: 0 = white, 1 = as photographs do,
    which lets images differ in their grounds and large parts, too.
    """
    learning: Literal["meta", "plain"] = "meta"
    """What a call leaves to the next one. meta: its steps train a clone, and the sum of their
    gradients moves the generator once (FOMAML, as in Fast-Datafree). plain: the generator keeps
    what its steps have learnt, and Adam its moments.
    """
    inner_steps: int = 5
    """Steps of the generator, and of the noise, in each call."""
    learning_rate: float = 3e-3
    """Adam, inner steps."""
    latent_rate: float = 1e-2
    """Adam on the noise itself, inner steps."""
    meta_rate: float = 1e-2
    """Adam on the meta-learned weights; of no account where learning is plain."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, "generator", 0, "blocks", "smooth", "conditioning")
        require_least(self, "generator", 0, "learning_rate", "latent_rate", "meta_rate")
        require_least(self, "generator", 1, "inner_steps", "latent", "width")
        require_most(self, "generator", 64, "blocks")
        require_most(self, "generator", 65_536, "latent", "width")


@dataclass(frozen=True, repr=False)
class ObjectiveOptions(Brief):
    """What the generator is trained against."""

    bn: float = 60.0
    """Weight of the BatchNorm statistics' distance."""
    bn_relative: bool = True
    """Measure each channel's distance in its own standard deviations, and take the mean over
    layers, so that neither the scale of the teacher's weights nor its depth counts; false = the sum
    over layers of plain distances, as published, where a `bn` of 10 or less is usual.
    """
    bn_momentum: float = 0.9
    """How much of earlier batches' statistics counts towards the match, below 1; 0 asks each batch
    to match alone.
    """
    classes: float = 1.0
    """Weight of the teacher's cross-entropy with the wanted class."""
    adversary: float = 1.0
    """Weight of the disagreement with the adversarial student, where both still choose the same
    class; 0 = no adversary.
    """
    adversary_log: bool = False
    """Count the disagreement d by its logarithm, log(1 + d), as DFAD does for label maps: where it
    is large already it then pulls less.
    """
    adversary_after: int = 6
    """Generator calls before the adversary counts. (It learns from `adversary.begins` on.)"""
    phi: bool = True
    """Weight samples by φ = diversity · difficulty, in the loss and at the buffer's entry; false =
    all alike.
    """
    gamma: float = 1.0
    """Exponent of φ's difficulty, (1 − p)^γ."""
    spread: float = 0.3
    """Weight of the likeness of images of one class within a call, without which a class may end as
    one picture; 0 = none. Where a call has hardly two images of a class, it does little: raise
    `batch`.
    """
    heads: float = 1.0
    """Weight of how unlike the attention heads of a layer are. Only recipe attention has this and
    `variation`.
    """
    variation: float = 0.1
    """Weight of the mean difference of neighbouring pixels, which smoothes the images."""
    views: TeacherViewOptions | None = None
    """What happens to each image between generator and teacher. The teacher's statistics describe
    the views it was trained on, black edges and all, so by default it is what its file says of
    them; where there is nothing, a small shift. What is given here replaces all of that, e.g.
    '{"shift": 0.125, "flip": true}', or '{"shift": 0}' for none.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, "objective", 0, "bn", "classes", "adversary", "spread", "gamma")
        require_least(self, "objective", 0, "heads", "variation")
        require_within(self, "objective", "[0, 1)", "bn_momentum")


@dataclass(frozen=True, repr=False)
class ReplayOptions(Brief):
    """The replay buffer: how it is refreshed and sampled."""

    balanced_targets: bool = True
    """Ask the generator for the classes the buffer lacks; false = all classes alike."""
    refresh: float = 1.0
    """Largest part of a class's quota that one call may replace: those of lowest priority."""
    half_life: float = 10.0
    """Generator calls in which an image's priority falls by half when one has to go. The first
    calls' images are poor, and poor images are hard: by priority alone they would stay for good. 0
    = age has no say.
    """
    replace_all: bool = False
    """Replace the whole buffer whenever enough new images of every class are there, instead of a
    part at a time.
    """
    keep_all: bool = False
    """Keep every image of every call, whatever its class, as methods before SSD-KD do: calls ×
    batch images, unbalanced.
    """
    sampling: Literal["priority", "uniform", "policy"] = "priority"
    """How the adversarial student's batches are drawn: by the priority δ, all images alike, or by a
    policy that learns from what its draws do to held-out images.
    """
    policy: tuple[float, ...] = ()
    """Weights of the policy's features at the start, as the manifest of a set made with one lists
    them (`policy`); by default it starts from disagreement alone.
    """
    policy_rate: float = 0.1
    """How fast the policy learns; 0 keeps the weights it starts with."""
    alpha: float = 0.5
    """Exponent of the priority δ in the chance to be drawn; 0 is uniform."""
    beta: float = 0.4
    """First exponent of the importance weights; rises to 1 over the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, "replay", 0, "alpha", "half_life", "policy_rate")
        require_within(self, "replay", "[0, 1]", "refresh", "beta")
        if self.keep_all and (self.balanced_targets or self.replace_all):
            raise EchosetError(
                "replay.keep_all has no quotas: set replay.balanced_targets and "
                "replay.replace_all to false"
            )
        if self.policy and self.sampling != "policy":
            raise EchosetError(
                f"replay.policy is given and draws are by {self.sampling}: set replay.sampling to "
                "policy"
            )


@dataclass(frozen=True, repr=False)
class AdversaryOptions(Brief):
    """The student trained between generator calls. The set is what counts; this student is thrown
    away unless kept.
    """

    student: StudentOptions = StudentOptions()
    """Its network."""
    steps: int = 10
    """Updates after each generator call."""
    begins: int = 0
    """Generator calls before the first update, while images are too poor to learn from. The
    learning rate's cosine counts from there, and patience no earlier.
    """
    batch: int = 128
    """Images in an update."""
    views_per_image: int = 0
    """Views of each image that the teacher answers for once, when the image enters the buffer; 0 =
    a new view and a new answer at every step. Saves time where a call's updates show more images
    (`steps` · this `batch`) than it has such views. Views that mix images are stored, and take so
    many times the memory of the images (in saved states too, and twice with replay.replace_all).
    """
    learning_rate: float = 0.05
    """Muon's first learning rate (a tenth of it for Adam's part); it falls along half a cosine over
    the planned calls, and is a twentieth of it in any beyond them.
    """
    temperature: float = 20.0
    """Softens both distributions in its KL divergence."""
    hints: float = 0.0
    """Weight of the loss `hints` (see `distillation.loss`) beside that divergence: it learns the
    teacher's features, too. They are kept with the answers to its views (`views_per_image`, which
    this needs), in memory, twice with replay.replace_all: of a wrn-40-2 29 KB for each view of an
    image. A run that goes on asks for them again.
    """
    keep: bool = False
    """Leave it beside the set, as adversary-00000.safetensors and so on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, "adversary", 0, "learning_rate", "begins", "views_per_image", "hints")
        require_least(self, "adversary", 1, "batch", "steps")
        require_positive(self, "adversary", "temperature")
        if self.hints and not self.views_per_image:
            raise EchosetError(
                "adversary.hints are kept for the views in adversary.views_per_image, which is 0; "
                "set it to 4, say"
            )


@dataclass(frozen=True, repr=False)
class SynthesisOptions(Brief):
    """A whole synthesis."""

    recipe: str = "ssd-kd"
    """How the set is made: ssd-kd, fast-datafree (every image kept, nothing balanced), adversarial
    (needs no BatchNorm), or attention (the same, for vision transformers)."""
    images: int = 2000
    """Images in the finished set, divided evenly among the classes. (With replay.keep_all, calls ×
    batch instead.)
    """
    shard_images: int = 5000
    """Most images one job makes; each job trains a generator of its own over all classes."""
    abreast: int = 1
    """Shards that a process makes together, with one pass of the teacher for the batches of all:
    for a GPU that one batch does not fill. They take so many times the memory.
    """
    parallel: Literal["shards", "together"] = "shards"
    """What several processes do: shards, each makes shards of its own; or together, all train one
    generator for each shard, with a part of every batch each. That needs torchrun.
    """
    batch: int = 200
    """Images in each generator call."""
    calls: int = 42
    """Generator calls a job makes; fewer when agreement has stopped rising, up to twice as many
    while a class is short.
    """
    patience: int = 30
    """A full buffer is finished after so many calls without a rise of the held-out agreement,
    counted from the call that filled it or from `adversary.begins`, whichever is later.
    """
    held_out: float = 0.1
    """Part of each class (of all together, where classes are too small for one each) that the
    adversarial student never trains on, to measure agreement; it is part of the set all the
    same.
    """
    generator: GeneratorOptions = GeneratorOptions()
    """The generator."""
    objective: ObjectiveOptions = ObjectiveOptions()
    """The generator's losses."""
    replay: ReplayOptions = ReplayOptions()
    """The replay buffer."""
    adversary: AdversaryOptions = AdversaryOptions()
    """The adversarial student."""
    views: ViewOptions = ViewOptions()
    """What the adversarial student sees of an image."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, "", 1, "images", "shard_images", "calls", "patience")
        require_least(self, "", 1, "abreast")
        require_most(self, "", 1024, "abreast")
        require_shards(self.images, self.shard_images, "")
        require_least(self, "", 2, "batch")
        require_within(self, "", "[0, 1)", "held_out")
        begins = self.adversary.begins
        after = self.objective.adversary_after
        if begins >= self.calls:
            raise EchosetError(
                f"adversary.begins {begins} leaves the adversarial student nothing to learn in "
                f"{self.calls} calls; make more calls than that, or lower it"
            )
        if begins and self.objective.adversary and after <= begins:
            raise EchosetError(
                f"objective.adversary_after {after} would ask an adversarial student that has "
                f"learnt nothing yet (adversary.begins {begins}); raise it to more than {begins}"
            )
