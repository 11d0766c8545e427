"""Reads configs, builds new models and loads saved ones; refuses what is not a causal language model."""

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import modeling_prism  # noqa: F401  (registers the architectures)
from training.command import suggest
from training.options import ModelArguments
from training.tasks import Blocks


logger = logging.getLogger(__name__)


@contextlib.contextmanager
def explaining_a_missing_model(name: str, option: str = "model") -> Iterator[None]:
    """Turns an error while loading a model into a `ValueError` with the remedy."""
    try:
        yield
    # Libraries raise all kinds of errors for truncated and foreign files.
    except Exception as error:
        cause = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ValueError(
            f"`{option}`={name!r} is neither the folder of a trained model nor an available hub model ({cause}); "
            "`make demo` trains one into outputs/quickstart."
        ) from error


def load_causal_lm(name: str, option: str = "model", **kwargs) -> PreTrainedModel:
    """
    Loads a causal language model with all its weights.

    Raises:
        ValueError: no such model, damaged files, weights that lack parameters of the architecture or are not finite,
            or a model that looks ahead.
    """
    with explaining_a_missing_model(name, option):
        model, info = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True, **kwargs)
    if info["missing_keys"]:
        raise ValueError(
            f"`{option}`={name!r} lacks weights of {type(model).__name__} ({_some(info['missing_keys'])}), which "
            "would be random: give the folder of a causal language model, without changes to its architecture."
        )
    # A byte-wide float is a quantised weight, which `isfinite` does not read.
    weights = ((n, w) for n, w in model.named_parameters() if w.is_floating_point() and w.itemsize > 1)
    broken = [name for name, weight in weights if not torch.isfinite(weight).all()]
    if broken:
        raise ValueError(f"`{option}`={name!r} holds weights that are not finite ({_some(broken)}): give another.")
    if not model.get_input_embeddings().weight.any():
        raise ValueError(f"`{option}`={name!r} holds embeddings that are all zero: its file is damaged, give another.")
    check_causal(model, option)
    return model


def load_model_and_tokenizer(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a model for inference, with its tokenizer."""
    model = load_causal_lm(name)
    with explaining_a_missing_model(name):
        return model.eval(), AutoTokenizer.from_pretrained(name)


@torch.no_grad()
def check_causal(model: PreTrainedModel, option: str) -> None:
    """Raises `ValueError` if the logits of a token depend on a later token, as in BERT."""
    # Flash attention does not run on the CPU, where a new model is.
    if "flash" in (getattr(model.config, "_attn_implementation", None) or ""):
        return
    was_training = model.training
    model.eval()
    first, second = (
        model(input_ids=torch.tensor([[1, last]], device=model.device), use_cache=False).logits[0, 0]
        for last in (0, model.config.vocab_size - 1)
    )
    model.train(was_training)
    # Nonfinite logits compare equal: they are another problem.
    tolerance = 1e-5 * first.abs().nan_to_num().max().item()
    if not torch.allclose(first.float(), second.float(), rtol=0, atol=tolerance, equal_nan=True):
        raise ValueError(
            f"`{option}` is a {model.config.model_type} that reads later tokens, so that it has no next-token loss: "
            "give a causal language model (BERT and its kin need `is_decoder=True`)."
        )


def _some(names) -> str:
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def load_config(arguments: ModelArguments, vocab_size: int | None = None) -> PreTrainedConfig:
    """
    Reads the config of the model and applies the overrides.

    Args:
        vocab_size (`int`, *optional*): number of tokens if the data decide it. A new model gets as many, unless an
            override sets another number.
    """
    if bool(arguments.model_config) == bool(arguments.init_from):
        raise ValueError("Give either `model_config` (train from scratch) or `init_from` (fine-tune), and not both.")
    option = "model_config" if arguments.model_config else "init_from"
    source = getattr(arguments, option)
    try:
        config = AutoConfig.from_pretrained(source)
    # A damaged config.json raises all kinds of errors.
    except Exception as error:
        raise ValueError(
            f"`{option}`={source!r} is neither a folder with a config.json nor an available hub model "
            f"({(str(error) or type(error).__name__).strip().splitlines()[0]}); the project's presets are in "
            "configuration/models/."
        ) from error
    if arguments.model_config and any(Path(source).glob("*.safetensors")):
        logger.warning("`model_config`=%r: the weights there are not read. `--init_from` starts from them.", source)
    text = arguments.config_overrides or ""
    if arguments.init_from and vocab_size not in (None, config.vocab_size):
        raise ValueError(
            f"`init_from`={source!r} has {config.vocab_size} tokens, but the lookup table has {vocab_size}: fine-tune "
            "a model of that table."
        )
    if vocab_size not in (None, config.vocab_size) and "vocab_size" not in parse_overrides(text):
        logger.info("Using `vocab_size`=%d, as many tokens as the data have, not %d.", vocab_size, config.vocab_size)
        text = f"vocab_size={vocab_size},{text}"
    return override_config(config, source, text)


def override_config(config: PreTrainedConfig, source: str, text: str) -> PreTrainedConfig:
    """Returns the config read from `source` with the overrides in `text`, 'key=value,key=value'."""
    overrides = parse_overrides(text)
    for key in overrides:
        if not hasattr(config, key):
            remedy = suggest(key, vars(config), otherwise=f"it has {', '.join(sorted(config.to_diff_dict()))}.")
            raise ValueError(f"`config_overrides` names `{key}`, which a {config.model_type} does not have: {remedy}")
    if overrides:
        # Start from the file again, so that derived values follow the overrides.
        values, _ = PreTrainedConfig.get_config_dict(source)
        try:
            config = AutoConfig.for_model(**{**values, **overrides})
        # Other architectures raise all kinds of errors for values of a wrong type.
        except Exception as error:
            raise ValueError(
                f"`config_overrides`={text!r} does not fit a {config.model_type} config: {error}"
            ) from error
    return config


def parse_overrides(text: str) -> dict:
    """Parses 'key=value,key=value'. Values are numbers, true, false, null, text, or a list [value,value]."""
    overrides = {}
    # Not at the commas of a list.
    for entry in filter(None, re.split(r",(?![^\[]*\])", text)):
        key, separator, value = entry.partition("=")
        if not separator:
            raise ValueError(f"`config_overrides`={text!r} has {entry!r}, which is not of the form key=value.")
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"`config_overrides`={text!r} has {entry!r}, whose value is not YAML.") from None
        overrides[key.strip()] = list(map(_number, value)) if isinstance(value, list) else _number(value)
    return overrides


def _number(value):
    """YAML reads 1e-2, without a point, as text."""
    with contextlib.suppress(ValueError):
        return float(value) if isinstance(value, str) else value
    return value


def check_sizes(config: PreTrainedConfig, vocab_size: int | None, block_size: int) -> None:
    """Refuses blocks and vocabularies that do not fit the model; a `vocab_size` of `None` is not known yet."""
    if vocab_size is not None and vocab_size > config.vocab_size:
        raise ValueError(
            f"The data have {vocab_size} tokens, but the model has only `vocab_size`={config.vocab_size}: train a new "
            f"model with `--config_overrides vocab_size={vocab_size}`, or lower `tokenizer_vocab_size` if the "
            "tokenizer is trained on text."
        )
    # Some architectures have no such limit.
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and block_size > limit:
        raise ValueError(
            f"`block_size`={block_size} is longer than the model's `max_position_embeddings`={limit}: shorten the "
            f"blocks, or `--config_overrides max_position_embeddings={block_size}`."
        )


def build_model(
    arguments: ModelArguments, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, blocks: Blocks
) -> PreTrainedModel:
    """Builds or loads the model; its configs and the tokenizer get special tokens and lengths that fit each other."""
    options = {"attn_implementation": arguments.attn_implementation} if arguments.attn_implementation else {}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    if arguments.init_from:
        model = load_causal_lm(arguments.init_from, "init_from", config=config, **options)
    else:
        try:
            model = AutoModelForCausalLM.from_config(config, **options)
        # Other architectures raise all kinds of errors for sizes that do not fit each other.
        except Exception as error:
            changes = f" with `config_overrides`={arguments.config_overrides!r}" if arguments.config_overrides else ""
            raise ValueError(f"`model_config`={arguments.model_config!r}{changes} makes no model: {error}") from error
        check_causal(model, "model_config")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(tokenizer, name))
    length = getattr(config, "max_position_embeddings", None)
    if length:
        tokenizer.model_max_length = length
        model.generation_config.max_length = length
    if blocks.label_shift == 0:
        # Behind the answer there is nothing.
        model.generation_config.max_length, model.generation_config.max_new_tokens = None, 1
    return model
