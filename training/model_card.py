"""The model card that every saved model carries, rendered from `hub_cards/template.md`."""

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
}
LIMITS = (
    "A small model trained on short children's stories in English: it knows nothing else, invents freely and repeats "
    "the biases of its corpus. It is meant for research on architectures, not for use with people."
)


def code_revision() -> str:
    """The git revision of this checkout, marked if files have changed since; "unknown" outside a checkout."""
    git = ["git", "-C", str(ROOT)]
    try:
        revision = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision.strip()[:12] + (" with local changes" if changes.strip() else "")


def render_model_card(
    model: PreTrainedModel,
    step: int,
    metrics: dict[str, float],
    model_name: str,
    dataset: str,
    tokens_a_step: int,
    command: str,
    recipe: dict,
) -> ModelCard:
    """
    Renders the card of a model.

    Args:
        step (`int`): optimiser steps so far.
        metrics (`dict[str, float]`): the last evaluation: names and values; empty if there was none.
        model_name (`str`): name of the run, and of the repository once pushed.
        dataset (`str`): what it was trained on, as the recipe names it.
        tokens_a_step (`int`): training tokens of one optimiser step, over all processes.
        command (`str`): what was run, recipe and options.
        recipe (`dict`): every setting of the run that decides its result.
    """
    # A local folder is named by its last part alone: where it lay on somebody's disk is nobody's business.
    is_local = Path(dataset).exists()
    dataset_name = Path(dataset).name if is_local else dataset
    results = [
        EvalResult("text-generation", "text", dataset_name, metric_type=name, metric_value=round(value, 5))
        for name, value in metrics.items()
    ]
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        language="en",
        tags=["white-box", model.config.model_type],
        datasets=[dataset] if "/" in dataset and not is_local else None,
        model_name=model_name,
        eval_results=results or None,
    )
    rows = [f"| {name.replace('_', ' ')} | {value:.4f} |" for name, value in metrics.items()]
    return ModelCard.from_template(
        card_data,
        template_path=str(ROOT / "hub_cards" / "template.md"),
        description=DESCRIPTIONS.get(model.config.model_type, f"A {model.config.model_type} baseline."),
        architecture=type(model).__name__,
        model_type=model.config.model_type,
        parameters=f"{model.num_parameters():,}",
        context=getattr(model.config, "max_position_embeddings", "any number of"),
        dataset=dataset_name,
        tokens_seen=f"{step * tokens_a_step:,}",
        command=command,
        revision=code_revision(),
        repo_id=model_name,
        custom_code=model.config.model_type in DESCRIPTIONS,
        results="\n".join(["| validation | |", "| --- | --- |", *rows]) if rows else "Not evaluated yet.",
        recipe=yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).strip(),
        limits=LIMITS,
    )
