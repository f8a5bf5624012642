"""Keyword arguments that functions share: one declaration for checkers, signatures, documentation and objects."""

import inspect
from dataclasses import fields
from typing import get_type_hints

import pytest

import roundel
from roundel.workflows.arguments import ModelArguments, ModelOptions
from roundel.workflows.bench.options import BenchArguments, BenchOptions
from roundel.workflows.evaluation_options import EvaluationArguments, EvaluationOptions

SHARED = [
    (ModelArguments, ModelOptions),
    (EvaluationArguments, EvaluationOptions),
    (BenchArguments, BenchOptions),
]
TAKERS = {
    ModelOptions: (roundel.quantize, roundel.sweep, roundel.plan, roundel.inspect),
    EvaluationOptions: (roundel.evaluate, roundel.compare),
    BenchOptions: (roundel.bench,),
}


@pytest.mark.parametrize(("arguments", "options"), SHARED)
def test_checkers_and_objects_know_the_same(arguments: type, options: type) -> None:
    internal = {entry.name for entry in fields(options) if "internal" in entry.metadata}
    types = {name: kind for name, kind in get_type_hints(options).items() if name not in internal}
    assert get_type_hints(arguments) == types


@pytest.mark.parametrize("options", TAKERS)
def test_each_is_in_the_signature_and_in_the_help(options: type) -> None:
    for function in TAKERS[options]:
        parameters = inspect.signature(function).parameters
        assert all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        for entry in fields(options):
            public = "internal" not in entry.metadata
            assert (entry.name in parameters) == public
            if public:
                assert parameters[entry.name].default == entry.default
                assert function.__doc__.count(f"\n        {entry.name}: ") == 1
        args, _, rest = function.__doc__.partition("Args:\n")[2].partition("\n\n")
        assert "progress: " in args
        assert "Raises:" in rest


def test_a_wrong_name_is_refused_as_python_does() -> None:
    with pytest.raises(TypeError, match=r"^quantize\(\) got an unexpected keyword argument 'bits'$"):
        roundel.quantize("nowhere", bits=4)
    with pytest.raises(TypeError, match=r"^evaluate\(\) got an unexpected keyword argument 'ranks'$"):
        roundel.evaluate("nowhere", ranks=None)
