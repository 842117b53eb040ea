"""What can be seen in the plots of a page."""

import re
from xml.etree import ElementTree

from inversion.pages.plots import COLOURS


def pictures_of(page):
    """The plots, in order."""
    return re.findall(r"<svg .*?</svg>", page, re.DOTALL)


def words_in(picture):
    """Ticks and label of the x axis, those of the y axis, then names."""
    return [element.text for element in _elements(picture, "text")]


def curves_in(picture):
    """The points of each coloured line, in order; lines of a legend are among them."""
    found = []
    for element in _elements(picture, "path"):
        style = element.get("style", "")
        if "fill: none" in style and _is_coloured(style):
            points = re.findall(r"(-?[\d.]+) (-?[\d.]+)", element.get("d"))
            found.append([(float(x), float(y)) for x, y in points])
    return found


def dots_in(picture):
    """How far to the right each coloured dot is."""
    marks = _elements(picture, "use")
    return [float(mark.get("x")) for mark in marks if _is_coloured(mark.get("style"))]


def _elements(picture, name):
    return ElementTree.fromstring(picture).iter(f"{{http://www.w3.org/2000/svg}}{name}")


def _is_coloured(style):
    return any(colour in style for colour in COLOURS)
