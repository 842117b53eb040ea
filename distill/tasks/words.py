"""What tables, pages and cards call a task's decisions and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Words:
    """Those of one decision an image, where nothing else is said."""

    unit: str = "images"
    """What is decided."""
    shares: bool = False
    """Whether counts of classes are told as shares of all."""
    balance: str = ""
    """What balance asks for, where it is not that counts are alike."""
    label: str = "A label is that network's decision."
    category: str = "image-classification"
    """What Hugging Face calls the task."""
    folder: Mapping[str, str] = field(
        default_factory=lambda: {"*/*.png": "pictures, a folder a class"}
    )
    """What an export of pictures holds."""
    loaded: str | Sequence[str] = "*/*.png"
    """What Hugging Face's `load_dataset` is to read of it."""
    archive: str = ".cls (the class)"
    """Files of labels in archives."""

    def spread(self, counts: Sequence[int], once: bool = True) -> str:
        """From the least to the most of a class; `once` where both are the same."""
        least, most = (self.tell(count, sum(counts)) for count in (min(counts), max(counts)))
        return least if once and least == most else f"{least} to {most}"

    def tell(self, count: int, total: int) -> str:
        """A class's count, or its share of the total."""
        return f"{count / max(total, 1):.1%}" if self.shares else f"{count:,}"

    @property
    def heading(self) -> str:
        """Of a column of such figures."""
        return f"share of {self.unit}" if self.shares else self.unit

    @property
    def measure(self) -> str:
        """What comes after such a figure: 200 images, 5 % of the pixels."""
        return f"of the {self.unit}" if self.shares else self.unit
