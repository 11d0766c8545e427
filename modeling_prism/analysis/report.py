"""
The report: one self-contained HTML page, its figures as PNG and SVG, and every number as JSON.

What a model shows depends on its family; the sentences are in `sentences.py`, the figures in `figures*.py`.
"""

import base64
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jinja2
import torch
import transformers
from matplotlib.figure import Figure

from ..configuration_momentum import MomentumConfig
from . import figures, figures_families, momentum
from .reducers import HEAD_FIGURES
from .sentences import FAMILIES, PUBLISHED_BANKS, knows_its_texts, number, opening, probability


@dataclass(frozen=True)
class Picture:
    """A figure, the name of its files, and what a reader must know to read it."""

    name: str
    caption: str
    figure: Figure


def heads_section(found: dict, control: dict) -> list[Picture]:
    pictures = []
    if "heads" in found:
        pictures += [
            Picture(
                "heads",
                "Figures of every head, averaged over queries. Distance: of what is attended to. Centroid: of the "
                "energy spectrum of attention over the lag; 1/4 is attention to single tokens, near 0 to everything "
                "evenly. Shares of attention go to the first token (sink), the token itself, the previous one, "
                "earlier equal tokens, and tokens that followed these (induction)."
                + (" Signal heads are left of the line." if "prism" in found else ""),
                figures.plot_heads(found),
            ),
            Picture(
                "attention_over_lag",
                "Mean attention to the token so many tokens back (the token itself left out; lags that few queries "
                "have are not shown), the energy spectrum of a query's attention over the lag, and its share by "
                "period.",
                figures.plot_attention_over_lag(found, control),
            ),
        ]
    if "repeats" in found:
        repeats = found["repeats"]
        pictures.append(
            Picture(
                "induction",
                "Prefix-matching score of every head on random tokens that repeat at varying distances, where "
                f"position alone is of no help. The model needs {repeats['nats of repeats']:.2f} nats for a token "
                f"that can be looked up and {repeats['nats of random tokens']:.2f} for one that cannot.",
                figures.plot_induction(found, control),
            )
        )
    return pictures


def prism_section(found: dict, control: dict) -> list[Picture]:
    pictures = []
    if "banks" in found["prism"]:
        pictures.append(
            Picture(
                "banks",
                "Every head by bank, trained and untrained; bars are means. Delta is Cliff's (-1 to 1; 0.47 is "
                "large), p that of a permutation test, adjusted for the number of figures (Benjamini and Hochberg). "
                "One model, one seed. Published (arXiv 2601.15540): signal heads attend far and at low frequency, "
                "noise heads near and at high.",
                figures_families.plot_banks(found, control),
            )
        )
    pictures.append(
        Picture(
            "bank_compression",
            "Coding rate of the layer-normed tokens on the subspaces of each bank, a head, through depth (eps^2 = "
            "0.5); and how much of the tokens lies in a head's subspace against outside it: a random subspace of "
            "half the dimensions has 1.",
            figures_families.plot_bank_compression(found, control),
        )
    )
    if "cosines" in found["prism"]:
        pictures.append(
            Picture(
                "update_cosines",
                "Cosine between what attention adds and the ascent direction of J(Z) = lambda R_c(Z | U_noise) - "
                "R_c(Z | U_signal), in full and without the part along each token, which the derivation leaves to "
                "the residual connection. Beside it: the same heads dealt to the banks at random, and an untrained "
                "copy.",
                figures_families.plot_update_cosines(found, control),
            )
        )
    pictures.append(
        Picture(
            "rope_bands",
            "What the two RoPE bases are before any training: the wavelength of each rotary plane (dotted: of the "
            "published bases, arXiv 2601.15540), and the score of two equal vectors by their distance.",
            figures_families.plot_rope_bands(found),
        )
    )
    return pictures


def sheared_stream(found: dict) -> str:
    """Queries or keys, whichever are sheared; of "qk" the keys."""
    return "queries" if found["momentum"]["streams"] == "q" else "keys"


def why_these_are_drawn(found: dict) -> str:
    """Which layers and stream the filter's figures show, and why they are enough."""
    stream, gammas = sheared_stream(found), found["momentum"]["gammas"]
    layers = figures_families.distinct_layers(gammas)
    other = "queries" if stream == "keys" else "keys"
    alike = "sheared alike" if found["momentum"]["streams"] == "qk" else "not sheared"
    said = f"Drawn: the {stream} ({other} are {alike}) of layer{'s'[: len(layers) > 1]} {', '.join(map(str, layers))}"
    if len(set(gammas)) > len(layers):
        said += " (the first few of different gammas)"
    elif len(layers) < len(gammas):
        said += ", since layers of one gamma are one filter"
    return said + "; the numbers of all are in report.json."


def momentum_section(found: dict) -> list[Picture]:
    stream = sheared_stream(found)
    layer = next((i for i, gamma in enumerate(found["momentum"]["gammas"]) if gamma != 0), 0)
    pictures = [
        Picture(
            "bode",
            "Bode plot of the shear. Lines: H(w) = 1 + gamma (1 - e^(-jw)). Points: white noise put in the place of "
            "the projections of the loaded model, and read where attention receives it; they scatter about the line, "
            "as samples do. The deviation from the formula is measured with sinusoids, which do not (next figure): at "
            f"most {found['momentum']['largest deviation']:.1g} in gain. {why_these_are_drawn(found)}",
            figures_families.plot_bode(found, stream),
        ),
        Picture(
            "planes",
            "Gain of each rotary plane for content of a given frequency: a shear after RoPE sees it at that "
            f"frequency plus the plane's own. Points: sinusoids through the loaded model, layer {layer}.",
            figures_families.plot_planes(found, stream, layer),
        ),
    ]
    if "shares" in found["momentum"]:
        pictures += [
            Picture(
                "score_terms",
                "The four terms of a score by their share in its variance over keys, mean of the heads; they sum to "
                "1, and a negative share works against the others.",
                figures_families.plot_score_terms(found),
            ),
            Picture(
                "dc_ac",
                "Energy of the constant and of the changing part of the content, with over without the shear, by "
                "rotary plane, and what the formula predicts; below, how much of what attention receives is "
                "constant. The numbers of the other layers are in report.json.",
                figures_families.plot_dc_ac(found, stream, layer),
            ),
        ]
    return pictures


def sections_of(found: dict, control: dict, others: Sequence[dict]) -> list[tuple[str, list[Picture]]]:
    """Titles and pictures of a report, in the order in which they are read."""
    sections = []
    if others and "loss" in found:
        pictures = []
        measured = [each for each in (found, *others) if knows_its_texts(each)]
        if knows_its_texts(found) and len(measured) > 1:
            caption = "Bits per byte of the same texts."
            if len(measured) <= len(others):
                caption += " Left out: models whose tokenizer does not know the texts."
            pictures.append(Picture("comparison", caption, figures.plot_comparison(measured)))
        comparable = [found, *(other for other in others if other["same tokenizer"])]
        if len(comparable) > 1 and all("heads" in each for each in comparable):
            caption = "Every head of the models that share a tokenizer; the bar is the mean."
            pictures.append(Picture("head_comparison", caption, figures.plot_head_comparison(comparable)))
        if pictures:
            sections.append(("Beside others", pictures))
    if "prism" in found:
        sections.append(("Signal and noise", prism_section(found, control)))
    if "momentum" in found:
        sections.append(("The filter", momentum_section(found)))
    if "task" in found:
        caption = (
            "Energy by frequency over the residues (of a product: over powers of a primitive root), frequency 0 left "
            "out, and the accuracy of the logits' strongest frequencies alone. The unembedding is read as the model "
            "uses it: a bounded one with rows of equal length. Of the logits the mean over all inputs is taken out."
        )
        if found["task"] == "add mod 113":
            caption += (
                " The cross is the accuracy that arXiv 2603.05228 gives for five frequencies of addition modulo 113: "
                "99.9%."
            )
        if "W_U W_out" in found:
            caption += " W_U W_out is what the neurons of the last MLP add to the logits, up to the norm between."
        sections.append(
            ("In the Fourier basis", [Picture("fourier", caption, figures_families.plot_fourier(found, control))])
        )
    if pictures := heads_section(found, control):
        sections.append(("Heads", pictures))
    caption = (
        "The residual stream through the layers: mean norm, effective rank (exp of the entropy of the centred "
        "singular values), entropy of its covariance, coding rate at unit scale, and the angle by which each layer "
        "turns a token."
    )
    sections.append(("Representations", [Picture("residual", caption, figures.plot_residual(found, control))]))
    return sections


def model_table(found: dict, control: dict, others: Sequence[dict]) -> dict:
    """Losses of all models."""
    header = ["model", "bits per byte", "perplexity", "parameters", "tokens"]
    rows = [(found, "loss", ""), (control, "loss", "")]
    if "loss with the mechanism off" in found:
        rows.append((found, "loss with the mechanism off", " at lambda = 0" if "prism" in found else " at gamma = 0"))
    rows += [(other, "loss", "") for other in others]
    cells = [
        [
            each["name"] + suffix,
            f"{each[key]['bits per byte']:.3f}" if knows_its_texts(each) else "(unknown tokens)",
            number(each[key]["perplexity"]),
            f"{each['parameters']:,}",
            f"{each['tokens']:,}",
        ]
        for each, key, suffix in rows
    ]
    return {"title": "Losses", "header": header, "rows": cells}


def task_table(found: dict, control: dict, others: Sequence[dict]) -> dict:
    """What all models answer of a task, and how much their five strongest frequencies hold of each table."""
    top = len(found["top frequencies"])
    count = found["residues"] // 2
    labels = list(dict.fromkeys(label for each in (found, *others) for label in each["explained by top 5"]))
    header = ["model", "family", "parameters", "right", f"with {top} frequencies", *labels]
    rows = [
        [each["name"], FAMILIES.get(each["family"], each["family"]), f"{each['parameters']:,}"]
        + [f"{each['accuracy']:.1%}", f"{each['accuracy by k'][5]:.1%}"]
        + [
            f"{each['explained by top 5'][label]:.1%}" if label in each["explained by top 5"] else ""
            for label in labels
        ]
        for each in (found, control, *others)
    ]
    equal = f"equal ones: {top / count:.0%}"
    title = f"Answers to all pairs, and the variance that {top} of {count} frequencies hold ({equal})"
    return {"title": title, "header": header, "rows": rows}


def bank_table(found: dict, control: dict) -> dict:
    """Banks by figure, trained and untrained."""
    header = ["figure", "published", "signal", "noise", "delta", "p (adjusted)", "untrained: signal", "noise", "delta"]
    rows = []
    for name, split in found["prism"]["banks"].items():
        row = [f"{name} ({HEAD_FIGURES[name]})", PUBLISHED_BANKS.get(name, "")]
        row += [number(split["signal"]), number(split["noise"])]
        row += [
            f"{split['cliffs_delta']:+.2f}",
            probability(split["adjusted_p"]).removeprefix("p ").removeprefix("= "),
        ]
        before = control["prism"].get("banks", {}).get(name)
        row += [number(before["signal"]), number(before["noise"]), f"{before['cliffs_delta']:+.2f}"] if before else []
        rows.append(row)
    return {"title": "Signal heads against noise heads", "header": header, "rows": rows}


def coherence_table(found: dict, control: dict) -> dict:
    """What the dictionaries of the banks have in common, layer by layer; untrained in brackets."""
    figures_shown = {
        "coherence max": "largest |cosine|",
        "coherence rms": "rms cosine",
        "coherence spectral": "||U_S U_N^T|| (spectral)",
        "coherence frobenius": "(Frobenius)",
        "affinity": "affinity of heads",
    }
    rows = []
    for layer in range(found["layers"]):
        row = [str(layer)]
        for name in figures_shown:
            trained, untrained = (number(float(each["prism"][name][layer])) for each in (found, control))
            row.append(f"{trained} ({untrained})")
        rows.append(row)
    title = "Coherence of the signal and the noise dictionary (in brackets: untrained)"
    return {"title": title, "header": ["layer", *figures_shown.values()], "rows": rows}


def filter_table(found: dict) -> dict:
    """
    The shear of the layers, the first of each gamma: gamma beside that of the published law for so many layers, then
    the formula's figures beside those of the loaded model. Its slowest plane is read, where a frequency of the content
    is all but the one at the shear.
    """
    stream, gammas = sheared_stream(found), found["momentum"]["gammas"]
    published = MomentumConfig(num_hidden_layers=len(gammas)).momentum_gamma
    header = ["layer", "gamma", "published"]
    for name in ("Nyquist gain", "noise gain", "lead (degrees)"):
        header += [name, "measured"]
    rows = []
    for layer in figures_families.distinct_layers(gammas):
        gamma, H = gammas[layer], found["momentum"]["measured"][stream][layer, -1]
        # At the frequencies that were measured: the greatest of all lies between two of them.
        lead = momentum.phase(found["momentum"]["formula"][stream][layer, -1]).max()
        # The mean from 0 to pi, by the trapezoid rule.
        noise_gain = torch.trapezoid(H.abs().square()) / (len(H) - 1)
        measured = (H[-1].abs(), noise_gain, momentum.phase(H).max())
        formula = (abs(1 + 2 * gamma), momentum.noise_gain(gamma), lead)
        pairs = [number(round(float(value), 4)) for pair in zip(formula, measured) for value in pair]
        rows.append([str(layer), number(gamma), number(published), *pairs])
    title = f"The shear on {stream}: the formula (after arXiv 2602.04902), and as measured"
    return {"title": title, "header": header, "rows": rows}


def to_json(value):
    """Findings as what JSON can hold: tensors as lists, complex numbers as their parts, no NaN."""
    if isinstance(value, torch.Tensor):
        if value.is_complex():
            return {"real": to_json(value.real), "imaginary": to_json(value.imag)}
        return to_json(value.tolist())
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def save_picture(picture: Picture, folder: Path) -> str:
    """Writes PNG and SVG; returns the SVG as a data URI."""
    folder.mkdir(parents=True, exist_ok=True)
    with figures.plt.rc_context(figures.STYLE):
        picture.figure.savefig(folder / f"{picture.name}.png", dpi=200)
        # The layout is found; finding it again takes half the time.
        picture.figure.set_layout_engine("none")
        buffer = io.BytesIO()
        picture.figure.savefig(buffer, format="svg", metadata={"Date": None})
    (folder / f"{picture.name}.svg").write_bytes(buffer.getvalue())
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


NO_PUBLISHED_PLOTS = "No plot of a paper is reproduced here: published numbers and formulas are shown in its place."


def footer_text(found: dict) -> str:
    """Versions, where the numbers are, and what stands in the place of the papers' own plots."""
    try:
        own = version("modeling-prism")
    except PackageNotFoundError:
        own = "(not installed)"
    # Of tasks modulo a number, only this has published figures.
    published = "prism" in found or "momentum" in found or found.get("task") == "add mod 113"
    return (
        f"modeling_prism {own}, torch {torch.__version__}, transformers {transformers.__version__}. Every number is "
        "in report.json, every figure in figures/ as PNG and SVG, beside this page."
        + (f" {NO_PUBLISHED_PLOTS}" if published else "")
    )


def write_report(found: dict, control: dict, out: str | Path, others: Sequence[dict] = ()) -> Path:
    """
    Writes `report.html`, `report.json` and `figures/` into a folder.

    Args:
        found: findings of the model (`examine` or `examine_cyclic`).
        control: those of an untrained copy.
        out: the folder, made if it is not there.
        others: findings of models to compare, each with `same tokenizer`: where that is False, only bits per byte are
            compared, and the page says so.

    Returns:
        the page.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    if (out / "report.json").is_file():
        # A picture of an earlier report would pass for one of this.
        for file in (out / "figures").glob("*.[ps][nv]g"):
            file.unlink()
    notes = list(found["notes"])
    for other in others:
        notes += [f"{other['name']}: {note}" for note in other["notes"]]
        if not other["same tokenizer"]:
            if strangers := [each["name"] for each in (found, other) if not knows_its_texts(each)]:
                what = f"that of {' and that of '.join(strangers)} does not know the texts, so that neither bits per "
                what += "byte nor maps of attention between tokens compare"
            else:
                what = "bits per byte compare, maps of attention between tokens do not"
            notes.append(
                f"{other['name']} has another tokenizer than {found['name']}: {what}, and its heads are left out."
            )
    sections = [
        {
            "title": title,
            "figures": [
                {"name": p.name, "caption": p.caption, "source": save_picture(p, out / "figures")} for p in pictures
            ],
        }
        for title, pictures in sections_of(found, control, others)
    ]
    tables = [model_table(found, control, others)] if "loss" in found else []
    if "task" in found:
        tables.append(task_table(found, control, others))
    if "banks" in found.get("prism", {}):
        tables.append(bank_table(found, control))
    if "prism" in found:
        tables.append(coherence_table(found, control))
    if "momentum" in found:
        tables.append(filter_table(found))
    sentences = opening(found, control)
    environment = jinja2.Environment(autoescape=True)
    template = environment.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    page = template.render(
        title=f"Inside {found['name']}",
        opening=sentences,
        notes=notes,
        tables=tables,
        sections=sections,
        footer=footer_text(found),
    )
    numbers = {"opening": sentences, "notes": notes, "model": found, "control": control, "others": list(others)}
    (out / "report.json").write_text(json.dumps(to_json(numbers), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (out / "report.html").write_text(page, encoding="utf-8")
    return out / "report.html"
