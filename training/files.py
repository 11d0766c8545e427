"""Files that are whole or absent, checksums, and paths that may be published."""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path


# An absolute path inside a text, and its last part; not the "//" of a URL.
PATH = re.compile(r"""(?<![^\s=,:;'"\[({])(?!//)[/~]/?(?:[^\s=,:;'"\])}]*/)?([^\s/=,:;'"\])}]+)""")


def write_json(file: Path, content: dict) -> None:
    """Writes a JSON file atomically, so that a killed process leaves no partial file. NaN and infinity become null."""
    unfinished = file.with_name(f".{file.name}.unfinished")
    text = json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False)
    unfinished.write_text(text + "\n", encoding="utf-8")
    os.replace(unfinished, file)


def read_json(file: Path) -> dict:
    """Reads a JSON file that must hold an object; raises `ValueError` with the file's name."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(file)!r} is damaged ({error}): restore it, or delete it to start again.") from None
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{str(file)!r} is damaged (no JSON object): restore it, or delete it to start again.")
    return content


def _finite(value):
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def digest(*files: Path) -> str:
    """The SHA-256 of the contents of files, one after the other."""
    return digest_of(part for file in files for part in _parts_of(file))


def digest_of(parts: Iterable[bytes]) -> str:
    """The SHA-256 of bytes, one after the other."""
    result = hashlib.sha256()
    for part in parts:
        result.update(part)
    return result.hexdigest()


def _parts_of(file: Path) -> Iterator[bytes]:
    with open(file, "rb") as stream:
        while part := stream.read(1 << 20):
            yield part


def name_only(value):
    """
    Replaces every absolute path in a text by its last part, because whoever publishes it would publish a local path.

    Reads paths behind "=", "," and ":" too, as in `--dataset_name=/home/me/stories`. Other values stay as they are.
    """
    if not isinstance(value, str):
        return value
    value = value.removeprefix("file://")
    if Path(value).is_absolute():
        return Path(value).name
    option = re.fullmatch(r"(--?\w[\w-]*=)([/~].*)", value, flags=re.DOTALL)
    return option[1] + Path(option[2]).name if option else PATH.sub(r"\1", value)
