"""Folders to write to, to go on from and to load from: options of `training.pretrain`, and files laid beside."""

import shutil
from pathlib import Path

from training import pretrain, tell
from training.files import read_json

from . import Row, all_zero, copy, cut, link, not_finite, refused, remove


WORLD = ("recipe.yaml", "model", "bert", "corpus", "finished", "table")


def give(given):
    if callable(given):
        return given()
    command, _, words = given.partition(" ")
    if command == "tell":
        refused(tell.main, words)
    refused(pretrain.main, "recipe.yaml", given)


def half(file):
    """A checkpoint that stopped while it was saved."""
    shutil.copytree("finished/checkpoint-4", file)
    (file / "checksums.json").unlink()


def zeros(file):
    content = file.read_bytes()
    file.write_bytes(content[:-64] + bytes(64))


OUT, TUNED = "--output_dir", "--output_dir run --init_from"
NEITHER = "`init_from`='m' is neither"
FINISHED = {"m": copy("finished")}
RUN = {"run": copy("finished")}
ROWS = [
    Row(f"{OUT} file", "`output_dir`='file' is a file", {"file": ""}),
    Row(f"{OUT} file/below", "lies below the file", {"file": ""}),
    Row(f"{OUT} file/below/it", "lies below the file", {"file": ""}),
    Row(f"{OUT} dangling", "is a link to a folder that does not exist", {"dangling": link("nowhere")}),
    Row(f"{OUT} /proc/run", "cannot be written"),
    Row(f"{OUT} x/{'y' * 256}", "has a name of more than 255 bytes"),
    Row(f"{OUT} mine", "is not empty and does not hold a run", {"mine/thesis.txt": "mine"}),
    Row(f"{OUT} mine", "is not empty and does not hold a run", {"mine/sub/": None}),
    Row(f"{OUT} .", "is not empty and does not hold a run"),
    Row(f"{OUT} linked", "is not empty and does not hold a run", {"x/a": "", "linked": link("x")}),
    Row(f"{OUT} corpus", "is not empty and does not hold a run"),
    Row(f"{OUT} run", "run.json' is damaged .*delete it", {"run/run.json": "{"}),
    Row(f"{OUT} run", "run.json' is damaged .*no JSON object", {"run/run.json": "[]"}),
    *[Row(f"{OUT} run", "results.json' is damaged", {**RUN, "run/results.json": text}) for text in ("", "{}")],
    Row(f"{OUT} finished --learning_rate 0.02", "`learning_rate` was 0.01, now 0.02"),
    Row(f"{OUT} finished --config_overrides num_hidden_layers=3", "another run .`num_hidden_layers` was 2, now 3;"),
    Row(f"{OUT} finished --label_smoothing_factor 0.1", "`label_smoothing_factor` was 0"),
    Row(f"{OUT} finished --max_steps 7", "`max_steps` was 6, now 7"),
    Row(f"{OUT} finished --seed 1", "`seed` was 42, now 1"),
    Row(f"{OUT} finished --num_train_stories 39", "`num_train_stories` was 40, now 39"),
    Row(f"{OUT} finished --dataset_name stories", "`dataset_name` was"),
    Row(f"{OUT} finished --per_device_train_batch_size 2", "`global_batch_size` was 4, now 2"),
    Row(f"{OUT} finished --tokenizer_name finished", "`tokenizer_name` was"),
    Row(f"{OUT} finished/results.json", "is a file"),
    Row(f"{OUT} table", "holds another run"),
    # Checkpoints that are asked for by name.
    Row(f"{OUT} run --resume_from_checkpoint nowhere", "`resume_from_checkpoint`='nowhere' is not a complete"),
    Row(f"{OUT} run --resume_from_checkpoint corpus", "`resume_from_checkpoint`='corpus' is not a complete"),
    Row(f"{OUT} run --resume_from_checkpoint finished", "is not a complete checkpoint"),
    Row(
        f"{OUT} run --resume_from_checkpoint finished/checkpoint-4 --config_overrides num_hidden_layers=3",
        "`num_hidden_layers` was 2, now 3",
    ),
    *[
        Row(f"{OUT} run --resume_from_checkpoint c", f"not a complete checkpoint .{says}", {"c": make, **damage})
        for says, make, damage in (
            ("checksums.json is missing", half, {}),
            ("checksums.json is damaged", copy("finished/checkpoint-4"), {"c/checksums.json": "{"}),
            ("trainer_state.json is not as", copy("finished/checkpoint-4"), {"c/trainer_state.json": "{}"}),
            ("model.safetensors is not as", copy("finished/checkpoint-4"), {"c/model.safetensors": zeros}),
            ("model.safetensors is not as", copy("finished/checkpoint-4"), {"c/model.safetensors": cut}),
            ("optimizer.pt is not as", copy("finished/checkpoint-4"), {"c/optimizer.pt": b""}),
            ("rng_state.pth is missing", copy("finished/checkpoint-4"), {"c/rng_state.pth": remove}),
            ("scheduler.pt is missing", copy("finished/checkpoint-4"), {"c/scheduler.pt": remove}),
        )
    ],
    # Models to fine-tune.
    Row("--output_dir run --model_config bert", "`model_config` is a bert that reads later tokens"),
    Row(f"{TUNED} nowhere", "`init_from`='nowhere' is neither"),
    Row(f"{TUNED} model", "`init_from`='model' is neither"),
    Row(f"{TUNED} m", NEITHER, {"m": None}),
    Row(f"{TUNED} m", NEITHER, {**FINISHED, "m/model.safetensors": cut}),
    Row(f"{TUNED} m", NEITHER, {**FINISHED, "m/model.safetensors": b""}),
    Row(f"{TUNED} m", NEITHER, {**FINISHED, "m/config.json": "{"}),
    Row(f"{TUNED} m", NEITHER, {**FINISHED, "m/config.json": "[]"}),
    Row(f"{TUNED} m", NEITHER, {**FINISHED, "m/config.json": '{"model_type": "no_such"}'}),
    Row(f"{TUNED} m", "`init_from`='m' is neither", {**FINISHED, "m/tokenizer.json": "{"}),
    Row(
        f"{TUNED} finished --config_overrides num_hidden_layers=3", "lacks weights of PrismForCausalLM .model.layers.2"
    ),
    Row(f"{TUNED} finished --config_overrides hidden_size=64", "`head_dim`=32 contradicts"),
    Row(f"{TUNED} table --block_size 32", "`init_from`='table' reads a lookup table, not text"),
    Row(f"{TUNED} finished --dataset_name addition --block_size 3", "`init_from`='finished'.*lookup table"),
    Row(f"{TUNED} m", "weights that are not finite .model.norm", {**FINISHED, "m/model.safetensors": not_finite}),
    Row("tell m", "embeddings that are all zero", {**FINISHED, "m/model.safetensors": all_zero}),
    Row("tell m", "weights that are not finite .model.norm", {**FINISHED, "m/model.safetensors": not_finite}),
    Row("tell m", "`model`='m' is neither", {**FINISHED, "m/model.safetensors": cut}),
    Row("tell m", "`model`='m' is neither", {**FINISHED, "m/tokenizer.json": "{"}),
    *[
        Row(lambda: read_json(Path("run.json")), "run.json' is damaged .*delete it", files)
        for files in ({"run.json": ""}, {"run.json": "{"}, {"run.json": "[1]"}, {"run.json": b"\xff"}, {})
    ],
]
