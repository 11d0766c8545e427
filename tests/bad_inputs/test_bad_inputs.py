"""Every row of this folder is refused in words that help, and leaves the disk as it was."""

import os

import pytest

from . import analysis, caches, calls, configs, data, experiments, folders, lay, recipes


PARTS = {
    **{analysis: pytest.mark.experiment, caches: (), calls: (), configs: (), data: pytest.mark.experiment},
    **dict.fromkeys((experiments, folders, recipes), pytest.mark.experiment),
}
ROWS = [
    pytest.param(part, row, id=f"{part.__name__.rpartition('.')[2]}-{row.says}", marks=marks)
    for part, marks in PARTS.items()
    for row in part.ROWS
]


def on_disk(folder):
    """Size and time of every file below a folder, behind links too."""
    files = {os.path.join(root, name) for root, _, names in os.walk(folder, followlinks=True) for name in names}
    folders = {root for root, *_ in os.walk(folder, followlinks=True)}
    stats = {file: os.stat(file) for file in files if os.path.exists(file)}
    return folders, {file: (stat.st_size, stat.st_mtime_ns) for file, stat in stats.items()}


@pytest.mark.parametrize(("part", "row"), ROWS)
def test_a_wrong_input_is_refused(part, row, request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in getattr(part, "WORLD", ()):
        (tmp_path / name).symlink_to(request.getfixturevalue("world") / name)
    lay(row.files)
    before = on_disk(tmp_path)
    with pytest.raises(ValueError, match=row.says):
        part.give(row.given)
    assert on_disk(tmp_path) == before


def test_there_are_rows_enough_and_none_is_given_twice():
    rows = [(part.__name__, repr(row.given), repr(row.files)) for part in PARTS for row in part.ROWS]
    assert len(set(rows)) == len(rows) >= 250
