"""The arms: presets of configuration/models/, and the n-gram models that every one of them has to beat."""

PARAMETER_MATCHED = ["prism-tiny", "gpt-neox-tiny", "gpt2-tiny", "llama-tiny"]
COMPUTE_MATCHED = ["gpt-neox-tiny-compute", "gpt2-tiny-compute", "llama-tiny-compute"]
ARMS = PARAMETER_MATCHED + COMPUTE_MATCHED

# Bits per byte of interpolated Kneser-Ney models: as many tokens, a tokenizer of the same size, every eighth block of
# the same validation text. From the description of that text.
N_GRAMS = {"bigram": 1.475, "trigram": 1.300, "4-gram": 1.286}
