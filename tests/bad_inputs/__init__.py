"""
Wrong inputs, one row each: what is given, the words of the refusal, and files beside it. `test_bad_inputs.py` gives
each row to the `give` of its file, expects a `ValueError`, and no change on the disk.
"""

import io
import shlex
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from safetensors.torch import load_file, save_file

from training.command import run


class Row(NamedTuple):
    given: Any
    # A regular expression.
    says: str
    # By name: contents, None for a folder, `copy(...)`, `link(...)`, or a function of the contents so far.
    files: dict[str, Any] = {}


def copy(source: str) -> Callable[[Path], Any]:
    return lambda file: (shutil.copytree if Path(source).is_dir() else shutil.copy)(source, file)


def link(target: str) -> Callable[[Path], Any]:
    return lambda file: file.symlink_to(target)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:99])


def not_finite(file: Path) -> None:
    weights = load_file(file)
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, file, {"format": "pt"})


def all_zero(file: Path) -> None:
    save_file({name: weight * 0 for name, weight in load_file(file).items()}, file, {"format": "pt"})


def remove(file: Path) -> None:
    file.unlink()


def lay(files: dict[str, Any]) -> None:
    """Makes the files of a row in the current folder."""
    for name, content in files.items():
        file = Path(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            file.mkdir()
        elif callable(content):
            content(file)
        else:
            file.write_bytes(content.encode() if isinstance(content, str) else content)


def refused(main: Callable, *words: str) -> None:
    """Runs a command of `training/` and raises the sentence that it ends in, with exit status 2, as a `ValueError`."""
    said, words = io.StringIO(), [part for word in words for part in shlex.split(word)]
    with mock.patch.object(sys, "argv", ["command", *words]), redirect_stderr(said):
        try:
            run(main)
        except SystemExit as ended:
            assert ended.code == 2 and "Traceback" not in said.getvalue(), said.getvalue()
            raise ValueError(said.getvalue().strip().splitlines()[-1]) from None
