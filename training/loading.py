"""Loads saved models, and refuses what is not a causal language model."""

import contextlib
from collections.abc import Iterator

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import modeling_prism  # noqa: F401  (registers the architectures)


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
        ValueError: no such model, damaged files, weights that lack parameters of the architecture, or a model that
            looks ahead.
    """
    with explaining_a_missing_model(name, option):
        model, info = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True, **kwargs)
    if info["missing_keys"]:
        raise ValueError(
            f"`{option}`={name!r} lacks weights of {type(model).__name__} ({_some(info['missing_keys'])}), which "
            "would be random: give the folder of a causal language model, without changes to its architecture."
        )
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
    if not torch.allclose(first.float(), second.float(), atol=1e-4, equal_nan=True):
        raise ValueError(
            f"`{option}` is a {model.config.model_type} that reads later tokens, so that it has no next-token loss: "
            "give a causal language model (BERT and its kin need `is_decoder=True`)."
        )


def _some(names) -> str:
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
