"""Where a model gains: the tokens of a text sorted by what the text before them gives away."""

import numpy as np
from transformers import PreTrainedTokenizerBase


NEAR = 64
KINDS = {
    "new name": "a capitalised word within a sentence, for the first time",
    "known name": "the same, not for the first time",
    "new token": "for the first time in the block",
    "known token": "not for the first time, but never after the token before it",
    "known pair, near": f"seen after the token before it, at most {NEAR} tokens ago",
    "known pair, far": f"the same, more than {NEAR} tokens ago",
}


def name_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[np.ndarray, np.ndarray]:
    """For each token of the vocabulary (V,): does it begin a capitalised word, and does a sentence end in it?"""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    begins = [text[:1] == " " and text[1:2].isupper() and text[1:].isalpha() and text != " I" for text in texts]
    ends = [text.rstrip().endswith((".", "!", "?", '"', ">")) or "\n" in text for text in texts]
    return np.array(begins), np.array(ends)


def kinds_of(blocks: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """
    The kind of every token but the first of each block.

    Args:
        blocks (`np.ndarray` of shape `(N, tokens)`): token ids.

    Returns:
        `np.ndarray` of shape `(N, tokens - 1)`: places in `KINDS`.
    """
    names = list(KINDS)
    begins, ends = name_tokens(tokenizer)
    kinds = np.empty((len(blocks), blocks.shape[1] - 1), dtype=int)
    for block, row in zip(blocks.tolist(), kinds):
        seen, pairs = {block[0]}, {}
        for place, pair in enumerate(zip(block, block[1:])):
            before, token = pair
            if begins[token] and not ends[before]:
                kind = "known name" if token in seen else "new name"
            elif pair in pairs:
                kind = "known pair, near" if place - pairs[pair] <= NEAR else "known pair, far"
            else:
                kind = "known token" if token in seen else "new token"
            row[place] = names.index(kind)
            seen.add(token)
            pairs[pair] = place
    return kinds
