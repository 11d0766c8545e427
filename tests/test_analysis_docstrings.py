"""Every public function of the toolkit says of what shape its tensors are and where it comes from."""

import inspect
import re

import pytest
import torch

from modeling_prism.analysis import heads, momentum, prism, representations, response, spherical


# "(..., H, S)", "(L,)", "(p * p, 3)"; or what has no shape.
SHAPE = re.compile(r"\((?:\.{3}|[A-Za-z](?:_\w)?(?: [-+*] \w)?)(?:,[^()]*)?\)|\bfloats?\b|\bscalars?\b")
SOURCE = re.compile(r"\bSource: \S|\bDerived here\b|\bDefinition of this package\b")


def lacks(function) -> list[str]:
    text = " ".join((function.__doc__ or "").split())
    return [what for what, pattern in (("shape", SHAPE), ("source", SOURCE)) if not pattern.search(text)]


@pytest.mark.parametrize("module", [heads, representations, prism, momentum, response, spherical])
def test_shapes_and_source_are_given(module):
    functions = {
        name: function
        for name, function in vars(module).items()
        if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_")
    }
    assert len(functions) >= 7
    assert {name: lacks(function) for name, function in functions.items() if lacks(function)} == {}


def test_what_is_missing_is_found():
    def undocumented(x: torch.Tensor) -> torch.Tensor:
        return x

    def vague(x: torch.Tensor) -> torch.Tensor:
        """The gain |H| (or not) of what is received; 1 leaves a frequency as it is (`gain`)."""
        return x

    def unsourced(x: torch.Tensor) -> torch.Tensor:
        """The norm of tokens (N, d): (N,)."""
        return x

    assert lacks(undocumented) == lacks(vague) == ["shape", "source"] and lacks(unsourced) == ["source"]
