"""The arms: presets of configuration/models/, and the n-gram models that every one of them has to beat."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """
    Args:
        preset: a folder of configuration/models/.
        overrides: of its config, as `training.pretrain` reads them.
        control: the arm that it is compared with: what it would be without its family's idea.
        ngram: for a floor, the order of a Kneser-Ney model of as many tokens.
    """

    preset: str = ""
    overrides: str = ""
    control: str | None = None
    ngram: int | None = None


RADIUS = "residual_norm=rms_norm,norm_affine=false,logit_scale=30"
ARMS = {
    "llama": Arm("llama-tiny"),
    "gpt2": Arm("gpt2-tiny"),
    "gpt-neox": Arm("gpt-neox-tiny"),
    "prism": Arm("prism-tiny", control="gpt-neox"),
    "prism-stepped": Arm("prism-stepped-tiny", control="gpt-neox"),
    "momentum": Arm("momentum-tiny", "momentum_streams=k,momentum_gamma=0.2", control="llama"),
    "spherical": Arm("spherical-tiny", control="llama"),
    "spherical-radius": Arm("spherical-tiny", RADIUS, control="llama"),
    "spherical-uniform": Arm("spherical-tiny", "attention_routing=uniform", control="spherical"),
    # These cost Prism's FLOPs at 1.7 times its parameters.
    "gpt-neox-compute": Arm("gpt-neox-tiny-compute", control="gpt-neox"),
    "llama-compute": Arm("llama-tiny-compute", control="llama"),
    "gpt2-compute": Arm("gpt2-tiny-compute", control="gpt2"),
    **{name: Arm(ngram=order) for order, name in ((2, "bigram"), (3, "trigram"), (4, "4-gram"))},
}
FLOORS = [name for name, arm in ARMS.items() if arm.ngram]
