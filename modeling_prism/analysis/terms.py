"""The words of a report that a reader may not know, each in a sentence, with its formula where there is one."""

import re
from typing import NamedTuple


class Term(NamedTuple):
    """A word, the pattern that finds it in a text, its meaning, and its formula or ""."""

    name: str
    pattern: str
    meaning: str
    formula: str = ""


TERMS = [
    Term(
        "Bits per byte",
        r"bits per byte",
        "how many yes-or-no answers the model needs on average to know the next byte of a text; lower is better, and "
        "models of different tokenizers compare.",
        "sum of -log2 p(token | tokens before it) / bytes of the text",
    ),
    Term(
        "Perplexity",
        r"perplexity",
        "among how many equally likely tokens the model seems to choose; it depends on the tokenizer.",
        "exp(mean of -ln p(token))",
    ),
    Term(
        "Untrained copy",
        r"untrained cop",
        "a model of the same size and config with random weights: what it shows too comes from the architecture, not "
        "from training.",
    ),
    Term(
        "Lambda",
        r"lambda\b",
        "the weight at which Prism subtracts its noise heads; at 0 they do nothing, and below 0 they are added.",
        "z + U^T [signal, -lambda noise] / sqrt(H R)",
    ),
    Term(
        "Gamma",
        r"gamma\b",
        "how much of a token's change since the token before is added to its query and key; with 0 it is a Llama.",
        "q_t + gamma (q_t - q_(t-1)), and the same for keys",
    ),
    Term(
        "Cliff's delta",
        r"[Cc]liff's delta|\bdelta\b|δ",
        "how cleanly two groups separate: 1 if every signal head lies above every noise head, 0 if they mix evenly, "
        "-1 if every one lies below; 0.47 counts as large.",
        "(pairs with signal > noise - pairs with signal < noise) / all pairs",
    ),
    Term(
        "Adjusted p",
        r"adjusted p\b|p \(adjusted\)",
        "how often heads dealt to the two banks at random would differ as much, corrected for looking at several "
        "metrics; below 0.05 is called a difference.",
        "permutation test; Benjamini and Hochberg: p_(i) m / i, made monotone",
    ),
    Term(
        "Distance",
        r"\b[Dd]istance\b(?! repeat)",
        "how many tokens back a head looks, on average.",
        "sum over s of A[t, s] (t - s)",
    ),
    Term(
        "Entropy",
        r"\bentropy of attention|entropy \(|distance, entropy",
        "how widely a head spreads its attention: 0 on one token, ln n on n tokens alike.",
        "-sum over s of A[t, s] ln A[t, s]",
    ),
    Term(
        "Centroid",
        r"\bcentroid\b",
        "whether a head is blurred or sharp: the mean frequency of its attention along the text. Attention to one "
        "token has 1/4, even attention nearly 0.",
        "sum of f E(f) / sum of E(f), with E(f) = |DFT of A[t, :]|^2",
    ),
    Term(
        "Sink",
        r"\bsink\b",
        "attention to the first token of a text, where heads that have nothing to look for often park theirs.",
        "mean over t of A[t, 0]",
    ),
    Term(
        "Running mean",
        r"running mean",
        "attention without scores: every token reads the mean of itself and all tokens before it.",
        "A[t, s] = 1 / (t + 1)",
    ),
    Term(
        "Duplicate token",
        r"\bduplicate\b|earlier occurrences of the same token",
        "attention to earlier places where the same token stands.",
        "mean over t of the sum of A[t, s] over s < t with x_s = x_t",
    ),
    Term(
        "Induction",
        r"\binduction\b|prefix.matching",
        "attention to what followed the same token earlier: how a model continues a pattern it has seen once.",
        "mean over t of the sum of A[t, s] over s <= t with x_(s-1) = x_t",
    ),
    Term(
        "R_c(Z | U), coding rate",
        r"R_c|[Cc]oding rate",
        "how much room the tokens take: the length of a code that describes them up to an error eps. Small means "
        "compressed into few directions; Z are tokens, U the subspaces of a bank.",
        "R(Z) = 1/2 ln det(I + d / (n eps^2) Z Z^T); R_c(Z | U) = sum over heads of R(U_h Z)",
    ),
    Term(
        "Coherence",
        r"[Cc]oherence",
        "how far the directions of the two dictionaries overlap: 0 if they are at right angles, 1 if they share one.",
        "largest |u_i . u_j| / (|u_i| |u_j|) over rows of U_signal and U_noise",
    ),
    Term(
        "Affinity",
        r"\baffinity\b",
        "how far two subspaces point the same way: 0 at right angles, 1 if they are one.",
        "||U_a U_b^T||_F / sqrt(dimensions), for orthonormal rows",
    ),
    Term(
        "Subspace signal-to-noise ratio",
        r"part of the tokens inside a head's subspace",
        "how much of the tokens lies inside a head's subspace, for one part outside.",
        "|P z| / |z - P z|, with P the projection onto the subspace",
    ),
    Term(
        "Effective rank",
        r"[Ee]ffective rank",
        "in how many directions the tokens really vary.",
        "exp(-sum of p_i ln p_i), with p_i = singular value i / their sum",
    ),
    Term(
        "Nyquist gain",
        r"Nyquist",
        "by how much the shear amplifies content that flips its sign at every token, the fastest there is.",
        "|1 + 2 gamma|",
    ),
    Term(
        "Noise gain",
        r"noise gain",
        "by how much the shear amplifies the energy of content that is independent from token to token.",
        "(1 + gamma)^2 + gamma^2",
    ),
    Term(
        "Lead",
        r"\blead \(",
        "by what part of a turn the sheared signal runs ahead of the original, in degrees.",
        "arg(1 + gamma (1 - e^(-jw)))",
    ),
    Term(
        "Rotary plane",
        r"[Rr]otary plane",
        "two dimensions of a query or key that RoPE turns by a fixed angle per token: the first plane fast, the last "
        "slowly.",
        "theta_i = base^(-2 i / D) radians per token",
    ),
    Term(
        "Frequency k",
        r"frequenc(y|ies) of its logits|[Ff]requency over the residues",
        "a wave that makes k turns along the residues; a model that adds on a circle uses a few of them.",
        "cos(2 pi k a / n) and sin(2 pi k a / n)",
    ),
]


def first_terms(texts: list[str], known: set[str]) -> list[Term]:
    """The terms of `TERMS` that stand in `texts` and are not in `known`, to which their names are added."""
    found = [term for term in TERMS if term.name not in known and re.search(term.pattern, " ".join(texts))]
    known.update(term.name for term in found)
    return found
