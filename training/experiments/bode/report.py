"""From the rows of finished runs to the tables, the figures and the numbers of the README."""

import itertools

import numpy as np
import torch
from matplotlib.figure import Figure

from modeling_prism.analysis import momentum
from modeling_prism.analysis.figures import new_figure, styled
from training.experiments.common.figures import DARK, DOT, HOLLOW, LIGHT, label
from training.experiments.common.readme import make_table
from training.experiments.common.statistics import by_arm, mean_and_spread


STREAMS = ("queries", "keys")


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


def worst(runs: list[dict], kind: str, key: str = "response") -> str:
    """The greatest deviation from the formula, of all seeds."""
    return f"{max(run['response'][kind][key] for run in runs):.1e}"


def bits(runs: list[dict]) -> str:
    return mean_and_spread([run["bits_per_byte"] for run in runs])


def first_layers(row: dict) -> dict[float, int]:
    """Every gamma of a run, and the first layer that has it."""
    return {gamma: row["gammas"].index(gamma) for gamma in row["gammas"]}


def make_response_table(rows: list[dict]) -> str:
    """The responses to sinusoids and to text against the formula, the worst of each arm's seeds."""
    heads = ["arm", "gamma", "seeds", "bits per byte, mean ± std", "greatest deviation of H", "in gain (dB)"]
    heads += ["in phase (degrees)", "where", "bf16: of H", "in gain (dB)", "in phase (degrees)"]
    heads += ["own queries and keys on text: of H", "in gain (dB)", "in phase (degrees)"]
    cells = []
    for arm, runs in by_arm(rows).items():
        fp32, bf16, text = (
            [worst(runs, kind, key) for key in ("response", "gain_db", "phase_degrees")]
            for kind in ("fp32", "bf16", "text")
        )
        at = max((run["response"]["fp32"] for run in runs), key=lambda found: found["response"])["where"]
        where = f"{at['stream']}, layer {at['layer']}, plane {at['plane']}, w = {at['omega']:.2f}"
        gammas = ", ".join(f"{gamma:.3g}" for gamma in first_layers(runs[0]))
        cells.append([arm, gammas, len(runs), bits(runs), *fp32, where, *bf16, *text])
    return make_table(heads, cells)


def make_control_table(rows: list[dict]) -> str:
    """The same measurement against wrong formulas, the seed that they fit best; and another signal, white noise."""
    controls = list(rows[0]["response"]["controls"])
    heads = ["arm", "formula", *controls, "white noise: greatest deviation of H"]
    heads += ["its energy, with / without shear (formula), by gamma"]
    cells = []
    for arm, runs in by_arm(rows).items():
        cells.append([arm, worst(runs, "fp32")])
        for name in controls:
            found = [run["response"]["controls"][name] for run in runs]
            cells[-1].append("the same" if None in found else f"{min(found):.2f}")
        # Keys are sheared in every arm.
        formula = runs[0]["noise"]["gain_formula"][1]
        energy = np.mean([run["noise"]["gain"][1] for run in runs], axis=0)
        by_gamma = (f"{energy[layer]:.3f} ({formula[layer]:.3f})" for layer in first_layers(runs[0]).values())
        cells[-1] += [f"{max(run['noise']['response'] for run in runs):.3f}", ", ".join(by_gamma)]
    return make_table(heads, cells)


def mean_over_chosen(runs: list[dict], tables: list[np.ndarray]) -> np.ndarray:
    """Tables (2, L, P), one a run, averaged over `chosen`: (runs, P)."""
    return np.array([[table[index] for index in chosen(run)] for run, table in zip(runs, tables)]).mean(1)


def make_plane_table(runs: list[dict]) -> str:
    """
    One arm, plane by plane: the greatest deviation over seeds, streams, layers and frequencies; on text, means over
    what is sheared, ± std over seeds.
    """
    heads = ["plane", "theta (radians a token)", "greatest deviation of H", "bf16", "own queries and keys on text"]
    heads += ["energy gain by the formula: constant, white content", "on text, trained", "predicted"]
    heads += ["on text, untrained", "constant share of content: trained", "untrained"]
    constant, white = (mean_over_chosen(runs[:1], [formula(runs[0])])[0] for formula in (of_constant, of_noise))
    columns = [
        mean_over_chosen(runs, [text_table(run, model, entry) for run in runs])
        for model, entry in (
            ("trained", "amplification"),
            ("trained", "predicted"),
            ("untrained", "amplification"),
            ("trained", "dc_share"),
            ("untrained", "dc_share"),
        )
    ]
    cells = []
    for plane, theta in enumerate(runs[0]["plane_frequencies"]):
        deviations = [
            max(run["response"][kind]["by_plane"][plane] for run in runs) for kind in ("fp32", "bf16", "text")
        ]
        cells.append([plane, f"{theta:.2g}", *(f"{value:.1e}" for value in deviations)])
        cells[-1].append(f"{constant[plane]:.2f}, {white[plane]:.2f}")
        cells[-1] += [mean_and_spread(list(column[:, plane]), ".2f") for column in columns]
    return make_table(heads, cells, text=0)


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


def text_ends(runs: list[dict], entry: str, model: str = "trained") -> tuple[float, float]:
    """`ends` of a table of real text."""
    return ends(runs, [text_table(run, model, entry) for run in runs])


def make_energy_table(rows: list[dict]) -> str:
    """Energy with over without the shear on real text, and how well it is predicted; arms that shear."""
    heads = ["arm", "model", "energy with / without shear: fastest quarter of the planes", "slowest quarter"]
    heads += ["error if predicted from the spectrum, median (greatest)", "as if content were constant"]
    cells = []
    for arm, runs in by_arm(rows).items():
        for model in ("trained", "untrained") if sheared(runs[0]) else ():
            cells.append([arm, model, *(f"{value:.2f}" for value in text_ends(runs, "amplification", model))])
            for errors in map(np.concatenate, zip(*(prediction_errors(run, model) for run in runs))):
                cells[-1].append(f"{100 * np.median(errors):.1f} % ({100 * errors.max():.0f} %)")
    return make_table([*heads, "as if it were white"], cells, text=2)


def make_constant_table(rows: list[dict]) -> str:
    """The constant part of content on real text, with and without the shear; and the four terms of the scores."""
    heads = ["arm", "model", "energy gain of the constant part (formula): fastest quarter of the planes"]
    heads += ["slowest quarter", "its share without, with shear: fastest", "slowest"]
    cells = []
    for arm, runs in by_arm(rows).items():
        formula = ends(runs, [of_constant(run) for run in runs])
        layers = sorted({layer for _, layer in chosen(runs[0])})
        for model in ("trained", "untrained"):
            gain, plain, after = (
                text_ends(runs, entry, model) for entry in ("dc_gain", "dc_share", "dc_share_sheared")
            )
            terms = np.mean([np.array(run["text"][model]["shares"])[:, layers] for run in runs], axis=(0, 2))
            cells.append([arm, model, *(f"{one:.2f} ({other:.2f})" for one, other in zip(gain, formula))])
            cells[-1] += [f"{one:.2f}, {other:.2f}" for one, other in zip(plain, after)]
            cells[-1].append(", ".join(f"{term:.2f}" for term in terms))
    return make_table([*heads, "T1 to T4, share of the scores' variance"], cells, text=2)


def make_tables(rows: list[dict]) -> str:
    """All that is measured. The planes are those of the first arm."""
    runs = next(iter(by_arm(rows).values()))
    parts = {
        "Response": make_response_table(rows),
        "Controls": make_control_table(rows),
        f"Plane by plane: {runs[0]['arm']}": make_plane_table(runs),
        "Real text: energy": make_energy_table(rows),
        "Real text: the constant part": make_constant_table(rows),
    }
    return "\n".join(f"### {title}\n\n{table}" for title, table in parts.items())


@styled
def plot_bode(runs: list[dict]) -> Figure:
    """Gain and phase of layer 0's keys in two planes: points measured in one seed, over the lines of the formula."""
    run = runs[0]
    found, theta = run["response"], torch.tensor(run["plane_frequencies"], dtype=torch.float64)
    fine = torch.linspace(-torch.pi, torch.pi, 401, dtype=torch.float64)
    H = momentum.model_response(fine, theta, run["gammas"], run["streams"], run["placement"])["keys"][0]
    figure, (gains, phases) = new_figure(1, 2, height=2.8)
    figure.set_figwidth(8)
    for name, color, marker, side in (("fast", DARK, "o", "right"), ("slow", LIGHT, "^", "left")):
        curve = found["curves"][name]
        plane, (gain, phase) = curve["plane"], (momentum.gain(H, decibels=True), momentum.phase(H))
        for ax, line, points in ((gains, gain, curve["gain_db"]), (phases, phase, curve["phase_degrees"])):
            ax.plot(fine, line[plane], color=color, linewidth=1)
            ax.plot(found["omegas"][::4], points[::4], **{**HOLLOW, "color": color, "marker": marker, "markersize": 4})
        highest = phase[plane].argmax()
        offset = {"xytext": (8 if side == "left" else -8, 3), "ha": side}
        label(phases, fine[highest], phase[plane].max(), f"{name} plane", color, fontsize=7, **offset)
    gains.set(ylabel="gain (dB)")
    phases.set(ylabel="phase (degrees)")
    for ax in (gains, phases):
        ax.set_xlabel("content frequency (radians / token)")
        ax.set_xticks([-torch.pi, -torch.pi / 2, 0, torch.pi / 2, torch.pi], ["-π", "-π/2", "0", "π/2", "π"])
    return figure


@styled
def plot_planes(runs: list[dict]) -> Figure:
    """Energy that the shear adds on real text, plane by plane, beside what constant and white content would gain."""
    figure, (ax,) = new_figure(height=3.2)
    x = np.arange(len(runs[0]["plane_frequencies"]))
    constant, white = (mean_over_chosen(runs[:1], [formula(runs[0])])[0] for formula in (of_constant, of_noise))
    ax.plot(x, constant, color=LIGHT)
    ax.plot(x, white, color="0.4", linestyle="--")
    label(ax, x[-1], constant[-1], "constant content, by the formula", LIGHT, ha="right", xytext=(0, 8))
    label(ax, x[-1], white[-1], "white content, by the formula", "0.4", ha="right", xytext=(0, 7))
    for model, style in (("trained", DOT), ("untrained", {**HOLLOW, "marker": "s", "markersize": 4})):
        seeds = mean_over_chosen(runs, [text_table(run, model, "amplification") for run in runs])
        mean = seeds.mean(0)
        extremes = np.stack((mean - seeds.min(0), seeds.max(0) - mean))
        ax.errorbar(x, mean, yerr=extremes, capsize=2, **style)
        label(ax, x[len(x) // 2], mean[len(x) // 2], f"text, {model}", DARK, xytext=(0, -13), ha="center")
    ax.set(xlabel="rotary plane (0 turns fastest)", ylabel="energy with / without shear")
    ax.set_ylim(0, 1.15 * max(white))
    return figure


def make_figures(rows: list[dict]) -> dict[str, Figure]:
    """Both of the first arm."""
    runs = next(iter(by_arm(rows).values()))
    return {"bode": plot_bode(runs), "planes": plot_planes(runs)}


def blocks(rows: list[dict]) -> dict[str, str]:
    """The table of the README."""
    heads = ["arm", "bits per byte, mean ± std", "greatest deviation of H on text"]
    heads += ["energy with / without shear: fastest quarter", "slowest quarter"]
    heads += ["constant part of the slowest quarter: trained", "untrained"]
    cells = []
    for arm, runs in by_arm(rows).items():
        values = [*text_ends(runs, "amplification")]
        values += [text_ends(runs, "dc_share", model)[1] for model in ("trained", "untrained")]
        cells.append([f"`{arm}`", bits(runs), worst(runs, "text"), *(f"{value:.2f}" for value in values)])
    return {"table": make_table(heads, cells)}


def numbers(rows: list[dict]) -> dict:
    """What prose.md speaks of: the arm `momentum`, where it names no other."""
    arms = by_arm(rows)
    runs = arms["momentum"]
    controls = [value for row in rows for value in row["response"]["controls"].values() if value is not None]
    errors = zip(*(prediction_errors(run, "trained") for run in runs))
    shares = {model: text_ends(runs, "dc_share", model) for model in ("trained", "untrained")}
    return {
        "deviation": {kind: worst(runs, kind) for kind in ("fp32", "bf16", "text")},
        "flat": worst(arms["gamma-0"], "fp32"),
        "wrong": min(controls),
        "energy": text_ends(runs, "amplification"),
        "constant": (text_ends(runs, "dc_gain")[1], ends(runs, [of_constant(run) for run in runs])[1]),
        "white": of_noise(runs[0])[1].mean(),
        "share": {model: f"{100 * fast:.0f} and {100 * slow:.0f} %" for model, (fast, slow) in shares.items()},
        "slow_share": 100 * shares["trained"][1],
        "error": [100 * np.median(np.concatenate(found)) for found in errors],
        "terms": np.mean([np.array(run["text"]["trained"]["shares"]) for run in runs], axis=(0, 2)),
        "bits": {arm: bits(runs) for arm, runs in arms.items()},
    }
