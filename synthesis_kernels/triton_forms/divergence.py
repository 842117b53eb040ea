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

# The logit of classes that pad a block: finite, so that differences of two are 0.
NOWHERE = tl.constexpr(-1e30)
LOG_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _log_softmax(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    ptr, base, stride, rows,
    K: tl.constexpr, BLOCK_K: tl.constexpr, temperature, WIDE: tl.constexpr,
):  # fmt: skip
    k = tl.arange(0, BLOCK_K)[None, :]
    mask = rows & (k < K)
    z = tl.load(ptr + base + k * stride, mask=mask, other=0.0).to(WIDE) / temperature
    z = tl.where(k < K, z, tl.full(z.shape, NOWHERE, WIDE))
    z = z - tl.max(z, axis=1)[:, None]
    return z - tl.log(tl.sum(tl.exp(z), axis=1))[:, None]


@triton.jit
def _towards(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    log_p, log_q, JS: tl.constexpr
):  # fmt: skip
    """The derivatives of the divergence, up to a constant, by each probability."""
    apart = log_p - log_q
    if JS:
        log_m = tl.maximum(log_p, log_q) + tl.log(1.0 + tl.exp(-tl.abs(apart))) - LOG_2
        return 0.5 * (log_p - log_m), 0.5 * (log_q - log_m)
    return apart, apart


@triton.jit
def _forward_kernel(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    teacher_ptr, student_ptr, out_ptr, samples, places,
    teacher_b, teacher_k, teacher_s, student_b, student_k, student_s, temperature,
    K: tl.constexpr, JS: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    rows = (row < samples)[:, None]
    b = (row // places)[:, None]
    s = (row % places)[:, None]
    log_p = _log_softmax(
        teacher_ptr, b * teacher_b + s * teacher_s, teacher_k, rows, K, BLOCK_K, temperature, WIDE
    )
    log_q = _log_softmax(
        student_ptr, b * student_b + s * student_s, student_k, rows, K, BLOCK_K, temperature, WIDE
    )
    towards_p, towards_q = _towards(log_p, log_q, JS)
    terms = tl.exp(log_p) * towards_p
    if JS:
        terms += tl.exp(log_q) * towards_q
    out = tl.sum(terms, axis=1) * temperature * temperature
    tl.store(out_ptr + row, out.to(out_ptr.dtype.element_ty), mask=row < samples)


@triton.jit
def _backward_kernel(  # type: ignore[no-untyped-def]  # Triton has no types for arguments
    teacher_ptr, student_ptr, grad_ptr, to_teacher_ptr, to_student_ptr, samples, places,
    teacher_b, teacher_k, teacher_s, student_b, student_k, student_s,
    to_teacher_b, to_teacher_k, to_teacher_s, to_student_b, to_student_k, to_student_s, temperature,
    K: tl.constexpr, JS: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    rows = (row < samples)[:, None]
    b = (row // places)[:, None]
    s = (row % places)[:, None]
    log_p = _log_softmax(
        teacher_ptr, b * teacher_b + s * teacher_s, teacher_k, rows, K, BLOCK_K, temperature, WIDE
    )
    log_q = _log_softmax(
        student_ptr, b * student_b + s * student_s, student_k, rows, K, BLOCK_K, temperature, WIDE
    )
    grad = tl.load(grad_ptr + row, mask=row < samples, other=0.0).to(WIDE)[:, None] * temperature
    p = tl.exp(log_p)
    q = tl.exp(log_q)
    towards_p, towards_q = _towards(log_p, log_q, JS)
    to_teacher = grad * p * (towards_p - tl.sum(p * towards_p, axis=1)[:, None])
    if JS:
        to_student = grad * q * (towards_q - tl.sum(q * towards_q, axis=1)[:, None])
    else:
        to_student = grad * (q - p)
    k = tl.arange(0, BLOCK_K)[None, :]
    mask = rows & (k < K)
    place = b * to_teacher_b + s * to_teacher_s + k * to_teacher_k
    tl.store(to_teacher_ptr + place, to_teacher.to(to_teacher_ptr.dtype.element_ty), mask=mask)
    place = b * to_student_b + s * to_student_s + k * to_student_k
    tl.store(to_student_ptr + place, to_student.to(to_student_ptr.dtype.element_ty), mask=mask)


@torch.library.custom_op("echoset::triton_divergence_forward", mutates_args=())
def forward(
    teacher: Tensor,  # (B, K, *) any strides
    student: Tensor,  # (B, K, *) any strides
    temperature: float,
    kind: str,
) -> Tensor:  # (B, *)
    """The divergence of each sample. Triton rounds `temperature` to float32, also where logits are
    float64.
    """
    t = _three_axes(teacher)
    s = _three_axes(student)
    out = _like_samples(teacher, student)
    strides = (*t.stride(), *s.stride())
    settings, grid = _launch(t, s, kind)
    with torch.cuda.device_of(student):
        _forward_kernel[grid](t, s, out, out.numel(), t.shape[2], *strides, temperature, **settings)
    return out


@forward.register_fake
def _(teacher: Tensor, student: Tensor, temperature: float, kind: str) -> Tensor:
    return _like_samples(teacher, student)


@torch.library.custom_op("echoset::triton_divergence_backward", mutates_args=())
def backward(
    teacher: Tensor,  # (B, K, *) any strides
    student: Tensor,  # (B, K, *) any strides
    grad: Tensor,  # (B, *)
    temperature: float,
    kind: str,
) -> tuple[Tensor, Tensor]:
    """The gradients of teacher and student logits."""
    t = _three_axes(teacher)
    s = _three_axes(student)
    grad = grad.contiguous()
    to_t = torch.empty_like(t)
    to_s = torch.empty_like(s)
    strides = (*t.stride(), *s.stride(), *to_t.stride(), *to_s.stride())
    settings, grid = _launch(t, s, kind)
    with torch.cuda.device_of(student):
        _backward_kernel[grid](
            t, s, grad, to_t, to_s, grad.numel(), t.shape[2], *strides, temperature, **settings
        )
    return to_t.view(teacher.shape), to_s.view(student.shape)


@backward.register_fake
def _(
    teacher: Tensor, student: Tensor, grad: Tensor, temperature: float, kind: str
) -> tuple[Tensor, Tensor]:
    to_teacher = torch.empty_like(_three_axes(teacher)).view(teacher.shape)
    to_student = torch.empty_like(_three_axes(student)).view(student.shape)
    return to_teacher, to_student


def _three_axes(logits: Tensor) -> Tensor:  # (B, K, *) -> (B, K, S)
    """A copy only where no one stride steps through *."""
    return logits.flatten(2) if logits.ndim > 2 else logits.unsqueeze(2)


def _like_samples(teacher: Tensor, student: Tensor) -> Tensor:
    dtype = torch.promote_types(teacher.dtype, student.dtype)
    return torch.empty(teacher.shape[0], *teacher.shape[2:], dtype=dtype, device=student.device)


def _launch(teacher: Tensor, student: Tensor, kind: str) -> tuple[dict[str, Any], tuple[int]]:
    """A kernel's constants and its grid."""
    samples = teacher.shape[0] * teacher.shape[2]
    classes = teacher.shape[1]
    block = triton.next_power_of_2(classes)
    rows = max(1, 1024 // block)
    wide = tl.float64 if torch.float64 in (teacher.dtype, student.dtype) else tl.float32
    warps = min(max(block // 512, 4), 16)
    settings = {
        "K": classes,
        "JS": kind == "js",
        "WIDE": wide,
        "BLOCK_R": rows,
        "BLOCK_K": block,
        "num_warps": warps,
    }
    return settings, (triton.cdiv(samples, rows),)
