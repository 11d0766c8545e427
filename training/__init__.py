"""Commands to run from the checkout: training, evaluation, experiments, benchmarks."""

from importlib.util import find_spec


PACKAGES = ("accelerate", "datasets", "evaluate")
if missing := [name for name in PACKAGES if find_spec(name) is None]:
    raise ImportError(
        f"The commands of training/ need {', '.join(missing)}, which the models do not need: "
        'run `pip install -e ".[train,analysis]"` in the checkout.'
    )
