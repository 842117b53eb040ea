"""Differentiable operations with fast forms: each has its definition, its forms and a picker."""
