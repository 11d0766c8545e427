"""
Examines a saved model and writes a report.

```bash
python -m modeling_prism.analysis outputs/quickstart
python -m modeling_prism.analysis outputs/quickstart --texts valid.txt --compare outputs/llama
python -m modeling_prism.analysis outputs/addition
```

Without `--texts` the model reads short stories that come with this package; a model whose tokenizer is that of a task
modulo a number reads all inputs of the task. The report goes to `outputs/report_<name>`, unless `--out` names a
folder.
"""

import contextlib
import difflib
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    logging,
)

from .control import examine_untrained, untrained_copy
from .examine import check_causal, check_length, context_length, examine, examine_cyclic, read_windows
from .report import write_report
from .spherical import check_modulus
from .view import view_text


PROGRAM = "python -m modeling_prism.analysis"
STORIES = Path(__file__).with_name("stories.txt")


@dataclass
class AnalysisArguments:
    """What to read and where to write."""

    out: str | None = field(
        default=None,
        metadata={"help": "Folder for report.html, report.json and figures/. Default: outputs/report_<name>."},
    )
    texts: str | None = field(
        default=None,
        metadata={
            "help": "Text file; texts are separated by <|endoftext|>, otherwise by blank lines. Default: the built-in "
            "stories."
        },
    )
    modulus: int | None = field(
        default=None,
        metadata={
            "help": "Instead of texts: all inputs [a, b, =] of a task modulo this number. Default: the "
            "tokenizer's number, if it belongs to such a task."
        },
    )
    operation: Literal["add", "multiply"] | None = field(
        default=None, metadata={"help": "Operation of that task. Default: the one that the model answers best."}
    )
    compare: list[str] = field(
        default_factory=list,
        metadata={"help": "Folders or hub names of models to compare on the same texts or task."},
    )
    num_texts: int = field(default=64, metadata={"help": "Number of texts to read from the start of the file."})
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens per window. Default: the model's context, at most 256."}
    )
    memory_budget: float = field(default=1.0, metadata={"help": "Memory for the activations of a batch, in GiB."})
    control_seed: int = field(default=0, metadata={"help": "Seed of the untrained copy that serves as control."})
    control_copies: int = field(
        default=5,
        metadata={
            "help": "Number of untrained copies, with successive seeds; their spread is the yardstick for training."
        },
    )
    device: str = field(default="auto", metadata={"help": "'cpu', 'cuda', ...; 'auto' picks CUDA if available."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code from a model's folder."})
    debug: bool = field(default=False, metadata={"help": "Show the traceback of an error."})

    def __post_init__(self):
        if self.texts is not None and self.modulus is not None:
            raise ValueError(
                "Give either `--texts` (a file) or `--modulus` (a number) for the model to read, not both."
            )
        if self.num_texts < 1:
            raise ValueError(f"`num_texts` must be at least 1, got {self.num_texts}.")
        if not 0 < self.memory_budget < float("inf"):
            raise ValueError(f"`memory_budget` (GiB) must be above 0, got {self.memory_budget}.")
        if self.control_copies < 1:
            raise ValueError(f"`control_copies` must be at least 1, got {self.control_copies}.")
        if self.max_length is not None:
            check_length(self.max_length)
        if self.modulus is not None:
            check_modulus(self.modulus, self.operation or "add")
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        check_device(self.device)


def check_device(device: str) -> None:
    """Raises `ValueError` if torch cannot use the device here."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"`device`={device!r} is not available here ({str(error).splitlines()[0]}): give 'cpu' or 'auto'."
        ) from None


def check_out(out: str | Path) -> None:
    """Raises `ValueError` if the folder `out`, which need not exist yet, cannot hold a report."""
    folder = Path(out).absolute()
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        reason = f"cannot be written to ({error.strerror})" if folder.is_dir() else "is a file"
        raise ValueError(
            f"`out`={str(out)!r} cannot hold a report, because {str(folder)!r} {reason}: give a folder."
        ) from None


def read_texts(file: str | Path, num_texts: int) -> list[str]:
    """
    Reads the first texts of a file.

    Raises:
        ValueError: the file is missing, empty or not UTF-8 text.
    """
    try:
        content = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"`texts`={str(file)!r} cannot be read as a text file: {error}") from error
    texts = content.split("<|endoftext|>") if "<|endoftext|>" in content else re.split(r"\n[ \t]*\n", content)
    texts = [text.strip() for text in texts if text.strip()][:num_texts]
    if not texts:
        raise ValueError(f"`texts`={str(file)!r} holds no text.")
    return texts


def load_model(name: str, arguments: AnalysisArguments) -> PreTrainedModel:
    """
    Loads a model from a folder or the hub.

    Raises:
        ValueError: it is missing or not a causal language model with trained weights.
    """
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            name, trust_remote_code=arguments.trust_remote_code, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{name!r} is neither the folder nor the hub name of a causal language model "
            f"({str(error).splitlines()[0]}). A model folder holds config.json and model.safetensors."
        ) from None
    saved = model.config.architectures or []
    if saved and not any("LM" in each or "Generation" in each for each in saved):
        raise ValueError(f"{name!r} holds a {saved[0]}, not a causal language model: give a folder that holds one.")
    if missing := sorted(loaded["missing_keys"]):
        raise ValueError(
            f"{name!r} lacks weights of a causal language model ({', '.join(missing[:3])}), which would be random: "
            "give a folder that one was saved to."
        )
    check_causal(model)
    # Most CPUs are slow in bf16.
    model = model.float() if arguments.device == "cpu" else model
    return model.to(arguments.device).eval()


def load_tokenizer(name: str, arguments: AnalysisArguments) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a model. Raises `ValueError` if there is none."""
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=arguments.trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{name!r} has no tokenizer to read texts with ({str(error).splitlines()[0]}): save one into the folder "
            "or, if the model solves a task modulo a number, give `--modulus`."
        ) from None


def modulus_of(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The modulus of the task that a tokenizer belongs to, with residues as tokens and "=" after them; or None."""
    modulus = tokenizer.get_vocab().get("=", 0)
    residues = [*map(str, range(modulus))]
    return modulus if modulus and tokenizer.convert_ids_to_tokens(list(range(modulus))) == residues else None


def check_residues(name: str, modulus: int, arguments: AnalysisArguments) -> None:
    """Raises `ValueError` if a model has a tokenizer that does not match a task modulo `modulus`."""
    try:
        tokenizer = load_tokenizer(name, arguments)
    except ValueError:
        return
    expected = [*map(str, range(modulus)), "="]
    # A tokenizer returns None beyond its last token.
    tokens = [tokenizer.convert_ids_to_tokens(number) for number in range(modulus + 1)]
    if tokens == expected:
        return
    wrong = next(number for number in range(modulus + 1) if tokens[number] != expected[number])
    own = modulus_of(tokenizer)
    remedy = (
        f"It matches a task modulo {own}: give `--modulus {own}`"
        if own
        else "It does not match any such task: give `--texts`"
    )
    raise ValueError(
        f"`modulus`={modulus} does not fit the tokenizer of {name!r}: its token {wrong} is {tokens[wrong]!r}, the "
        f"task's is {expected[wrong]!r}. {remedy}."
    )


def best_operation(model: PreTrainedModel, modulus: int) -> str:
    """The operation modulo `modulus` that a model answers best."""
    accuracies = {"add": examine_cyclic(model, modulus, "add")["accuracy"]}
    # Only a prime has powers to multiply.
    with contextlib.suppress(ValueError):
        accuracies["multiply"] = examine_cyclic(model, modulus, "multiply")["accuracy"]
    return max(accuracies, key=accuracies.get)


def display_names(names: Sequence[str]) -> list[str]:
    """The last parts of folder names, if they are distinct."""
    short = [Path(name).resolve().name for name in names]
    return short if len(set(short)) == len(names) else list(names)


def same_tokenizer(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase, texts: Sequence[str]) -> bool:
    """Whether two tokenizers have the same vocabulary and tokenize these texts alike."""
    return a.get_vocab() == b.get_vocab() and all(a(text)["input_ids"] == b(text)["input_ids"] for text in texts[:8])


def check_others(arguments: AnalysisArguments, texts: Sequence[str]) -> None:
    """Raises `ValueError` if a model to compare cannot be read, before the first model is measured."""
    for other in arguments.compare:
        # Each model is loaded again later: all of them at once may not fit into memory.
        model, tokenizer = load_model(other, arguments), load_tokenizer(other, arguments)
        try:
            read_windows(model, tokenizer, texts, arguments.max_length or context_length(model))
        except ValueError:
            if not (modulus := modulus_of(tokenizer)):
                raise
            said = f"`compare`: {other!r} solves a task modulo {modulus} and reads no texts: leave it out."
            raise ValueError(said) from None


def analyse(name: str, arguments: AnalysisArguments) -> Path:
    """Examines the model, its control and the models to compare; writes the report and returns the page."""
    names = display_names([name, *arguments.compare])
    out = arguments.out or Path("outputs") / f"report_{Path(name).resolve().name}"
    # Measuring takes minutes: check every input first.
    check_out(out)
    model = load_model(name, arguments)
    modulus = arguments.modulus
    if modulus is None and arguments.texts is None:
        # Without a tokenizer, the error below names the choices.
        with contextlib.suppress(ValueError):
            modulus = modulus_of(load_tokenizer(name, arguments))
    if modulus is not None:
        for each in (name, *arguments.compare):
            check_residues(each, modulus, arguments)
        for other in arguments.compare:
            load_model(other, arguments)
        task = {"modulus": modulus, "operation": arguments.operation or best_operation(model, modulus)}
        found = examine_cyclic(model, **task, name=names[0])
        control = examine_cyclic(untrained_copy(model, arguments.control_seed), **task, name="untrained copy")
        others = [
            # In every model, tokens are residues.
            {**examine_cyclic(load_model(other, arguments), **task, name=shown), "same tokenizer": True}
            for other, shown in zip(arguments.compare, names[1:])
        ]
        return write_report(found, control, out, others)

    texts = read_texts(arguments.texts or STORIES, arguments.num_texts)
    check_others(arguments, texts)
    tokenizer = load_tokenizer(name, arguments)
    options = {"max_length": arguments.max_length, "memory_budget": int(arguments.memory_budget * 2**30)}
    found = examine(model, tokenizer, texts, name=names[0], **options)
    found["built-in texts"] = arguments.texts is None
    found["view"] = view_text(model, tokenizer, texts, found)
    copies = {"seed": arguments.control_seed, "num_copies": arguments.control_copies}
    control = examine_untrained(model, tokenizer, texts, **copies, **options)
    others = []
    for other, shown in zip(arguments.compare, names[1:]):
        model, its_own = load_model(other, arguments), load_tokenizer(other, arguments)
        findings = examine(model, its_own, texts, name=shown, **options)
        others.append({**findings, "same tokenizer": same_tokenizer(tokenizer, its_own, texts)})
    return write_report(found, control, out, others)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the messages and progress bars of transformers, which are about loading."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def main(argv: Sequence[str] | None = None) -> Path:
    """Runs the command; returns the page. A wrong input raises `ValueError`."""
    parser = HfArgumentParser(AnalysisArguments, prog=PROGRAM, allow_abbrev=False)
    parser.add_argument("model", help="Folder or hub name of a trained model.")
    words = sys.argv[1:] if argv is None else list(argv)
    parsed = parser.parse_args_into_dataclasses(words, look_for_args_file=False, return_remaining_strings=True)
    arguments, rest, unknown = parsed
    if unknown:
        options = [option for action in parser._actions for option in action.option_strings]
        close = difflib.get_close_matches(unknown[0], options, n=1)
        remedy = f"did you mean `{close[0]}`?" if close else "`--help` lists the options."
        raise ValueError(f"Unknown option {unknown[0]!r}: {remedy}")
    with quiet():
        page = analyse(rest.model, arguments)
    print(f"Report: {page}")
    return page


if __name__ == "__main__":
    try:
        main()
    except ValueError as mistake:
        if "--debug" in sys.argv:
            raise
        print(f"{PROGRAM}: error: {mistake}", file=sys.stderr)
        sys.exit(2)
