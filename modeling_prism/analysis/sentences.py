"""The opening sentences of a report, computed from findings."""

from .examine import MOST_UNKNOWN
from .reducers import HEAD_METRICS
from .verdicts import NOTABLE, SIGNIFICANT, BankRow, bank_rows, copies_of, number, probability, strongest


FAMILIES = {"prism": "Prism", "momentum": "Momentum", "spherical": "Spherical", "llama": "Llama", "gpt2": "GPT-2"}


def counted(count: int, noun: str) -> str:
    """A number with its noun: 1 layer, 2 layers."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def knows_its_texts(findings: dict) -> bool:
    """Whether a model's tokenizer knows the texts, so that its bits per byte are meaningful."""
    return findings.get("unknown tokens", 0) <= MOST_UNKNOWN


def loss_of(findings: dict, key: str = "loss") -> tuple[float, str]:
    """The loss and its unit: bits per byte or, if those are meaningless, nats per token."""
    unit = "bits per byte" if knows_its_texts(findings) else "nats per token"
    return findings[key][unit], unit


def what_it_is(findings: dict) -> str:
    """The model, its texts, and its loss."""
    family = FAMILIES.get(findings["family"], findings["family"])
    size = f"{findings['name']} is a {family} model of {findings['parameters']:,} parameters"
    if "task" in findings:
        return (
            f"{size}. On all pairs of the task {findings['task']}, including those it was trained on, it answers "
            f"{findings['accuracy']:.1%} correctly."
        )
    shape = counted(findings["layers"], "layer")
    if "prism" in findings:
        H_S = findings["prism"]["signal heads"]
        shape += f" of {H_S} signal and {counted(findings['heads per layer'] - H_S, 'noise head')} at lambda = "
        shape += number(findings["prism"]["lambda"])
    elif findings["heads per layer"]:
        shape += f" of {counted(findings['heads per layer'], 'head')}"
    if "momentum" in findings:
        gammas = list(dict.fromkeys(findings["momentum"]["gammas"]))
        shape += " at gamma = " + ", ".join(map(number, gammas))
    loss, unit = loss_of(findings)
    read = f"{counted(findings['texts'], 'text')} of {counted(findings['tokens'], 'token')}"
    if findings.get("built-in texts"):
        read += ", stories that come with this package,"
    said = f"{size} ({shape}). On {read} it needs {loss:.3f} {unit}"
    if not knows_its_texts(findings):
        share = f"{findings['unknown tokens']:.0%}"
        said += f"; its tokenizer does not know {share} of these tokens, so bits per byte would be meaningless"
    return said + "."


def strongest_head(findings: dict, control: dict) -> tuple[str, int, int, float, float] | None:
    """
    The head whose share of attention (to the first token, to itself, ...) exceeds every head of the untrained copies
    most: metric, layer, head, share, and the largest untrained share.
    """
    best = None
    for name, unit in HEAD_METRICS.items():
        if unit != "share" or name not in findings["heads"] or name not in control["heads"]:
            continue
        values = findings["heads"][name]
        layer, head = divmod(int(values.argmax()), values.shape[1])
        share = values.max().item()
        usual = max(heads[name].max().item() for heads in (control["heads"], *copies_of(control, name)))
        if best is None or share - usual > best[3] - best[4]:
            best = (name, layer, head, share, usual)
    return best


ATTENDS = {
    "sink": "to the first token",
    "self": "to the token itself",
    "previous token": "to the previous token",
    "duplicate token": "to earlier occurrences of the same token",
    "induction": "to what followed earlier occurrences of the token",
}


def what_stands_out(findings: dict, control: dict) -> str:
    """The largest finding, family by family."""
    if "task" in findings:
        top, right = findings["top frequencies"], findings["accuracy by k"][5]
        where = " if no factor is 0" if findings["task"].startswith("multiply") else ""
        shares = [findings[label][top].sum().item() for label in ("logits", "embedding")]
        count = len(findings["logits"]) - 1
        return (
            f"The strongest frequencies of its logits ({', '.join(map(str, top))}) hold {shares[0]:.1%} of their "
            f"variance between inputs and {shares[1]:.1%} of the embedding's; {len(top)} of {count} equal ones would "
            f"hold {len(top) / count:.0%}. With these frequencies alone it answers {right:.1%} correctly{where}."
        )
    if "prism" in findings and "banks" in findings["prism"]:
        return what_tells_the_banks_apart(bank_rows(findings, control))
    if "shares" in findings.get("momentum", {}):
        found = findings["momentum"]
        plain = found["shares"]["variance"][0].mean().item()
        return (
            f"{filtered(found['largest deviation'])}. The terms that momentum adds make up {1 - plain:.0%} of the "
            "variance of the scores."
        )
    if "heads" in findings and "heads" in control:
        name, layer, head, share, usual = strongest_head(findings, control)
        if share - usual > NOTABLE:
            return (
                f"Head {head} of layer {layer} gives {share:.0%} of its attention {ATTENDS[name]}; no head of an "
                f"untrained copy gives more than {usual:.0%}. No other kind of attention measured here exceeds the "
                "untrained copies as far."
            )
        return (
            "No head stands out: none gives the first, the same, the previous, an equal or a matching token "
            f"{NOTABLE:.0%} more of its attention than every head of the untrained copies."
        )
    ranks = findings["residual"]["effective rank"]
    before, after = number(ranks[0].item()), number(ranks[-1].item())
    return f"The effective rank of its residual stream is {before} before the first layer and {after} after the last."


def what_tells_the_banks_apart(rows: list[BankRow]) -> str:
    """The largest difference between Prism's banks, and the verdict on each published one."""
    row = strongest(rows)
    if row is None:
        least = probability(min(row.p for row in rows))
        said = (
            "No head metric separates signal heads from noise heads: none differs by more than "
            f"{NOTABLE:.0%} at an adjusted p < {SIGNIFICANT} (the smallest is {least})."
        )
    else:
        unit = "" if HEAD_METRICS[row.name] == "share" else f" {HEAD_METRICS[row.name]}"
        said = (
            f"Its banks differ in {sum(row.differs for row in rows)} of {len(rows)} metrics, most in "
            f"{metric_name(row.name)}: {number(row.signal)}{unit} in signal heads and {number(row.noise)}{unit} in "
            f"noise heads (Cliff's delta {row.delta:+.2f}, adjusted {probability(row.p)})."
        )
    if published := [f"{row.name} ({row.published}) {row.verdict}" for row in rows if row.published]:
        said += f" Published differences (arXiv 2601.15540): {'; '.join(published)}."
    return said


def filtered(deviation: float) -> str:
    """Whether the measured response equals the formula's, up to rounding."""
    if deviation < 0.02:
        return f"The formula describes how queries and keys reach attention (deviation at most {deviation:.1g})"
    return f"The queries and keys that reach attention deviate from the formula, by up to {deviation:.2g} in gain"


def metric_name(name: str) -> str:
    return {"distance": "the mean distance of attention", "entropy": "the entropy of attention"}.get(
        name, f"attention {ATTENDS[name]}" if name in ATTENDS else f"the spectral {name} of attention"
    )


def what_the_control_says(findings: dict, control: dict) -> str:
    """The same metrics for untrained copies, and for the trained weights with the mechanism off."""
    if "task" in findings:
        top, count = len(control["top frequencies"]), len(control["logits"]) - 1
        return (
            f"An untrained copy answers {control['accuracy']:.1%} correctly, and the {top} strongest frequencies of "
            f"its logits hold {control['explained by top 5']['logits']:.1%} of their variance between inputs ({top} "
            f"of {count} equal ones: {top / count:.0%})."
        )
    loss, unit = loss_of(control)
    said = f"An untrained copy of the same config needs {loss:.3f} {unit}"
    row = strongest(bank_rows(findings, control)) if "prism" in findings else None
    if row is not None and row.untrained:
        said += (
            f". In {len(row.untrained)} of them the difference between banks (signal minus noise) is "
            f"{row.untrained_range} instead of {number(row.signal - row.noise)}: "
            f"{row.training.sentence}"
        )
    if "loss with the mechanism off" in findings:
        off, _ = loss_of(findings, "loss with the mechanism off")
        parameter = "lambda" if "prism" in findings else "gamma"
        said += f". With {parameter} = 0, the trained weights need {off:.3f}"
    return said + "."


def opening(findings: dict, control: dict) -> list[str]:
    """What the model is, what stands out, and what the control says."""
    return [what_it_is(findings), what_stands_out(findings, control), what_the_control_says(findings, control)]
