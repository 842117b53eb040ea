"""Pages from templates: one file each, without scripts and with nothing to fetch."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

TEMPLATES = Environment(
    loader=PackageLoader("inversion.pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
"""What lies in the folder `templates`. Every value is escaped, but for plots drawn here."""


def render(template: str, **content: object) -> bytes:
    """The page that a template makes of this content."""
    page = TEMPLATES.get_template(template).render(content)
    # A path need not be UTF-8.
    return page.encode(errors="replace")
