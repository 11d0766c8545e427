"""
Loads a saved model into a pipeline and tells a story, or answers a question about a lookup table.

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
from training.tasks.arithmetic import check_question, reads_a_table


@dataclass
class TellArguments:
    """Options for sampling."""

    prompt: str = field(default="Once upon a time", metadata={"help": "Start of the story, or 'a b ='."})
    max_new_tokens: int = field(default=200, metadata={"help": "Maximum length of the continuation."})
    temperature: float = field(default=0.7, metadata={"help": "Sampling temperature."})
    seed: int = field(default=0, metadata={"help": "Sampling seed."})


@contextlib.contextmanager
def explaining_a_missing_model(name: str) -> Iterator[None]:
    """Turns transformers' error about a missing model into a `ValueError` with the remedy."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`model`={name!r} is neither the folder of a trained model nor an available hub model "
            f"({str(error).splitlines()[0]}); `make demo` trains one into outputs/quickstart."
        ) from None


def beginning(tokenizer: PreTrainedTokenizerBase) -> str:
    """The token that precedes every story in training; some tokenizers call it only the end of a text."""
    return tokenizer.bos_token or tokenizer.eos_token or ""


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
        check_question(arguments.prompt, tell.tokenizer)
        # The tokenizer's decoder puts no space between the prompt and the answer.
        arguments.prompt = f"{arguments.prompt.strip()} "
        options = {"max_new_tokens": 1, "do_sample": False}
    start = beginning(tell.tokenizer)
    story = tell(start + arguments.prompt, **options)[0]["generated_text"].removeprefix(start)
    print(story)
    return story


if __name__ == "__main__":
    main()
