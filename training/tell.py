"""
Loads a saved model through the ordinary pipeline and lets it tell a story, or answer if it was trained on a table.

```bash
python -m training.tell outputs/quickstart --prompt "Lily had a red ball."
python -m training.tell outputs/grokking_one_seed --prompt "3 4 ="
```
"""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from transformers import HfArgumentParser, PreTrainedTokenizerBase, pipeline, set_seed

import modeling_prism  # noqa: F401  (registers the architectures)
from training.tasks.arithmetic import reads_a_table


@dataclass
class TellArguments:
    """Which model, and what to tell."""

    prompt: str = field(default="Once upon a time", metadata={"help": "Beginning of the story, or 'a b ='."})
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


def beginning(tokenizer: PreTrainedTokenizerBase) -> str:
    """What stood before every story in training: the end of another. Some tokenizers have no other name for it."""
    return tokenizer.bos_token or tokenizer.eos_token or ""


def check_question(prompt: str, num_elements: int) -> None:
    """Raises `ValueError` if a prompt is no `a b =` with two elements of a table."""
    *elements, equals = prompt.split() or [""]
    if len(elements) != 2 or equals != "=" or not {*elements} <= {*map(str, range(num_elements))}:
        raise ValueError(
            f"`prompt`={prompt!r}: this model was trained on a table and reads 'a b =', where a and b are numbers "
            f"from 0 to {num_elements - 1}, such as '0 1 ='."
        )


def main(argv: list[str] | None = None) -> str:
    parser = HfArgumentParser(TellArguments, prog="python -m training.tell")
    parser.add_argument("model", help="Folder or hub name of a trained model.")
    arguments, rest = parser.parse_args_into_dataclasses(
        sys.argv[1:] if argv is None else argv, look_for_args_file=False
    )
    set_seed(arguments.seed)
    with explaining_a_missing_model(rest.model):
        tell = pipeline("text-generation", rest.model)
    options = {"max_new_tokens": arguments.max_new_tokens, "do_sample": True, "temperature": arguments.temperature}
    if reads_a_table(tell.tokenizer):
        check_question(arguments.prompt, len(tell.tokenizer) - 1)
        # The pipeline sets the answer right behind the question; after it there is nothing.
        arguments.prompt = f"{arguments.prompt.strip()} "
        options = {"max_new_tokens": 1, "do_sample": False}
    start = beginning(tell.tokenizer)
    story = tell(start + arguments.prompt, **options)[0]["generated_text"].removeprefix(start)
    print(story)
    return story


if __name__ == "__main__":
    main()
