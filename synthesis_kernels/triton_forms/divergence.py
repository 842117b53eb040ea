"""`divergence` for CUDA: a block holds all classes of a few samples, so logits are read once each
way.
"""

# ruff: noqa: ANN202, N803 (kernels: constants are in capitals, and Triton reads annotations)
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from synthesis_kernels.divergence import DivergencePlan

# The logit of classes that pad a block: finite, so that differences of two are 0.
NOWHERE = tl.constexpr(-1e30)
ALONE = 1 << 14
"""Logits that one program takes, padded; it then adds up their loss itself."""


@triton.jit
def _logits(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    ptr, base, stride, rows, K: tl.constexpr, BLOCK_K: tl.constexpr, WIDE: tl.constexpr
):
    k = tl.arange(0, BLOCK_K)[None, :]
    z = tl.load(ptr + base + k * stride, mask=rows & (k < K), other=0.0).to(WIDE)
    return tl.where(k < K, z, tl.full(z.shape, NOWHERE, WIDE))


@triton.jit
def _log_softmax(z, temperature):  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    z = z / temperature
    z = z - tl.max(z, axis=1)[:, None]
    return z - tl.log(tl.sum(tl.exp(z), axis=1))[:, None]


@triton.jit
def _alike(teacher, student):  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    return tl.argmax(teacher, axis=1) == tl.argmax(student, axis=1)


@triton.jit
def _forward_kernel(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    teacher_ptr, student_ptr, weights_ptr, out_ptr, alike_ptr, samples, places,
    teacher_b, teacher_k, teacher_s, student_b, student_k, student_s, temperature,
    K: tl.constexpr, GATED: tl.constexpr, DECIDES: tl.constexpr, MEAN: tl.constexpr,
    WEIGHED: tl.constexpr, ALONE: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    rows = (row < samples)[:, None]
    b = (row // places)[:, None]
    s = (row % places)[:, None]
    teacher = _logits(teacher_ptr, b * teacher_b + s * teacher_s, teacher_k, rows, K, BLOCK_K, WIDE)
    student = _logits(student_ptr, b * student_b + s * student_s, student_k, rows, K, BLOCK_K, WIDE)
    log_p = _log_softmax(teacher, temperature)
    log_q = _log_softmax(student, temperature)
    out = tl.sum(tl.exp(log_p) * (log_p - log_q), axis=1) * temperature * temperature
    if GATED:
        out = tl.where(_alike(teacher, student), out, 0.0)
    if MEAN:
        if WEIGHED:
            out *= tl.load(weights_ptr + row // places, mask=row < samples, other=0.0).to(WIDE)
        out = out / samples
    if ALONE:
        total = tl.sum(tl.where(row < samples, out, 0.0), axis=0)
        tl.store(out_ptr, total.to(out_ptr.dtype.element_ty))
    else:
        tl.store(out_ptr + row, out.to(out_ptr.dtype.element_ty), mask=row < samples)
    if DECIDES:
        alike = _alike(teacher, student).to(alike_ptr.dtype.element_ty)
        tl.store(alike_ptr + row, alike, mask=row < samples)


@triton.jit
def _backward_kernel(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    teacher_ptr, student_ptr, weights_ptr, grad_ptr, to_teacher_ptr, to_student_ptr,
    samples, places,
    teacher_b, teacher_k, teacher_s, student_b, student_k, student_s, grad_b, grad_s,
    to_teacher_b, to_teacher_k, to_teacher_s, to_student_b, to_student_k, to_student_s, temperature,
    K: tl.constexpr, GATED: tl.constexpr, MEAN: tl.constexpr, WEIGHED: tl.constexpr,
    TO_TEACHER: tl.constexpr, TO_STUDENT: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    rows = (row < samples)[:, None]
    b = (row // places)[:, None]
    s = (row % places)[:, None]
    teacher = _logits(teacher_ptr, b * teacher_b + s * teacher_s, teacher_k, rows, K, BLOCK_K, WIDE)
    student = _logits(student_ptr, b * student_b + s * student_s, student_k, rows, K, BLOCK_K, WIDE)
    log_p = _log_softmax(teacher, temperature)
    log_q = _log_softmax(student, temperature)
    # The loss's own gradient is one number: its strides are 0.
    grad = tl.load(grad_ptr + b * grad_b + s * grad_s, mask=rows, other=0.0).to(WIDE) * temperature
    if WEIGHED:
        grad *= tl.load(weights_ptr + b, mask=rows, other=0.0).to(WIDE)
    if MEAN:
        grad = grad / samples
    if GATED:
        grad = tl.where(_alike(teacher, student)[:, None], grad, 0.0)
    p = tl.exp(log_p)
    k = tl.arange(0, BLOCK_K)[None, :]
    mask = rows & (k < K)
    if TO_TEACHER:
        apart = log_p - log_q
        to_teacher = grad * p * (apart - tl.sum(p * apart, axis=1)[:, None])
        place = b * to_teacher_b + s * to_teacher_s + k * to_teacher_k
        tl.store(to_teacher_ptr + place, to_teacher.to(to_teacher_ptr.dtype.element_ty), mask=mask)
    if TO_STUDENT:
        to_student = grad * (tl.exp(log_q) - p)
        place = b * to_student_b + s * to_student_s + k * to_student_k
        tl.store(to_student_ptr + place, to_student.to(to_student_ptr.dtype.element_ty), mask=mask)


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
    settings, grid = _launch(t, s, plan, weights)
    alone = plan.mean and s.numel() // s.shape[1] * settings["BLOCK_K"] <= ALONE
    if alone:
        settings["BLOCK_R"] = triton.next_power_of_2(t.shape[0] * t.shape[2])
        settings["num_warps"] = 16
        grid = (1,)
    out = _like_samples(teacher, student, () if alone else teacher.shape[:1] + teacher.shape[2:])
    alike = _like_samples(teacher, student, out.shape if plan.decides else (0,))
    strides = (*t.stride(), *s.stride())
    with torch.cuda.device_of(student):
        _forward_kernel[grid](
            t, s, s if weights is None else weights.contiguous(), out, alike,
            t.shape[0] * t.shape[2], t.shape[2], *strides, float(plan.temperature),
            DECIDES=plan.decides, ALONE=alone, **settings,
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
    strides = (*t.stride(), *s.stride(), *grad.stride(), *to_t.stride(), *to_s.stride())
    settings, grid = _launch(t, s, plan, weights)
    with torch.cuda.device_of(student):
        _backward_kernel[grid](
            t, s, s if weights is None else weights.contiguous(), grad, to_t, to_s,
            t.shape[0] * t.shape[2], t.shape[2], *strides, float(plan.temperature),
            TO_TEACHER=needed[0], TO_STUDENT=needed[1], **settings,
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
    teacher: Tensor, student: Tensor, plan: DivergencePlan, weights: Tensor | None
) -> tuple[dict[str, Any], tuple[int]]:
    """A kernel's constants and its grid."""
    samples = teacher.shape[0] * teacher.shape[2]
    classes = teacher.shape[1]
    block = triton.next_power_of_2(classes)
    rows = max(1, 1024 // block)
    wide = tl.float64 if torch.float64 in (teacher.dtype, student.dtype) else tl.float32
    warps = min(max(block // 512, 4), 16)
    settings = {
        "K": classes,
        "GATED": plan.gated,
        "MEAN": plan.mean,
        "WEIGHED": weights is not None,
        "WIDE": wide,
        "BLOCK_R": rows,
        "BLOCK_K": block,
        "num_warps": warps,
    }
    return settings, (triton.cdiv(samples, rows),)
