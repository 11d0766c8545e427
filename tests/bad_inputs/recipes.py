"""Recipes and options of `training.pretrain` (words, or changes to the recipe), and of the commands beside it."""

import tempfile
from pathlib import Path

import yaml

from training import bindings, evaluate, pretrain, release, tell

from . import Row, refused


WORLD = ("recipe.yaml", "model", "gpt2", "finished", "table")
COMMANDS = {"tell": tell.main, "bindings": bindings.main, "evaluate": evaluate.main, "release": release.main}


def give(given):
    if isinstance(given, dict):
        recipe = yaml.safe_load(Path("recipe.yaml").read_text())
        with tempfile.TemporaryDirectory() as folder:
            changed = Path(folder, "recipe.yaml")
            changed.write_text(yaml.safe_dump({**recipe, **given}))
            refused(pretrain.main, str(changed), "--output_dir run")
    command, _, words = given.partition(" ")
    if command == "recipe:":
        refused(pretrain.main, words, "--output_dir run")
    elif command in COMMANDS:
        refused(COMMANDS[command], words)
    else:
        refused(pretrain.main, "recipe.yaml --output_dir run", given)


TABLE = "--block_size 3 --dataset_name"
OVERRIDE = "--config_overrides"
RELEASES = {"releases.yaml": "prism-tinystories: {recipe: recipe.yaml}\n"}
ROWS = [
    Row("evaluate nowhere", "`model`='nowhere' is neither"),
    Row("evaluate finished table", "`models`='table' was trained on a lookup table"),
    Row("evaluate finished --dataset_name nowhere", "`dataset_name`='nowhere'"),
    Row("evaluate finished --num_questions 0", "`num_questions` must be at least 1"),
    Row("evaluate finished --block_size 32 --num_validation_stories 3", "3 stories that end .* endings need 4"),
    Row("evaluate finished --block_size 400 --num_validation_stories 1", "one block of `block_size`=400, too little"),
    Row("release prism-tinystorys --releases releases.yaml", "did you mean `prism-tinystories`", RELEASES),
    Row("release prism-tinystories --releases releases.yaml --push_to_hub a/b", "not released yet", RELEASES),
    Row("release prism-tinystories --releases releases.yaml --refresh true", "`refresh`: .*not released", RELEASES),
    Row("release prism-tinystories --releases nowhere.yaml", "`releases`='nowhere.yaml' does not exist"),
    Row("--tokenizer_vocab_size 301", "`vocab_size`=300"),
    Row("--tokenizer_vocab_size 257", "`tokenizer_vocab_size`=257"),
    Row("--block_size 33", "`max_position_embeddings`=32"),
    Row("--block_size -5", "`block_size` must be at least 2"),
    Row(f"{OVERRIDE} hidden_sise=3", "names `hidden_sise`, which a prism does not have: did you mean `hidden_size`"),
    Row(f"{OVERRIDE} zzz=3", "names `zzz`, which a prism does not have: it has .*hidden_size"),
    Row(f"{OVERRIDE} num_signal_heads=4", "`num_signal_heads` must leave"),
    Row(f"{OVERRIDE} noise_coefficient=1e999", "`noise_coefficient`"),
    Row(f"{OVERRIDE} hidden_size", "key=value"),
    Row(f"{OVERRIDE} hidden_size=big", "`hidden_size` must be of type int, got 'big'"),
    Row(f"{OVERRIDE} hidden_size=", "`hidden_size` must be of type int, got None"),
    Row(f"{OVERRIDE} hidden_size=1.5", "`hidden_size` must be of type int, got 1.5"),
    Row(f"{OVERRIDE} 'hidden_act=[1'", "`config_overrides`=.*is not YAML"),
    Row(f"{OVERRIDE} rope_theta=1000", "`rope_theta`"),
    Row(f"--model_config gpt2 {OVERRIDE} n_layer=two", "`config_overrides`='n_layer=two' .*n_layer"),
    Row(f"--model_config gpt2 {OVERRIDE} n_head=5", "`config_overrides`='n_head=5'"),
    Row(f"--model_config gpt2 {OVERRIDE} n_embd=0", "`config_overrides`='n_embd=0'"),
    Row(f"{TABLE} addition {OVERRIDE} vocab_size=100", "data have 114 tokens.*`vocab_size`=100.*vocab_size=114`"),
    Row("--init_from somewhere", "`init_from`='somewhere' is neither"),
    Row("--init_from finished --model_config model", "Give either `model_config`"),
    Row("--model_config ''", "Give either `model_config`"),
    Row("--init_from finished --tokenizer_name finished", "`tokenizer_name` is for a new model"),
    Row("--dataset_name stories --streaming true", "`streaming` needs a hub dataset"),
    Row("--dataset_name a/b --streaming true --max_steps -1", "`streaming` reads .*: give `max_steps`"),
    Row("--save_strategy best", "`save_strategy`='best' needs `metric_for_best_model`"),
    Row("--noise_coefficient_end -2", "`noise_coefficient_end`"),
    Row("--noise_coefficient_start nan", "`noise_coefficient_start`"),
    Row("--model_config nowhere/at/all", "`model_config`='nowhere/at/all'.*presets"),
    Row("--model_config recipe.yaml", "`model_config`='recipe.yaml'"),
    Row("--tokenizer_name nowhere/at/all", "`tokenizer_name`='nowhere/at/all'"),
    Row("--max_steps 0", "`max_steps`=0"),
    Row("--max_steps -5", "`max_steps`=-5"),
    Row("--max_steps -1 --num_train_epochs nan", "`num_train_epochs`=nan"),
    Row("--max_steps -1 --num_train_epochs inf", "`num_train_epochs`=inf"),
    Row("--max_steps -1 --num_train_epochs 0", "`num_train_epochs`=0"),
    Row("--max_steps 1.5", "--max_steps.*: invalid int value: '1.5'"),
    Row("--per_device_train_batch_size 0", "`per_device_train_batch_size`"),
    Row("--per_device_eval_batch_size -1", "`per_device_eval_batch_size`"),
    Row("--gradient_accumulation_steps 0", "`gradient_accumulation_steps`"),
    Row("--num_train_stories 0", "`num_train_stories`"),
    Row("--num_validation_stories -1", "`num_validation_stories`"),
    Row("--learning_rate -1", "`learning_rate` must be at least 0 and finite, got -1.0"),
    Row("--learning_rate nan", "`learning_rate` .* got nan"),
    Row("--learning_rate inf", "`learning_rate` .* got inf"),
    Row("--learning_rate fast", "--learning_rate.*: invalid float value: 'fast'"),
    Row("--weight_decay -0.1", "`weight_decay`"),
    Row("--weight_decay inf", "`weight_decay`"),
    Row("--adam_beta1 1", "`adam_beta1` must be at least 0 and below 1, got 1.0"),
    Row("--adam_beta2 nan", "`adam_beta2`"),
    Row("--adam_epsilon=-1e-8", "`adam_epsilon`"),
    Row("--max_grad_norm -1", "`max_grad_norm`"),
    Row("--max_grad_norm nan", "`max_grad_norm`"),
    Row("--warmup_steps -3", "`warmup_steps`"),
    Row("--label_smoothing_factor 1", "`label_smoothing_factor`"),
    Row("--logging_steps 0", "`logging_steps` must be above 0"),
    Row("--eval_steps -1", "`eval_steps` must be above 0"),
    Row("--save_steps -2", "`save_steps` must be above 0"),
    Row("--save_total_limit -1", "`save_total_limit`"),
    Row("--seed -1", "`seed` must be at least 0 and below 4294967296, got -1"),
    Row("--data_seed 4294967296", "`data_seed` must be at least 0 and below 4294967296"),
    Row("--dataloader_num_workers -1", "`dataloader_num_workers`"),
    Row("--preprocessing_num_workers 0", "`preprocessing_num_workers`"),
    Row("--sample_max_new_tokens -1", "`sample_max_new_tokens`"),
    Row("--report_to tensorbored", "`report_to`=.*tensorbored"),
    Row("--lr_scheduler_type cosin", "cosin"),
    Row("--lr_scheduler_kwargs '{\"min_rate\": 1}'", "`lr_scheduler_kwargs`=.*min_rate"),
    Row("--lr_scheduler_kwargs '{'", "takes JSON, is not valid"),
    Row("--optim adamm", "adamm"),
    Row("--eval_strategy sometimes", "sometimes"),
    Row("--load_best_model_at_end true --save_strategy epoch", "load_best_model_at_end.*strategy"),
    Row(
        "--load_best_model_at_end true --eval_steps 2 --metric_for_best_model happiness",
        "`metric_for_best_model`='happiness'",
    ),
    Row("--attn_implementation flash", "attn_implementation"),
    Row("--bf16 maybe", "--bf16"),
    Row("--include_num_input_tokens_seen no", "`include_num_input_tokens_seen`=False.*leave it out"),
    Row("--prediction_loss_only true", "`prediction_loss_only`=True would leave .* metrics: leave it out"),
    Row("--eval_do_concat_batches false", "`eval_do_concat_batches`=False would .* leave it out"),
    Row("--neftune_noise_alpha -1", "`neftune_noise_alpha` must be at least 0"),
    Row(f"{TABLE} addition --remove_unused_columns true", "`remove_unused_columns`=True would drop .* leave it out"),
    Row(f"{TABLE} addition --label_smoothing_factor 0.1", "`label_smoothing_factor` .* lookup table"),
    Row(f"{TABLE} subtraction", "'subtraction' .* lookup tables .addition, multiplication, s5."),
    Row(f"{TABLE} addition --modulus 1", "`modulus` must be .* above 1, got 1"),
    Row(f"{TABLE} addition --train_fraction 0", "`train_fraction`"),
    Row(f"{TABLE} addition --train_fraction nan", "`train_fraction`"),
    Row(f"{TABLE} addition --train_fraction 1.5", "`train_fraction`"),
    Row("--dataset_name addition", "`block_size` must be 3 .a, b, =. for a lookup table, got 32"),
    Row("--learning_rte 1", "Unknown option '--learning_rte': did you mean `--learning_rate`"),
    Row("--learning_rte=1", "Unknown option '--learning_rte'"),
    Row("--learn 1", "Unknown option '--learn'"),
    Row("stray", "Unknown option 'stray'"),
    # In a recipe.
    Row({"block_size": None}, "`block_size` must be int, got None"),
    Row({"seed": 1.5}, "`seed` must be int, got 1.5 .float."),
    Row({"max_steps": True}, "`max_steps` must be int, got True .bool."),
    Row({"max_steps": "many"}, "--max_steps.*: invalid int value: 'many'"),
    Row({"learning_rate": [1e-3]}, "`learning_rate` must be float"),
    Row({"dataset_name": 7}, "`dataset_name` must be str, got 7"),
    Row({"eval_strategy": False}, "`eval_strategy` must be str, got False .bool.. Write `no` in quotes"),
    Row({"eval_on_start": 3}, "`eval_on_start` must be bool"),
    Row({"eval_on_start": "perhaps"}, "eval_on_start"),
    Row({"lr_scheduler_kwargs": 3}, "`lr_scheduler_kwargs`"),
    Row({"log_level": "loud"}, "`log_level`='loud' must be one of .*passive"),
    Row({"accelerator_config": {"x": 1}}, "option that takes JSON has a wrong entry: .*'x'"),
    Row({"model_config": {"a": 1}}, "`model_config` must be null or str"),
    Row({3: "x"}, "unknown key `3`"),
    Row({"learning_rte": 1}, "unknown key `learning_rte`: did you mean `learning_rate`"),
    *[
        Row(f"recipe: {name}", says, {name: content})
        for name, content, says in (
            ("tab.yaml", "\tmax_steps: 3", "not valid YAML"),
            ("list.yaml", "- max_steps", "`key: value` lines"),
            ("empty.yaml", "", "`key: value` lines"),
            ("latin.yaml", "sample_prompt: Zoë".encode("latin-1"), "not valid YAML"),
            ("bytes.yaml", b"\x00\x01", "not valid YAML"),
            ("folder.yaml", None, "There is no recipe 'folder.yaml'"),
        )
    ],
    Row("recipe: missing.yaml", "There is no recipe 'missing.yaml'"),
    # Commands that load a model.
    *[
        Row(f"{command} {model}", f"`model`='{model}' is neither .*make demo")
        for command in COMMANDS
        if command != "release"
        for model in ("model", "nowhere/at/all", "recipe.yaml")
    ],
    Row("tell finished --temperature -1", "`temperature`=-1.0 must be at least 0"),
    Row("tell finished --temperature nan", "`temperature`=nan must be at least 0"),
    Row("tell finished --max_new_tokens 0", "`max_new_tokens`=0 at least 1"),
    Row("tell finished --seed -1", "Seed must be"),
    Row("bindings finished --num_stories 0", "`num_stories`"),
    Row("bindings table", "`model`='table' was trained on a lookup table"),
    *[
        Row(f"tell table --prompt {prompt}", "`prompt`=.* reads 'a b =', .* from 0 to 22")
        for prompt in ("'Once upon a time'", "'3 23 ='", "'3 4'", "'= 4 ='", "''")
    ],
]
