"""
Loads saved models into a pipeline and tells a story with each, or answers a question about a lookup table.

```bash
python -m training.tell outputs/quickstart hub_cards/prism-tinystories --prompt "Lily had a red ball."
python -m training.tell outputs/grokking_one_seed --prompt "3 4 ="
```
"""

import logging
import math
import sys
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase, pipeline, set_seed

from training.callbacks import room_for_tokens
from training.command import CommandParser, run
from training.loading import load_model_and_tokenizer
from training.tasks.arithmetic import check_question, reads_a_table


logger = logging.getLogger(__name__)


@dataclass
class TellArguments:
    """Options for sampling."""

    prompt: str = field(default="Once upon a time", metadata={"help": "Start of the story, or 'a b ='."})
    max_new_tokens: int = field(default=200, metadata={"help": "Maximum length of the continuation."})
    temperature: float = field(default=0.7, metadata={"help": "Sampling temperature; 0 takes the likeliest token."})
    seed: int = field(default=0, metadata={"help": "Sampling seed."})


def beginning(tokenizer: PreTrainedTokenizerBase) -> str:
    """The token that precedes every story in training; some tokenizers call it only the end of a text."""
    return tokenizer.bos_token or tokenizer.eos_token or ""


def tell_one(folder: str, arguments: TellArguments) -> str:
    """The prompt and how the model of `folder` goes on."""
    set_seed(arguments.seed)
    model, tokenizer = load_model_and_tokenizer(folder)
    start, story = beginning(tokenizer), arguments.prompt
    if reads_a_table(tokenizer):
        check_question(story, tokenizer)
        # The tokenizer's decoder puts no space between the prompt and the answer.
        story, room = f"{story.strip()} ", 1
        options = {"do_sample": False}
    else:
        room = room_for_tokens(model, len(tokenizer(start + story, add_special_tokens=False)["input_ids"]))
        sampling = {"do_sample": True, "temperature": arguments.temperature}
        options = sampling if arguments.temperature else {"do_sample": False}
        if room < arguments.max_new_tokens:
            logger.warning("The model's context has room for %d tokens behind the prompt.", room)
    if not room:
        return story
    # The models of transformers warn of a `max_length` beside `max_new_tokens`.
    model.generation_config.max_length = None
    tell = pipeline("text-generation", model, tokenizer=tokenizer)
    told = tell(start + story, max_new_tokens=min(arguments.max_new_tokens, room), **options)
    return told[0]["generated_text"].removeprefix(start)


def main(argv: list[str] | None = None) -> str:
    parser = CommandParser(TellArguments, prog="python -m training.tell")
    parser.add_argument("models", nargs="+", help="Folders or hub names of trained models.")
    arguments, rest = parser.parse(sys.argv[1:] if argv is None else argv)
    if not 0 <= arguments.temperature < math.inf or arguments.max_new_tokens < 1:
        raise ValueError(
            f"`temperature`={arguments.temperature} must be at least 0 and finite, and `max_new_tokens`="
            f"{arguments.max_new_tokens} at least 1."
        )
    told = []
    for model in rest.models:
        heading = f"{model}:\n" if len(rest.models) > 1 else ""
        told.append(heading + tell_one(model, arguments))
        print(told[-1] + "\n" * bool(heading), flush=True)
    return "\n\n".join(told)


if __name__ == "__main__":
    run(main)
