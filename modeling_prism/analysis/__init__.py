"""
Looks inside a model: pure functions on attention maps, representations and filters; `examine`, which measures a model
on texts; and figures and a report on top.

```python
from modeling_prism.analysis import examine, figures

findings = examine(model, tokenizer, texts)
figures.plot_heads(findings)
```

```bash
python -m modeling_prism.analysis outputs/quickstart --texts valid.txt --out report
```
"""

from importlib.util import find_spec


if missing := [name for name in ("matplotlib", "numpy", "scipy") if find_spec(name) is None]:
    raise ImportError(
        f"modeling_prism.analysis needs {', '.join(missing)}, which the models do not need: "
        "pip install modeling-prism[analysis]"
    )

from . import heads, momentum, prism, representations, response, spherical  # noqa: E402
from .collect import collect_windows, cut_texts  # noqa: E402
from .control import examine_untrained, untrained_copy  # noqa: E402
from .examine import examine, examine_cyclic  # noqa: E402
from .heads import prefix_matching_score, random_repeats  # noqa: E402


__all__ = [
    "collect_windows",
    "cut_texts",
    "examine",
    "examine_cyclic",
    "examine_untrained",
    "heads",
    "momentum",
    "prefix_matching_score",
    "prism",
    "random_repeats",
    "representations",
    "response",
    "spherical",
    "untrained_copy",
]
