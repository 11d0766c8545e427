"""
The report: one self-contained HTML page, its figures as PNG and SVG, and every number as JSON.

The model's family decides what it shows; `sentences.py` writes the sentences, `figures*.py` draw the figures.
"""

import contextlib
import io
import json
import math
import os
import re
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jinja2
import torch
import transformers
from markupsafe import Markup, escape

from . import figures
from .figures import Picture
from .figures_momentum import filter_table, momentum_section
from .figures_prism import bank_table, coherence_table, prism_section
from .figures_spherical import fourier_section, plot_clock, task_table
from .sentences import knows_its_texts, opening
from .terms import first_terms
from .verdicts import number
from .view import page_data


# Narrow enough for a telephone; a notebook's figures are wider.
PAGE_WIDTH = 4.4
# The colours of figures, which a page replaces by its own: a dark page has a light ink.
THEME = {
    "#000000": "var(--ink)",
    "#ffffff": "var(--card)",
    "#8c8c8c": "var(--muted)",
    "#cccccc": "var(--line)",
    "#e6e6e6": "var(--line)",
    "#12355b": "var(--signal)",
    "#e08a1e": "var(--noise)",
}
TEXT, CLOCK, LOSSES, BANKS, FILTER, FOURIER = (
    "One text, token by token",
    "The clock",
    "Losses",
    "Signal and noise",
    "The filter",
    "Fourier basis",
)


def heads_section(found: dict, control: dict) -> list[Picture]:
    """The figures of attention heads, with captions."""
    pictures = []
    if "heads" in found:
        pictures += [
            Picture(
                "heads",
                "Metrics of every head, averaged over queries: distance, entropy, centroid, and shares of attention: "
                "to the first token (sink), the token itself, the token before, earlier equal tokens (duplicate) and "
                "what followed these (induction). All shares have one scale, of square roots."
                + (" Signal heads are left of the line." if "prism" in found else ""),
                figures.plot_heads(found),
            ),
            Picture(
                "attention_over_lag",
                "Mean attention by lag (without lag 0 and lags that few queries reach), its energy spectrum, and its "
                "energy by period.",
                figures.plot_attention_over_lag(found, control),
            ),
        ]
    if "repeats" in found:
        repeats = found["repeats"]
        pictures.append(
            Picture(
                "induction",
                "Prefix-matching score of every head on random tokens that repeat at varying distances, so that "
                f"position alone is of no help. The model needs {repeats['nats of repeats']:.2f} nats for a token "
                f"it can look up and {repeats['nats of random tokens']:.2f} for one it cannot.",
                figures.plot_induction(found, control),
            )
        )
    return pictures


def sections_of(found: dict, control: dict, others: Sequence[dict]) -> list[tuple[str, list[Picture]]]:
    """Titles and figures of a report, in reading order."""
    sections = []
    if found.get("view", {}).get("maps") is not None:
        caption = "The attention map of every head on this text: row t shows where token t looks."
        sections.append((TEXT, [Picture("attention_maps", caption, figures.plot_maps(found["view"]))]))
    if "task" in found:
        caption = "Where the embedding places the residues, in the planes of the logits' five strongest frequencies."
        sections.append((CLOCK, [Picture("clock", caption, plot_clock(found))]))
    if others and "loss" in found:
        pictures = []
        measured = [each for each in (found, *others) if knows_its_texts(each)]
        if knows_its_texts(found) and len(measured) > 1:
            caption = "Bits per byte on the same texts."
            if len(measured) <= len(others):
                caption += " Models whose tokenizer does not know the texts are left out."
            pictures.append(Picture("comparison", caption, figures.plot_comparison(measured)))
        comparable = [found, *(other for other in others if other["same tokenizer"])]
        if len(comparable) > 1 and all("heads" in each for each in comparable):
            caption = "Every head of the models that share a tokenizer; bars are means."
            pictures.append(Picture("head_comparison", caption, figures.plot_head_comparison(comparable)))
        if pictures:
            sections.append(("Comparison", pictures))
    if "prism" in found:
        sections.append((BANKS, prism_section(found, control)))
    if "momentum" in found:
        sections.append((FILTER, momentum_section(found)))
    if "task" in found:
        sections.append((FOURIER, fourier_section(found, control)))
    if pictures := heads_section(found, control):
        sections.append(("Heads", pictures))
    caption = (
        "The residual stream, layer by layer: mean norm, effective rank (exp of the entropy of the centred singular "
        "values), entropy of the covariance, coding rate at unit scale, and the angle by which a layer turns a token."
    )
    sections.append(("Representations", [Picture("residual", caption, figures.plot_residual(found, control))]))
    return sections


def model_table(found: dict, control: dict, others: Sequence[dict]) -> dict:
    """The losses of all models."""
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


def to_json(value):
    """Converts findings for JSON: tensors to lists, complex numbers to their parts, non-finite numbers to null."""
    if isinstance(value, torch.Tensor):
        if value.is_complex():
            return {"real": to_json(value.real), "imaginary": to_json(value.imag)}
        return to_json(value.tolist())
    if isinstance(value, dict):
        # Maps and hands are as large as all the rest, and stand in the page.
        return {str(key): to_json(item) for key, item in value.items() if key not in ("maps", "hands")}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def tables_of(found: dict, control: dict, others: Sequence[dict]) -> dict[str, list[dict]]:
    """The tables of a report, by the title of their section."""
    tables = {}
    if "loss" in found:
        tables[LOSSES] = [model_table(found, control, others)]
    if "task" in found:
        tables[FOURIER] = [task_table(found, control, others)]
    if "prism" in found:
        banks = [bank_table(found, control)] if "banks" in found["prism"] else []
        tables[BANKS] = [*banks, coherence_table(found, control)]
    if "momentum" in found:
        tables[FILTER] = [filter_table(found)]
    return tables


def draw(picture: Picture) -> dict[str, bytes]:
    """The files of a picture, PNG and SVG, by name."""
    files = {}
    with figures.plt.rc_context(figures.STYLE), warnings.catch_warnings():
        # Where no installed font has a character, a PNG shows a box; the SVG's text is drawn by whoever shows it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        picture.figure.set_figwidth(PAGE_WIDTH)
        for kind in ("png", "svg"):
            buffer = io.BytesIO()
            metadata = dict.fromkeys(("Date", "Creator", "Format", "Type")) if kind == "svg" else None
            picture.figure.savefig(buffer, format=kind, dpi=200, metadata=metadata)
            files[f"{picture.name}.{kind}"] = buffer.getvalue()
            # Reuse the layout: computing it again takes half the time.
            picture.figure.set_layout_engine("none")
    return files


def inline(svg: str, caption: str) -> Markup:
    """A figure's SVG as a part of the page, in the page's colours and as wide as its place."""
    # Numbered names recur in every figure; those that are referred to are hashes of what they name.
    svg = re.sub(r' id="[a-z]\w*_\d+"', "", svg[svg.index("<svg") :])
    svg = re.sub(
        r"<svg.*?(viewBox=\"[^\"]*\").*?>",
        rf'<svg \1 role="img" aria-label="{escape(caption)}">',
        svg,
        count=1,
        flags=re.DOTALL,
    )
    return Markup(re.sub("|".join(THEME), lambda colour: THEME[colour[0]], svg))


def page_sections(found: dict, control: dict, others: Sequence[dict], known: set[str]) -> tuple[list[dict], dict]:
    """
    The sections of a page, with what `report.html` shows of each, and the files of the figures.

    Args:
        known: names of the terms that the page explains before; those of the sections are added.
    """
    pictures, tables = dict(sections_of(found, control, others)), tables_of(found, control, others)
    view, sections, files = found.get("view"), [], {}
    first = [
        title for title in (TEXT if view else CLOCK, LOSSES) if title in pictures or title in tables or title == TEXT
    ]
    for title in dict.fromkeys([*first, *pictures]):
        section = {"title": title, "id": title.split(",")[0].lower().replace(" ", "-"), "figures": []}
        section["tables"] = tables.get(title, [])
        for picture in pictures.get(title, []):
            drawn = draw(picture)
            files |= {f"figures/{name}": content for name, content in drawn.items()}
            svg = inline(drawn[f"{picture.name}.svg"].decode(), picture.caption)
            section["figures"].append({"name": picture.name, "caption": picture.caption, "svg": svg})
        section["static"] = title in (TEXT, CLOCK)
        if title == TEXT:
            weights = [f"{min(1, bits / 8):.2f}" for bits in view["bits"][view["trained"]].tolist()]
            means = [f"{bits[1:].mean():.2f}" for bits in view["bits"]]
            section |= {"tokens": list(zip(view["tokens"], weights)), "settings": list(zip(view["settings"], means))}
            section |= {"mechanism": view["mechanism"], "trained": view["trained"], "maps": view["maps"] is not None}
        if title == CLOCK:
            section["modulus"] = found["residues"]
        words = [figure["caption"] for figure in section["figures"]]
        words += [
            cell
            for table in section["tables"]
            for row in ([table["title"], *table["header"]], *table["rows"])
            for cell in row
        ]
        section["terms"] = first_terms([title, section.get("mechanism", ""), *words], known)
        sections.append(section)
    return sections, files


def script_data(found: dict) -> Markup | None:
    """What the page's script reads, as JSON in which no token can end the script; or None."""
    data = page_data(found)
    return data and Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"))


def write_files(out: Path, files: dict[str, bytes]) -> None:
    """
    Writes the files of a report, over those of an earlier one. The two never mix: the page is removed first and
    written last, all at once, so that a page always belongs to the files beside it, even if this is interrupted.
    """
    page, numbers, part = out / "report.html", out / "report.json", out / "report.html.part"
    page.unlink(missing_ok=True)
    # Remove only what an earlier report wrote.
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        for name in json.loads(numbers.read_bytes())["files"]:
            if re.fullmatch(r"figures/\w+\.(png|svg)", name):
                (out / name).unlink(missing_ok=True)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    # The numbers come before the figures: they say which figures an interrupted report left.
    for name in sorted(files.keys() - {page.name}, key=lambda name: name != numbers.name):
        (out / name).write_bytes(files[name])
    part.write_bytes(files[page.name])
    os.replace(part, page)


NO_PUBLISHED_PLOTS = "The plots of the papers are not reproduced; their numbers and formulas are shown instead."


def footer_text(found: dict) -> str:
    """Versions, where to find the numbers, and what replaces the papers' plots."""
    try:
        own = version("modeling-prism")
    except PackageNotFoundError:
        own = "(not installed)"
    # The only task modulo a number with published results.
    published = "prism" in found or "momentum" in found or found.get("task") == "add mod 113"
    return (
        f"modeling_prism {own}, torch {torch.__version__}, transformers {transformers.__version__}. Beside "
        "this page, report.json holds every number and figures/ every figure as PNG and SVG."
        + (f" {NO_PUBLISHED_PLOTS}" if published else "")
    )


def write_report(found: dict, control: dict, out: str | Path, others: Sequence[dict] = ()) -> Path:
    """
    Writes `report.html`, `report.json` and `figures/` into a folder.

    Args:
        found: findings of the model (`examine` or `examine_cyclic`).
        control: those of an untrained copy.
        out: the folder, created if missing.
        others: findings of models to compare, each with `same tokenizer`. If that is False, only bits per byte are
            compared, and the page says so.

    Returns:
        the page's path.
    """
    notes = list(found["notes"])
    for other in others:
        notes += [f"{other['name']}: {note}" for note in other["notes"]]
        if not other["same tokenizer"]:
            if strangers := [each["name"] for each in (found, other) if not knows_its_texts(each)]:
                what = f"that of {' and that of '.join(strangers)} does not know the texts, so neither bits per byte "
                what += "nor attention maps are comparable"
            else:
                what = "bits per byte are comparable, attention maps are not"
            notes.append(
                f"{other['name']} and {found['name']} have different tokenizers: {what}. Its heads are left out."
            )
    sentences, known = opening(found, control), set()
    terms = first_terms(sentences, known)
    sections, files = page_sections(found, control, others, known)
    environment = jinja2.Environment(autoescape=True, loader=jinja2.FileSystemLoader(Path(__file__).parent))
    page = environment.get_template("report.html").render(
        title=f"Inside {found['name']}",
        opening=sentences,
        terms=terms,
        notes=notes,
        sections=sections,
        footer=footer_text(found),
        data=script_data(found),
    )
    numbers = {"opening": sentences, "notes": notes, "model": found, "control": control, "others": list(others)}
    numbers["files"] = sorted(files)
    files["report.json"] = (json.dumps(to_json(numbers), indent=1, allow_nan=False) + "\n").encode()
    files["report.html"] = page.encode()
    write_files(Path(out), files)
    return Path(out) / "report.html"
