"""
Loads a saved model through the ordinary pipeline and lets it tell a story.

```bash
python -m training.tell outputs/quickstart --prompt "Lily had a red ball."
```
"""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from transformers import HfArgumentParser, pipeline, set_seed

import modeling_prism  # noqa: F401  (registers the architectures)


@dataclass
class TellArguments:
    """Which model, and what to tell."""

    prompt: str = field(default="Once upon a time", metadata={"help": "Beginning of the story."})
    max_new_tokens: int = field(default=200, metadata={"help": "Longest continuation, in tokens."})
    temperature: float = field(default=0.7, metadata={"help": "Sampling temperature."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling."})


@contextlib.contextmanager
def explaining_a_missing_model(name: str) -> Iterator[None]:
    """Turns what transformers says of a model it cannot find into a `ValueError` with the remedy."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`model`={name!r} is neither the folder of a trained model nor one that the hub would give "
            f"({str(error).splitlines()[0]}); `make demo` trains one into outputs/quickstart."
        ) from None


def main(argv: list[str] | None = None) -> str:
    parser = HfArgumentParser(TellArguments, prog="python -m training.tell")
    parser.add_argument("model", help="Folder or hub name of a trained model.")
    arguments, rest = parser.parse_args_into_dataclasses(
        sys.argv[1:] if argv is None else argv, look_for_args_file=False
    )
    set_seed(arguments.seed)
    with explaining_a_missing_model(rest.model):
        tell = pipeline("text-generation", rest.model)
    # In training, a story began after the end of another.
    prompt = tell.tokenizer.bos_token + arguments.prompt
    story = tell(prompt, max_new_tokens=arguments.max_new_tokens, do_sample=True, temperature=arguments.temperature)[
        0
    ]["generated_text"]
    story = story.removeprefix(tell.tokenizer.bos_token)
    print(story)
    return story


if __name__ == "__main__":
    main()
