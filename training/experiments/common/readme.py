"""
The parts of a README that hold numbers. They stand between markers, are computed from results, and are never typed:

```
<!-- induction:table -->
...
<!-- /induction:table -->
```
"""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Claim:
    """
    One row of the table "Results" in the project's README.

    Args:
        claim (`str`): what is claimed, in a few words.
        verdict (`str`): in a word or two.
        number (`str`): the number that the verdict rests on.
        experiment (`str`): the folder of the experiment.
    """

    claim: str
    verdict: str
    number: str
    experiment: str


def make_table(heads: list[str], rows: list[list], text: int = 1) -> str:
    """A Markdown table whose first `text` columns are text, and all others numbers."""
    rule = ["---"] * text + ["---:"] * (len(heads) - text)
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in (heads, rule, *rows))


def make_claim_table(claims: list[Claim]) -> str:
    """The table "Results", one row per claim."""
    rows = [
        [row.claim, row.verdict, row.number] + [f"[{row.experiment}](training/experiments/{row.experiment}/README.md)"]
        for row in claims
    ]
    return make_table(["claim", "verdict", "measured here", "details"], rows, text=4)


def wrap(text: str) -> str:
    """Paragraphs and list items of `text`, each wrapped anew: numbers change their length."""
    parts = re.split(r"\n(?=- )|\n\n", textwrap.dedent(text).strip())
    options = {"break_long_words": False, "break_on_hyphens": False}
    indents = ["  " if part.startswith("- ") else "" for part in parts]
    lines = [
        textwrap.fill(" ".join(part.split()), 119, subsequent_indent=indent, **options)
        for part, indent in zip(parts, indents)
    ]
    return "".join(
        f"{line}\n" + ("" if line.startswith("- ") and after.startswith("- ") else "\n")
        for line, after in zip(lines, [*lines[1:], ""])
    )


def fill_prose(file: Path, numbers: dict) -> dict[str, str]:
    """The parts of a prose.md by name, each `{field}` of `str.format` filled from `numbers`."""
    parts = re.findall(r"<!-- (\w+) -->\n(.*?)<!-- /\1 -->", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    return {name: text.format(**numbers) for name, text in parts}


def markers(text: str) -> list[str]:
    """The names of the blocks in a README."""
    return re.findall(r"^<!-- ([\w:-]+) -->$", text, flags=re.MULTILINE)


def fill(text: str, blocks: dict[str, str]) -> str:
    """
    `text` with what stands between the markers of each block replaced.

    Raises:
        ValueError: a block that `text` has no pair of markers for, or a marker that no block belongs to.
    """
    found = markers(text)
    if sorted(found) != sorted(blocks):
        raise ValueError(f"The README has markers of {sorted(found)}, the report has blocks {sorted(blocks)}.")
    for name, block in blocks.items():
        pattern = rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)"
        text, count = re.subn(
            pattern, lambda found, block=block: f"{found[1]}{block.strip()}\n{found[2]}", text, flags=re.DOTALL
        )
        if count != 1:
            raise ValueError(f"The README lacks the end of its block: <!-- /{name} -->.")
    return text


def fill_file(file: Path, blocks: dict[str, str]) -> None:
    """`fill` of a README."""
    file.write_text(fill(file.read_text(encoding="utf-8"), blocks), encoding="utf-8")
