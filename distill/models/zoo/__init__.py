"""Small networks for small images, built by name."""
