"""Whether a product and the sum after it are rounded once, as one operation, or each for itself:
said at every launch, since Triton's versions differ in what they do unasked.
"""

FUSED = {"enable_fp_fusion": True}
"""Faster."""
EXACT = {"enable_fp_fusion": False}
"""As torch rounds."""
