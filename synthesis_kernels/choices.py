"""The words by which a user chooses a device, a precision, a form of the kernels and of a step. No
torch here: the command line reads them.
"""

from typing import Literal

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]
Form = Literal["auto", "reference", "native", "triton"]
Step = Literal["auto", "eager", "graph"]
Way = Literal["auto", "eager", "graph", "replay"]
"""How an update runs: also as a list of operations, on a CPU."""
