"""Runs the model tests of the installed transformers on every family of this package: `make test-transformers`.

    python -m tests.transformers_common.run            # all families
    python -m tests.transformers_common.run -k rope    # whatever follows is passed to pytest

The tests are taken from the source distribution of the installed version, which pip fetches from the index it is
configured with. They are kept under `.transformers-tests/`, which git ignores, and fetched once a version. The
families and the sizes they are tested at are the table in `model_tests.py`, which pytest does not collect by itself.
"""

import importlib.metadata
import subprocess
import sys
import tarfile
import tempfile
import types
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch


CHECKOUT = Path(__file__).resolve().parents[2]
CACHE = CHECKOUT / ".transformers-tests"
MODEL_TESTS = Path(__file__).with_name("model_tests.py")

# Tests that may fail, under the name that pytest -k takes, each with the reason. One that passes must leave the list.
EXCEPTIONS = {
    "test_generation_tester_mixin_inheritance": (
        "wants GenerationTesterMixin among the bases, which the source distribution lacks; "
        "generation has tests of its own in tests/"
    ),
}

# `ConfigTester` sets these on a config and reads them back; transformers keeps the list in a module it does not ship.
CONFIG_COMMON_KWARGS = {
    "return_dict": False,
    "output_hidden_states": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["BertModel"],
    "id2label": {0: "label"},
    "label2id": {"label": 0},
    "problem_type": "regression",
}


def fetch_tests() -> Path:
    """Returns the `tests` folder of the installed transformers' source distribution, fetched if it is not here yet."""
    version = importlib.metadata.version("transformers")
    target = CACHE / f"transformers-{version}" / "tests"
    if target.is_dir():
        return target

    CACHE.mkdir(exist_ok=True)
    # Unpacked beside its destination and renamed, so that an interrupted run leaves no half a folder behind.
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        # pip computes the metadata even though nothing is installed; torch already brings the setuptools it needs.
        command += ["--no-build-isolation", "--dest", folder, f"transformers=={version}"]
        if subprocess.run(command).returncode != 0:
            sys.exit(
                f"pip found no source distribution of transformers {version} (its messages are above): install a "
                f"released version, or put the `tests` folder of that version at {target.relative_to(CHECKOUT)}."
            )
        (archive,) = Path(folder).glob("transformers-*.tar.gz")
        with tarfile.open(archive) as tar:
            prefix = f"transformers-{version}/tests/"
            tar.extractall(folder, [m for m in tar.getmembers() if m.name.startswith(prefix)], filter="data")
        target.parent.mkdir(exist_ok=True)
        # Not in the distribution either, and read by test_configuration_common.py as if it were transformers itself.
        (Path(folder) / prefix / "__init__.py").touch()
        (Path(folder) / prefix).rename(target)
    return target


def register(name: str, path: Path | None = None, **attributes) -> None:
    """Makes `name` importable: a package over the folder `path`, or a stub that holds `attributes`."""
    module = types.ModuleType(name)
    module.__path__ = [] if path is None else [str(path)]
    module.__dict__.update(attributes)
    sys.modules[name] = module


def register_tests(path: Path) -> None:
    """Makes the fetched folder importable as `transformers_tests`, with stubs for the modules that it lacks."""
    register("transformers_tests", path)
    for folder in ("exporters", "generation", "utils"):
        register(f"transformers_tests.{folder}")
    register("transformers_tests.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
    register("transformers_tests.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
    register("transformers_tests.utils.test_configuration_utils", config_common_kwargs=CONFIG_COMMON_KWARGS)


class Outcomes:
    """pytest plugin that keeps one outcome a test: the worst of its set-up, call, subtests and clean-up."""

    severity = ("passed", "skipped", "failed")

    def __init__(self):
        self.by_test = {}
        self.collection_failed = False

    def pytest_collectreport(self, report):
        self.collection_failed |= report.failed

    def pytest_runtest_logreport(self, report):
        # A test whose subtests were skipped in part has passed; one whose subtests failed has failed.
        if isinstance(report, pytest.SubtestReport) and not report.failed:
            return
        known = self.by_test.get(report.nodeid, "passed")
        self.by_test[report.nodeid] = max(known, report.outcome, key=self.severity.index)


def summarize(outcomes: dict[str, str]) -> tuple[str, list[str]]:
    """
    Args:
        outcomes (`dict[str, str]`): outcome (`"passed"`, `"failed"` or `"skipped"`) by pytest node id.

    Returns:
        the report to print, and what is wrong: a line for each failure that is not in `EXCEPTIONS`, and for each entry
        of it that passed everywhere.
    """
    counts, excepted, problems = defaultdict(Counter), defaultdict(set), []
    for nodeid, outcome in outcomes.items():
        class_name, test_name = nodeid.split("::")[-2:]
        if test_name in EXCEPTIONS:
            excepted[test_name].add(outcome)
        if outcome == "failed" and test_name in EXCEPTIONS:
            outcome = "excepted"
        elif outcome == "failed":
            problems.append(f"failed: {class_name}::{test_name}")
        counts[class_name][outcome] += 1
    problems += [f"passes, remove it from EXCEPTIONS: {name}" for name, seen in excepted.items() if seen == {"passed"}]

    columns = ("passed", "failed", "excepted", "skipped")
    lines = ["", f"{'family and mixin':<40}" + "".join(f"{column:>10}" for column in columns)]
    for class_name, counter in counts.items():
        lines.append(f"{class_name:<40}" + "".join(f"{counter[column]:>10}" for column in columns))
    lines += [f"excepted {name}: {EXCEPTIONS[name]}" for name in excepted]
    return "\n".join(lines + problems), problems


def main(arguments: list[str]) -> int:
    register_tests(fetch_tests())
    # The models are tiny: threads would cost more than they give.
    torch.set_num_threads(1)
    outcomes = Outcomes()
    # The project's own pytest options do not fit: transformers uses markers of its own and warns a lot.
    options = ["-q", "--no-header", "--tb=short", "--noconftest", "-o", "addopts=", "-p", "no:cacheprovider"]
    options += ["--disable-warnings", "--override-ini", "filterwarnings=ignore"]
    pytest.main([*options, str(MODEL_TESTS), *arguments], plugins=[outcomes])
    report, problems = summarize(outcomes.by_test)
    print(report)
    return int(bool(problems) or outcomes.collection_failed or not outcomes.by_test)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
