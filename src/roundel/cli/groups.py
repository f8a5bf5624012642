"""Options that several commands share: a group of them is declared once, as a function, in place of a parameter.

    def opening(revision: RevisionOption = None, ...) -> dict[str, Any]: ...

    @with_groups(model=opening)
    def some_command(path: ..., model: dict[str, Any]) -> None: ...

The command line shows the parameters of `opening` where `model` is; the command gets what `opening` makes of them.
"""

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints


def with_groups(**groups: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command in which groups of options take the place of parameters.

    Args:
        groups: what makes a parameter of the options that stand in for it, by the parameter's name.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        names = {name: list(inspect.signature(group).parameters) for name, group in groups.items()}
        parameters: list[inspect.Parameter] = []
        for parameter in _parameters(command):
            parameters += _parameters(groups[parameter.name]) if parameter.name in groups else [parameter]

        def call(**given: Any) -> None:
            for name, group in groups.items():
                given[name] = group(**{option: given.pop(option) for option in names[name]})
            command(**given)

        # Options have defaults, and parameters behind them may have none.
        keyword = inspect.Parameter.KEYWORD_ONLY
        call.__signature__ = inspect.Signature([p.replace(kind=keyword) for p in parameters])  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in parameters}
        call.__doc__, call.__name__ = command.__doc__, command.__name__
        return call

    return decorate


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    types = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    return [parameter.replace(annotation=types[parameter.name]) for parameter in parameters]
