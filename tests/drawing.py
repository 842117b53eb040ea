"""What tests of sources share."""

from inversion.sources.random import Random
from inversion.sources.stream import open_source


def random(*key):
    return Random("cpu", *key)


def floats(address, channels, size, number=0):
    return open_source(address, channels, size).block(number).double() / 255
