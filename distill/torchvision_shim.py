"""Import torchvision beside any torch.

The wheels on PyPI are CUDA builds. Beside a CPU-only torch their compiled operators do not load,
and torchvision then fails on import, because it describes operators that do not exist. Declaring
the two signatures mends the import; nothing here calls them.
"""

import torch

try:
    import torchvision
except RuntimeError as error:
    if "torchvision::" not in str(error):
        raise
    # Kept: its declarations end when it is collected.
    _LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _LIBRARY.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

__all__ = ["torchvision"]
