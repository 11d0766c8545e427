"""
The arms: what of Prism's attention step is changed, and which objective the changed update still ascends.

Notation: h_t = U z_t, the code of token t; R_t its rotation; R_c(Z | U) the coding rate of Z in the subspaces of U;
eta the step size; w_k the weight of subspace k in `sum_k w_k R_c(Z | U_k)`: -1 for signal, lambda for noise subspaces.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Arm:
    """
    Args:
        objective: in one line, what the update ascends, or that it ascends nothing known.
        fields: of `PrismStepsConfig`, on top of the shape all arms share; of the preset's config, for a control.
        preset: a folder of configuration/models/, for a control; None: `PrismStepsConfig`.
        ngram: for a floor, the order of a Kneser-Ney model of as many tokens.
    """

    objective: str
    fields: dict = field(default_factory=dict)
    preset: str | None = None
    ngram: int | None = None


PLAIN = "J = -R_c(Z|U_S) + lambda R_c(Z|U_N), first order; scores of rotated codes, values of plain ones: approximate"
ROTATED = "J = -R_c({R_s U_S z_s}) + lambda R_c({R_s U_N z_s}), first order: values rotated, output rotated back"
LEARNED = "sum_k w_k R_c(Z|U_k) with learned w_k"
SIGNAL = "J = -R_c over all 2H subspaces: no noise bank"
PAIRS = "plain step whose softmax compares z_t with the pairs (z_s, z_(s-1)): scores only, the direction is U^T U's"
METRIC = "scores in a learned metric G that commutes with R: R_c with codes weighed by G"
EXACT = "exact gradient in z_t, keys k_s held, of sum_k w_k sqrt(D) logsumexp_s(<R_t G h_t, k_s> / sqrt(D))"
CROSS = "exact gradient in z_t of sum_k w_k sqrt(D) logsumexp_s(<R_t U_k z_t, R_s U_(k+1) z_s> / sqrt(D)), keys held"
PAIRS_CROSSED = "scores of the pairs (z_s, z_(s-1)); the direction is that of cross: approximate"
NONE = "none: queries or outputs leave the dictionary"
CONTROL = "none claimed"


def step(eta: float, **fields) -> dict:
    return {"output_step": eta, **fields}


PLUS = {"noise_coefficient": -1.0}  # all heads at +1
BEST = {"rotary_values": True, "query_gain": True, "key_shift": True, **PLUS}
CROSSED = {"keys_as_values": True, "key_subspace": "next"}
CROSSED_VALUES = {"rotary_values": True, "key_subspace": "next"}
PARTS = {"query_gain": True, "conjugate_gain": True, "key_shift": True, **PLUS}


def without(*names: str, **changed) -> dict:
    return step(0.2, **{name: value for name, value in BEST.items() if name not in names}, **changed)


ARMS = {
    "gpt-neox": Arm(CONTROL, preset="gpt-neox-tiny"),
    "published": Arm(PLAIN),
    "step-0.2": Arm(PLAIN, step(0.2)),
    "rotary-0.2": Arm(ROTATED, step(0.2, rotary_values=True)),
    "all": Arm(SIGNAL + "; metric and pairs as below", step(0.2, **BEST)),
    # The last row of the search taken apart, each part left out in turn
    "all-step-1": Arm(SIGNAL, {**BEST}),
    "all-plain-values": Arm(SIGNAL, without("rotary_values")),
    "all-no-query-gain": Arm(SIGNAL, without("query_gain")),
    "all-no-key-shift": Arm(SIGNAL, without("key_shift")),
    "all-lambda": Arm(ROTATED, without("noise_coefficient")),
    "all-learned-weights": Arm(LEARNED, without("noise_coefficient", learned_step="head")),
    # Each part alone
    "key-shift": Arm(PAIRS, step(0.2, key_shift=True)),
    "query-gain": Arm(METRIC, step(0.2, query_gain=True)),
    "output-gain": Arm("a rotation of U's codes before U^T: Hamiltonian in part", step(0.2, output_gain=True)),
    "heads-plus": Arm(SIGNAL, step(0.2, **PLUS)),
    # More of what helps
    "all-one-tensor": Arm("J of the pairs' codes: keys and values are one", without(keys_as_values=True)),
    "all-exact": Arm(EXACT, without(keys_as_values=True, conjugate_gain=True)),
    "all-exact-lambda": Arm(EXACT, without("noise_coefficient", keys_as_values=True, conjugate_gain=True)),
    # Keys and values from the next head's subspace: exact, and neither scores nor writing are symmetric
    "cross": Arm(CROSS, step(0.2, **CROSSED, **PLUS)),
    "cross-lambda": Arm(CROSS, step(0.2, **CROSSED)),
    "cross-shift": Arm(PAIRS_CROSSED, step(0.2, **CROSSED_VALUES, key_shift=True, **PLUS)),
    "cross-shift-gain": Arm(PAIRS_CROSSED, step(0.2, **CROSSED_VALUES, key_shift=True, query_gain=True, **PLUS)),
    "cross-all": Arm(CROSS + "; metric and pairs", step(0.2, **CROSSED, **PARTS)),
    "cross-16-heads": Arm(CROSS, step(0.2, **CROSSED, **PLUS, num_attention_heads=16)),
    "cross-published-step": Arm(CROSS, {**CROSSED, **PLUS}),
    "all-output-gain": Arm("none known: the output turns", without(output_gain=True)),
    "all-code-steps": Arm(LEARNED + ", one per code", without(learned_step="code")),
    "all-16-heads": Arm(SIGNAL, without(num_attention_heads=16)),
    "all-R-1": Arm(SIGNAL, without(dictionary_expansion=1, intermediate_size=480)),
    # The rest of the steps
    "step-0.5": Arm(PLAIN, step(0.5)),
    "step-0.1": Arm(PLAIN, step(0.1)),
    "step-0.05": Arm(PLAIN, step(0.05)),
    "rotary-1": Arm(ROTATED, {"rotary_values": True}),
    "rotary-0.5": Arm(ROTATED, step(0.5, rotary_values=True)),
    "rotary-0.1": Arm(ROTATED, step(0.1, rotary_values=True)),
    "rotary-0.05": Arm(ROTATED, step(0.05, rotary_values=True)),
    # Learned steps
    "layer-steps": Arm(PLAIN, step(0.2, learned_step="layer")),
    "head-steps": Arm(LEARNED, step(0.2, learned_step="head")),
    "code-steps": Arm(LEARNED + ", one per code", step(0.2, learned_step="code")),
    "layer-steps-from-1": Arm(PLAIN, {"learned_step": "layer"}),
    "head-steps-from-1": Arm(LEARNED, {"learned_step": "head"}),
    "code-steps-from-1": Arm(LEARNED, {"learned_step": "code"}),
    # Pairs of parts
    "rotary-key-shift": Arm(ROTATED + "; pairs in the scores", step(0.2, rotary_values=True, key_shift=True)),
    "rotary-query-gain": Arm(ROTATED + "; metric", step(0.2, rotary_values=True, query_gain=True)),
    "R-1": Arm(PLAIN, step(0.2, dictionary_expansion=1)),
    # Diagnostics
    "free-queries": Arm(NONE, step(0.2, free_queries=True)),
    "free-output": Arm(NONE, step(0.2, free_output=True)),
    "all-free-queries": Arm(NONE, without(free_queries=True)),
    "all-free-output": Arm(NONE, without(free_output=True)),
    # Controls and floors
    "llama": Arm(CONTROL, {"intermediate_size": 256}, preset="llama-tiny"),
    "gpt2": Arm(CONTROL, preset="gpt2-tiny"),
    "bigram": Arm(CONTROL, ngram=2),
    "trigram": Arm(CONTROL, ngram=3),
    "4-gram": Arm(CONTROL, ngram=4),
}
