"""How the commands of `training/` read their options, and how they end."""

import contextlib
import difflib
import logging
import sys
from collections.abc import Callable, Iterable, Iterator

from transformers import HfArgumentParser
from transformers.utils.logging import disable_progress_bar


class CommandParser(HfArgumentParser):
    """`HfArgumentParser` whose errors are one line, without the usage of some two hundred options."""

    def __init__(self, dataclass_types, **kwargs):
        epilog = "`--debug`, alone, shows the traceback of an error."
        super().__init__(dataclass_types, **{"allow_abbrev": False, "epilog": epilog, **kwargs})

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}; `--help` lists the options.\n")

    def parse_known_args(self, args=None, namespace=None):
        namespace, rest = super().parse_known_args(args, namespace)
        if rest:
            name = rest[0].partition("=")[0]
            options = [option for action in self._actions for option in action.option_strings]
            raise ValueError(f"Unknown option {name!r}: {suggest(name, options)}")
        return namespace, rest

    def parse(self, argv: list[str]) -> tuple:
        """The dataclasses, and the namespace of other arguments if there are any."""
        return self.parse_args_into_dataclasses(argv, look_for_args_file=False)


def suggest(name: str, known: Iterable[str], otherwise: str = "`--help` lists the options.") -> str:
    """A remedy for a misspelt name."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"did you mean `{close[0]}`?" if close else otherwise


class TrainingDiverged(RuntimeError):
    """The loss or the weights of a run are no longer finite."""


@contextlib.contextmanager
def reaching_the_hub(remedy: str) -> Iterator[None]:
    """Makes one sentence of whatever the hub's library or the network raises."""
    try:
        yield
    except Exception as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"The hub was not reached, or refused ({cause}): {remedy}") from error


def run(main: Callable[[list[str]], object]) -> None:
    """
    Runs a command with the words of the command line.

    A user's mistake, which `main` raises as `ValueError` or `OSError`, and a missing package (`ImportError`) end in
    one sentence and exit status 2, a diverged run in one sentence and status 1, and Ctrl-C in what was kept and status
    130. `--debug`, without a value, shows the traceback instead.
    """
    argv = sys.argv[1:]
    # One bar for each stage of a command, none for each file that is read or written.
    disable_progress_bar()
    # `TrainingArguments` has an option of this name, which takes a value.
    flags = [i for i, word in enumerate(argv) if word == "--debug" and (argv[i + 1 : i + 2] or ["-"])[0][:1] == "-"]
    try:
        main([word for i, word in enumerate(argv) if i not in flags])
    except (ValueError, OSError, ImportError, TrainingDiverged, KeyboardInterrupt) as error:
        if flags:
            raise
        logging.shutdown()
        if isinstance(error, KeyboardInterrupt):
            sys.exit(_say(str(error) or "Interrupted: nothing was kept.\nThe same command starts again.", 130))
        sentence = " ".join(str(error).split()) or type(error).__name__
        sys.exit(_say(f"Error: {sentence}", 1 if isinstance(error, TrainingDiverged) else 2))


def _say(text: str, status: int) -> int:
    # A progress bar may have left the cursor in its line.
    print(f"\n{text}", file=sys.stderr, flush=True)
    return status
