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
from pathlib import Path

import pytest
import torch


CHECKOUT = Path(__file__).resolve().parents[2]
CACHE = CHECKOUT / ".transformers-tests"
MODEL_TESTS = Path(__file__).with_name("model_tests.py")

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


def main(arguments: list[str]) -> int:
    register_tests(fetch_tests())
    # The models are tiny: threads would cost more than they give.
    torch.set_num_threads(1)
    # The project's own pytest options do not fit: transformers uses markers of its own and warns a lot.
    options = ["-q", "--no-header", "--tb=short", "--noconftest", "-o", "addopts=", "-p", "no:cacheprovider"]
    options += ["--disable-warnings", "--override-ini", "filterwarnings=ignore"]
    return pytest.main([*options, str(MODEL_TESTS), *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
