"""
Makes a released model: trains it or reuses the finished run, measures it, and writes `hub_cards/NAME` with weights in
bf16, tokenizer, code and card.

```bash
python -m training.release prism-tinystories --dataset_name FOLDER
```
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from huggingface_hub import HfApi, ModelCard
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training import pretrain
from training.benchmarks.throughput import describe_run
from training.callbacks import tell_story
from training.command import CommandParser, reaching_the_hub, run, suggest
from training.data import load_data
from training.evaluate import EvaluateArguments, evaluate_model
from training.experiments.common.readme import fill_file, make_table
from training.files import name_only, read_json, write_json
from training.loading import load_model_and_tokenizer
from training.metrics import score_tokens
from training.ngrams import count_ngrams
from training.options import parse_arguments
from training.tasks.arithmetic import reads_a_table


ROOT = Path(__file__).parent.parent
EVALUATION_FILE = "evaluation.json"
KINDS = ("endings", "agreement", "agreement_across_a_noun", "bindings")
# What a released model must still say and score after any later change to the code.
CHECK_TEXT = (
    "Once upon a time, there was a little girl named Lily. She had a red ball. One day, she went to the park with her "
    "mom. They saw a big dog. The dog wanted to play with the ball, and Lily was happy."
)
CHECK_PROMPT, CHECK_QUESTIONS = "Once upon a time", ["3 4 =", "5 5 =", "9 8 =", "1 7 ="]
PROMPT = "Once upon a time, there was a little"
LICENCE = (
    "The stories are a sample of [TinyStories](https://huggingface.co/datasets/roneneldan/TinyStories) (Eldan and Li, "
    "2023), licence CDLA-Sharing-1.0. The weights are Apache-2.0."
)


@dataclass
class ReleaseArguments:
    """Options for the release of one model."""

    dataset_name: str | None = field(default=None, metadata={"help": "The corpus. Default: the recipe's."})
    seeds: list[int] = field(
        default_factory=lambda: [0], metadata={"help": "The first is released; the others show the spread."}
    )
    releases: str = field(
        default="configuration/releases.yaml", metadata={"help": "File that says how each model is trained."}
    )
    runs: str = field(default="outputs/releases", metadata={"help": "Folder of the training runs."})
    folder: str = field(default="hub_cards", metadata={"help": "Folder of the released models."})
    refresh: bool = field(
        default=False, metadata={"help": "Only write the released folder's code anew, after a change to the package."}
    )
    push_to_hub: str | None = field(
        default=None, metadata={"help": "Hub name, USER/MODEL: push the released folder as it stands; train nothing."}
    )


def training_command(name: str, recipe: str, options: dict, seed: int, arguments: ReleaseArguments) -> list[str]:
    """The words after `python -m training.pretrain` that train one seed of a model."""
    # The folder's name is the model's on its card.
    output_dir = Path(arguments.runs, f"seed{seed}", name)
    options = {**options, "seed": seed, "output_dir": output_dir, "dataset_name": arguments.dataset_name}
    words = [str(word) for key, value in options.items() if value is not None for word in (f"--{key}", value)]
    return [recipe, *words]


@torch.no_grad()
def fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str | float]:
    """In fp32: greedy text and the nats per token of a fixed text, or of a lookup table answers and their nats."""
    model = model.float().eval()
    if reads_a_table(tokenizer):
        ids = tokenizer(CHECK_QUESTIONS, return_tensors="pt", add_special_tokens=False)["input_ids"]
        nats, answers = (-model(ids, use_cache=False).logits[:, -1].log_softmax(-1)).min(-1)
        return {"greedy": tokenizer.decode(answers), "nats_per_token": nats.mean().item()}
    inputs = tokenizer(tokenizer.bos_token + CHECK_PROMPT, return_tensors="pt", add_special_tokens=False)
    tokens = model.generate(inputs["input_ids"], max_length=inputs["input_ids"].shape[1] + 40, do_sample=False)
    ids = tokenizer(tokenizer.bos_token + CHECK_TEXT, return_tensors="pt", add_special_tokens=False)["input_ids"]
    nats = score_tokens(model(ids, use_cache=False).logits, ids)[..., 0].mean()
    return {"greedy": tokenizer.decode(tokens[0], skip_special_tokens=True), "nats_per_token": nats.item()}


def write_model(run_folder: Path, folder: Path) -> None:
    """Writes weights in bf16, tokenizer, generation settings and code into `folder`."""
    model, tokenizer = load_model_and_tokenizer(str(run_folder))
    folder.mkdir(parents=True, exist_ok=True)
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def measure(folder: Path, results: list[dict], command: list[str]) -> dict:
    """What `evaluation.json` holds: of the runs, of the released weights, and what a later change must not move."""
    model, tokenizer = load_model_and_tokenizer(str(folder))
    first, device = results[0], describe_run("cpu")
    evaluation: dict = {
        "parameters": first["parameters"],
        "tokens_seen": first["tokens_seen"],
        "hours": round(first["tokens_seen"] / first["tokens_per_second"] / 3600, 2),
        "hardware": device["hardware"].partition(", load")[0].replace(" 1 threads", " 1 thread"),
        "revision": first["revision"],
        "check": fingerprint(model, tokenizer),
    }
    if reads_a_table(tokenizer):
        return {**evaluation, "accuracy": first["accuracy"]}
    _, data, training = parse_arguments(command)
    length = training.sample_max_new_tokens
    _, blocks = load_data(data, training.seed, str(folder))
    return {
        **evaluation,
        "bits_per_byte_of_4_gram": count_ngrams(blocks, 4, first["tokens_seen"]).bits_per_byte(blocks),
        "bits_per_byte_of_seeds": [result["bits_per_byte"] for result in results],
        "stories": [tell_story(model, tokenizer, PROMPT, length, seed=seed) for seed in range(3)],
        "measures": evaluate_model(model, tokenizer, data, EvaluateArguments()),
    }


def make_comparison(evaluations: dict[str, dict]) -> str:
    """The table of all released models of stories, the best first."""
    rows = set()
    for name, found in evaluations.items():
        if "measures" in found:
            bits = found["bits_per_byte_of_seeds"]
            seeds = f", {len(bits)} seeds: {min(bits):.3f} to {max(bits):.3f}" if len(bits) > 1 else ""
            measures = [found["measures"][kind] for kind in KINDS]
            shares = [f"{row['value']:.2f} ({row['low']:.2f} to {row['high']:.2f})" for row in measures]
            value = found["measures"]["bits_per_byte"]
            score = f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f}){seeds}"
            size = f"{found['parameters'] / 1e6:.2f} M"
            tokens, floor = f"{found['tokens_seen'] / 1e6:.1f} M", found["bits_per_byte_of_4_gram"]
            rows.add((value["value"], (f"`{name}`", size, tokens, score, *shares)))
            # One for all models that read the same tokens.
            rows.add((floor, ("4-gram of the same tokens", "", tokens, f"{floor:.3f}", *[""] * len(KINDS))))
            chance = ["chance", "", "", "", *(f"{row['chance']:.2f}" for row in measures)]
    heads = ["model", "parameters", "tokens", "bits per byte", *(kind.replace("_", " ") for kind in KINDS)]
    return make_table(heads, [row for _, row in sorted(rows)] + [chance]) if rows else "No model is released yet."


def write_tables(folder: Path) -> None:
    """Fills the comparison into the index of `folder` and into the card of every released model."""
    files = sorted(folder.glob(f"*/{EVALUATION_FILE}"))
    table = make_comparison({file.parent.name: read_json(file) for file in files})
    fill_file(folder / "README.md", {"releases": table})
    for file in files:
        card = file.with_name("README.md")
        if "<!-- releases -->" in card.read_text(encoding="utf-8"):
            fill_file(card, {"releases": table})


def write_card(run_folder: Path, folder: Path, evaluation: dict) -> None:
    """The card of the run, with stories, the comparison and the data's licence before its recipe."""
    content = ModelCard.load(run_folder / "README.md").content
    # Where the model is now, in the title and in the code that loads it.
    trained, released = name_only(str(run_folder)), name_only(str(folder))
    content = content.replace(f"# {trained}\n", f"# {folder.name}\n").replace(f'"{trained}"', f'"{released}"')
    time = f"Trained in {evaluation['hours']:g} hours on {evaluation['hardware']}."
    sections = f"## Training\n\n{time}\n\n"
    if "stories" in evaluation:
        stories = "\n\n".join(f"> {' '.join(story.split())}" for story in evaluation["stories"])
        sections = (
            f"## Stories\n\nThe first three samples, seeds 0 to 2, at temperature 0.8 and top-p 0.95:\n\n{stories}\n\n"
            f"## Comparison\n\n<!-- releases -->\n<!-- /releases -->\n\n"
            "Brackets are 95 % intervals. Endings: a story's own last sentence against those of three others. "
            "Agreement: number and pronouns, also across a noun of the other number. Bindings: who owned what, who "
            "said what, in the built-in stories.\n\n"
            f"{sections}{LICENCE}\n\n"
        )
    before, recipe, after = content.partition("## Recipe")
    Path(folder, "README.md").write_text(before + sections + recipe + after, encoding="utf-8")


def main(argv: list[str] | None = None) -> Path:
    """Releases one model; returns its folder."""
    parser = CommandParser(ReleaseArguments, prog="python -m training.release")
    parser.add_argument("name", help="Name of a model in `releases`.")
    arguments, rest = parser.parse(sys.argv[1:] if argv is None else argv)
    if not Path(arguments.releases).is_file():
        raise ValueError(
            f"`releases`={arguments.releases!r} does not exist: run the command from the checkout, where "
            "configuration/releases.yaml lists the released models."
        )
    releases = yaml.safe_load(Path(arguments.releases).read_text(encoding="utf-8"))
    if rest.name not in releases:
        raise ValueError(f"{arguments.releases} has no model {rest.name!r}: {suggest(rest.name, releases)}")
    folder = Path(arguments.folder, rest.name)
    if not arguments.seeds:
        raise ValueError("`seeds` is empty: give one or more; the first is released.")
    if (arguments.push_to_hub or arguments.refresh) and not (folder / EVALUATION_FILE).is_file():
        option = "push_to_hub" if arguments.push_to_hub else "refresh"
        raise ValueError(f"`{option}`: {folder} is not released yet; leave the option out first.")
    if arguments.refresh:
        write_model(folder, folder)
        return folder
    if arguments.push_to_hub:
        # There, the card's code loads the model from the hub.
        text = Path(folder, "README.md").read_text(encoding="utf-8")
        text = text.replace(f'"{name_only(str(folder))}"', f'"{arguments.push_to_hub}"')
        with reaching_the_hub("see to the network and `hf auth login`; the same command pushes again."):
            HfApi().create_repo(arguments.push_to_hub, exist_ok=True)
            HfApi().upload_folder(folder_path=folder, repo_id=arguments.push_to_hub, ignore_patterns=["README.md"])
            ModelCard(text).push_to_hub(arguments.push_to_hub)
        return folder
    options = dict(releases[rest.name])
    recipe = options.pop("recipe")
    commands = [training_command(rest.name, recipe, options, seed, arguments) for seed in arguments.seeds]
    results = [pretrain.main(command) for command in commands]
    run_folder = Path(arguments.runs, f"seed{arguments.seeds[0]}", rest.name)
    write_model(run_folder, folder)
    evaluation = measure(folder, results, commands[0])
    write_json(folder / EVALUATION_FILE, evaluation)
    write_card(run_folder, folder, evaluation)
    write_tables(Path(arguments.folder))
    print(f"{folder} is ready: its card is {folder / 'README.md'}.")
    return folder


if __name__ == "__main__":
    run(main)
