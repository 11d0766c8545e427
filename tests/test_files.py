"""Files that are whole or absent, and paths that may be published."""

import json

import pytest

from training.files import digest, name_only, write_json


def test_json_holds_no_nan(tmp_path):
    file = tmp_path / "file.json"
    write_json(file, {"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": -float("inf")}, "e": "ż"})
    assert json.loads(file.read_text(encoding="utf-8"), parse_constant=pytest.fail) == {
        "a": None,
        "b": [None, 1.5],
        "c": {"d": None},
        "e": "ż",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_a_digest_is_of_contents(tmp_path):
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name).write_text(text)
    a, b, c = (tmp_path / name for name in "abc")
    assert digest(a) == digest(b) != digest(c) and digest(a, c) != digest(c, a)


@pytest.mark.parametrize(
    ("text", "published"),
    [
        ("/home/me/a b/corpus", "corpus"),
        ("--dataset_name=/home/me/my stories", "--dataset_name=my stories"),
        ("--output_dir=~/mine", "--output_dir=mine"),
        ("a=/x/y,b=~/z/q", "a=y,b=q"),
        ("['/a/b', '/c/d']", "['b', 'd']"),
        ("file:///home/me/x", "x"),
        # What is no absolute path stays.
        ("configuration/recipes/quickstart.yaml", "configuration/recipes/quickstart.yaml"),
        ("roneneldan/TinyStories", "roneneldan/TinyStories"),
        ("https://hub/x", "https://hub/x"),
        ("3/4", "3/4"),
        (0.5, 0.5),
        (None, None),
    ],
)
def test_absolute_paths_are_not_published(text, published):
    assert name_only(text) == published
