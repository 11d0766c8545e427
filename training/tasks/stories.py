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

import random
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml
from datasets import Dataset, Features, Value
from jinja2 import Environment, StrictUndefined


SPLITS = ("train", "validation")
PRONOUNS = {"she": ("she", "her", "her"), "he": ("he", "him", "his")}
CHOICE = re.compile(r"\[([^\[\]]*)\]")
SPEECH = re.compile(r"<(\w+)(?:\s+(\w+))?:\s([^>]*)>")
MARK = re.compile("\x00([^\x02]*)\x02")


@dataclass(frozen=True)
class Person:
    """A person or animal in a story, with the words that refer to them."""

    name: str
    kind: str
    he: str
    him: str
    his: str

    def __str__(self) -> str:
        return self.name

    @property
    def He(self) -> str:
        return self.he.capitalize()

    @property
    def His(self) -> str:
        return self.his.capitalize()

    @property
    def title(self) -> str:
        """The name, with the kind of an animal, whose name alone would look like a child's."""
        return self.name if self.kind in ("girl", "boy") else f"{self.name} the {self.kind}"

    @property
    def hand(self) -> str:
        return "hand" if self.kind in ("girl", "boy") else "paw"

    @property
    def sibling(self) -> str:
        return "brother" if self.he == "he" else "sister"


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


def _read(name: str) -> dict:
    return yaml.safe_load((Path(__file__).parent / f"{name}.yaml").read_text(encoding="utf-8"))


WORDS, PLOTS = _read("story_words"), _read("story_plots")
for group in ("adults", "animals"):
    WORDS[group] = [Person(name, kind, *PRONOUNS[he]) for name, kind, he in WORDS[group]]
for group, kind, he in (("girls", "girl", "she"), ("boys", "boy", "he")):
    WORDS[group] = [Person(name, kind, *PRONOUNS[he]) for name in WORDS[group]]
WORDS["children"] = WORDS["girls"] + WORDS["boys"]
WORDS["everyone"] = WORDS["children"] + WORDS["animals"]
ENVIRONMENT = Environment(
    variable_start_string="{", variable_end_string="}", line_statement_prefix="%", undefined=StrictUndefined
)
TEMPLATES = {name: ENVIRONMENT.from_string(plot["text"]) for name, plot in PLOTS.items()}


class Teller:
    """Draws the words of one story and fills in a plot.

    Its public methods are also the functions of the templates in `story_plots.yaml`, which says how plots are written.
    """

    def __init__(self, seed: str):
        # Python guarantees the same values in every version only for `random()`.
        self.random = random.Random(seed).random
        self.length = 0.1 + 0.6 * self.random()
        methods = (self.a, self.pick, self.some, self.third, self.ask, self.by, self.intro, self.day)
        self.names = {**WORDS, **{method.__name__: method for method in methods}}

    @staticmethod
    def a(words: str) -> str:
        return f"an {words}" if words[0].lower() in "aeiou" else f"a {words}"

    def pick(self, *options):
        return options[int(self.random() * len(options))]

    def some(self, options: Iterable, count: int) -> list:
        """Draws `count` different options in random order."""
        rest = list(options)
        return [rest.pop(int(self.random() * len(rest))) for _ in range(count)]

    def third(self, *taken: Person) -> Person:
        """Draws another person of the same sort as `taken`: a story has either children or animals."""
        crowd = WORDS["children"] if taken[0] in WORDS["children"] else WORDS["animals"]
        while (one := self.pick(*crowd)) in taken:
            pass
        return one

    def ask(self, kind: str, answer: Person | str, *wrong: Person | str) -> str:
        """Marks `answer` as a probe; the preceding text rules out the candidates `wrong`."""
        return "\x00" + "\x01".join((kind, str(answer), *map(str, wrong))) + "\x02"

    def by(self, who: Person, *others: Person) -> str:
        """Marks the speaker of a speech that only `who` can have made."""
        return self.ask("speaker", who, *others)

    def intro(self, who: Person) -> str:
        someone = self.a(f"{self.pick(*WORDS['traits'])} {who.kind}")
        return f"""[Once upon a time, there was {someone} named {who}.|There once was {someone} called {who}.|{who} was
        {someone}.|In [a small|an old|a little] house [by the sea|near the woods|on a hill|near a river] lived
        {someone} named {who}.]"""

    def day(self) -> str:
        return self.pick(*WORDS["days"])

    def fill(self, plot: str, hero: Person, friend: Person, thing: str) -> str:
        """Fills in a plot, chooses its alternatives and tags its speeches; the probes stay marked."""
        text = TEMPLATES[plot].render(self.names, h=hero, f=friend, n=thing)
        while "[" in text:
            text = CHOICE.sub(self._choose, text)
        text = SPEECH.sub(self._say, text)
        return "\n".join(" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n"))

    def _choose(self, choice: re.Match) -> str:
        text = choice[1]
        if text.startswith("?"):
            text = text[1:] if self.random() < self.length else ""
        return self.pick(*text.split("|"))

    def _say(self, speech: re.Match) -> str:
        who, verb, parts = speech[1], speech[2], speech[3].split("/")
        parts = [" ".join(part.split()) for part in parts]
        where = self.pick("before", "after", "between") if len(parts) > 1 else self.pick("before", "after", "after")
        start = parts[:1] if where == "between" else parts
        tagged = start[0] if where == "before" else start[-1]
        verb = verb or {"?": "asked", "!": self.pick("said", "said", "cried")}.get(tagged[-1], "said")
        if where == "before":
            return f'{who[0].upper()}{who[1:]} {verb}, "{" ".join(parts)}"'
        said = " ".join(start)
        said = said[:-1] + "," if said.endswith(".") else said
        tag = f"{who} {verb}" if who in ("he", "she") or self.random() < 0.4 else f"{verb} {who}"
        return f'"{said}" {tag}.' + (f' "{" ".join(parts[1:])}"' if where == "between" else "")


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {SPLITS}, got {split!r}.")


def _split_of(cast: tuple[str, ...]) -> str:
    return "validation" if zlib.crc32("|".join(cast).encode()) % 10 == 0 else "train"


def _draft(seed: int, split: str | None) -> tuple[str, tuple[str, str, str, str]]:
    """Returns the story, its probes still marked, and its cast."""
    teller = Teller(f"story {seed}")
    plot = teller.pick(*PLOTS)
    people, things = WORDS[PLOTS[plot]["people"]], WORDS[PLOTS[plot]["things"]]
    while True:
        hero = teller.pick(*people)
        friend = teller.third(hero)
        cast = (plot, hero.name, friend.name, teller.pick(*things))
        if split is None or _split_of(cast) == split:
            break
    return teller.fill(plot, hero, friend, cast[3]), cast


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
