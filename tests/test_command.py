"""How the commands of `training/` end."""

import sys
from dataclasses import dataclass

import pytest

from training.command import CommandParser, TrainingDiverged, run


def ends(main, monkeypatch, capsys, *argv):
    """The exit status and the lines of stderr."""
    monkeypatch.setattr(sys, "argv", ["command", *argv])
    with pytest.raises(SystemExit) as ended:
        run(main)
    return ended.value.code, capsys.readouterr().err.strip().splitlines()


@pytest.mark.parametrize(
    ("error", "status", "lines"),
    [
        (ValueError("`x` must be\n  positive."), 2, ["Error: `x` must be positive."]),
        (FileNotFoundError(2, "No such file", "x"), 2, ["Error: [Errno 2] No such file: 'x'"]),
        (ValueError(), 2, ["Error: ValueError"]),
        (ImportError("Install `x`."), 2, ["Error: Install `x`."]),
        (TrainingDiverged("at step 3."), 1, ["Error: at step 3."]),
        (KeyboardInterrupt("Interrupted.\nAgain."), 130, ["Interrupted.", "Again."]),
        (KeyboardInterrupt(), 130, ["Interrupted: nothing was kept.", "The same command starts again."]),
    ],
)
def test_an_error_ends_in_a_sentence_and_a_status(error, status, lines, monkeypatch, capsys):
    def main(argv):
        raise error

    assert ends(main, monkeypatch, capsys) == (status, lines)
    monkeypatch.setattr(sys, "argv", ["command", "--debug"])
    with pytest.raises(type(error)):
        run(main)


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(ZeroDivisionError):
        run(lambda argv: 1 / 0)


def test_debug_with_a_value_is_an_option_of_trainer(monkeypatch):
    for argv, seen in (
        (["a", "--debug", "--b"], ["a", "--b"]),
        (["--debug", "underflow_overflow"], ["--debug", "underflow_overflow"]),
    ):
        monkeypatch.setattr(sys, "argv", ["command", *argv])
        run(lambda words: words == seen or pytest.fail(f"{words} in place of {seen}"))


@dataclass
class Options:
    learning_rate: float = 1.0


def test_options_are_refused_in_one_line(capsys):
    parser = CommandParser(Options, prog="command")
    assert parser.parse(["--learning_rate", "2"]) == (Options(2.0),)
    with pytest.raises(ValueError, match="Unknown option '--learning_rte': did you mean `--learning_rate`"):
        parser.parse(["--learning_rte=2"])
    # Abbreviations would change their meaning with the next option.
    with pytest.raises(ValueError, match="Unknown option '--learn'"):
        parser.parse(["--learn", "2"])
    with pytest.raises(SystemExit, match="2"):
        parser.parse(["--learning_rate", "fast"])
    assert len(capsys.readouterr().err.splitlines()) == 1
