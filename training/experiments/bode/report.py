"""From the rows of finished runs to the tables and plots of the README."""

import itertools
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from modeling_prism.analysis import momentum
from modeling_prism.analysis.figures import CONTROL, TRAINED, new_figure, series_style, styled
from training.experiments.small_runs import mean_and_spread


STREAMS = ("queries", "keys")


def by_arm(rows: list[dict]) -> dict[str, list[dict]]:
    """The rows of each arm, a row a seed."""
    return {arm: [row for row in rows if row["arm"] == arm] for arm in dict.fromkeys(row["arm"] for row in rows)}


def sheared(row: dict) -> list[tuple[int, int]]:
    """Which (stream, layer) of a run the shear changes."""
    return [
        (stream, layer)
        for stream, name in enumerate(STREAMS)
        for layer, gamma in enumerate(row["gammas"])
        if gamma != 0 and name[0] in row["streams"]
    ]


def chosen(row: dict) -> list[tuple[int, int]]:
    """What tables average over: `sheared`, or everything where nothing is, to show what training does alone."""
    return sheared(row) or list(itertools.product(range(2), range(len(row["gammas"]))))


def text_table(row: dict, model: str, entry: str) -> np.ndarray:
    """A table of real text for both streams (2, L, P); `model` is "trained" or "untrained"."""
    return np.array([row["text"][model][stream][entry] for stream in STREAMS])


def of_constant(row: dict) -> np.ndarray:
    """|H(theta_i)|^2, the amplification of constant content, by the formula (2, L, P)."""
    theta = torch.tensor(row["plane_frequencies"], dtype=torch.float64)
    H = momentum.model_response(torch.zeros(1), theta, row["gammas"], row["streams"], row["placement"])
    return np.array([H[stream][..., 0].abs().square().numpy() for stream in STREAMS])


def of_noise(row: dict) -> np.ndarray:
    """(1 + gamma)^2 + gamma^2, the amplification of white content, by the formula (2, L, P)."""
    gains = np.array(row["noise"]["gain_formula"])
    return np.repeat(gains[..., None], len(row["plane_frequencies"]), axis=-1)


def make_response_table(rows: list[dict]) -> str:
    """The responses to sinusoids and to text against the formula, the worst of each arm's seeds."""
    lines = [
        "| arm | gamma | seeds | bits per byte, mean ± std | greatest deviation of H | in gain (dB) "
        "| in phase (degrees) | where | bf16: of H | in gain (dB) | in phase (degrees) "
        "| own queries and keys on text: of H | in gain (dB) | in phase (degrees) |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for arm, runs in by_arm(rows).items():
        worst = [
            f"{max(run['response'][kind][key] for run in runs):.1e}"
            for kind in ("fp32", "bf16", "text")
            for key in ("response", "gain_db", "phase_degrees")
        ]
        at = max((run["response"]["fp32"] for run in runs), key=lambda found: found["response"])["where"]
        where = f"{at['stream']}, layer {at['layer']}, plane {at['plane']}, w = {at['omega']:.2f}"
        gammas = ", ".join(f"{gamma:.3g}" for gamma in dict.fromkeys(runs[0]["gammas"]))
        bits = mean_and_spread([run["bits_per_byte"] for run in runs])
        cells = [arm, gammas, str(len(runs)), bits, *worst[:3], where, *worst[3:]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def make_control_table(rows: list[dict]) -> str:
    """The same measurement against wrong formulas, the seed that they fit best; and another signal, white noise."""
    controls = list(rows[0]["response"]["controls"])
    lines = [
        f"| arm | formula | {' | '.join(controls)} | white noise: greatest deviation of H "
        "| its energy, with / without shear (formula), by gamma |",
        f"| --- |{' ---: |' * (len(controls) + 3)}",
    ]
    for arm, runs in by_arm(rows).items():
        cells = [arm, f"{max(run['response']['fp32']['response'] for run in runs):.1e}"]
        for name in controls:
            found = [run["response"]["controls"][name] for run in runs]
            cells.append("the same" if None in found else f"{min(found):.2f}")
        cells.append(f"{max(run['noise']['response'] for run in runs):.3f}")
        # Keys are sheared in every arm.
        formula = runs[0]["noise"]["gain_formula"][1]
        energy = np.mean([run["noise"]["gain"][1] for run in runs], axis=0)
        layers = [runs[0]["gammas"].index(gamma) for gamma in dict.fromkeys(runs[0]["gammas"])]
        cells.append(", ".join(f"{energy[layer]:.3f} ({formula[layer]:.3f})" for layer in layers))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def make_plane_table(runs: list[dict]) -> str:
    """
    One arm, plane by plane: the greatest deviation over seeds, streams, layers and frequencies; on text, means over
    what is sheared, ± std over seeds.
    """
    lines = [
        "| plane | theta (radians a token) | greatest deviation of H | bf16 | own queries and keys on text "
        "| energy gain by the formula: constant, white content | on text, trained | predicted | on text, untrained "
        "| constant share of content: trained | untrained |",
        f"|{' ---: |' * 11}",
    ]

    def over_layers(model: str, entry: str) -> np.ndarray:
        """(seeds, P)."""
        return np.array([[text_table(run, model, entry)[index] for index in chosen(run)] for run in runs]).mean(1)

    constant, white = (
        np.mean([formula(runs[0])[index] for index in chosen(runs[0])], axis=0) for formula in (of_constant, of_noise)
    )
    columns = [
        over_layers("trained", "amplification"),
        over_layers("trained", "predicted"),
        over_layers("untrained", "amplification"),
        over_layers("trained", "dc_share"),
        over_layers("untrained", "dc_share"),
    ]
    for plane, theta in enumerate(runs[0]["plane_frequencies"]):
        worst = [max(run["response"][kind]["by_plane"][plane] for run in runs) for kind in ("fp32", "bf16", "text")]
        cells = [str(plane), f"{theta:.2g}", *(f"{value:.1e}" for value in worst)]
        cells.append(f"{constant[plane]:.2f}, {white[plane]:.2f}")
        cells += [mean_and_spread(list(column[:, plane]), 2) for column in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def prediction_errors(row: dict, model: str) -> list[np.ndarray]:
    """
    |predicted / measured - 1| of the energy gain on real text, over what is sheared: predicted from the spectrum, as
    if content were constant, as if it were white.
    """
    measured = text_table(row, model, "amplification")
    predictions = text_table(row, model, "predicted"), of_constant(row), of_noise(row)
    errors = [np.abs(predicted / measured - 1) for predicted in predictions]
    return [np.concatenate([error[index] for index in sheared(row)]) for error in errors]


def ends(runs: list[dict], tables: list[np.ndarray]) -> tuple[float, float]:
    """Medians of tables (2, L, P), one a run: of the fastest quarter of the planes and of the slowest."""
    rows = np.array([table[index] for run, table in zip(runs, tables) for index in chosen(run)])
    size = max(1, rows.shape[-1] // 4)
    return float(np.median(rows[:, :size])), float(np.median(rows[:, -size:]))


def make_energy_table(rows: list[dict]) -> str:
    """Energy with over without the shear on real text, and how well it is predicted; arms that shear."""
    lines = [
        "| arm | model | energy with / without shear: fastest quarter of the planes | slowest quarter "
        "| error if predicted from the spectrum, median (greatest) | as if content were constant "
        "| as if it were white |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for arm, runs in by_arm(rows).items():
        if not sheared(runs[0]):
            continue
        for model in ("trained", "untrained"):
            fast, slow = ends(runs, [text_table(run, model, "amplification") for run in runs])
            cells = [arm, model, f"{fast:.2f}", f"{slow:.2f}"]
            by_run = zip(*(prediction_errors(run, model) for run in runs))
            for errors in map(np.concatenate, by_run):
                cells.append(f"{100 * np.median(errors):.1f} % ({100 * errors.max():.0f} %)")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def make_constant_table(rows: list[dict]) -> str:
    """The constant part of content on real text, with and without the shear; and the four terms of the scores."""
    lines = [
        "| arm | model | energy gain of the constant part (formula): fastest quarter of the planes | slowest quarter "
        "| its share without, with shear: fastest | slowest | T1 to T4, share of the scores' variance |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for arm, runs in by_arm(rows).items():
        formula = ends(runs, [of_constant(run) for run in runs])
        for model in ("trained", "untrained"):
            gain, plain, after = (
                ends(runs, [text_table(run, model, entry) for run in runs])
                for entry in ("dc_gain", "dc_share", "dc_share_sheared")
            )
            layers = sorted({layer for _, layer in chosen(runs[0])})
            terms = np.mean([np.array(run["text"][model]["shares"])[:, layers] for run in runs], axis=(0, 2))
            cells = [arm, model, *(f"{gain[side]:.2f} ({formula[side]:.2f})" for side in (0, 1))]
            cells += [f"{plain[side]:.2f}, {after[side]:.2f}" for side in (0, 1)]
            cells.append(", ".join(f"{term:.2f}" for term in terms))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@styled
def plot_bode(rows: list[dict]) -> Figure:
    """Gain and phase of layer 0's keys, measured over the formula: the first seeds of the first three arms."""
    runs = [runs[0] for runs in by_arm(rows).values()][:3]
    figure, axes = new_figure(2, len(runs), height=2.7)
    figure.set_figwidth(max(figure.get_figwidth(), 3.4 * len(runs)))
    fine = torch.linspace(-torch.pi, torch.pi, 401, dtype=torch.float64)
    for column, run in enumerate(runs):
        found = run["response"]
        theta = torch.tensor(run["plane_frequencies"], dtype=torch.float64)
        H = momentum.model_response(fine, theta, run["gammas"], run["streams"], run["placement"])["keys"][0]
        for index, (name, curve) in enumerate(found["curves"].items()):
            style = series_style(index, len(found["curves"]))
            plane = curve["plane"]
            label = f"{name}: plane {plane}, $\\theta$ = {theta[plane]:.2g}"
            for ax, line, points in (
                (axes[column], momentum.gain(H[plane], decibels=True), curve["gain_db"]),
                (axes[len(runs) + column], momentum.phase(H[plane]), curve["phase_degrees"]),
            ):
                ax.plot(fine, line, color=style["color"], linestyle=style["linestyle"], linewidth=1)
                dots = {**style, "linestyle": "", "markerfacecolor": "white"}
                # Every second: the markers of three planes would hide the lines.
                ax.plot(found["omegas"][::2], points[::2], label=label, **dots)
        axes[column].set_title(f"{run['arm']} ($\\gamma$ = {run['gammas'][0]:.3g})")
        axes[column].set_ylabel("gain (dB)")
        axes[len(runs) + column].set_ylabel("phase of H (degrees)")
    for ax in axes:
        low, high = ax.get_ylim()
        if high - low < 1:
            # Nothing but rounding.
            ax.set_ylim(-1, 1)
        ax.set_xlabel("content frequency (radians / token)")
        ax.set_xticks([-torch.pi, -torch.pi / 2, 0, torch.pi / 2, torch.pi], ["-π", "-π/2", "0", "π/2", "π"])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, title="points: measured, lines: formula")
    return figure


@styled
def plot_planes(runs: list[dict]) -> Figure:
    """One arm on real text, plane by plane, mean over layers: energy gain, and the constant part of the content."""
    figure, axes = new_figure(2, 2, height=2.9)
    figure.set_figwidth(9)
    x = np.arange(len(runs[0]["plane_frequencies"]))
    for stream, name in enumerate(STREAMS):
        gains, shares = axes[stream], axes[2 + stream]
        constant, white = (predict(runs[0])[stream].mean(0) for predict in (of_constant, of_noise))
        gains.plot(x, constant, color="black", linestyle=":", linewidth=1, label="formula, constant content")
        gains.plot(x, white, color="black", linestyle="-.", linewidth=1, label="formula, white content")
        for model, style in (("trained", TRAINED), ("untrained", CONTROL)):
            tables = {
                entry: np.array([text_table(run, model, entry)[stream].mean(0) for run in runs])
                for entry in ("amplification", "predicted", "dc_share")
            }
            line = {"color": style["color"], "linestyle": style["linestyle"], "linewidth": 1}
            gains.plot(x, tables["predicted"].mean(0), label=f"{model}, predicted from spectrum", **line)
            for ax, entry in ((gains, "amplification"), (shares, "dc_share")):
                mean = tables[entry].mean(0)
                extremes = np.stack((mean - tables[entry].min(0), tables[entry].max(0) - mean))
                dots = {**style, "linestyle": "" if ax is gains else style["linestyle"]}
                ax.errorbar(x, mean, yerr=extremes, capsize=2, label=f"{model}, measured", **dots)
        gains.set(title=name, xlabel="rotary plane (0 turns fastest)", ylabel="energy with / without shear")
        shares.set(xlabel="rotary plane (0 turns fastest)", ylabel="constant part / energy of content")
        gains.set_ylim(bottom=0)
        shares.set_ylim(0, 1)
    title = f"{runs[0]['arm']}: mean over layers and seeds ({len(runs)}); bars: extremes of the seeds"
    figure.suptitle(title, fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def write_report(rows: list[dict], folder: Path) -> str:
    """Writes table.md, bode.png and planes.png; returns the tables. The planes are those of the first arm."""
    runs = next(iter(by_arm(rows).values()))
    parts = {
        "Response": make_response_table(rows),
        "Controls": make_control_table(rows),
        f"Plane by plane: {runs[0]['arm']}": make_plane_table(runs),
        "Real text: energy": make_energy_table(rows),
        "Real text: the constant part": make_constant_table(rows),
    }
    tables = "\n".join(f"### {title}\n\n{table}" for title, table in parts.items())
    (folder / "table.md").write_text(tables, encoding="utf-8")
    plot_bode(rows).savefig(folder / "bode.png", dpi=150)
    plot_planes(runs).savefig(folder / "planes.png", dpi=150)
    return tables
