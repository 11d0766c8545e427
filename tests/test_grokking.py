"""The grokking testbed: tables, the read-out, the stack against the stock Trainer, stopping and going on."""

import itertools
import json

import pytest
import torch
from transformers import AutoTokenizer

from modeling_prism import SphericalConfig, SphericalForCausalLM
from training import pretrain
from training.experiments.grokking import report, run
from training.experiments.grokking.arms import ARMS, COMPARISONS, PUBLISHED, name_of
from training.experiments.grokking.read_out import ReadOut
from training.stacked import Stack
from training.tasks import arithmetic
from training.tasks.arithmetic import make_arithmetic, make_table, make_tokenizer, split_table


pytestmark = pytest.mark.experiment


@pytest.mark.parametrize(
    ("table", "operator"), [("addition", lambda a, b: a + b), ("multiplication", lambda a, b: a * b)]
)
def test_tables_of_residues(table, operator):
    input_ids, answers = make_table(table, 7)
    assert {(a, b) for a, b, _ in input_ids.tolist()} == set(itertools.product(range(7), repeat=2))
    assert all(
        equals == 7 and answer == operator(a, b) % 7 for (a, b, equals), answer in zip(input_ids.tolist(), answers)
    )


def test_s5_is_a_group_in_the_published_order():
    input_ids, answers = make_table("s5")
    product = answers.view(120, 120)
    assert input_ids.shape == (14400, 3) and (input_ids[:, 2] == 120).all()
    # 0 is the identity; every row and column is a permutation; and a o (b o c) = (a o b) o c.
    everyone = torch.arange(120)
    assert (product[0] == everyone).all() and (product[:, 0] == everyone).all()
    assert (product.sort(0).values == everyone[:, None]).all() and (product.sort(1).values == everyone).all()
    a, b, c = torch.randint(120, (3, 500), generator=torch.Generator().manual_seed(0))
    assert (product[a, product[b, c]] == product[product[a, b], c]).all()
    # The published order: b acts first. 1 swaps places 3 and 4, 6 swaps 2 and 3.
    permutations = list(itertools.permutations(range(5)))
    assert permutations[1] == (0, 1, 2, 4, 3) and permutations[2] == (0, 1, 3, 2, 4)
    assert permutations[product[1, 2]] == tuple(permutations[1][x] for x in permutations[2])
    assert product[1, 2] != product[2, 1]


def test_the_docstring_shows_what_the_tables_hold():
    for table, index in (("addition", 569), ("s5", 569)):
        input_ids, answers = make_table(table)
        shown = " ".join(arithmetic.__doc__.split())
        for number in (*input_ids[index].tolist(), answers[index].item()):
            assert f" {number} " in shown


def test_a_seed_decides_the_split():
    train, test = split_table(12769, 0.3, seed=1)
    assert len(train) == 3830 and len(test) == 8939
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(12769))
    assert train.tolist() == split_table(12769, 0.3, seed=1)[0].tolist() != split_table(12769, 0.3, seed=2)[0].tolist()


def test_rows_for_trainer():
    splits = make_arithmetic("addition", modulus=11, train_fraction=0.5, seed=3)
    assert len(splits["train"]) == 60 and len(splits["validation"]) == 61
    for row in splits["train"]:
        a, b, equals = row["input_ids"]
        assert equals == 11 and row["labels"] == row["shift_labels"] == [-100, -100, (a + b) % 11]


def test_the_tokenizer_reads_and_writes_tables(tmp_path):
    made = make_tokenizer("addition", 11)
    made.save_pretrained(tmp_path)
    for tokenizer in (made, AutoTokenizer.from_pretrained(tmp_path)):
        assert len(tokenizer) == 12
        assert tokenizer("10 4 =")["input_ids"] == [10, 4, 11]
        assert tokenizer.decode([10, 4, 11, 3]) == "10 4 = 3"
        # What is no element of the table is not read as "=".
        for unknown in ("99 4 =", "Once upon a time", "11 4 ="):
            with pytest.raises(Exception, match="Missing .UNK. token"):
                tokenizer(unknown)


@pytest.mark.parametrize("modulus", [0, 1, -113, 11.0, True])
def test_a_modulus_is_a_positive_integer(modulus):
    with pytest.raises(ValueError, match="`modulus` must be a positive integer"):
        make_table("addition", modulus)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, 0.001, float("nan")])
def test_no_split_may_be_empty(fraction):
    with pytest.raises(ValueError, match="`train_fraction`=.* leaves a split"):
        make_arithmetic("addition", modulus=11, train_fraction=fraction)


def test_other_bad_input():
    with pytest.raises(ValueError, match="`table` must be one of addition, multiplication, s5, got 'subtraction'"):
        make_table("subtraction")
    two_layers = SphericalForCausalLM(SphericalConfig(vocab_size=12, max_position_embeddings=3, num_hidden_layers=2))
    with pytest.raises(ValueError, match="one layer, got 2"):
        ReadOut(two_layers)


READ_OUT_ARMS = ["sphere", "layer_norm", "rms_norm", "sphere-unbounded", "layer_norm-bounded", "uniform-sphere-wd0"]


@pytest.mark.parametrize("arm", READ_OUT_ARMS)
def test_the_read_out_is_the_full_model(arm):
    arguments = run.Arguments(modulus=11)
    read_out = run.build(arguments, arm, seed=1).double()
    input_ids, answers = make_table("addition", 11)

    def logits_and_gradients(logits):
        read_out.zero_grad()
        torch.nn.functional.cross_entropy(logits, answers).backward()
        gradients = {name: value.grad for name, value in read_out.named_parameters() if value.grad is not None}
        return logits.detach(), {name: value.clone() for name, value in gradients.items()}

    full, full_gradients = logits_and_gradients(read_out.causal_lm(input_ids).logits[:, -1])
    fast, fast_gradients = logits_and_gradients(read_out(input_ids[:, :2]))
    # The projection of the sphere and the scaled dot product work in fp32 at least, here in fp64.
    torch.testing.assert_close(fast, full, rtol=1e-10, atol=1e-10)
    assert fast_gradients.keys() == full_gradients.keys()
    for name, gradient in full_gradients.items():
        torch.testing.assert_close(fast_gradients[name], gradient, rtol=1e-8, atol=1e-12)
    # The check can fail: b is not a.
    assert (read_out(input_ids[:, [1, 0]]) - full).abs().max() > 1e-3


def test_a_read_out_of_answers_only_has_no_logit_for_equals():
    input_ids, answers = make_table("addition", 11)
    arguments = run.Arguments(modulus=11)
    whole, only = (run.build(arguments, arm, seed=1) for arm in ("sphere", "sphere-answers-only"))
    torch.testing.assert_close(only(input_ids[:, :2]), whole(input_ids[:, :2])[:, :11], rtol=0, atol=0)
    only_loss, loss = (run.read_out_loss(model, input_ids[:, :2], answers) for model in (only, whole))
    assert only_loss < loss - 0.01
    assert run.check_spectrum(only, input_ids[:, :2], answers) == run.check_spectrum(whole, input_ids[:, :2], answers)


GROK = {
    "modulus": 7, "train_fraction": 0.7, "lr": 1e-2, "max_epochs": 60, "eval_epochs": 5, "settle_epochs": 10,
    "save_epochs": 20, "test_onset": 0.15, "arms": ["sphere-wd0", "layer_norm"], "seeds": [1, 2, 3],
}  # fmt: skip


def without_revision(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "revision"} for row in rows]


def test_command_writes_tables_and_goes_on(run_experiment, tmp_path, monkeypatch, capsys, in_this_process):
    rows = run_experiment("grokking", **GROK)
    assert len(rows) == 6 and {row["arm"] for row in rows} == {"sphere-wd0", "layer_norm"}
    table = (tmp_path / "results" / "table.md").read_text()
    # What is published is for the published sizes.
    assert table in capsys.readouterr().out and "| sphere-wd0 |" in table and "published\n" not in table
    assert (tmp_path / "results" / "onsets.png").stat().st_size > 10_000
    for row in rows:
        curves = row["curves"]
        assert all(len(curves[name]) == row["epochs"] // 5 + 1 for name in run.CURVES)
        if row["test_onset"] is not None:
            at = row["test_onset"] // 5
            assert curves["test_accuracy"][at] >= 0.15 > max(curves["test_accuracy"][:at], default=0)
            assert row["delay"] is None or row["delay"] == row["test_onset"] - row["train_onset"]
    # Seeds leave the stack when they are done, and the others go on.
    assert min(row["epochs"] for row in rows) < 60 == max(row["epochs"] for row in rows)

    real_step, steps = Stack.step, iter(range(10_000))

    def step(self, *batch):
        if next(steps) == 33:
            raise KeyboardInterrupt
        return real_step(self, *batch)

    monkeypatch.setattr(Stack, "step", step)
    stopped = {"output_dir": tmp_path / "stopped", "results_dir": tmp_path / "stopped_results"}
    with pytest.raises(SystemExit):
        run_experiment("grokking", **GROK, **stopped)
    assert "The same command goes on" in capsys.readouterr().err
    assert list((tmp_path / "stopped").rglob("*.pt"))
    # The curves so far, beside the checkpoint.
    (picture,) = (tmp_path / "stopped").rglob("sphere-wd0.png")
    assert picture.stat().st_size > 10_000
    monkeypatch.setattr(Stack, "step", real_step)
    assert without_revision(run_experiment("grokking", **GROK, **stopped)) == without_revision(rows)


def test_results_of_other_seeds_are_kept_and_other_settings_refused(run_experiment, tmp_path, in_this_process):
    def go(*seeds, **options):
        folder = tmp_path / f"runs-{seeds[0]}{seeds[-1]}"
        command = {"modulus": 7, "train_fraction": 0.7, "max_epochs": 5, "eval_epochs": 1, "arms": "sphere"}
        return run_experiment("grokking", **{**command, "seeds": [*seeds], "output_dir": folder, **options})

    first = go(1, 3)
    assert [row["seed"] for row in first] == [1, 3]
    assert first[0]["settings"]["max_epochs"] == 5 and first[0]["settings"]["test_onset"] == 0.95
    both = go(2)
    assert [row["seed"] for row in both] == [1, 2, 3] and [both[0], both[2]] == first
    for change in ({"max_epochs": 4}, {"eval_epochs": 5}):
        with pytest.raises(ValueError, match=f"seed 1 of sphere under .*'{[*change][0]}': .*--results_dir"):
            go(1, 2, 3, **change, output_dir=tmp_path / "nowhere")
    # Before any work.
    assert not (tmp_path / "nowhere").exists()
    # The command as it is written where nothing else is said goes on from what is stored.
    assert [row["settings"]["max_epochs"] for row in go(2, max_epochs=6, output_dir=tmp_path / "more")] == [5, 6, 5]
    # Another table, and another arm of this one, join the rest, in the order of the tables.
    rows = go(1, table="multiplication", arms="layer_norm", output_dir=tmp_path / "table")
    rows = go(1, arms="sphere-wd0", output_dir=tmp_path / "arm")
    names = [(name_of(row["table"], row["lr"], row["settings"]), row["arm"], row["seed"]) for row in rows]
    addition, product = "addition-mod7-train0.7-lr0.0006", "multiplication-mod7-train0.7-lr0.0006"
    assert names == [
        (addition, "sphere-wd0", 1), *((addition, "sphere", seed) for seed in (1, 2, 3)), (product, "layer_norm", 1),
    ]  # fmt: skip


@pytest.mark.parametrize("chunk_size", [None, 1])
@pytest.mark.parametrize("arm", ["sphere", "uniform-layer_norm", "rms_norm", "sphere-wd0-beta2-0.98"])
def test_a_seed_follows_torch_adamw_on_the_full_model(arm, chunk_size):
    """Read-out, stack and AdamW together against the whole model under torch.optim.AdamW, in float64."""
    arguments = run.Arguments(modulus=11, dtype="float64")
    input_ids, answers = make_table("addition", 11)
    splits = {seed: split_table(len(answers), 0.5, seed)[0] for seed in (1, 2)}
    decay, betas = ARMS[arm].get("weight_decay", 1.0), (0.9, ARMS[arm].get("beta2", 0.999))
    stack = Stack(
        [run.build(arguments, arm, seed) for seed in splits],
        run.read_out_loss,
        learning_rate=1e-3,
        weight_decay=decay,
        betas=betas,
        chunk_size=chunk_size,
    )
    for _ in range(60):
        stack.step(*(torch.stack([part[rows] for rows in splits.values()]) for part in (input_ids[:, :2], answers)))

    for index, (seed, rows) in enumerate(splits.items()):
        model = run.build(arguments, arm, seed).causal_lm
        started = {name: weight.clone() for name, weight in model.named_parameters()}
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=decay, betas=betas)
        for _ in range(60):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(input_ids[rows]).logits[:, -1], answers[rows]).backward()
            optimizer.step()
        stacked = stack.unstack(index)
        for name, weight in model.named_parameters():
            torch.testing.assert_close(stacked[f"causal_lm.{name}"], weight.detach(), rtol=0, atol=1e-10, msg=name)
        # What the agreement is worth.
        moved = max((weight - started[name]).abs().max().item() for name, weight in model.named_parameters())
        assert moved > 0.03


def test_nudged_weights_are_those_of_the_seed_but_for_rounding():
    arguments = run.Arguments(modulus=7, dtype="float64")
    nudged, plain = (dict(run.build(arguments, arm, 1).named_parameters()) for arm in ("sphere-nudged", "sphere"))
    for name, weight in plain.items():
        changes = (nudged[name] / weight - 1)[weight != 0]
        assert changes.numel() == 0 or 0.5e-7 < changes.std() < 2e-7, name
    assert run.build(run.Arguments(modulus=7), "sphere", 1).causal_lm.dtype == torch.float32


def test_the_stock_trainer_reaches_the_same_onset(tmp_path, in_checkout):
    """In float64, where rounding does not part the two before they grok: the same curve, to one of 85 answers."""
    size, onset = 29, 130
    options = ["--modulus", size, "--max_steps", onset, "--output_dir", tmp_path / "trainer", "--train_fraction", 0.9]
    options += ["--config_overrides", f"vocab_size={size + 1},dtype=float64", "--learning_rate", 1e-3]
    result = pretrain.main(["configuration/recipes/grokking.yaml", *map(str, options)])
    history = json.loads((tmp_path / "trainer" / "trainer_state.json").read_text())["log_history"]
    trained = {log["step"]: log["eval_accuracy"] for log in history if "eval_accuracy" in log}

    arguments = run.Arguments(modulus=size, train_fraction=0.9, lr=1e-3, seeds=[1], max_epochs=onset, dtype="float64")
    row = run.run_job(arguments, "sphere", tmp_path / "stack")[0]
    stacked = dict(enumerate(row["curves"]["test_accuracy"]))
    assert trained == {step: pytest.approx(stacked[step // 10], abs=1.01 / 85) for step in range(10, onset + 10, 10)}
    assert row["test_onset"] == min(step for step, accuracy in trained.items() if accuracy >= 0.95) == onset
    assert result["nats_per_answer"] == pytest.approx(row["curves"]["test_loss"][-1], rel=1e-2)


def test_spectral_check_of_a_model_that_adds(monkeypatch):
    """Logits made of two cosines: two frequencies hold everything, and one alone is not enough."""
    input_ids, answers = make_table("addition", 11)
    c = torch.arange(11)
    phase = 2 * torch.pi / 11 * (answers[:, None] - c)
    logits = torch.cos(2 * phase) + 0.9 * torch.cos(5 * phase)
    model = run.build(run.Arguments(modulus=11), "sphere", seed=1)
    monkeypatch.setattr(model, "forward", lambda pairs: torch.cat((logits, logits[:, :1]), dim=1))
    spectrum = run.check_spectrum(model, input_ids[:, :2], answers)
    assert spectrum["logits_top5_variance"] == pytest.approx(1)
    assert set(spectrum["logits_top_frequencies"][:2]) == {2, 5}
    assert spectrum["accuracy_by_top_k"]["3"] == 1
    # A bounded unembedding uses the directions of its rows, whatever their lengths.
    with torch.no_grad():
        model.causal_lm.lm_head.rows.mul_(torch.arange(1.0, 13)[:, None])
    scaled = run.check_spectrum(model, input_ids[:, :2], answers)
    assert scaled["unembedding_top5_variance"] == pytest.approx(spectrum["unembedding_top5_variance"], rel=1e-4)


def test_ratio_of_means():
    """A factor of 1 / 10 in every seed has little spread, however far seeds are apart; what has no ratio says so."""
    assert report.ratio_of_means([40, 50, 81], [400, 500, 800]) == "0.10 (0.10 to 0.10)"
    assert report.ratio_of_means([200.0], [100.0]) == "2.00"
    # Logarithms of the ratios: ln 2 and -ln 2; exp(t(0.975, 1) ln 2) = 2 ** 12.706.
    assert report.ratio_of_means([100, 200], [200, 100]) == "1.00 (0.00 to 6682.65)"
    for without in ([0, 10], [-10, 10], [None, 10]):
        assert report.ratio_of_means(without, [10, 10]) == "not defined"


@pytest.mark.parametrize("pair", COMPARISONS)
def test_comparisons_change_one_thing(pair):
    defaults = {
        "attention_routing": "softmax", "norm_affine": True, "logit_scale": 10.0, "weight_decay": 1.0, "beta2": 0.999,
        "answers_only": False, "nudge": 0.0,
    }  # fmt: skip
    one, other = ({**defaults, **ARMS[arm]} for arm in pair)
    changed = {key for key in one if one[key] != other[key]}
    if COMPARISONS[pair].startswith(("the published step", "the same")):
        assert changed == {"residual_norm", "bounded_unembedding"}
    else:
        assert len(changed) == 1


def test_table_of_comparisons():
    rows = {
        arm: [
            {"seed": seed, "test_onset": onset, "delay": onset and onset - 100, "epochs": 9000}
            for seed, onset in seeds.items()
        ]
        for arm, seeds in {
            "sphere": {1: 300, 2: 400, 3: 9},
            "layer_norm": {2: 4000, 1: 3001},
            "rms_norm": {1: None, 2: 4000},
            "layer_norm-plain": {7: 100},
        }.items()
    }
    table = report.make_comparisons(rows)
    assert "| sphere | layer_norm | 2 | 0.10 (0.10 to 0.10) | 0.07 (" in table
    assert "| rms_norm | layer_norm | 2 | rms_norm: 1 of 2 not in 9,000 |  |" in table
    assert len(table.splitlines()) == 4


def test_published_figures_belong_to_arms():
    """The author's notebooks bound the baselines of multiplication, so these are no arms of the addition table."""
    published = [*report.PUBLISHED.values(), *report.PUBLISHED_UNIFORM.values()]
    assert {arm for arms in published for arm in arms} <= ARMS.keys()
    assert {*report.PUBLISHED["addition-lr0.0006"]} == {*PUBLISHED}
    for arm in report.PUBLISHED["multiplication-lr0.0006"]:
        assert ARMS[arm]["bounded_unembedding"]
