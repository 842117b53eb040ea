"""Names of the zoo's networks, for messages. No torch here."""

USUAL_NETWORKS = (
    "convnet-16",
    "convnet-32",
    "convnet-gn-32",
    "resnet-gn-16",
    "unet-16",
    "vit-128x6",
    "wrn-16-1",
    "wrn-40-2",
)
"""Names of the zoo with usual numbers, to suggest after a misspelt one."""
