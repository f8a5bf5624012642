"""`roundel recipes`."""

from rich.table import Table

from roundel.cli.display import out
from roundel.recipe import Recipe, recipe_names


def recipes_command() -> None:
    """List the shipped recipes and every key that --set takes."""
    table = Table(title="Recipes", title_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column("what it does")
    for name in recipe_names():
        table.add_row(name, Recipe.load(name).description)
    out.print(table)
    keys = Table(title="Keys of a recipe (--set KEY=VALUE)", title_justify="left")
    keys.add_column("key", no_wrap=True)
    keys.add_column("default", no_wrap=True)
    keys.add_column("meaning")
    for key, field in sorted(Recipe.model_fields.items()):
        default = field.get_default(call_default_factory=True)
        keys.add_row(
            key, "" if default is None else str(default), " ".join((field.description or "").split())
        )
    out.print(keys)
