"""What this machine has: the device, and whether bfloat16 pays on it."""

from __future__ import annotations

import platform

import torch

from synthesis_kernels.errors import EchosetError


def resolve_device(name: str = "auto") -> torch.device:
    """`auto` takes CUDA where there is one; a device asked for by name must exist.

    On CUDA, cuDNN is set to deterministic kernels without TF32: a seed shall fix the result, and the teacher's stored
    answers are float32 ones.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise EchosetError("device 'cuda' was asked for, but torch sees no CUDA device here; use --device cpu or auto")
    if name.startswith("cuda"):
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        torch.backends.cudnn.allow_tf32 = False
    return torch.device(name)


def resolve_precision(device: torch.device, name: str = "auto") -> torch.dtype:
    """`auto` takes bfloat16 only where the processor multiplies it natively; emulated, it is slower than float32."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def mixed_precision(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """The autocast region a forward pass runs in; float32 switches it off."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision is torch.bfloat16)


def describe_device(device: torch.device) -> str:
    """For manifests and result files: what the figures were measured on."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    model = ""
    try:
        with open("/proc/cpuinfo") as file:
            model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "")
    except OSError:
        pass
    return f"cpu: {model or platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
