"""Static activation ranges of a block's Linears, from what reaches them."""

from collections.abc import Callable

from roundel.activations.options import ActivationOptions
from roundel.activations.ranges import RangeObserver
from roundel.activations.scheme import StaticGrid
from roundel.engine.observers import Watch, counterparts
from roundel.errors import ModelError
from roundel.model.linears import LinearView
from roundel.system.ranks import Ranks


def static_grids(
    views: list[LinearView], run_everything: Callable[[], object], options: ActivationOptions, ranks: Ranks
) -> dict[str, StaticGrid]:
    """Watch one pass over all calibration data, two where the rule needs a histogram.

    Raises:
        ModelError: a Linear saw no token, so that nothing is known of its inputs.
    """
    observers = {view.name: RangeObserver() for view in views}
    seen: set[str] = set()
    with Watch([(v, observers[v.name].extremes) for v in views] + [(v, _note(seen, v.name)) for v in views]):
        run_everything()
    for observer in observers.values():
        observer.reduce_extremes(ranks)
    unseen = {view.name for view in views if not ranks.any(view.name in seen)}
    if options.act_range != "minmax":
        with Watch([(view, observers[view.name].count) for view in views]):
            run_everything()
        for observer in observers.values():
            observer.reduce_counts(ranks)
    grids = {name: observer.grid(options) for name, observer in observers.items() if name not in unseen}
    return grids | {view.name: _widest(view, views, grids) for view in views if view.name in unseen}


def _widest(view: LinearView, views: list[LinearView], grids: dict[str, StaticGrid]) -> StaticGrid:
    """For an expert that the router never chose: the coarsest grid of its counterparts in other experts."""
    others = [other.name for other in views if counterparts(other) == counterparts(view)]
    known = [grids[name] for name in others if name in grids]
    if not known:
        raise ModelError(
            f"{view.name} saw no calibration token, so its inputs have no static range: give more calibration data, "
            "or set act_scale=token"
        )
    return max(known, key=lambda grid: grid.scale)


def _note(seen: set[str], name: str) -> Callable[[object], None]:
    return lambda inputs: seen.add(name)
