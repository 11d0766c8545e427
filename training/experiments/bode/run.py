"""
Bode plot of trained Momentum models: the response of every rotary plane, measured in the loaded model, against the
formula; and what the filter does to the queries and keys of real text.

```bash
python -m training.experiments bode --dataset_name FOLDER
```
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from modeling_prism import MomentumConfig
from modeling_prism.analysis import cut_texts, momentum, response, untrained_copy
from training import pretrain
from training.data import DataArguments, load_texts, load_tokenizer
from training.experiments.bode.arms import ARMS
from training.experiments.common.arguments import (
    CorpusArguments,
    check_arms,
    check_positive,
    check_rates,
    check_seeds,
    settings_of,
)
from training.experiments.common.jobs import run_jobs, write_results
from training.experiments.common.statistics import rounded
from training.loading import load_config
from training.options import ModelArguments, parse_arguments


# What the wrong formula's gamma has more, and the planes (of layer 0, keys) whose whole curves are kept.
WRONG_GAMMA = 0.1
CURVES = {"fast": 0.0, "middle": 0.25, "slow": 1.0}


@dataclass
class Arguments(CorpusArguments):
    """Which models, and how finely they are measured."""

    model_config: str = field(
        default="configuration/models/momentum-tiny", metadata={"help": "The Momentum model that the arms change."}
    )
    learning_rate: float = field(
        default=1e-3, metadata={"help": "Of all arms; the best of three for llama-tiny at this budget."}
    )
    max_steps: int = field(default=256, metadata={"help": "Steps of each run."})
    arms: list[str] = field(default_factory=lambda: list(ARMS), metadata={"help": f"Of {', '.join(ARMS)}."})
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Initial weights and order of the data."}
    )
    num_frequencies: int = field(
        default=65, metadata={"help": "Frequencies of the sinusoids, from -pi to pi; odd, so that 0 is one of them."}
    )
    num_stories: int = field(
        default=64, metadata={"help": "Validation stories, half for the spectra and half for what they predict."}
    )

    def __post_init__(self):
        check_arms(self, ARMS)
        check_seeds(self)
        check_positive(self, "max_steps")
        check_rates(self, "learning_rate")
        if self.num_frequencies < 3 or self.num_frequencies % 2 == 0:
            raise ValueError(f"`num_frequencies` must be odd and at least 3, got {self.num_frequencies}.")
        if self.num_stories < 2 or self.num_stories % 2 == 1:
            raise ValueError(f"`num_stories` must be even and at least 2, got {self.num_stories}.")
        for arm in self.arms:
            self.config_of(arm)

    def config_of(self, arm: str) -> MomentumConfig:
        """The config of an arm; refuses what is no Momentum, or has other than four layers for `per-layer`."""
        config = load_config(ModelArguments(model_config=self.model_config))
        if config.model_type != "momentum":
            raise ValueError(f"`model_config`={self.model_config!r} is a {config.model_type}, not a momentum.")
        return MomentumConfig.from_dict({**config.to_dict(), **ARMS[arm]})

    def pretrain_options(self, arm: str, seed: int, stem: Path) -> list[str]:
        """The command line of `training.pretrain` for one run."""
        options = {
            "model_config": f"{stem}-config",
            "dataset_name": self.dataset_name,
            "learning_rate": self.learning_rate,
            "max_steps": self.max_steps,
            "seed": seed,
            "sample_max_new_tokens": 0,
            "output_dir": stem,
        }
        return [self.recipe, *(str(word) for key, value in options.items() for word in (f"--{key}", value))]

    def data_arguments(self) -> DataArguments:
        """The corpus as the recipe cuts it."""
        _, data_arguments, _ = parse_arguments(self.pretrain_options(self.arms[0], 0, Path("outputs")))
        return data_arguments


def stack_streams(by_stream: dict[str, Tensor]) -> Tensor:
    """(2, ...): queries, keys."""
    return torch.stack([by_stream["queries"], by_stream["keys"]])


def formula_of(config: MomentumConfig, omegas: Tensor, theta: Tensor, **changes) -> Tensor:
    """
    The response that a model with this config has to have, or, for the controls, another.

    Args:
        omegas: content frequencies (W,).
        theta: frequencies of the planes (P,).
        changes: `gammas` or `placement` in the place of the config's.

    Returns:
        complex (2, L, P, W), queries and keys.
    """
    shear = {"gammas": config.layer_gammas, "placement": config.momentum_placement, **changes}
    return stack_streams(momentum.model_response(omegas, theta, streams=config.momentum_streams, **shear))


def deviation(measured: Tensor, formula: Tensor, omegas: Tensor) -> dict:
    """
    How far two responses (2, L, P, W) are apart.

    Returns:
        `response`, the greatest |difference|, and `where`; `gain_db` and `phase_degrees`, the greatest differences of
        gain and phase; `by_plane`, the greatest |difference| of each plane.
    """
    difference = (measured - formula).abs()
    stream, layer, plane, frequency = (
        int(index) for index in torch.unravel_index(difference.argmax(), measured.shape)
    )
    ratio = measured / formula
    return {
        "response": rounded(difference.max()),
        "where": {
            "stream": ("queries", "keys")[stream],
            "layer": layer,
            "plane": plane,
            "omega": rounded(omegas[frequency]),
        },
        "gain_db": rounded(momentum.gain(ratio, decibels=True).abs().max()),
        "phase_degrees": rounded(momentum.phase(ratio).abs().max()),
        "by_plane": rounded(difference.amax((0, 1, 3))),
    }


def measure_responses(
    model: PreTrainedModel, half: PreTrainedModel, windows: Sequence[Tensor], omegas: Tensor
) -> dict:
    """
    Response to sinusoids against the formula, in fp32 and bf16, and against formulas that are wrong; and the response
    to the model's own queries and keys on text.

    Args:
        model, half: the same model in fp32 and in bf16.
        windows: token ids (S_i,).
        omegas: content frequencies (W,).
    """
    config, theta = model.config, response.plane_frequencies(model)
    measured = stack_streams(response.measured_response(model, omegas))
    formula = formula_of(config, omegas, theta)
    other = "pre_rope" if config.momentum_placement == "post_rope" else "post_rope"
    wrong = {
        f"gamma + {WRONG_GAMMA}": formula_of(
            config, omegas, theta, gammas=[gamma + WRONG_GAMMA for gamma in config.layer_gammas]
        ),
        "other placement": formula_of(config, omegas, theta, placement=other),
        "planes reversed": formula_of(config, omegas, theta.flip(0)),
    }
    curves = {}
    for name, share in CURVES.items():
        plane = round(share * (len(theta) - 1))
        H = measured[1, 0, plane]
        curves[name] = {
            "plane": plane,
            "gain_db": rounded(momentum.gain(H, decibels=True)),
            "phase_degrees": rounded(momentum.phase(H)),
        }
    return {
        "fp32": deviation(measured, formula, omegas),
        "bf16": deviation(stack_streams(response.measured_response(half, omegas)), formula, omegas),
        "text": deviation(stack_streams(response.text_response(model, windows, omegas)), formula, omegas),
        # Where a wrong formula is the right one (gamma = 0 has no placement), it controls nothing.
        "controls": {
            name: None if torch.equal(H, formula) else rounded((measured - H).abs().max()) for name, H in wrong.items()
        },
        "omegas": rounded(omegas),
        "curves": curves,
    }


def measure_noise(model: PreTrainedModel) -> dict:
    """Response to white noise, and its energy with over without the shear, against the formulas."""
    config, theta = model.config, response.plane_frequencies(model)
    omegas, measured = response.measured_noise_response(model)
    # The noise is read as RoPE turns it, at w + theta_i, and averaged over planes.
    formula = torch.stack([formula_of(config, omegas - angle, angle[None])[:, :, 0] for angle in theta]).mean(0)
    gains = stack_streams(response.measured_noise_gain(model)).mean(-1)
    expected = torch.tensor(
        [
            [momentum.noise_gain(gamma if stream in config.momentum_streams else 0.0) for gamma in config.layer_gammas]
            for stream in "qk"
        ],
        dtype=torch.float64,
    )
    return {
        "response": rounded((stack_streams(measured) - formula).abs().max()),
        # (2, L), queries and keys.
        "gain": rounded(gains),
        "gain_formula": rounded(expected),
    }


def full_windows(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int, number: int) -> list[Tensor]:
    """The first `length` tokens of the first `number` stories that have so many."""
    windows, _ = cut_texts(tokenizer, texts, length)
    windows = [window for window in windows if len(window) == length and window[0] == tokenizer.bos_token_id]
    if len(windows) < number:
        raise ValueError(
            f"Only {len(windows)} validation stories have {length} tokens, of `num_stories`={number}: ask for fewer, "
            "give more text, or a recipe with a smaller `block_size`."
        )
    return windows[:number]


def measure_text(model: PreTrainedModel, windows: Sequence[Tensor]) -> dict:
    """
    What the shear does to the queries and keys of real text.

    Returns:
        by stream, tables (L, P): `amplification`, energy with over without the shear, in the second half of the
        windows; `predicted`, the same from the content spectrum of the first half and |H|^2; `dc_gain`, the
        amplification of constant content; `dc_share` and `dc_share_sheared`, the constant part of the energy of the
        content. And `shares` of the four terms in the variance of the scores (4, L), averaged over heads.
    """
    half = len(windows) // 2
    omegas, spectra = response.content_spectra(model, windows[:half], nperseg=len(windows[0]) // 4)
    predicted = momentum.energy_gain(
        stack_streams(spectra), formula_of(model.config, omegas, response.plane_frequencies(model))
    )
    found: dict = {}
    tables = response.measured_dc_ac(model, windows[half:])
    for stream, prediction in zip(("queries", "keys"), predicted):
        dc, ac, dc_sheared, ac_sheared = (
            tables[stream][f"content_{part}"] for part in ("dc", "ac", "dc_sheared", "ac_sheared")
        )
        found[stream] = {
            "amplification": rounded((dc_sheared + ac_sheared) / (dc + ac)),
            "predicted": rounded(prediction),
            "dc_gain": rounded(dc_sheared / dc),
            "dc_share": rounded(dc / (dc + ac)),
            "dc_share_sheared": rounded(dc_sheared / (dc_sheared + ac_sheared)),
        }
    found["shares"] = rounded(response.measured_shares(model, windows[half:])["variance"].mean(-1))
    return found


def run_job(arguments: Arguments, job: tuple[str, int], stem: Path) -> list[dict]:
    """Trains one arm with one seed, loads what was saved, and measures it."""
    arm, seed = job
    # A list of gammas does not fit on a command line; a folder of its own, since other seeds run beside this one.
    arguments.config_of(arm).save_pretrained(f"{stem}-config")
    result = pretrain.main(arguments.pretrain_options(arm, seed, stem))

    model = AutoModelForCausalLM.from_pretrained(stem).eval()
    # Not `model.bfloat16()`, which would round RoPE's frequencies too.
    half = AutoModelForCausalLM.from_pretrained(stem, dtype=torch.bfloat16).eval()
    data_arguments = arguments.data_arguments()
    texts = load_texts(data_arguments)["validation"]["text"]
    windows = full_windows(load_tokenizer(str(stem)), texts, data_arguments.block_size, arguments.num_stories)
    omegas = torch.linspace(-math.pi, math.pi, arguments.num_frequencies, dtype=torch.float64)
    config = model.config
    return [
        {
            "arm": arm,
            "seed": seed,
            "gammas": rounded(torch.tensor(config.layer_gammas, dtype=torch.float64)),
            "streams": config.momentum_streams,
            "placement": config.momentum_placement,
            **{name: result[name] for name in ("parameters", "tokens_seen", "bits_per_byte")},
            "training_revision": result["revision"],
            "plane_frequencies": rounded(response.plane_frequencies(model)),
            "response": measure_responses(model, half, windows[len(windows) // 2 :], omegas),
            "noise": measure_noise(model),
            "text": {
                "trained": measure_text(model, windows),
                "untrained": measure_text(untrained_copy(model, seed), windows),
            },
        }
    ]


def run(arguments: Arguments, folder: Path, results: Path, processes: int) -> None:
    """Runs what is missing in `folder` and writes all rows to `results`."""
    # Refuses a corpus that is not there, or is too small, before any process is started.
    stories = len(load_texts(arguments.data_arguments())["validation"])
    if stories < arguments.num_stories:
        raise ValueError(
            f"`num_stories`={arguments.num_stories}, but the validation part has {stories}: ask for fewer."
        )
    settings = settings_of(arguments, "arms", "seeds")
    # By arm, seed after seed, so that a stopped experiment has whole seeds.
    jobs = {f"{arm}-seed{seed}": (arm, seed) for seed in arguments.seeds for arm in arguments.arms}
    rows = run_jobs(functools.partial(run_job, arguments), jobs, folder, settings, processes)
    # Stable: seeds stay in their order.
    rows.sort(key=lambda row: arguments.arms.index(row["arm"]))
    write_results(results, rows, settings)
