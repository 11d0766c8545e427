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
    network = AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False)
    model = LanguageModel(network, tokenizer=tokenizer)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    loss = network(ids, labels=ids).loss

    found = []
    for index in range(len(network.model.layers)):
        with model.trace(ids):
            states = model.model.layers[index].output.save()
        word = tokenizer.decode(network.lm_head(network.model.norm(states))[0, -1].argmax())
        with model.trace(ids):
            model.model.layers[index].self_attn.output[0][:] = 0
            logits = model.output.logits.save()
        without = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]) - loss
        print(f"layer {index}: says {word!r}; without its attention {without:+.3f} nats per token")
        found.append({"layer": index, "word": word, "loss": without.item()})
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
