"""How far student and teacher disagree on each sample: KL and JS at a temperature, and whether they
decide alike.

Forward and backward are closed forms over the class axis: log-probabilities are computed once and
are all that is kept.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from synthesis_kernels.backend import pick_form
from synthesis_kernels.errors import EchosetError

Kind = Literal["kl", "js"]


def divergence_reference(
    teacher_logits: Tensor,  # (B, K, *)
    student_logits: Tensor,  # (B, K, *)
    temperature: float = 1.0,
    kind: Kind = "kl",
) -> Tensor:  # (B, *)
    """Definition: KL(p ‖ q)·T², or ½KL(p ‖ m)·T² + ½KL(q ‖ m)·T² with m = ½(p + q); p teacher, q
    student, both softened by T.

    T² keeps gradients comparable across temperatures.
    """
    log_p = F.log_softmax(teacher_logits / temperature, dim=1)
    log_q = F.log_softmax(student_logits / temperature, dim=1)
    if kind == "kl":
        return (log_p.exp() * (log_p - log_q)).sum(1) * temperature**2
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    terms = log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)
    return 0.5 * terms.sum(1) * temperature**2


def divergence(
    teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0, kind: Kind = "kl"
) -> Tensor:
    """The same in one pass each way; differentiable in both logits."""
    if kind not in ("kl", "js"):
        raise EchosetError(f"no divergence '{kind}'; there are kl and js")
    if teacher_logits.shape != student_logits.shape:
        shapes = f"{tuple(teacher_logits.shape)} and {tuple(student_logits.shape)}"
        raise EchosetError(f"teacher and student answer in different shapes: {shapes}")
    return _Divergence.apply(teacher_logits, student_logits, temperature, kind)


def same_decision(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:  # (B, *) bool
    """Where student and teacher pick the same class: the samples the generator may still make
    harder.
    """
    return teacher_logits.argmax(1) == student_logits.argmax(1)


def adversarial_divergence(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:  # (B, *)
    """KL where both choose the same class, else 0, and no gradient there either."""
    kl = divergence(teacher_logits, student_logits)
    return kl * same_decision(teacher_logits, student_logits)


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, teacher: Tensor, student: Tensor, temperature: float, kind: Kind
    ) -> Tensor:
        ctx.temperature = temperature
        ctx.kind = kind
        ctx.form = pick_form(student, has=("reference", "triton"))
        if ctx.form == "triton":
            from synthesis_kernels.triton_forms.divergence import forward

            ctx.save_for_backward(teacher, student)
            return forward(teacher, student, temperature, kind)
        log_p = F.log_softmax(teacher / temperature, 1)
        log_q = F.log_softmax(student / temperature, 1)
        ctx.save_for_backward(log_p, log_q)
        terms, _, _ = _terms(log_p, log_q, kind)
        return terms.sum(1) * temperature**2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.form == "triton":
            from synthesis_kernels.triton_forms.divergence import backward

            to_both = backward(*ctx.saved_tensors, grad, ctx.temperature, ctx.kind)
            return *to_both, None, None
        log_p, log_q = ctx.saved_tensors
        grad = (grad * ctx.temperature).unsqueeze(1)
        p = log_p.exp()
        q = log_q.exp()
        to_teacher: Tensor | None = None
        if ctx.needs_input_grad[0] or ctx.kind == "js":
            _, towards_p, towards_q = _terms(log_p, log_q, ctx.kind)
        if ctx.needs_input_grad[0]:
            to_teacher = grad * p * _centred(towards_p, p)
        by_student = q - p if ctx.kind == "kl" else q * _centred(towards_q, q)
        return to_teacher, grad * by_student, None, None


def _centred(towards: Tensor, p: Tensor) -> Tensor:
    """r − Σ p·r: times p, the gradient of softmax for whatever r multiplies p's change."""
    return towards - (p * towards).sum(1, keepdim=True)


def _terms(log_p: Tensor, log_q: Tensor, kind: Kind) -> tuple[Tensor, Tensor, Tensor]:
    """The summands, and the derivatives (up to a constant) by each probability."""
    if kind == "kl":
        towards_p = log_p - log_q
        return log_p.exp() * towards_p, towards_p, towards_p
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    towards_p = 0.5 * (log_p - log_m)
    towards_q = 0.5 * (log_q - log_m)
    return log_p.exp() * towards_p + log_q.exp() * towards_q, towards_p, towards_q
