"""How far student and teacher disagree on each sample, KL at a temperature, and whether they decide
alike.

Forward and backward are closed forms over the class axis, in one pass each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthesis_kernels import native
from synthesis_kernels.backend import pick_form
from synthesis_kernels.errors import EchosetError

KEPT = 6
"""Numbers that the native form keeps of each sample for the gradient."""


def divergence_reference(
    teacher_logits: Tensor,  # (B, K, *)
    student_logits: Tensor,  # (B, K, *)
    temperature: float = 1.0,
) -> Tensor:  # (B, *)
    """Definition: KL(p ‖ q)·T²; p teacher, q student, both softened by T.

    T² keeps gradients comparable across temperatures.
    """
    log_p = F.log_softmax(teacher_logits / temperature, dim=1)
    log_q = F.log_softmax(student_logits / temperature, dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(1) * temperature**2


def divergence(
    teacher_logits: Tensor,  # (B, K, *)
    student_logits: Tensor,  # (B, K, *)
    temperature: float = 1.0,
) -> Tensor:  # (B, *)
    """The same in one pass each way; differentiable in both logits."""
    return _apply(teacher_logits, student_logits, DivergencePlan(temperature))


def same_decision(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:  # (B, *) bool
    """Where student and teacher pick the same class: the samples the generator may still make
    harder.
    """
    return teacher_logits.argmax(1) == student_logits.argmax(1)


def adversarial_divergence(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:  # (B, *)
    """KL where both choose the same class, else 0, and no gradient there either."""
    return _apply(teacher_logits, student_logits, DivergencePlan(gated=True))


def mean_divergence_reference(
    teacher_logits: Tensor,  # (B, K, *)
    student_logits: Tensor,  # (B, K, *)
    temperature: float = 1.0,
    weights: Tensor | None = None,  # (B,), or None for equal ones
) -> Tensor:  # ()
    """Definition: the mean of w·KL(p ‖ q)·T² over images and their places."""
    apart = _per_image(divergence_reference(teacher_logits, student_logits, temperature))
    return (apart if weights is None else apart * weights).mean()


def mean_divergence(
    teacher_logits: Tensor,  # (B, K, *)
    student_logits: Tensor,  # (B, K, *)
    temperature: float = 1.0,
    weights: Tensor | None = None,  # (B,), or None for equal ones
) -> Tensor:  # ()
    """The same in one pass each way; differentiable in both logits, and not in the weights."""
    return _apply(teacher_logits, student_logits, DivergencePlan(temperature, mean=True), weights)


def compare_reference(
    teacher_logits: Tensor,  # (B, K, *)
    student_logits: Tensor,  # (B, K, *)
) -> tuple[Tensor, Tensor]:  # (B,), (B,) in [0, 1]
    """Definition: each image's KL(p ‖ q), and at what part of its places both decide alike."""
    apart = divergence_reference(teacher_logits, student_logits)
    alike = same_decision(teacher_logits, student_logits).to(apart.dtype)
    return _per_image(apart), _per_image(alike)


@torch.no_grad()
def compare(
    teacher_logits: Tensor,  # (B, K, *)
    student_logits: Tensor,  # (B, K, *)
) -> tuple[Tensor, Tensor]:  # (B,), (B,) in [0, 1]
    """The same in one pass, without gradients."""
    _check(teacher_logits, student_logits)
    form = _pick_form(teacher_logits, student_logits)
    if form == "native":
        pair = _lay_out(teacher_logits, student_logits)
        apart = torch.empty(pair.shape[0], dtype=student_logits.dtype)
        agreed = torch.empty(pair.shape[0], dtype=student_logits.dtype)
        _native_forward(pair, DivergencePlan(), None, apart=apart, agreed=agreed)
        return apart, agreed
    if form == "triton":
        from synthesis_kernels.triton_forms.divergence import forward

        apart, alike = forward(teacher_logits, student_logits, None, DivergencePlan(decides=True))
        return _per_image(apart), _per_image(alike)
    return compare_reference(teacher_logits, student_logits)


class DivergencePlan(NamedTuple):
    """Which of the divergences is wanted."""

    temperature: float = 1.0
    gated: bool = False
    """Nothing where decisions differ."""
    mean: bool = False
    """Of all, instead of each sample's."""
    decides: bool = False
    """Whether decisions are alike, too."""


class _Pair(NamedTuple):
    """Both logits as the native form reads them: contiguous, in rows of classes or in planes."""

    teacher: Tensor
    student: Tensor
    in_rows: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """Images, classes, and places of each image."""
        images = self.student.shape[0]
        classes = self.student.shape[-1 if self.in_rows else 1]
        return images, classes, self.student.numel() // max(images * classes, 1)


def _check(teacher: Tensor, student: Tensor) -> None:
    if teacher.shape != student.shape:
        shapes = f"{tuple(teacher.shape)} and {tuple(student.shape)}"
        raise EchosetError(f"teacher and student answer in different shapes: {shapes}")


def _pick_form(teacher: Tensor, student: Tensor) -> str:
    form = pick_form(student)
    is_float = teacher.dtype in (torch.float32, torch.float64)
    if form == "native" and not (is_float and teacher.dtype is student.dtype):
        return "reference"
    return form


def _apply(
    teacher: Tensor, student: Tensor, plan: DivergencePlan, weights: Tensor | None = None
) -> Tensor:
    _check(teacher, student)
    if weights is not None and weights.shape != student.shape[:1]:
        raise EchosetError(f"{len(student)} images have weights of shape {tuple(weights.shape)}")
    form = _pick_form(teacher, student)
    if form != "reference":
        return _Divergence.apply(teacher, student, weights, plan, form)
    if plan.mean:
        return mean_divergence_reference(teacher, student, plan.temperature, weights)
    apart = divergence_reference(teacher, student, plan.temperature)
    return apart * same_decision(teacher, student) if plan.gated else apart


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        teacher: Tensor,
        student: Tensor,
        weights: Tensor | None,
        plan: DivergencePlan,
        form: str,
    ) -> Tensor:
        ctx.plan = plan
        ctx.form = form
        if form == "triton":
            from synthesis_kernels.triton_forms.divergence import forward

            ctx.save_for_backward(teacher, student, weights)
            return forward(teacher, student, weights, plan)[0]
        if weights is not None:
            weights = weights.to(student.dtype).contiguous()
        pair = _lay_out(teacher, student)
        images, _, places = pair.shape
        kept = torch.empty(KEPT, images * places, dtype=student.dtype)
        ctx.in_rows = pair.in_rows
        ctx.save_for_backward(pair.teacher, pair.student, weights, kept)
        loss = torch.empty((), dtype=student.dtype) if plan.mean else None
        values = _native_forward(pair, plan, weights, kept=kept, loss=loss)
        return values.view(images, *student.shape[2:]) if loss is None else loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[:2]
        if ctx.form == "triton":
            from synthesis_kernels.triton_forms.divergence import backward

            teacher, student, weights = ctx.saved_tensors
            to_both = backward(teacher, student, weights, grad, ctx.plan, needed)
            return *to_both, None, None, None
        teacher, student, weights, kept = ctx.saved_tensors
        pair = _Pair(teacher, student, ctx.in_rows)
        gradients = [torch.empty(student.shape, dtype=student.dtype) if n else None for n in needed]
        native.call(
            "divergence_backward",
            student.dtype,
            *map(_or_nowhere, [teacher, student, weights, kept, grad.contiguous(), *gradients]),
            *pair.shape,
            ctx.in_rows,
            float(ctx.plan.temperature),
            ctx.plan.mean,
        )
        if ctx.in_rows:
            gradients = [to if to is None else native.as_channels(to) for to in gradients]
        return *gradients, None, None, None


def _native_forward(
    pair: _Pair,
    plan: DivergencePlan,
    weights: Tensor | None,
    kept: Tensor | None = None,
    apart: Tensor | None = None,
    agreed: Tensor | None = None,
    loss: Tensor | None = None,
) -> Tensor:  # (B·S,)
    """Each sample's divergence; what else is wanted is written where there is room for it."""
    images, _, places = pair.shape
    values = torch.empty(images * places, dtype=pair.student.dtype)
    alike = torch.empty(images * places, dtype=pair.student.dtype)
    wanted = [values, alike, kept, apart, agreed, loss]
    native.call(
        "divergence",
        pair.student.dtype,
        *map(_or_nowhere, [pair.teacher, pair.student, weights, *wanted]),
        *pair.shape,
        pair.in_rows,
        float(plan.temperature),
        plan.gated,
    )
    return values


def _or_nowhere(tensor: Tensor | None) -> Tensor | int:
    """A tensor, or the address 0."""
    return 0 if tensor is None else tensor


def _lay_out(teacher: Tensor, student: Tensor) -> _Pair:
    """As the student's logits lie; a copy only of what lies otherwise."""
    rows = student.movedim(1, -1)
    if student.ndim == 2 or rows.is_contiguous():
        return _Pair(native.as_rows(teacher), rows.contiguous(), True)
    return _Pair(teacher.contiguous(), student.contiguous(), False)


def _per_image(values: Tensor) -> Tensor:  # (B, *) -> (B,)
    return values if values.ndim == 1 else values.flatten(1).mean(1)
