"""Renders the model card that goes into every saved folder, from `hub_cards/template.md`."""

import subprocess
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedConfig, PreTrainedModel

from training.files import name_only
from training.tasks import CardFacts


ROOT = Path(__file__).parent.parent
# Two sentences on each family, and the fields of its config that a card shows.
DESCRIPTIONS = {
    "prism": (
        "A causal language model whose attention is one step of signal-noise decomposition. One overcomplete "
        "dictionary serves as query, key, value and output matrix; signal heads are added, and noise heads are "
        "weighted by -lambda, the `noise_coefficient` (PRISM, arXiv 2601.15540).",
        ("noise_coefficient", "output_step", "rotary_values", "query_gain", "output_gain", "key_shift"),
    ),
    "momentum": (
        "A Llama whose queries and keys carry their change since the previous token, weighted by gamma. It has "
        "as many parameters as that Llama (Momentum Attention, arXiv 2602.04902).",
        ("momentum_gamma", "momentum_streams", "momentum_placement"),
    ),
    "spherical": (
        "A causal language model whose residual stream is normalised after every addition, as published to length 1. "
        "Its logits are cosines, scaled and so bounded by `logit_scale`; attention is softmax or a running mean "
        "(Spherical, arXiv 2603.05228).",
        ("residual_norm", "bounded_unembedding", "logit_scale", "attention_routing"),
    ),
}


def describe(config: PreTrainedConfig) -> tuple[str, str]:
    """Two sentences on the family of a config, and the values of the fields that are the family's own."""
    baseline = f"A baseline: transformers' own {config.model_type}, trained by the same command."
    description, fields = DESCRIPTIONS.get(config.model_type, (baseline, ()))
    return description, ", ".join(f"`{name}={getattr(config, name)}`" for name in fields)


def code_revision() -> str:
    """The git revision of this checkout, marked if code or configuration differ; "unknown" outside a checkout."""
    git = ["git", "-C", str(ROOT)]
    try:
        revision = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
        # A model that has just been released is no change of the code.
        status = [*git, "status", "--porcelain", "--", "*.py", "*.yaml", "*.toml", "configuration", ":!hub_cards"]
        changes = subprocess.run(status, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision.strip()[:12] + (" with local changes" if changes.strip() else "")


def render_model_card(
    model: PreTrainedModel,
    repo_id: str,
    step: int,
    tokens_seen: int,
    evaluated_at: int | None,
    metrics: dict[str, float],
    data: CardFacts,
    init_from: str | None,
    command: list[str],
    recipe: dict,
) -> ModelCard:
    """
    Renders the card of a model.

    Args:
        repo_id (`str`): the hub name or folder from which the card's code loads the model.
        step (`int`): number of optimizer steps.
        tokens_seen (`int`): number of tokens read by all processes.
        evaluated_at (`int`, *optional*): the step of the last evaluation, if there was one.
        metrics (`dict[str, float]`): the metrics of that evaluation, `None` where they are infinite.
        data (`CardFacts`): what the card says about the data.
        init_from (`str`, *optional*): the model that was fine-tuned, if one was.
        command (`list[str]`): the command, word by word.
        recipe (`dict`): the settings to show.
    """
    results = [
        EvalResult(data.task, data.data_type, data.name, metric_type=name, metric_value=round(value, 5))
        for name, value in metrics.items()
        if value is not None
    ]
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag=None if data.task == "other" else data.task,
        language=data.language,
        tags=["white-box", model.config.model_type],
        datasets=[data.hub_name] if data.hub_name else None,
        base_model=init_from if init_from and not Path(init_from).exists() else None,
        model_name=Path(repo_id).name,
        eval_results=results or None,
    )
    shown = {name: "infinite" if value is None else f"{value:.4f}" for name, value in metrics.items()}
    rows = [f"| {name.replace('_', ' ')} | {value} |" for name, value in shown.items()]
    table = [f"| {data.evaluated_on}, after {evaluated_at:,} steps | |", "| --- | --- |", *rows] if rows else []
    description, mechanism = describe(model.config)
    return ModelCard.from_template(
        card_data,
        template_path=str(ROOT / "hub_cards" / "template.md"),
        description=description,
        mechanism=mechanism,
        architecture=type(model).__name__,
        model_type=model.config.model_type,
        parameters=f"{model.num_parameters():,}",
        context=getattr(model.config, "max_position_embeddings", "any number of"),
        dataset=data.name,
        start=f"fine-tuned from {name_only(init_from)}" if init_from else "trained from scratch",
        step=f"{step:,}",
        tokens_seen=f"{tokens_seen:,}",
        command=" ".join(map(str, map(name_only, command))),
        revision=code_revision(),
        repo_id=repo_id,
        custom_code=model.config.model_type in DESCRIPTIONS,
        results="\n".join(table) or "Not evaluated yet.",
        recipe=yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).strip(),
        example=data.example,
        explanation=data.explanation,
        limits=data.limits,
    )
