"""One file per distillation method; a loss is a plain function of tensors, and zero where student and teacher agree."""
