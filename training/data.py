"""From a corpus of stories to blocks of token ids: texts, tokenizer, blocks. All of it through `datasets`."""

import difflib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, IterableDataset, Value, load_dataset
from datasets.exceptions import DatasetGenerationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from training.tasks.arithmetic import TABLES, check_table, make_arithmetic, make_tokenizer, table_vocab_size
from training.tasks.stories import stories


logger = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
# The `datasets` builder that reads each kind of local file; stories in `.txt` files have a reader of their own.
BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
TEXT_TYPES = ("string", "large_string")
STORY = Features({"text": Value("string")})
# What the files of a local folder are called.
PARTS = {"train": ("train",), "validation": ("valid", "validation")}
LOCAL_DATA_HINT = (
    "without a network, give a local folder (`--dataset_name FOLDER` with train.txt and valid.txt, stories separated "
    f"by {END_OF_TEXT}) or the built-in stories (`--dataset_name stories`)"
)


@dataclass
class DataArguments:
    """Which corpus, which tokenizer, which blocks."""

    dataset_name: str = field(
        default="stories",
        metadata={
            "help": "'stories' (built in, no network), a local folder or file (txt, jsonl, csv, parquet), the name "
            "of a data set on the hub, or a table to be grokked: 'addition', 'multiplication' or 's5'."
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a hub data set."})
    validation_file: str | None = field(
        default=None, metadata={"help": "Validation part, when `dataset_name` is a single file."}
    )
    text_column: str = field(default="text", metadata={"help": "Column that holds the text."})
    streaming: bool = field(
        default=False, metadata={"help": "Read a hub data set as it comes, without storing it; needs `max_steps`."}
    )
    num_train_stories: int | None = field(
        default=None, metadata={"help": "Use this many training stories (built-in default: 20000; else: all)."}
    )
    num_validation_stories: int | None = field(
        default=None, metadata={"help": "Use this many validation stories (built-in default: 500; else: all)."}
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "An existing tokenizer, by folder or hub name. Default: train one."}
    )
    tokenizer_vocab_size: int = field(
        default=2048, metadata={"help": "Size of the byte-level BPE trained on the corpus, special tokens included."}
    )
    block_size: int = field(default=256, metadata={"help": "Tokens in a training example."})
    modulus: int = field(default=113, metadata={"help": "Of the tables of addition and multiplication."})
    train_fraction: float = field(default=0.3, metadata={"help": "Share of a table that is trained on."})
    keep_documents_apart: bool = field(
        default=False,
        metadata={"help": "Restart position ids at every story, so that attention does not cross into the next."},
    )
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "Processes that tokenise (`datasets.map(num_proc=...)`)."}
    )

    def __post_init__(self):
        for name in ("num_train_stories", "num_validation_stories", "block_size"):
            least = 2 if name == "block_size" else 1
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")
        self._check_dataset_name()
        if self.is_table:
            check_table(self.dataset_name, self.modulus)
            if self.block_size != 3:
                raise ValueError(f"`block_size` must be 3 (a, b, =) for a table, got {self.block_size}.")
        if self.validation_file and not Path(self.dataset_name).is_file():
            raise ValueError(
                f"`validation_file` goes with a single file; `dataset_name`={self.dataset_name!r} brings its own "
                "validation part."
            )
        if self.streaming and (self.dataset_name == "stories" or Path(self.dataset_name).exists()):
            raise ValueError(f"`streaming` is for hub data sets; `dataset_name`={self.dataset_name!r} is local.")

    def _check_dataset_name(self):
        name = self.dataset_name
        # What has an owner is of the hub; it has a few names without one, too.
        if name in ("stories", *TABLES) or "/" in name or Path(name).exists():
            return
        close = difflib.get_close_matches(name.lower(), ("stories", *TABLES), n=1, cutoff=0.8)
        if close:
            raise ValueError(f"`dataset_name`={name!r} is no file or folder: did you mean {close[0]!r}?")
        if self.block_size == 3:
            raise ValueError(
                f"`dataset_name`={name!r} is no file or folder and no table ({', '.join(TABLES)}), which alone have "
                "examples of `block_size`=3: choose a table, or a longer `block_size` for text."
            )

    @property
    def is_table(self) -> bool:
        """Whether the data are a table of `training.tasks.arithmetic` and not text."""
        return self.dataset_name in TABLES

    @property
    def table_vocab_size(self) -> int | None:
        """How many tokens the table has, if the data are one."""
        return table_vocab_size(self.dataset_name, self.modulus) if self.is_table else None


def load_texts(arguments: DataArguments) -> DatasetDict:
    """
    Loads the corpus.

    Returns:
        `DatasetDict`: parts `train` and `validation` with one column, `text`, a story a row. `train` is an
        `IterableDataset` if `arguments.streaming`.

    Raises:
        ValueError: no such file, no validation part, a file that is not UTF-8, an empty part, no such column, or a hub
            data set that cannot be reached.
    """
    path = Path(arguments.dataset_name)
    if arguments.dataset_name == "stories":
        texts = DatasetDict(
            train=stories("train", arguments.num_train_stories or 20000),
            validation=stories("validation", arguments.num_validation_stories or 500),
        )
    elif path.exists():
        texts = _load_local(path, arguments.validation_file)
    else:
        texts = _load_from_hub(arguments)

    limits = {"train": arguments.num_train_stories, "validation": arguments.num_validation_stories}
    for part, rows in texts.items():
        columns = rows.column_names or []
        if arguments.text_column not in columns:
            raise ValueError(
                f"`text_column`={arguments.text_column!r} is not in the {part} part of {arguments.dataset_name!r}, "
                f"which has {columns}."
            )
        if rows.features is not None and getattr(rows.features[arguments.text_column], "dtype", "") not in TEXT_TYPES:
            raise ValueError(
                f"`text_column`={arguments.text_column!r} of the {part} part holds no text but {rows.features}."
            )
        rows = rows.select_columns([arguments.text_column])
        if arguments.text_column != "text":
            rows = rows.rename_column(arguments.text_column, "text")
        if limits[part] is not None:
            is_stream = isinstance(rows, IterableDataset)
            rows = rows.take(limits[part] if is_stream else min(limits[part], len(rows)))
        rows = rows.filter(lambda text: bool(text and text.strip()), input_columns="text")
        if next(iter(rows), None) is None:
            raise ValueError(f"The {part} part of `dataset_name`={arguments.dataset_name!r} holds no text.")
        texts[part] = rows
    return texts


def _load_local(path: Path, validation_file: str | None) -> DatasetDict:
    if path.is_dir():
        files = {part: _find_part(path, names) for part, names in PARTS.items()}
    else:
        files = {"train": path, "validation": Path(validation_file) if validation_file else None}
    for part, file in files.items():
        if file is None or not file.exists():
            remedy = (
                f"put a file named {' or '.join(PARTS[part])} (.txt, .jsonl, .csv or .parquet) into the folder"
                if path.is_dir()
                else "give one with `--validation_file`"
            )
            raise ValueError(f"`dataset_name`={str(path)!r} has no {part} part ({file or 'no file'}): {remedy}.")
    return DatasetDict({part: _load_file(file) for part, file in files.items()})


def _find_part(folder: Path, names: tuple[str, ...]) -> Path | None:
    candidates = [folder / f"{name}{suffix}" for name in names for suffix in (".txt", *BUILDERS)]
    return next((file for file in candidates if file.exists()), None)


def _load_file(file: Path) -> Dataset:
    if file.suffix not in (".txt", *BUILDERS):
        raise ValueError(f"{str(file)!r} is not one of .txt, {', '.join(BUILDERS)}.")
    try:
        if file.suffix == ".txt":
            # Size and time are arguments so that the cache of `datasets` notices a changed file.
            stat = file.stat()
            source = {"file": str(file.resolve()), "size": stat.st_size, "modified": stat.st_mtime_ns}
            return Dataset.from_generator(read_stories, STORY, gen_kwargs=source)
        return load_dataset(BUILDERS[file.suffix], data_files=str(file), split="train")
    except Exception as error:
        # How `datasets` reports a builder that yielded nothing.
        if "corresponds to no data" in str(error):
            return Dataset.from_dict({"text": []}, features=STORY)
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        if isinstance(cause, UnicodeDecodeError):
            raise ValueError(
                f"{str(file)!r} is not UTF-8 ({cause.reason}: {cause.object[cause.start]:#04x}): convert it, for "
                "instance with `iconv -t utf-8`."
            ) from None
        raise ValueError(f"{str(file)!r} could not be read as {file.suffix}: {cause}") from error


def read_stories(file: str, size: int, modified: int) -> Iterator[dict[str, str]]:
    """Yields the stories of a text file in which a line `<|endoftext|>` ends each story; memory for one at a time."""
    story = ""
    with open(file, encoding="utf-8") as stream:
        for line in stream:
            *ends, rest = line.split(END_OF_TEXT)
            for end in ends:
                if (story + end).strip():
                    yield {"text": (story + end).strip()}
                story = ""
            story += rest
    if story.strip():
        yield {"text": story.strip()}


def _load_from_hub(arguments: DataArguments) -> DatasetDict:
    name = arguments.dataset_name
    try:
        parts = load_dataset(name, arguments.dataset_config_name, streaming=arguments.streaming)
    except Exception as error:
        raise ValueError(
            f"`dataset_name`={name!r} is neither a local file or folder nor a data set that the hub would give "
            f"({type(error).__name__}: {error}); {LOCAL_DATA_HINT}."
        ) from error
    if "validation" not in parts or "train" not in parts:
        raise ValueError(f"`dataset_name`={name!r} has the parts {list(parts)}; it needs 'train' and 'validation'.")
    validation = parts["validation"]
    if isinstance(validation, IterableDataset):
        # Every evaluation reads it again, so it is kept.
        limit = arguments.num_validation_stories or 2000
        validation = Dataset.from_list(list(validation.take(limit)))
    return DatasetDict(train=parts["train"], validation=validation)


def train_tokenizer(texts: Dataset | IterableDataset, vocab_size: int) -> PreTrainedTokenizerFast:
    """
    Trains a byte-level BPE tokenizer: any UTF-8 text survives encoding and decoding.

    Args:
        texts (`Dataset` or `IterableDataset`): rows with a column `text`.
        vocab_size (`int`): number of tokens, special tokens included; at least 258 (256 bytes and two special tokens).
    """
    if vocab_size < 258:
        raise ValueError(
            f"`tokenizer_vocab_size`={vocab_size} is too small: 256 bytes and two special tokens need at least 258."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    length = None if isinstance(texts, IterableDataset) else len(texts)
    tokenizer.train_from_iterator((row["text"] for row in texts), trainer, length=length)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=PAD
    )


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Loads a tokenizer by folder, `tokenizer.json` file or hub name, with an end-of-text and a padding token."""
    if Path(name, "tokenizer.json").is_file() and not Path(name, "tokenizer_config.json").is_file():
        name = str(Path(name, "tokenizer.json"))
    if name.endswith(".json"):
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=name)
    else:
        tokenizer = AutoTokenizer.from_pretrained(name)
    # Padding must not look like the end of a text, or fine-tuning with masked padding unlearns to stop.
    defaults = {"eos_token": END_OF_TEXT, "bos_token": tokenizer.eos_token or END_OF_TEXT, "pad_token": PAD}
    missing = {key: token for key, token in defaults.items() if getattr(tokenizer, key) is None}
    tokenizer.add_special_tokens(missing)
    return tokenizer


@dataclass
class Blocks:
    """
    Token blocks ready for `Trainer`.

    Attributes:
        train, validation: rows of `input_ids` and `labels` (each `block_size` long) and, if documents are kept apart,
            `position_ids`.
        validation_bytes_per_token (`float`): UTF-8 bytes of the validation stories over their tokens, the token that
            separates stories counted: what turns nats a token into bits a byte.
        label_shift (`int`): how many places after the logits that predict it a label stands.
    """

    train: Dataset | IterableDataset
    validation: Dataset
    validation_bytes_per_token: float
    label_shift: int = 1


def make_blocks(texts: DatasetDict, tokenizer: PreTrainedTokenizerBase, arguments: DataArguments) -> Blocks:
    """
    Tokenises `<|endoftext|> story <|endoftext|> story ...` and cuts the stream into blocks of `block_size` tokens.

    The token before a story is its position 0 when documents are kept apart; it is also the target of the last token
    of the story before, so every token is predicted from its own story. What is left at the end of the corpus, less
    than a block, is dropped.

    Raises:
        ValueError: a part shorter than one block.
    """
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id

    def tokenise(rows: dict[str, list]) -> dict[str, list]:
        # A text that happens to hold "<|endoftext|>" does not end there.
        options = {"add_special_tokens": False, "return_attention_mask": False, "split_special_tokens": True}
        rows_of_ids = tokenizer(rows["text"], **options)["input_ids"]
        num_bytes = [len(text.encode("utf-8")) for text in rows["text"]]
        return {"ids": [[start, *ids] for ids in rows_of_ids], "num_bytes": num_bytes}

    def cut(rows: dict[str, list]) -> dict[str, list]:
        stream = [token for ids in rows["ids"] for token in ids]
        size = arguments.block_size
        blocks = [stream[i : i + size] for i in range(0, len(stream) - size + 1, size)]
        columns = {"input_ids": blocks, "labels": blocks}
        if arguments.keep_documents_apart:
            columns["position_ids"] = [positions_within_documents(block, start) for block in blocks]
        return columns

    parts = {}
    for part, rows in texts.items():
        in_memory = isinstance(rows, Dataset)
        progress = {"num_proc": arguments.preprocessing_num_workers, "desc": f"Tokenising {part}"} if in_memory else {}
        tokens = rows.map(tokenise, batched=True, remove_columns=["text"], **progress)
        # Blocks run on over this many stories; the stream of a batch loses less than a block at its end.
        progress = {"desc": f"Cutting {part} into blocks"} if in_memory else {}
        blocks = tokens.map(cut, batched=True, batch_size=20000, remove_columns=["ids", "num_bytes"], **progress)
        if in_memory and len(blocks) == 0:
            raise ValueError(
                f"The {part} part has {sum(map(len, tokens['ids']))} tokens, less than one block of `block_size`="
                f"{arguments.block_size}: give more text or a smaller `block_size`."
            )
        parts[part] = (tokens, blocks)
    tokens, _ = parts["validation"]
    bytes_per_token = sum(tokens["num_bytes"]) / sum(map(len, tokens["ids"]))
    return Blocks(parts["train"][1], parts["validation"][1], bytes_per_token)


def load_table(arguments: DataArguments, seed: int) -> tuple[PreTrainedTokenizerFast, Blocks]:
    """The tokenizer and the two splits of a table; the bytes are those of the answers, which alone are scored."""
    options = {"modulus": arguments.modulus, "train_fraction": arguments.train_fraction, "seed": seed}
    splits = make_arithmetic(arguments.dataset_name, **options)
    answers = [str(labels[-1]) for labels in splits["validation"]["labels"]]
    tokenizer = make_tokenizer(arguments.dataset_name, arguments.modulus)
    return tokenizer, Blocks(**splits, validation_bytes_per_token=sum(map(len, answers)) / len(answers), label_shift=0)


def positions_within_documents(block: list[int], start: int) -> list[int]:
    """Position ids of a block that restart at 0 at every `start` token."""
    positions, position = [], -1
    for token in block:
        position = 0 if token == start else position + 1
        positions.append(position)
    return positions
