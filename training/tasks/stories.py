"""Short children's stories from a grammar, without a download.

The stories imitate TinyStories: a hero, a friend, a thing, a problem, some talk and an ending that follows from the
problem. Facts that a story states early (who owns what, who did what, which colour, which place) return late, which
tests whether a language model remembers them. Every story has such probes: a prefix of the story, the words that
follow, and words of the same type that occurred earlier and would be false.

Example, `tell(85).text`, with line breaks:

```text
Amy and her sister Ivy were up early. Today, Dad was going to take them to the zoo. But then it began to rain.
Drip, drop, drip, drop.
"Oh no!" cried Amy. "Now we can't go to the zoo." "Rain is not so bad," Dad said. "I know something we can do."
"Let's build a tent," said Dad. Amy got her red blanket, and Ivy got her white blanket. They put them over four
chairs, and it was a fine tent.
In the tent, they told stories. Amy told a story about a witch. Then Ivy told one about a dragon.
In the evening, they took the tent down. Amy went to bed with the red blanket, and Ivy went to bed with the white
one. "I liked your story about the dragon," whispered Amy. "And I liked your witch," said Ivy.
It was still raining, but nobody was sad about the zoo any more.
```

There are about 195,000 casts (plot, hero, friend, thing), each with many thousands of tellings: far more stories than
a run can draw. A checksum of the cast decides the split: nine casts in ten occur only in `"train"`, one in ten only in
`"validation"`. A story names its whole cast, so that no text is in both splits. Both splits share all words, names and
plots.
"""

import re
import zlib
from dataclasses import dataclass

from datasets import Dataset, Features, Value

from training.tasks.story_plots import MARK, PLOTS, Teller


SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Probe:
    """A place late in a story where an earlier fact returns.

    Attributes:
        kind (`str`): the kind of fact, such as `"owner"`, `"speaker"`, `"place"` or `"colour"`.
        prompt (`str`): the story up to that place, without the space before the answer.
        answer (`str`): the next words of the story, with the space before them.
        wrong_answers (`tuple[str, ...]`): false words of the same type that occur in `prompt`.
    """

    kind: str
    prompt: str
    answer: str
    wrong_answers: tuple[str, ...]


@dataclass(frozen=True)
class Story:
    """One story.

    Attributes:
        text (`str`): its paragraphs, one per line.
        questions (`tuple[Probe, ...]`): at least one probe, in the order of the text.
        cast (`tuple[str, str, str, str]`): the plot, the hero, the friend and the thing, which decide the split.
    """

    text: str
    questions: tuple[Probe, ...]
    cast: tuple[str, str, str, str]


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {SPLITS}, got {split!r}.")


def _split_of(cast: tuple[str, ...]) -> str:
    return "validation" if zlib.crc32("|".join(cast).encode()) % 10 == 0 else "train"


def _draft(seed: int, split: str | None) -> tuple[str, tuple[str, str, str, str]]:
    """Returns the story, its probes still marked, and its cast."""
    t = Teller(f"story {seed}")
    plot, people, things = t.pick(*PLOTS)
    while True:
        hero = t.pick(*people)
        friend = t.third(hero)
        cast = (plot.__name__, hero.name, friend.name, t.pick(*things))
        if split is None or _split_of(cast) == split:
            break
    return t.fill(plot(t, hero, friend, cast[3])), cast


def tell(seed: int, split: str | None = None) -> Story:
    """Tells one story, with questions that it answers itself.

    Args:
        seed (`int`): the same seed gives the same story on every platform and version of Python.
        split (`str`, *optional*): `"train"` or `"validation"` for a cast of that split. Default: any cast.

    Returns:
        `Story`: its text, between about 120 and 240 words, and its probes.

    Raises:
        ValueError: `split` is neither of the two names.

    Example:

    ```python
    >>> story = tell(0, split="validation")
    >>> probe = story.questions[0]
    >>> story.text.startswith(probe.prompt + probe.answer)
    True
    ```
    """
    if split is not None:
        _check_split(split)
    draft, cast = _draft(seed, split)
    text, end, probes = "", 0, []
    for mark in MARK.finditer(draft):
        text += draft[end : mark.start()]
        end = mark.end()
        kind, answer, *wrong = mark.group(1).split("\x01")
        # Only words that this telling has mentioned are candidates.
        heard = [word for word in wrong if re.search(rf"\b{re.escape(word)}\b", text)]
        if heard and re.search(rf"\b{re.escape(answer)}\b", text):
            probes.append(Probe(kind, text[:-1], f" {answer}", tuple(f" {word}" for word in heard)))
        text += answer
    return Story(text + draft[end:], tuple(probes), cast)


def stories(split: str, num_stories: int, seed: int = 0) -> Dataset:
    """Makes a dataset of stories.

    Args:
        split (`str`): `"train"` or `"validation"`. No text and no cast is in both.
        num_stories (`int`): number of stories.
        seed (`int`, *optional*, defaults to 0): another seed gives other stories. Story `i` is the text of
            `tell((seed << 32) + i, split)` for every `num_stories`.

    Returns:
        `datasets.Dataset`: `num_stories` rows with one column, `"text"`.

    Raises:
        ValueError: `split` is neither of the two names, or `num_stories` is not a positive integer.

    Example:

    ```python
    >>> stories("train", num_stories=1000)
    Dataset({
        features: ['text'],
        num_rows: 1000
    })
    ```
    """
    _check_split(split)
    if not isinstance(num_stories, int) or isinstance(num_stories, bool) or num_stories < 1:
        raise ValueError(f"`num_stories` must be a positive integer, got {num_stories!r}.")
    drafts = (_draft((seed << 32) + index, split)[0] for index in range(num_stories))
    texts = [MARK.sub(lambda mark: mark.group(1).split("\x01")[1], draft) for draft in drafts]
    return Dataset.from_dict({"text": texts}, features=Features({"text": Value("string")}))
