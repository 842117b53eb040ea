"""Speed: our kernels and loops beside their definitions and the usual formulation."""
