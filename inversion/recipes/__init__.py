"""How a set is made by training a generator: one file a recipe."""
