"""The sentences a report opens with, each computed from findings."""

import math
import statistics
from collections.abc import Sequence

import scipy.stats

from .examine import MOST_UNKNOWN
from .reducers import HEAD_FIGURES


FAMILIES = {"prism": "Prism", "momentum": "Momentum", "spherical": "Spherical", "llama": "Llama", "gpt2": "GPT-2"}
# A difference between banks counts as found below this p and from this size on: of all attention where the figure is a
# share of it, else of the larger mean. A head stands out by this share above every untrained one.
SIGNIFICANT, NOTABLE = 0.05, 0.05
# What arXiv 2601.15540 says of the banks, in words alone.
PUBLISHED_BANKS = {"distance": "signal > noise", "centroid": "signal < noise"}


def number(value: float) -> str:
    """Three digits, as a person would write them."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def counted(count: int, noun: str) -> str:
    """A number and its noun: 1 layer, 2 layers."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def probability(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def knows_its_texts(findings: dict) -> bool:
    """Whether a model's tokenizer knows the texts, so that its bits per byte are a measure."""
    return findings.get("unknown tokens", 0) <= MOST_UNKNOWN


def loss_of(findings: dict, key: str = "loss") -> tuple[float, str]:
    """What a model needs, and the unit: bits per byte, or nats per token where bytes are no measure."""
    unit = "bits per byte" if knows_its_texts(findings) else "nats per token"
    return findings[key][unit], unit


def what_it_is(findings: dict) -> str:
    """The model, what it read, and how well it predicts it."""
    family = FAMILIES.get(findings["family"], findings["family"])
    size = f"{findings['name']} is a {family} model of {findings['parameters']:,} parameters"
    if "task" in findings:
        return (
            f"{size}, read on all inputs of the task {findings['task']}: of all pairs, those it was trained on "
            f"included, it answers {findings['accuracy']:.1%} right."
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
    said = f"{size} ({shape}); on {read} it needs {loss:.3f} {unit}"
    if not knows_its_texts(findings):
        share = f"{findings['unknown tokens']:.0%}"
        said += f"; its tokenizer does not know {share} of these tokens, so that bits per byte say nothing"
    return said + "."


def strongest_bank_figure(findings: dict) -> str | None:
    """The head figure that tells Prism's banks apart most, if any does at adjusted p < 0.05 and by a notable size."""
    banks = findings["prism"].get("banks", {})
    found = [
        name
        for name, split in banks.items()
        if split["adjusted_p"] < SIGNIFICANT and abs(split["signal"] - split["noise"]) > least_notable(name, split)
    ]
    return max(found, key=lambda name: abs(banks[name]["cliffs_delta"]), default=None)


def least_notable(name: str, split: dict) -> float:
    """The smallest difference in a head figure to speak of, in its unit."""
    return NOTABLE * (1 if HEAD_FIGURES[name] == "share" else max(abs(split["signal"]), abs(split["noise"])))


def strongest_head(findings: dict, control: dict) -> tuple[str, int, int, float, float] | None:
    """
    The head farthest above every head of the untrained copies in a share of attention (to the first token, to itself,
    ...): figure, layer, head, its share, and the largest share of any head of theirs.
    """
    best = None
    for name, unit in HEAD_FIGURES.items():
        if unit != "share" or name not in findings["heads"] or name not in control["heads"]:
            continue
        values = findings["heads"][name]
        layer, head = divmod(int(values.argmax()), values.shape[1])
        share = values.max().item()
        usual = max(heads[name].max().item() for heads in (control["heads"], *copies_of(control, name)))
        if best is None or share - usual > best[3] - best[4]:
            best = (name, layer, head, share, usual)
    return best


def beside_published(name: str, split: dict) -> str:
    """Whether a difference between banks has the published direction; nothing where none is published."""
    if name not in PUBLISHED_BANKS or split["signal"] == split["noise"]:
        return ""
    found = "signal > noise" if split["signal"] > split["noise"] else "signal < noise"
    if found == PUBLISHED_BANKS[name]:
        return ", as published"
    return f", the reverse of what is published ({PUBLISHED_BANKS[name]}, arXiv 2601.15540)"


ATTENDS = {
    "sink": "to the first token",
    "self": "to the token itself",
    "previous token": "to the previous token",
    "duplicate token": "to earlier occurrences of the same token",
    "induction": "to what followed earlier occurrences of the token",
}


def what_stands_out(findings: dict, control: dict) -> str:
    """The largest of what was found, family by family."""
    if "task" in findings:
        top, right = findings["top frequencies"], findings["accuracy by k"][5]
        where = " where no factor is 0" if findings["task"].startswith("multiply") else ""
        shares = [findings[label][top].sum().item() for label in ("logits", "embedding")]
        count = len(findings["logits"]) - 1
        return (
            f"Its logits' strongest frequencies ({', '.join(map(str, top))}) hold {shares[0]:.1%} of their variance "
            f"between inputs and {shares[1]:.1%} of the embedding's, where {len(top)} of {count} equal ones hold "
            f"{len(top) / count:.0%}; with these alone it answers {right:.1%} right{where}."
        )
    if "prism" in findings and "banks" in findings["prism"]:
        name = strongest_bank_figure(findings)
        if name is None:
            least = probability(min(split["adjusted_p"] for split in findings["prism"]["banks"].values()))
            return (
                "No figure of heads tells its signal heads from its noise heads: none differs by more than "
                f"{NOTABLE:.0%} at an adjusted p < {SIGNIFICANT} (the smallest is {least})."
            )
        split, unit = findings["prism"]["banks"][name], HEAD_FIGURES[name]
        unit = "" if unit == "share" else f" {unit}"
        return (
            f"What tells its banks apart most is {figure_name(name)}: {number(split['signal'])}{unit} in signal heads "
            f"and {number(split['noise'])}{unit} in noise heads (Cliff's delta {split['cliffs_delta']:+.2f}, adjusted "
            f"{probability(split['adjusted_p'])}){beside_published(name, split)}."
        )
    if "shares" in findings.get("momentum", {}):
        found = findings["momentum"]
        plain = found["shares"]["variance"][0].mean().item()
        return (
            f"{filtered(found['largest deviation'])}, and the terms that momentum adds make up {1 - plain:.0%} of the "
            "variance of the scores."
        )
    if "heads" in findings and "heads" in control:
        name, layer, head, share, usual = strongest_head(findings, control)
        if share - usual > NOTABLE:
            return (
                f"Head {head} of layer {layer} gives {share:.0%} of its attention {ATTENDS[name]}, where no head of "
                f"untrained copies gives more than {usual:.0%}: the largest such distance of all kinds of attention "
                "looked for."
            )
        return (
            "No head stands out: none gives the first, the same, the previous, an equal or a matching token "
            f"{NOTABLE:.0%} more of its attention than the heads of untrained copies do."
        )
    ranks = findings["residual"]["effective rank"]
    before, after = number(ranks[0].item()), number(ranks[-1].item())
    return f"The effective rank of its residual stream is {before} before its layers and {after} after them."


def filtered(deviation: float) -> str:
    """Whether the measured response is the formula's, to the precision of its arithmetic."""
    if deviation < 0.02:
        return f"Attention receives queries and keys filtered as the formula says (deviation at most {deviation:.1g})"
    return f"What attention receives deviates from the formula, by up to {deviation:.2g} in gain"


def figure_name(name: str) -> str:
    return {"distance": "the mean distance of attention", "entropy": "the entropy of attention"}.get(
        name, f"attention {ATTENDS[name]}" if name in ATTENDS else f"the spectral {name} of attention"
    )


def what_the_control_says(findings: dict, control: dict) -> str:
    """The same figures of an untrained copy, and of the same weights with the mechanism off."""
    if "task" in findings:
        top, count = len(control["top frequencies"]), len(control["logits"]) - 1
        return (
            f"An untrained copy answers {control['accuracy']:.1%} right, and its logits' {top} strongest frequencies "
            f"hold {control['explained by top 5']['logits']:.1%} of their variance between inputs ({top} of {count} "
            f"equal ones: {top / count:.0%})."
        )
    loss, unit = loss_of(control)
    said = f"An untrained copy of the same config needs {loss:.3f} {unit}"
    name = strongest_bank_figure(findings) if "prism" in findings else None
    if name is not None and "heads" in control:
        split = findings["prism"]["banks"][name]
        gap, before = split["signal"] - split["noise"], bank_gaps(control, name)
        least, most = number(min(before)), number(max(before))
        said += (
            f", and in {len(before)} of them the difference between banks (signal less noise) is "
            f"{least if least == most else f'{least} to {most}'} instead of {number(gap)}: "
            f"{verdict(gap, before, least_notable(name, split))}"
        )
    if "loss with the mechanism off" in findings:
        off, _ = loss_of(findings, "loss with the mechanism off")
        parameter = "lambda" if "prism" in findings else "gamma"
        said += f"; the trained weights at {parameter} = 0 need {off:.3f}"
    return said + "."


def copies_of(control: dict, name: str) -> list[dict]:
    """The heads of the untrained copies that have this figure: a figure needs its texts, and copies read a few."""
    return [heads for heads in control.get("copies", []) if name in heads]


def bank_gaps(control: dict, name: str) -> list[float]:
    """Mean of signal less noise heads in each untrained copy; where copies were not measured, of the control alone."""
    H_S = control["prism"]["signal heads"]
    figures = [heads[name] for heads in copies_of(control, name) or [control["heads"]]]
    return [(figure[:, :H_S].mean() - figure[:, H_S:].mean()).item() for figure in figures]


def verdict(gap: float, before: Sequence[float], least: float) -> str:
    """
    Whether a difference was there before training.

    Args:
        gap: of the trained model.
        before: of untrained copies.
        least: the smallest change to speak of.
    """
    if len(before) < 2:
        return "a single one does not tell what training did"
    mean, error = statistics.fmean(before), statistics.stdev(before) / math.sqrt(len(before))
    # The interval in which one more untrained copy would lie. It is widened (Bonferroni): the figure was chosen out of
    # all, for being large in this model.
    t = scipy.stats.t.ppf(1 - SIGNIFICANT / len(HEAD_FIGURES) / 2, len(before) - 1)
    if abs(gap - mean) <= t * error * math.sqrt(len(before) + 1):
        return "training changed it by no more than untrained copies vary"
    if abs(gap - mean) <= least:
        return "it is built in, not learned"
    # What architecture builds in is what the copies have in common.
    share = mean / gap if abs(mean) > t * error else 0.0
    if share < -0.1:
        return "training turned it round"
    if share < 0.1:
        return "training made it"
    if share > 1:
        return "it is built in, and training made it smaller"
    return f"{share:.0%} of it is built in, training added the rest"


def opening(findings: dict, control: dict) -> list[str]:
    """What the model is, what stands out, what the control says."""
    return [what_it_is(findings), what_stands_out(findings, control), what_the_control_says(findings, control)]
