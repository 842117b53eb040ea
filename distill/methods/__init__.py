"""Ways to distil: one file a method."""
