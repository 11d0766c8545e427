"""Public functions of the toolkit document the shapes of their tensors and, for formulas, the source."""

import inspect
import re

import pytest
import torch

from modeling_prism.analysis import heads, momentum, prism, representations, response, spherical


# "(..., H, S)", "(L,)", "(p * p, 3)"; or a word for values without a shape.
SHAPE = re.compile(r"\((?:\.{3}|[A-Za-z](?:_\w)?(?: [-+*] \w)?)(?:,[^()]*)?\)|\bfloats?\b|\bscalars?\b")
# A sum, logarithm, root or fraction in code, or an equation such as "H(w) = 1 + gamma".
FORMULA = re.compile(r" / |\|\||\b(?:sum|mean|logdet|sqrt|exp|ln)(?:\b|_)")
EQUATION = re.compile(r"\b[A-Z]\w*\(\w[^)]*\) = ")
SOURCE = re.compile(r"\bSource: \S|\bDerived here\b")


def docstring(function) -> str:
    return " ".join((function.__doc__ or "").split())


def has_formula(text: str) -> bool:
    return bool(EQUATION.search(text)) or any(FORMULA.search(code) for code in re.findall("`([^`]*)`", text))


def lacks(function) -> list[str]:
    text = docstring(function)
    missing = [] if SHAPE.search(text) else ["shape"]
    return missing + (["source"] if has_formula(text) and not SOURCE.search(text) else [])


@pytest.mark.parametrize("module", [heads, representations, prism, momentum, response, spherical])
def test_shapes_and_sources_are_given(module):
    functions = {
        name: function
        for name, function in vars(module).items()
        if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_")
    }
    assert len(functions) >= 7
    assert {name: lacks(function) for name, function in functions.items() if lacks(function)} == {}


def test_formulas_are_found():
    """The documented formulas of the two papers are recognised, so that the test above asks for their source."""
    for function in (
        representations.coding_rate,
        prism.objective,
        momentum.transfer_function,
        heads.spectral_centroid,
    ):
        assert has_formula(docstring(function))


def test_what_is_missing_is_found():
    def undocumented(x: torch.Tensor) -> torch.Tensor:
        return x

    def vague(x: torch.Tensor) -> torch.Tensor:
        """The gain |H| (or not) of the received states; 1 leaves a frequency unchanged (`gain`)."""
        return x

    def unsourced(x: torch.Tensor) -> torch.Tensor:
        """The mean distance `sum_s A[t, s] (t - s)` of maps (..., S, S)."""
        return x

    assert lacks(undocumented) == lacks(vague) == ["shape"] and lacks(unsourced) == ["source"]
