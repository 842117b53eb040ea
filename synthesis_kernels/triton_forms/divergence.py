"""`divergence` for CUDA: a block holds all classes of some samples, so logits are read once each
way. One kernel serves both ways and all plans: it is compiled once for a type and number of
classes, and once more where weights have another type.
"""

# ruff: noqa: ANN202, N803 (kernels: constants are in capitals, and Triton reads annotations)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from synthesis_kernels.divergence import DivergencePlan
from synthesis_kernels.triton_forms.rounding import FUSED

# The logit of classes that pad a block: finite, so that differences of two are 0.
NOWHERE = tl.constexpr(-1e30)
ALONE = 1 << 14
"""Logits that one program takes, padded, block by block; it then adds up their loss itself."""
BLOCK = 1 << 12
"""Of them a program holds at a time; of few classes it holds fewer."""
ROWS = 128
"""Samples that a program holds at a time: a usual batch."""
CHANGING = [
    "samples", "places", "K", "steps", "teacher_b", "teacher_k", "teacher_s", "student_b",
    "student_k", "student_s", "grad_b", "grad_s", "to_teacher_b", "to_teacher_k", "to_teacher_s",
    "to_student_b", "to_student_k", "to_student_s", "gated", "mean", "weighed", "measures", "alone",
    "decides", "to_teacher", "to_student",
]  # fmt: skip


@triton.jit
def _logits(ptr, rows, k, K, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    z = tl.load(ptr, mask=rows & (k < K), other=0.0).to(WIDE)
    return tl.where(k < K, z, tl.full(z.shape, NOWHERE, WIDE))


@triton.jit
def _log_softmax(z, temperature):  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    z = z / temperature
    z = z - tl.max(z, axis=1)[:, None]
    return z - tl.log(tl.sum(tl.exp(z), axis=1))[:, None]


@triton.jit(do_not_specialize=CHANGING)
def _divergence_kernel(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    teacher_ptr, student_ptr, weights_ptr, grad_ptr,
    out_ptr, alike_ptr, to_teacher_ptr, to_student_ptr, samples, places,
    teacher_b, teacher_k, teacher_s, student_b, student_k, student_s, grad_b, grad_s,
    to_teacher_b, to_teacher_k, to_teacher_s, to_student_b, to_student_k, to_student_s,
    temperature, K, steps, gated, mean, weighed, measures, alone, decides, to_teacher, to_student,
    WIDE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Whatever is asked for of the divergence, the decisions and both gradients."""
    k = tl.arange(0, BLOCK_K)[None, :]
    total = tl.zeros((BLOCK_R,), dtype=WIDE)
    for step in range(steps):
        row = (tl.program_id(0) + step).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
        real = row < samples
        rows = real[:, None]
        b = row // places
        s = row % places
        place = (b * teacher_b + s * teacher_s)[:, None] + k * teacher_k
        teacher = _logits(teacher_ptr + place, rows, k, K, WIDE)
        place = (b * student_b + s * student_s)[:, None] + k * student_k
        student = _logits(student_ptr + place, rows, k, K, WIDE)
        log_p = _log_softmax(teacher, temperature)
        log_q = _log_softmax(student, temperature)
        p = tl.exp(log_p)
        apart = tl.sum(p * (log_p - log_q), axis=1)
        alike = tl.argmax(teacher, axis=1) == tl.argmax(student, axis=1)
        counts = real & (alike | (gated == 0))
        factor = tl.full((BLOCK_R,), 1.0, WIDE)
        if weighed:
            factor *= tl.load(weights_ptr + b, mask=real, other=0.0).to(WIDE)
        if mean:
            factor = factor / samples
        if measures:
            out = tl.where(counts, apart * temperature * temperature * factor, 0.0)
            total += out
            if alone == 0:
                tl.store(out_ptr + row, out.to(out_ptr.dtype.element_ty), mask=real)
        if decides:
            tl.store(alike_ptr + row, alike.to(alike_ptr.dtype.element_ty), mask=real)
        if to_teacher + to_student > 0:
            # The mean's own gradient is one number: its strides are 0.
            grad = tl.load(grad_ptr + b * grad_b + s * grad_s, mask=real, other=0.0).to(WIDE)
            grad = tl.where(counts, grad * temperature * factor, 0.0)[:, None]
            mask = rows & (k < K)
            if to_teacher:
                out_k = grad * p * (log_p - log_q - apart[:, None])
                place = (b * to_teacher_b + s * to_teacher_s)[:, None] + k * to_teacher_k
                tl.store(to_teacher_ptr + place, out_k.to(to_teacher_ptr.dtype.element_ty), mask)
            if to_student:
                out_k = grad * (tl.exp(log_q) - p)
                place = (b * to_student_b + s * to_student_s)[:, None] + k * to_student_k
                tl.store(to_student_ptr + place, out_k.to(to_student_ptr.dtype.element_ty), mask)
    if alone:
        tl.store(out_ptr, tl.sum(total, axis=0).to(out_ptr.dtype.element_ty))


def forward(
    teacher: Tensor,  # (B, K, *) any strides
    student: Tensor,  # (B, K, *) any strides
    weights: Tensor | None,  # (B,)
    plan: DivergencePlan,
) -> tuple[Tensor, Tensor]:
    """The divergence of each sample, (B, *), or their mean, (); and where decisions are alike, as 1
    and 0, where that is asked for. Triton rounds the temperature to float32, also where logits are
    float64.
    """
    t = _three_axes(teacher)
    s = _three_axes(student)
    alone = plan.mean and s.numel() // s.shape[1] * triton.next_power_of_2(s.shape[1]) <= ALONE
    out = _like_samples(teacher, student, () if alone else teacher.shape[:1] + teacher.shape[2:])
    alike = _like_samples(teacher, student, out.shape if plan.decides else (0,))
    _launch(
        (t, s, weights, out, out, alike, t, s), plan,
        measures=True, alone=alone, decides=plan.decides,
    )  # fmt: skip
    return out.sum() if plan.mean and not alone else out, alike


def backward(
    teacher: Tensor,  # (B, K, *) any strides
    student: Tensor,  # (B, K, *) any strides
    weights: Tensor | None,  # (B,)
    grad: Tensor,  # (B, *), or () of the mean
    plan: DivergencePlan,
    needed: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of teacher and student logits, those that are needed."""
    t = _three_axes(teacher)
    s = _three_axes(student)
    if plan.mean:
        grad = grad.expand(t.shape[0], t.shape[2])
    else:
        grad = grad.flatten(1) if grad.ndim > 1 else grad.unsqueeze(1)
    to_t = _room(t) if needed[0] else t
    to_s = _room(s) if needed[1] else s
    _launch(
        (t, s, weights, grad, grad, grad, to_t, to_s), plan,
        to_teacher=needed[0], to_student=needed[1],
    )  # fmt: skip
    to_teacher = to_t.view(teacher.shape) if needed[0] else None
    to_student = to_s.view(student.shape) if needed[1] else None
    return to_teacher, to_student


def _three_axes(logits: Tensor) -> Tensor:  # (B, K, *) -> (B, K, S)
    """A copy only where no one stride steps through *."""
    return logits.flatten(2) if logits.ndim > 2 else logits.unsqueeze(2)


def _like_samples(teacher: Tensor, student: Tensor, shape: tuple[int, ...]) -> Tensor:
    dtype = torch.promote_types(teacher.dtype, student.dtype)
    return torch.empty(shape, dtype=dtype, device=student.device)


def _room(logits: Tensor) -> Tensor:  # (B, K, S)
    """Memory for their gradient, classes last where they are last in the logits."""
    images, classes, places = logits.shape
    is_last = logits.stride(1) == 1
    size = (images, places, classes) if is_last else (images, classes, places)
    out = torch.empty(size, dtype=logits.dtype, device=logits.device)
    return out.transpose(1, 2) if is_last else out


def _launch(
    # teacher, student, weights, grad, out, alike, to_teacher, to_student: what isn't asked for is
    # another one of its type
    tensors: tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor, Tensor],
    plan: DivergencePlan,
    *,
    measures: bool = False,
    alone: bool = False,
    decides: bool = False,
    to_teacher: bool = False,
    to_student: bool = False,
) -> None:
    teacher, student, weights, grad, *others, to_t, to_s = tensors
    images, classes, places = teacher.shape
    samples = images * places
    block = triton.next_power_of_2(classes)
    rows = max(1, min(ROWS, BLOCK // block))
    steps = triton.cdiv(samples, rows)
    to_grad = grad.stride() if grad.ndim == 2 else (0, 0)
    strides = (*teacher.stride(), *student.stride(), *to_grad, *to_t.stride(), *to_s.stride())
    yes = (plan.gated, plan.mean, weights is not None, measures, alone, decides)
    given = student if weights is None else weights.contiguous()
    with torch.cuda.device_of(student):
        _divergence_kernel[(1 if alone else steps,)](
            teacher, student, given, grad, *others, to_t, to_s, samples, places, *strides,
            float(plan.temperature), classes, steps if alone else 1,
            *map(int, yes), int(to_teacher), int(to_student),
            WIDE=tl.float64 if torch.float64 in (teacher.dtype, student.dtype) else tl.float32,
            BLOCK_R=rows, BLOCK_K=block, num_warps=min(max(rows * block // 256, 4), 32), **FUSED,
        )  # fmt: skip
