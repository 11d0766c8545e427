"""
Tests whether a saved model remembers who owned what: the long-range bindings of the built-in stories.

```bash
python -m training.bindings outputs/quickstart --num_stories 200
```
"""

import sys
from collections import defaultdict
from dataclasses import dataclass, field

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.command import CommandParser, run
from training.loading import load_model_and_tokenizer
from training.tasks.arithmetic import reads_a_table
from training.tasks.stories import Probe, tell
from training.tell import beginning


@dataclass
class BindingArguments:
    """Options for the stories to ask about."""

    num_stories: int = field(default=200, metadata={"help": "Number of validation stories."})
    seed: int = field(default=1, metadata={"help": "Seed of the stories."})


@torch.no_grad()
def answers_right(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, probe: Probe, per_token: bool = False
) -> bool:
    """
    Whether the model gives the true continuation of a probe a higher probability than every false one.

    A candidate's score is the sum of ln p over its tokens, given the story so far, or their mean if `per_token`, for
    candidates of different lengths. A story longer than the model's context loses its beginning, and such a candidate
    its end.
    """
    # Some architectures have no such limit.
    limit = getattr(model.config, "max_position_embeddings", None) or 2**31
    story = tokenizer(beginning(tokenizer) + probe.prompt, add_special_tokens=False)["input_ids"]
    scores = []
    for candidate in (probe.answer, *probe.wrong_answers):
        continuation = tokenizer(candidate, add_special_tokens=False)["input_ids"][: limit - 1]
        ids = torch.tensor([[*story, *continuation][-limit:]], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, -len(continuation) - 1 : -1].float()
        score = logits.log_softmax(-1).gather(1, ids[0, -len(continuation) :, None]).sum().item()
        scores.append(score / len(continuation) if per_token else score)
    return scores[0] > max(scores[1:])


def binding_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, num_stories: int, seed: int = 1
) -> dict[str, dict[str, float]]:
    """
    Accuracy on the probes of `num_stories` validation stories.

    Returns:
        for each kind of binding and for `all`: `accuracy`, `chance` (the mean of 1 / number of candidates) and the
        number of `probes`.
    """
    results = defaultdict(list)
    for index in tqdm(range(num_stories), desc="Asking"):
        for probe in tell((seed << 32) + index, "validation").questions:
            outcome = (answers_right(model, tokenizer, probe), 1 / (1 + len(probe.wrong_answers)))
            results[probe.kind].append(outcome)
            results["all"].append(outcome)
    return {
        kind: {
            "accuracy": sum(right for right, _ in outcomes) / len(outcomes),
            "chance": sum(chance for _, chance in outcomes) / len(outcomes),
            "probes": len(outcomes),
        }
        for kind, outcomes in sorted(results.items())
    }


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    parser = CommandParser(BindingArguments, prog="python -m training.bindings")
    parser.add_argument("model", help="Folder or hub name of a trained model.")
    arguments, rest = parser.parse(sys.argv[1:] if argv is None else argv)
    if arguments.num_stories < 1:
        raise ValueError(f"`num_stories` must be at least 1, got {arguments.num_stories}.")
    model, tokenizer = load_model_and_tokenizer(rest.model)
    if reads_a_table(tokenizer):
        raise ValueError(
            f"`model`={rest.model!r} was trained on a lookup table and cannot read a story: give a model of stories; "
            "`make demo` trains one into outputs/quickstart."
        )
    results = binding_accuracy(model, tokenizer, arguments.num_stories, arguments.seed)
    print("| binding | accuracy | chance | probes |\n| --- | ---: | ---: | ---: |")
    for kind, row in results.items():
        print(f"| {kind} | {row['accuracy']:.2f} | {row['chance']:.2f} | {row['probes']} |")
    return results


if __name__ == "__main__":
    run(main)
