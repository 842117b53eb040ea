"""Images: reading, damaging and augmenting them."""
