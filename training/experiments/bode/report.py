"""From the rows of finished runs to the tables, the figures and the numbers of the README."""

import itertools

import numpy as np
import torch
from matplotlib.figure import Figure

from modeling_prism.analysis import momentum
from modeling_prism.analysis.figures import new_figure, styled
from training.experiments.common.figures import DARK, DOT, HOLLOW, LIGHT, label
from training.experiments.common.readme import Claim, make_table, wrap
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
        cells += [mean_and_spread(list(column[:, plane]), ".2f") for column in columns]
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
    constant, white = (
        np.mean([formula(runs[0])[i] for i in chosen(runs[0])], axis=0) for formula in (of_constant, of_noise)
    )
    ax.plot(x, constant, color=LIGHT)
    ax.plot(x, white, color="0.4", linestyle="--")
    label(ax, x[-1], constant[-1], "constant content, by the formula", LIGHT, ha="right", xytext=(0, 8))
    label(ax, x[-1], white[-1], "white content, by the formula", "0.4", ha="right", xytext=(0, 7))
    for model, style in (("trained", DOT), ("untrained", {**HOLLOW, "marker": "s", "markersize": 4})):
        seeds = np.array([[text_table(run, model, "amplification")[i] for i in chosen(run)] for run in runs]).mean(1)
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
    """What the README shows of the results, by block."""
    arms = by_arm(rows)
    runs = arms["momentum"]

    def worst(kind: str, runs: list[dict] = runs, key: str = "response") -> str:
        return f"{max(run['response'][kind][key] for run in runs):.1e}"

    def energy(runs: list[dict]) -> tuple[float, float]:
        return ends(runs, [text_table(run, "trained", "amplification") for run in runs])

    def share(runs: list[dict], model: str) -> str:
        fast, slow = ends(runs, [text_table(run, model, "dc_share") for run in runs])
        return f"{100 * fast:.0f} and {100 * slow:.0f} %"

    def bits(arm: str) -> str:
        return mean_and_spread([run["bits_per_byte"] for run in arms[arm]])

    fast, slow = energy(runs)
    white, (_, constant) = of_noise(runs[0])[1].mean(), ends(runs, [of_constant(run) for run in runs])
    _, passed = ends(runs, [text_table(run, "trained", "dc_gain") for run in runs])
    spectrum, as_constant, _ = (
        np.median(np.concatenate(errors)) for errors in zip(*(prediction_errors(run, "trained") for run in runs))
    )
    controls = [run["response"]["controls"].values() for runs in arms.values() for run in runs]
    least = min(value for values in controls for value in values if value is not None)
    terms = np.mean([np.array(run["text"]["trained"]["shares"]) for run in runs], axis=(0, 2))

    verdict = f"""
**The shear is the filter of the formula. But the two bands that the "orthogonality theorem" separates are not
separate.** On the queries and keys that trained models make of text, the response differs from the formula by
{worst("text")} at most. In the slowest planes, which should pass content untouched, the shear multiplies energy by
{slow:.1f}. In the fastest it does so by {fast:.1f}.
"""
    table = make_table(
        [
            "arm",
            "bits per byte, mean ± std",
            "greatest deviation of H on text",
            "energy with / without shear: fastest quarter",
        ]
        + ["slowest quarter", "constant part of the slowest quarter: trained", "untrained"],
        [
            [f"`{arm}`", bits(arm), worst("text", found), *(f"{value:.2f}" for value in energy(found))]
            + [
                f"{ends(found, [text_table(run, model, 'dc_share') for run in found])[1]:.2f}"
                for model in ("trained", "untrained")
            ]
            for arm, found in arms.items()
        ],
    )
    findings = f"""
- **A match is no sign of learning.** The filter has no parameters. The match says that a saved and loaded model
  computes the formula in every plane. For sinusoids the trained weights do not even take part: the greatest deviation
  is {worst("fp32")} in fp32 for every seed ([bode.png](bode.png)). In bf16 it is {worst("bf16")}, rounding of the
  sinusoids included.
- **Wrong formulas miss.** The formulas with gamma + 0.1, with the other placement and with the planes reversed are
  off by {least:.2f} or more. Without a shear (`gamma-0`) the response is flat to {worst("fp32", arms["gamma-0"])}.
- **Constant content is treated as the theorem says.** In the slowest planes its energy is multiplied by {passed:.2f};
  the formula has {constant:.2f}.
- **Slow planes do not hold constant content.** For white content the factor is {white:.1f} in every plane, which is
  near that of text. The constant part is {share(runs, "trained")} of the energy of the fastest and the slowest
  planes. Training lowers it, from {share(runs, "untrained")}, and does so in `gamma-0` too.
- **The spectrum predicts the energy.** The content spectrum of other stories predicts it within {100 * spectrum:.1f}
  % (median). "As if content were constant" is off by {100 * as_constant:.0f} %. By Parseval's theorem only the choice
  of stories and the length of the windows can fail here.
- **Scores are mostly about changes.** The product of the changes of query and key (T4) holds {terms[3]:.2f} of the
  scores' variance, the plain product (T1) {terms[0]:.2f}.
- **The filter does not help to predict stories at this budget.** With it the models have {bits("momentum")} bits per
  byte, without it {bits("gamma-0")}. All arms have one learning rate.
- `keys-only` and `per-layer` have not been run. A story's first 256 tokens cannot tell a constant part from slower
  changes. Larger models, longer training and longer texts may differ.
"""
    return {"verdict": wrap(verdict), "table": table, "findings": wrap(findings)}


def claims(rows: list[dict]) -> list[Claim]:
    runs = by_arm(rows)["momentum"]
    deviation = max(run["response"]["text"]["response"] for run in runs)
    _, share = ends(runs, [text_table(run, "trained", "dc_share") for run in runs])
    return [
        Claim(
            "The shear filters every rotary plane by `1 + gamma (1 - e^(-jw))`",
            "confirmed",
            f"greatest deviation {deviation:.1e} on text",
            "bode",
        ),
        Claim(
            "Slow planes hold constant content, fast planes its changes",
            "refuted",
            f"{100 * share:.0f} % of the energy of slow planes is constant",
            "bode",
        ),
    ]
