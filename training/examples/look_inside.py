"""
Looks into a saved model with nnsight: what each layer would say next, and how much worse the text becomes without its
attention.

    python -m training.examples.look_inside outputs/quickstart "Once upon a time there was a little girl."
"""

import sys

import torch
from nnsight import LanguageModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import modeling_prism  # noqa: F401  (registers the architectures)


def main(argv: list[str]) -> list[dict]:
    folder, text = argv
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LanguageModel(AutoModelForCausalLM.from_pretrained(folder), tokenizer=tokenizer)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]

    with torch.no_grad(), model.trace(ids):
        words = [model.lm_head(model.model.norm(layer.output))[0, -1].argmax().save() for layer in model.model.layers]
        logits = model.output.logits.save()

    def loss_of(logits: torch.Tensor) -> float:
        return torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).item()

    found = []
    for index, word in enumerate(words):
        with torch.no_grad(), model.trace(ids):
            model.model.layers[index].self_attn.output[0][:] = 0
            without = model.output.logits.save()
        found.append({"layer": index, "word": tokenizer.decode(word), "loss": loss_of(without) - loss_of(logits)})
    for row in found:
        print(f"layer {row['layer']}: says {row['word']!r}; without its attention {row['loss']:+.3f} nats per token")
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
