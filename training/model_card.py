"""The model card that every saved model carries, rendered from `hub_cards/template.md`."""

import math
import subprocess
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel


ROOT = Path(__file__).parent.parent
DESCRIPTIONS = {
    "prism": (
        "A causal language model whose attention is one step of signal-noise decomposition: one tied overcomplete "
        "dictionary, signal heads and noise heads with RoPE bases a factor pi**2 apart, the noise heads subtracted "
        "(PRISM, arXiv 2601.15540)."
    ),
    "momentum": (
        "A causal language model with Llama's body and parameters whose queries and keys are sheared along the text: "
        "to each, gamma times its change since the previous token is added, without new parameters or a larger "
        "key-value cache (Momentum Attention, arXiv 2602.04902)."
    ),
    "spherical": (
        "A causal language model whose residual stream is normalised after every addition, by default to length 1, "
        "and whose logits are by default scaled cosines with the rows of the unembedding; attention is softmax, or a "
        "running mean without keys (Spherical, arXiv 2603.05228)."
    ),
}
LIMITS = (
    "A small model for research on architectures, not for use with people. It knows its training text and nothing "
    "else, invents freely, and repeats the biases of that text."
)
# What the card's pipeline is called with.
EXAMPLE = '"Once upon a time", max_new_tokens=100'
EXPLANATION = "Bits per byte are comparable between tokenizers; nats a token and perplexity are not."
TABLE_LIMITS = (
    "A small model for research on how networks learn. It knows one table and nothing else: it reads the three tokens "
    "`a b =`, and answers any question with one of its numbers, right or wrong."
)
# The metrics of a table, as its card calls them.
TABLE_METRICS = {"next_token_accuracy": "accuracy", "nats_per_token": "nats_per_answer"}
# Corpora whose language is known.
LANGUAGES = {"stories": "en", "roneneldan/TinyStories": "en"}


def code_revision() -> str:
    """The git revision of this checkout, marked if files have changed since; "unknown" outside a checkout."""
    git = ["git", "-C", str(ROOT)]
    try:
        revision = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision.strip()[:12] + (" with local changes" if changes.strip() else "")


def name_only(value):
    """What of a setting may be published: an absolute path only by its last part, for it tells of somebody's disk."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def render_model_card(
    model: PreTrainedModel,
    repo_id: str,
    step: int,
    tokens_seen: int,
    evaluated_at: int | None,
    metrics: dict[str, float],
    dataset: str,
    split_sizes: tuple[int, int] | None,
    init_from: str | None,
    command: list[str],
    recipe: dict,
) -> ModelCard:
    """
    Renders the card of a model.

    Args:
        repo_id (`str`): where the card's code loads the model from: a hub name, or a folder.
        step (`int`): optimiser steps so far.
        tokens_seen (`int`): tokens read in them, over all processes.
        evaluated_at (`int`, *optional*): the step of the last evaluation, if there was one.
        metrics (`dict[str, float]`): its metrics by name.
        dataset (`str`): what the model was trained on, as the recipe names it.
        split_sizes (`tuple[int, int]`, *optional*): pairs in training and in the test, if that is a table.
        init_from (`str`, *optional*): the model that was fine-tuned, if one was.
        command (`list[str]`): what was run, word by word.
        recipe (`dict`): every setting of the run that decides its result.
    """
    is_local = Path(dataset).exists()
    dataset_name = Path(dataset).name if is_local else dataset
    task, example, explanation, limits = "text-generation", EXAMPLE, EXPLANATION, LIMITS
    if split_sizes:
        num_train, num_test = split_sizes
        num_elements = math.isqrt(num_train + num_test)
        dataset_name = (
            "composition of the permutations of S5" if dataset == "s5" else f"{dataset} modulo {num_elements}"
        )
        task, limits = "other", TABLE_LIMITS
        # The pipeline sets the answer right behind the question; after it there is nothing.
        example = f'"{3 % num_elements} {4 % num_elements} = ", max_new_tokens=1, do_sample=False'
        explanation = (
            f"The table has {num_train + num_test:,} pairs: {num_train:,} of them (`train_fraction` "
            f"{recipe['train_fraction']}), drawn with `seed` {recipe['seed']}, were trained on; the test is the other "
            f"{num_test:,}. Chance is an accuracy of about {1 / num_elements:.4f}."
        )
        metrics = {called: metrics[name] for name, called in TABLE_METRICS.items() if name in metrics}
    results = [
        EvalResult(
            task, "table" if split_sizes else "text", dataset_name, metric_type=name, metric_value=round(value, 5)
        )
        for name, value in metrics.items()
        if math.isfinite(value)
    ]
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag=None if split_sizes else task,
        language=LANGUAGES.get(dataset),
        tags=["white-box", model.config.model_type],
        datasets=[dataset] if "/" in dataset and not is_local else None,
        base_model=init_from if init_from and not Path(init_from).exists() else None,
        model_name=Path(repo_id).name,
        eval_results=results or None,
    )
    rows = [f"| {name.replace('_', ' ')} | {value:.4f} |" for name, value in metrics.items()]
    table = (
        "\n".join(
            [f"| {'test' if split_sizes else 'validation'}, after {evaluated_at:,} steps | |", "| --- | --- |", *rows]
        )
        if rows
        else None
    )
    recipe = {name: name_only(value) for name, value in recipe.items()}
    return ModelCard.from_template(
        card_data,
        template_path=str(ROOT / "hub_cards" / "template.md"),
        description=DESCRIPTIONS.get(model.config.model_type, f"A {model.config.model_type} baseline."),
        architecture=type(model).__name__,
        model_type=model.config.model_type,
        parameters=f"{model.num_parameters():,}",
        context=getattr(model.config, "max_position_embeddings", "any number of"),
        dataset=dataset_name,
        start=f"fine-tuned from {name_only(init_from)}" if init_from else "trained from scratch",
        step=f"{step:,}",
        tokens_seen=f"{tokens_seen:,}",
        command=" ".join(map(str, map(name_only, command))),
        revision=code_revision(),
        repo_id=repo_id,
        custom_code=model.config.model_type in DESCRIPTIONS,
        results=table or "Not evaluated yet.",
        recipe=yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).strip(),
        example=example,
        explanation=explanation,
        limits=limits,
    )
