import hashlib
import re

import pytest

from training.tasks.stories import stories, tell


@pytest.fixture(scope="module")
def told():
    return [tell(seed) for seed in range(2000)]


def test_a_story_depends_on_its_seed_alone():
    assert tell(7) == tell(7)
    assert tell(7) != tell(8)
    assert tell(-7) != tell(7)
    few, many = stories("train", 5, seed=3)["text"], stories("train", 50, seed=3)["text"]
    assert list(few) == list(many)[:5]
    assert few[4] == tell((3 << 32) + 4, "train").text
    assert list(few) != list(stories("train", 5, seed=4)["text"])


def test_the_grammar_is_pinned():
    text = "\n\n".join(tell(seed).text for seed in range(100))
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "9174607ac5e3f26748fdc79f8399a66f9ef456c239a03eb612302956ecfa31ab"
    )


def test_train_and_validation_share_no_cast_and_no_text():
    splits = {split: [tell(seed, split) for seed in range(3000)] for split in ("train", "validation")}
    assert not {story.text for story in splits["train"]} & {story.text for story in splits["validation"]}
    assert not {story.cast for story in splits["train"]} & {story.cast for story in splits["validation"]}


def test_a_story_names_its_whole_cast(told):
    for story in told:
        for word in story.cast[1:]:
            assert re.search(rf"\b{word}\b", story.text), (word, story.text)


def test_language(told):
    for story in told:
        text = story.text
        assert not re.search(r"[\[\]{}<>|/\\\x00-\x09\x0b-\x1f]", text), text
        assert not re.search(r"  |\n\n| \n|\n | [,.!?]|[,.!?][A-Za-z]|[,.!?]{2}|\" \"\Z", text), text
        assert not re.search(r"\b(\w+) \1\b", text, re.IGNORECASE), text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text, re.IGNORECASE), text
        for paragraph in text.split("\n"):
            assert re.match(r'"?[A-Z]', paragraph) and re.search(r'[.!?]"?\Z', paragraph), paragraph
            assert paragraph.count('"') % 2 == 0, paragraph
        assert not re.search(r'[.!?]"? [a-z]', re.sub(r'[!?]" (?=[a-z])', "", text)), text


def test_lengths(told):
    words = [len(story.text.split()) for story in told]
    assert min(words) >= 90 and max(words) <= 250


def test_probes(told):
    for story in told:
        assert story.questions
        for probe in story.questions:
            assert story.text.startswith(probe.prompt + probe.answer)
            assert probe.kind and probe.wrong_answers and probe.answer not in probe.wrong_answers
            for word in (probe.answer, *probe.wrong_answers):
                assert word[0] == " "
                assert re.search(rf"\b{re.escape(word[1:])}\b", probe.prompt), (probe, story.text)


def test_stories_are_distinct(told):
    texts = stories("train", 5000)["text"]
    assert len(set(texts)) > 0.999 * 5000
    assert len({re.split(r"(?<=[.!?]) ", text)[0] for text in texts}) > 1500
    assert len({story.cast[0] for story in told}) >= 8


def test_columns():
    dataset = stories("validation", 3)
    assert dataset.column_names == ["text"] and len(dataset) == 3
