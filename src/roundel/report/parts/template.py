"""Filling a template: names of layers and models are text, never markup.

Nor are they ever anything that a file in UTF-8, or a reader of it, does not take.
"""

from functools import cache
from typing import Any

from roundel.formatting import printable


def fill(template: str, **values: Any) -> str:
    """Render a file of `report/templates`. What is unknown to the template's caller is an error, not a gap.

    Drawings are put in as they are, with the filter `safe`; everything else is escaped.
    """
    return printable(_templates().get_template(template).render(values))


@cache
def _templates() -> Any:
    """Kept, with the templates that it has compiled."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("roundel.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
