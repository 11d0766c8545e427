"""Synthetic tasks: the sequences are what their docstrings say, drawn with the probabilities that they say."""

import re

import numpy as np
import pytest
import torch
from scipy import stats
from transformers.loss.loss_utils import ForCausalLMLoss

from training.experiments.common.stacks import answer_accuracy, answer_loss, answers_of
from training.tasks import induction, recall
from training.tasks.induction import draw_induction, draw_repeats, make_induction
from training.tasks.recall import IGNORED, ZOOLOGY_SETTINGS, choose_distinct, draw_recall, make_recall


# A test of a distribution that is right fails once in a thousand seeds; its negative control is far beyond that.
LIKELY, RULED_OUT = 1e-3, 1e-9


def asked_places(labels: np.ndarray) -> np.ndarray:
    """Where the questions stand, (N, Q): one before each label."""
    return np.nonzero(labels != IGNORED)[1].reshape(len(labels), -1) - 1


def chi_square_of_two(first: np.ndarray, second: np.ndarray) -> float:
    """The probability that two arrays of codes are drawn alike."""
    codes = np.unique(np.concatenate((first, second)))
    return stats.chi2_contingency([[(drawn == code).sum() for code in codes] for drawn in (first, second)]).pvalue


# Distinct numbers


class Unshuffled:
    """A generator that leaves out the last step of `choose_distinct`."""

    def __init__(self, generator):
        self.integers = generator.integers

    def permuted(self, values, axis):
        return values


@pytest.mark.parametrize("span,count,ways", [(4, 2, 12), (3, 3, 6), (5, 1, 5)])
def test_all_ordered_selections_are_equally_likely(span, count, ways):
    def p_value(generator):
        chosen = choose_distinct(generator, 12_000, 7, 7 + span, count)
        assert chosen.shape == (12_000, count) and chosen.min() == 7 and chosen.max() == 6 + span
        assert all(len(set(row)) == count for row in chosen.tolist())
        selections, times = np.unique(chosen, axis=0, return_counts=True)
        times = np.pad(times, (0, ways - len(selections)))
        return stats.chisquare(times).pvalue

    assert p_value(np.random.default_rng(0)) > LIKELY
    if count > 1:
        assert p_value(Unshuffled(np.random.default_rng(0))) < RULED_OUT


# Recall


@pytest.mark.parametrize(
    "length,num_pairs,vocab_size", [*((*item, 8192) for item in ZOOLOGY_SETTINGS.items()), (16, 4, 11)]
)
def test_recall_lists_pairs_and_asks_for_each_once(length, num_pairs, vocab_size):
    input_ids, labels = draw_recall(50, vocab_size=vocab_size, length=length, num_pairs=num_pairs, seed=1)
    assert input_ids.shape == labels.shape == (50, length) and input_ids.dtype == labels.dtype == np.int64
    assert input_ids.min() >= 0 and input_ids.max() < vocab_size
    places = asked_places(labels)
    assert places.shape == (50, num_pairs)
    assert (places >= 2 * num_pairs).all() and (places % 2 == 0).all()
    for row, (tokens, answers) in enumerate(zip(input_ids, labels)):
        keys, values = tokens[0 : 2 * num_pairs : 2], tokens[1 : 2 * num_pairs : 2]
        assert len(set(keys)) == len(set(values)) == num_pairs
        assert keys.min() >= 1 and keys.max() < vocab_size // 2 <= values.min()
        asked = tokens[places[row]]
        assert sorted(asked) == sorted(keys)
        value_of = dict(zip(keys, values))
        assert [value_of[key] for key in asked] == answers[places[row] + 1].tolist()
    # Keys are asked in an order of their own.
    assert (np.take_along_axis(input_ids, places, axis=1) != input_ids[:, 0 : 2 * num_pairs : 2]).any()


def test_what_stands_between_the_questions():
    input_ids, labels = draw_recall(200, vocab_size=20, length=24, num_pairs=3, seed=0)
    zeros, same_labels = draw_recall(200, vocab_size=20, length=24, num_pairs=3, seed=0, random_non_queries=False)
    for drawn, answers in ((input_ids, labels), (zeros, same_labels)):
        places = asked_places(answers)
        between = np.ones(drawn.shape, bool)
        between[:, :6] = False
        np.put_along_axis(between, places, False, axis=1)
        noise = drawn[between]
        if drawn is zeros:
            assert (noise == 0).all()
        else:
            assert stats.chisquare(np.bincount(noise, minlength=20)).pvalue > LIKELY
    # The answers are never shown where they are due.
    due = np.take_along_axis(input_ids, asked_places(labels) + 1, axis=1)
    assert (due == labels[labels != IGNORED].reshape(due.shape)).mean() < 0.1


def gaps_of(num_examples: int, power: float, num_pairs: int, length: int = 16) -> np.ndarray:
    """The gaps, from 0, of the questions, in the order of the list (N, pairs)."""
    input_ids, labels = draw_recall(
        num_examples, vocab_size=50, length=length, num_pairs=num_pairs, power=power, seed=3
    )
    places = asked_places(labels)
    asked = np.take_along_axis(input_ids, places, axis=1)
    listed = input_ids[:, 0 : 2 * num_pairs : 2]
    order = (listed[:, :, None] == asked[:, None, :]).argmax(-1)
    return (np.take_along_axis(places, order, axis=1) - 2 * num_pairs) // 2


@pytest.mark.parametrize("power", [0.01, 0.5, 1.0, 3.0])
def test_one_gap_follows_the_power_law(power):
    times = np.bincount(gaps_of(20_000, power, num_pairs=1, length=14)[:, 0], minlength=6)
    distance = np.arange(1, 7)

    def p_value(power):
        weights = power * distance ** (power - 1)
        return stats.chisquare(times, 20_000 * weights / weights.sum()).pvalue

    assert p_value(power) > LIKELY
    assert p_value(power + 0.3) < RULED_OUT


def test_several_gaps_are_those_of_numpy_s_choice_without_replacement():
    ours = gaps_of(8_000, 0.01, num_pairs=2)
    weights = np.arange(1, 7) ** (0.01 - 1)
    generator = np.random.default_rng(0)
    numpys = np.stack([generator.choice(6, 2, replace=False, p=weights / weights.sum()) for _ in range(8_000)])

    def codes(gaps):
        return gaps.min(1) * 6 + gaps.max(1)

    assert chi_square_of_two(codes(ours), codes(numpys)) > LIKELY
    assert chi_square_of_two(codes(ours), codes(gaps_of(8_000, 0.5, num_pairs=2))) < RULED_OUT
    # Which of the keys comes first is left to chance.
    assert chi_square_of_two(ours[:4_000, 0], ours[4_000:, 1]) > LIKELY


# Induction


def test_induction_shows_distinct_tokens_and_asks_for_successors():
    input_ids, labels = draw_induction(200, vocab_size=41, num_distinct=20, num_queries=7, seed=0)
    assert input_ids.shape == labels.shape == (200, 34) and input_ids.dtype == labels.dtype == np.int64
    assert input_ids.min() == 0 and input_ids.max() == 40
    places = asked_places(labels)
    assert (places == np.arange(20, 34, 2)).all()
    for tokens, answers in zip(input_ids.tolist(), labels.tolist()):
        shown = tokens[:20]
        assert len(set(shown)) == 20
        successor = dict(zip(shown, shown[1:]))
        questions = tokens[20::2]
        assert len(set(questions)) == 7
        assert [successor[token] for token in questions] == tokens[21::2] == answers[21::2]


def test_every_token_and_every_question_is_equally_likely():
    input_ids, _ = draw_induction(6_000, vocab_size=8, num_distinct=5, num_queries=2, seed=0)
    for place in (0, 4):
        assert stats.chisquare(np.bincount(input_ids[:, place], minlength=8)).pvalue > LIKELY
    for place in (5, 7):
        asked = (input_ids[:, :5] == input_ids[:, [place]]).argmax(1)
        assert stats.chisquare(np.bincount(asked, minlength=4)).pvalue > LIKELY and asked.max() == 3


# Repeats


@pytest.mark.parametrize("length,segment", [(40, 9), (18, 9)])
def test_a_segment_comes_twice(length, segment):
    # So many tokens that nothing is repeated by chance.
    input_ids, labels = draw_repeats(4_000, vocab_size=10**9, length=length, segment=segment, seed=0)
    assert input_ids.shape == labels.shape == (4_000, length) and input_ids.dtype == labels.dtype == np.int64
    scored = asked_places(labels) + 1
    second = scored[:, 0] - 1
    assert (scored == second[:, None] + np.arange(1, segment)).all()
    assert (labels[labels != IGNORED] == input_ids[labels != IGNORED]).all()
    first = np.array([tokens.index(tokens[place]) for tokens, place in zip(input_ids.tolist(), second)])
    assert (first + segment <= second).all()
    for tokens, one, two in zip(input_ids, first, second):
        assert (tokens[one : one + segment] == tokens[two : two + segment]).all()
        assert len(set(tokens)) == length - segment
    room = length - 2 * segment
    assert set(first) == set(second - segment) == set(range(room + 1))
    assert set(second - first - segment) == set(range(room + 1))


def test_the_tokens_of_repeats_are_equally_likely():
    input_ids, _ = draw_repeats(2_000, vocab_size=10, length=12, segment=3, seed=0)
    assert input_ids.min() == 0 and input_ids.max() == 9
    # A row holds repeated tokens, so that rows are counted, at one place.
    assert stats.chisquare(np.bincount(input_ids[:, 5], minlength=10)).pvalue > LIKELY


# All tasks

DRAWS = [draw_recall, draw_induction, draw_repeats]


@pytest.mark.parametrize(
    "draw,options,message",
    [
        (draw_recall, {"num_pairs": 0}, "`num_pairs` must be at least 1, got 0"),
        (draw_recall, {"length": 63}, "`length` must be even .* got 63"),
        (
            draw_recall,
            {"length": 14},
            "4 pairs .* need 16 tokens, but `length` is 14: raise `length`, or lower `num_pairs` to 3",
        ),
        (draw_recall, {"vocab_size": 9}, "`vocab_size`=9 has 3 keys, too few for 4 pairs: it must be at least 10"),
        (draw_recall, {"vocab_size": 0}, "`vocab_size`=0 has 0 keys"),
        (draw_recall, {"power": 0.0}, "`power` must be a positive number, got 0.0"),
        (draw_recall, {"power": -1.0}, "`power` must be a positive number"),
        (draw_recall, {"power": float("nan")}, "`power` must be a positive number"),
        (draw_recall, {"power": float("inf")}, "`power` must be a positive number"),
        (draw_induction, {"num_distinct": 65}, "`num_distinct` must be 2 to `vocab_size`=64, got 65"),
        (draw_induction, {"num_distinct": 1}, "`num_distinct` must be 2 to `vocab_size`=64, got 1"),
        (draw_induction, {"num_queries": 32}, "`num_queries` must be 1 to 31, .* have a successor, got 32"),
        (draw_induction, {"num_queries": 0}, "`num_queries` must be 1 to 31"),
        (draw_repeats, {"segment": 33}, "`segment` must be 2 to 32, half of `length`=64, got 33"),
        (draw_repeats, {"segment": 1}, "`segment` must be 2 to 32"),
        (draw_repeats, {"vocab_size": 0}, "`vocab_size` must be at least 1, got 0"),
        *[(draw, {"num_examples": 0}, "`num_examples` must be at least 1, got 0") for draw in DRAWS],
    ],
)
def test_sizes_that_do_not_fit_are_refused(draw, options, message):
    with pytest.raises(ValueError, match=message):
        draw(**{"num_examples": 1, **options})


def test_the_remedies_of_recall_s_refusals_work():
    draw_recall(1, length=14, num_pairs=3)
    draw_recall(1, length=16, num_pairs=4, vocab_size=10)


@pytest.mark.parametrize("draw", DRAWS)
def test_the_same_seed_draws_the_same(draw):
    first, again, other = (draw(5, seed=seed) for seed in (1, 1, 2))
    for one, two, three in zip(first, again, other):
        assert (one == two).all() and (one != three).any()
    # A generator goes on, and starts as its seed does.
    generator = np.random.default_rng(1)
    assert (draw(5, seed=generator)[0] == first[0]).all() and (draw(5, seed=generator)[0] != first[0]).any()
    assert len({tuple(row) for row in draw(50, seed=0)[0].tolist()}) == 50


@pytest.mark.parametrize("module", [recall, induction], ids=["recall", "induction"])
def test_the_example_of_the_docstring_is_what_is_drawn(module):
    call = re.search(r"Example, `(draw_\w+\(.*?\))`", module.__doc__, flags=re.DOTALL)[1]
    for name, drawn in zip(("input_ids", "labels"), eval(call, vars(module))):
        line = re.search(rf"^{name} +(.*)$", module.__doc__, flags=re.MULTILINE)[1]
        assert drawn.tolist() == [[IGNORED if word == "." else int(word) for word in line.split()]]


@pytest.mark.parametrize("make,draw", [(make_recall, draw_recall), (make_induction, draw_induction)])
def test_datasets(make, draw):
    dataset = make(6, vocab_size=70, seed=4)
    assert dataset.column_names == ["input_ids", "labels"] and len(dataset) == 6
    for name, drawn in zip(dataset.column_names, draw(6, vocab_size=70, seed=4)):
        assert dataset[name][:] == drawn.tolist()
        assert dataset.with_format("torch")[0][name].dtype == torch.int64


def oracle(input_ids: torch.Tensor, shown: int, vocab_size: int) -> torch.Tensor:
    """Logits (B, L, V) that are certain of the successor of each token's first occurrence, if that was `shown`."""
    first = (input_ids[:, :, None] == input_ids[:, None, :shown]).int()
    successor = input_ids.gather(1, (first.argmax(-1) + 1).clamp(max=input_ids.shape[1] - 1))
    return 50.0 * torch.nn.functional.one_hot(successor, vocab_size)


@pytest.mark.parametrize("draw,shown", [(draw_recall, 8), (draw_induction, 32)])
def test_an_oracle_is_right_under_transformers_shift(draw, shown):
    vocab_size = 70
    input_ids, labels = draw(40, vocab_size=vocab_size, seed=0)
    batch = answers_of(input_ids, labels, "cpu")
    logits = oracle(batch[0], shown, vocab_size)
    late = logits.roll(1, dims=1)
    labels = torch.from_numpy(labels)
    assert ForCausalLMLoss(logits, labels, vocab_size) < 1e-6
    assert ForCausalLMLoss(late, labels, vocab_size) > 10

    def scored(logits):
        return lambda input_ids, places: logits.gather(1, places[..., None].expand(-1, -1, vocab_size))

    # The experiments compute logits at the questions alone.
    assert answer_accuracy(scored(logits), *batch) == 1 and answer_accuracy(scored(late), *batch) < 0.5
    for one in (logits, late):
        torch.testing.assert_close(answer_loss(scored(one), *batch), ForCausalLMLoss(one, labels, vocab_size))


def accuracy_by_position(input_ids: np.ndarray, labels: np.ndarray) -> float:
    """The most that can be answered by copying what stands at a fixed lag, chosen for each place apart."""
    right, scored = 0, (labels != IGNORED).sum()
    for place in np.unique(np.nonzero(labels != IGNORED)[1]):
        rows = labels[:, place] != IGNORED
        right += max((input_ids[rows, place - lag] == labels[rows, place]).sum() for lag in range(1, place + 1))
    return right / scored


def test_position_alone_does_not_answer():
    """The trap: at one fixed offset, a copy from a fixed lag is right every time."""
    shown = choose_distinct(np.random.default_rng(0), 1_000, 0, 64, 32)
    input_ids = np.concatenate((shown, shown), axis=1)
    fixed = np.full_like(input_ids, IGNORED)
    fixed[:, 33:] = shown[:, 1:]
    assert accuracy_by_position(input_ids, fixed) == 1
    # Chance is 1 / 31; the best of some sixty lags is a little above it.
    assert accuracy_by_position(*draw_induction(1_000)) < 0.06
    assert accuracy_by_position(*draw_repeats(1_000)) < 0.25
    # One of four values is right by chance.
    assert accuracy_by_position(*draw_recall(4_000)) < 0.3
    # The measure finds what can be found.
    assert accuracy_by_position(*draw_repeats(100, length=32, segment=16)) == 1
