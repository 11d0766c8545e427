"""Options of `training.experiments` and `training.benchmarks`, where no other test names them."""

from training.benchmarks import stacking, throughput
from training.experiments import __main__ as command

from . import Row, refused


WORLD = ("model", "gpt2", "finished", "corpus")
COMMANDS = {"throughput": throughput.main, "stacking": stacking.main, "experiments": command.main}


def give(given):
    name, _, words = given.partition(" ")
    refused(COMMANDS[name], words)


SMALL = "--batch_size 2 --sequence_length 12 --decode_tokens 3 --rounds 2 --steps 1 --warmup 0 --device cpu"
BENCH = f"throughput model gpt2 {SMALL}"
ROWS = [
    Row(f"throughput model {SMALL}", "at least two"),
    Row(f"throughput model model {SMALL}", "twice"),
    Row(f"{BENCH} --reference elsewhere", "not in `models`"),
    Row(f"{BENCH} --rounds 0", "`rounds` must be at least 1, got 0"),
    Row(f"{BENCH} --steps 0", "`steps` must be at least 1, got 0"),
    Row(f"{BENCH} --warmup -1", "`warmup` must be at least 0, got -1"),
    Row(f"{BENCH} --batch_size 0", "`batch_size` must be at least 1, got 0"),
    Row(f"{BENCH} --decode_tokens 12", "`decode_tokens`=12 leaves no prompt"),
    Row(f"{BENCH} --sequence_length 33", "`sequence_length`=33 .* 32 positions .* `--sequence_length 32`"),
    Row(f"{BENCH} --device tpuu", "`device`"),
    Row(f"{BENCH} --dtype float7", "dtype"),
    Row(f"{BENCH} --output gpt2/config.json/x.json", "Not a directory|File exists"),
    Row(f"throughput model nowhere {SMALL}", "'nowhere', which is not a model folder"),
    Row(f"throughput model corpus {SMALL}", "'corpus', which is not a model folder"),
    Row(f"throughput model m {SMALL}", "does not describe a model", {"m/config.json": '{"model_type": "no_such"}'}),
    Row(f"throughput model m {SMALL}", "'m'", {"m/config.json": "{"}),
    Row(f"throughput model model:routing=uniform {SMALL}", "`routing`, which a prism does not have"),
    Row(f"throughput model model:hidden_size=big {SMALL}", "`hidden_size` must be of type int"),
    Row(f"throughput model finished:num_signal_heads=1,head_dim=64 {SMALL}", "its weights were trained without"),
    Row("stacking --experiments chess", "experiments"),
    Row("stacking --models 0", "`models` must be at least 1, got 0"),
    Row("stacking --rounds 0", "`rounds` must be at least 1, got 0"),
    Row("stacking --output a/b.json", "File exists: 'a'|Not a directory", {"a": ""}),
    Row("experiments induction --seeds one", "--seeds.*: invalid int value: 'one'"),
    Row("experiments induction --seeds 0 0", "`seeds` must .* all different"),
    Row("experiments induction --jobs -1", "`jobs` must be at least 1, got -1"),
    Row("experiments induction --learning_rates 0", "`learning_rates` must be positive and finite, got 0"),
    Row("experiments induction --output_dir file", "File exists: 'file'", {"file": ""}),
    Row("experiments induction --report --results_dir nowhere", "has no results.jsonl"),
    Row("experiments --reports", "--reports"),
]
