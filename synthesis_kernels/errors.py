"""The one exception the whole project raises for a mistake the user can mend."""


class EchosetError(Exception):
    """Says what is wrong (the layer, shape, key or file) and what to do about it."""
