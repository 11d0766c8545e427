"""Loads the training data: a corpus of stories as blocks of tokens, or a lookup table."""

import difflib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, IterableDataset, Value, load_dataset
from datasets.exceptions import DatasetGenerationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from training.tasks import Blocks, CardFacts
from training.tasks.arithmetic import BLOCK_SIZE, TABLES, check_table, load_table, reads_a_table, table_vocab_size
from training.tasks.stories import stories


logger = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
# The `datasets` builder for each kind of local file; `read_stories` reads `.txt` files.
BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
TEXT_TYPES = ("string", "large_string")
STORY = Features({"text": Value("string")})
# Names of the files in a local folder.
PARTS = {"train": ("train",), "validation": ("valid", "validation")}
LOCAL_DATA_HINT = (
    "without a network, give a local folder (`--dataset_name FOLDER` with train.txt and valid.txt, stories separated "
    f"by {END_OF_TEXT}) or the built-in stories (`--dataset_name stories`)"
)
# The options that do not concern lookup tables.
TEXT_OPTIONS = (
    *("dataset_name", "dataset_config_name", "validation_file", "text_column", "streaming", "num_train_stories"),
    *("num_validation_stories", "tokenizer_name", "tokenizer_vocab_size", "block_size", "keep_documents_apart"),
)
# Corpora of a known language.
LANGUAGES = {"stories": "en", "roneneldan/TinyStories": "en"}


@dataclass
class DataArguments:
    """Options for the corpus, the tokenizer and the blocks."""

    dataset_name: str = field(
        default="stories",
        metadata={
            "help": "'stories' (built in, no network), a local folder or file (txt, jsonl, csv, parquet), the name "
            f"of a dataset on the hub, or a lookup table for grokking ({', '.join(TABLES)})."
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a hub dataset."})
    validation_file: str | None = field(
        default=None, metadata={"help": "Validation file, if `dataset_name` is a single file."}
    )
    text_column: str = field(default="text", metadata={"help": "Column with the text."})
    streaming: bool = field(
        default=False, metadata={"help": "Read a hub dataset without storing it; needs `max_steps`."}
    )
    num_train_stories: int | None = field(
        default=None,
        metadata={"help": "Number of training stories, from the first. Default: all; 20000 built-in ones."},
    )
    num_validation_stories: int | None = field(
        default=None,
        metadata={"help": "Number of validation stories, from the first. Default: all; 500 built-in ones."},
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Folder or hub name of a tokenizer. Default: train one."}
    )
    tokenizer_vocab_size: int = field(
        default=2048, metadata={"help": "Size of the byte-level BPE to train, special tokens included."}
    )
    block_size: int = field(default=256, metadata={"help": "Tokens per training example."})
    modulus: int = field(default=113, metadata={"help": "Modulus of a lookup table of addition or multiplication."})
    train_fraction: float = field(default=0.3, metadata={"help": "Share of a lookup table to train on."})
    keep_documents_apart: bool = field(
        default=False,
        metadata={"help": "Restart position ids at every story, so that no token attends to another story."},
    )
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "Number of processes that tokenise the corpus."}
    )

    def __post_init__(self):
        minima = {"num_train_stories": 1, "num_validation_stories": 1, "preprocessing_num_workers": 1, "block_size": 2}
        for name, least in minima.items():
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")
        check_tokenizer_size(self.tokenizer_vocab_size)
        self._check_dataset_name()
        if self.dataset_name in TABLES:
            check_table(self.dataset_name, self.modulus)
            if self.block_size != BLOCK_SIZE:
                raise ValueError(
                    f"`block_size` must be {BLOCK_SIZE} (a, b, =) for a lookup table, got {self.block_size}."
                )
        if self.validation_file and not Path(self.dataset_name).is_file():
            raise ValueError(
                f"`validation_file` needs a single file as `dataset_name`; {self.dataset_name!r} has its own "
                "validation part."
            )
        if self.streaming and (self.dataset_name == "stories" or Path(self.dataset_name).exists()):
            raise ValueError(f"`streaming` needs a hub dataset; `dataset_name`={self.dataset_name!r} is local.")

    def local_files(self) -> dict[str, Path]:
        """
        The files of the parts `train` and `validation` of a local corpus; none if the data are built in or on the hub.

        Raises:
            ValueError: a part is missing.
        """
        path = Path(self.dataset_name)
        if self.dataset_name in ("stories", *TABLES) or not path.exists():
            return {}
        if path.is_dir():
            files = {part: _find_part(path, names) for part, names in PARTS.items()}
        else:
            files = {"train": path, "validation": Path(self.validation_file) if self.validation_file else None}
        for part, file in files.items():
            if file is None or not file.is_file():
                remedy = (
                    f"put a file named {' or '.join(PARTS[part])} (.txt, .jsonl, .csv or .parquet) into the folder"
                    if path.is_dir()
                    else "give one with `--validation_file`"
                )
                raise ValueError(f"`dataset_name`={str(path)!r} has no {part} part ({file or 'no file'}): {remedy}.")
        return files

    def _check_dataset_name(self):
        name = self.dataset_name
        if name in ("stories", *TABLES) or Path(name).exists():
            return
        if Path(name).is_absolute() or name.startswith((".", "~")) or Path(name).suffix in (".txt", *BUILDERS):
            raise ValueError(f"`dataset_name`={name!r}: there is no such file or folder.")
        # A name with a slash is a hub repository; a few hub names have none.
        if "/" in name:
            return
        close = difflib.get_close_matches(name.lower(), ("stories", *TABLES), n=1, cutoff=0.8)
        if close:
            raise ValueError(f"`dataset_name`={name!r} is not a file or folder: did you mean {close[0]!r}?")
        if self.block_size == BLOCK_SIZE:
            raise ValueError(
                f"`dataset_name`={name!r} is not a file or folder. Only the lookup tables ({', '.join(TABLES)}) have "
                f"examples of `block_size`={BLOCK_SIZE}: choose one of them, or a longer `block_size` for text."
            )

    @property
    def vocab_size(self) -> int | None:
        """Number of tokens if the data alone decide it, as a lookup table does; `None` for text."""
        return table_vocab_size(self.dataset_name, self.modulus) if self.dataset_name in TABLES else None


def load_data(
    arguments: DataArguments, seed: int, tokenizer_name: str | None = None
) -> tuple[PreTrainedTokenizerBase, Blocks]:
    """
    Loads the data of a run.

    Args:
        seed (`int`): the seed of the run, which splits a lookup table.
        tokenizer_name (`str`, *optional*): the tokenizer for text, by folder or hub name. Default: train one on the
            corpus. A lookup table has its own.

    Raises:
        ValueError: from `load_texts`, `load_tokenizer`, `make_blocks` and `load_table`.
    """
    option = "tokenizer_name" if arguments.tokenizer_name else "init_from"
    if arguments.dataset_name in TABLES:
        return load_table(
            arguments.dataset_name, modulus=arguments.modulus, train_fraction=arguments.train_fraction, seed=seed
        )
    texts = load_texts(arguments)
    if tokenizer_name:
        tokenizer = load_tokenizer(tokenizer_name, option)
    else:
        tokenizer = train_tokenizer(texts["train"], arguments.tokenizer_vocab_size)
    return tokenizer, make_blocks(texts, tokenizer, arguments)


def load_texts(arguments: DataArguments) -> DatasetDict:
    """
    Loads the corpus.

    Returns:
        `DatasetDict`: parts `train` and `validation` with one column, `text`, one story per row. `train` is an
        `IterableDataset` if `arguments.streaming`.

    Raises:
        ValueError: missing file, part or column, a file that is not UTF-8, an empty part, identical parts, or an
            unreachable hub dataset.
    """
    path = Path(arguments.dataset_name)
    if arguments.dataset_name == "stories":
        texts = DatasetDict(
            train=stories("train", arguments.num_train_stories or 20000),
            validation=stories("validation", arguments.num_validation_stories or 500),
        )
    elif path.exists():
        texts = DatasetDict({part: _load_file(file) for part, file in arguments.local_files().items()})
    else:
        texts = _load_from_hub(arguments)
    for part, rows in texts.items():
        columns = rows.column_names or []
        if arguments.text_column not in columns:
            raise ValueError(
                f"`text_column`={arguments.text_column!r} is not in the {part} part of {arguments.dataset_name!r}, "
                f"which has {columns}."
            )
        if rows.features is not None and getattr(rows.features[arguments.text_column], "dtype", "") not in TEXT_TYPES:
            raise ValueError(
                f"`text_column`={arguments.text_column!r} of the {part} part does not hold text but {rows.features}."
            )
        rows = rows.select_columns([arguments.text_column])
        if arguments.text_column != "text":
            rows = rows.rename_column(arguments.text_column, "text")
        texts[part] = rows
    if isinstance(texts["train"], Dataset) and _are_identical(*texts.values()):
        raise ValueError(
            f"The parts train and validation of `dataset_name`={arguments.dataset_name!r} are identical: hold out "
            "stories that the model is not trained on."
        )

    limits = {"train": arguments.num_train_stories, "validation": arguments.num_validation_stories}
    for part, rows in texts.items():
        if limits[part] is not None:
            is_stream = isinstance(rows, IterableDataset)
            rows = rows.take(limits[part] if is_stream else min(limits[part], len(rows)))
        progress = {"desc": f"Reading {part}"} if isinstance(rows, Dataset) else {}
        rows = rows.filter(lambda text: bool(text and text.strip()), input_columns="text", **progress)
        if next(iter(rows), None) is None:
            raise ValueError(f"The {part} part of `dataset_name`={arguments.dataset_name!r} holds no text.")
        if isinstance(rows, Dataset):
            logger.info("The %s part has %s stories.", part, f"{len(rows):,}")
        texts[part] = rows
    return texts


def _are_identical(*parts: Dataset) -> bool:
    """Whether parts hold the same stories in the same order, and at least one; blank ones do not count."""
    pairs = zip_longest(*((row["text"] for row in part if row["text"] and row["text"].strip()) for part in parts))
    first, second = next(pairs, (None, ""))
    return first == second and all(one == other for one, other in pairs)


def _find_part(folder: Path, names: tuple[str, ...]) -> Path | None:
    """
    Returns the file of a part, or `None`.

    Raises:
        ValueError: more than one file could be meant.
    """
    candidates = [folder / f"{name}{suffix}" for name in names for suffix in (".txt", *BUILDERS)]
    found = [file for file in candidates if file.exists()]
    if len(found) > 1:
        shown = " and ".join(file.name for file in found)
        raise ValueError(f"`dataset_name`={str(folder)!r} has {shown}, of which one would be ignored: keep one.")
    return found[0] if found else None


def _load_file(file: Path) -> Dataset:
    if file.suffix not in (".txt", *BUILDERS):
        raise ValueError(f"{str(file)!r} is not one of .txt, {', '.join(BUILDERS)}.")
    try:
        if file.suffix == ".txt":
            separator = _separator_of(file)
            # With size and time as arguments, the cache of `datasets` notices a changed file.
            stat = file.stat()
            source = {"file": str(file.resolve()), "size": stat.st_size, "modified": stat.st_mtime_ns}
            return Dataset.from_generator(read_stories, STORY, gen_kwargs={**source, "separator": separator})
        # A story may read "NA" or "null", which pandas takes for a missing value. Where rows have more columns than
        # the header, it takes the first for names of rows, or drops the last with a warning.
        options = {"keep_default_na": False, "encoding": "utf-8-sig", "index_col": False}
        options = options if file.suffix == ".csv" else {}
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Length of header")
            return load_dataset(BUILDERS[file.suffix], data_files=str(file), split="train", **options)
    except Exception as error:
        # `datasets` reports so a builder that yielded nothing.
        if "corresponds to no data" in str(error):
            return Dataset.from_dict({"text": []}, features=STORY)
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        if isinstance(cause, UnicodeDecodeError):
            raise ValueError(
                f"{str(file)!r} is not UTF-8 ({cause.reason}: {cause.object[cause.start]:#04x}): convert it, for "
                "example with `iconv -t utf-8`."
            ) from None
        raise ValueError(f"{str(file)!r} could not be read as {file.suffix}: {cause}") from error


def _separator_of(file: Path) -> str:
    """The separator of the stories in a text file: `<|endoftext|>`, or blank lines ("") where that does not occur."""
    num_paragraphs, in_paragraph = 0, False
    with open(file, encoding="utf-8-sig") as stream:
        for line in stream:
            if END_OF_TEXT in line:
                return END_OF_TEXT
            num_paragraphs += bool(line.strip()) and not in_paragraph
            in_paragraph = bool(line.strip())
    if num_paragraphs > 1:
        logger.warning("%s has no %s: every blank line ends a story.", file, END_OF_TEXT)
        return ""
    if num_paragraphs == 1:
        logger.warning("%s is a single story: separate stories by %s or blank lines.", file, END_OF_TEXT)
    return END_OF_TEXT


def read_stories(file: str, size: int, modified: int, separator: str = END_OF_TEXT) -> Iterator[dict[str, str]]:
    """
    Yields the stories of a text file, one in memory at a time.

    Args:
        file (`str`): UTF-8, with or without byte-order marks.
        size, modified (`int`): of the file; not used, see `_load_file`.
        separator (`str`): `<|endoftext|>`, or "" for blank lines.
    """
    story = ""
    with open(file, encoding="utf-8-sig") as stream:
        for line in stream:
            # Files that were put together keep their byte-order marks.
            line = line.replace("\ufeff", "") if not story.strip() else line
            if separator:
                *ends, rest = line.split(separator)
            else:
                ends, rest = [] if line.strip() else [""], line
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
            f"`dataset_name`={name!r} is neither a local file or folder nor an available hub dataset "
            f"({type(error).__name__}: {error}); {LOCAL_DATA_HINT}."
        ) from error
    if "validation" not in parts or "train" not in parts:
        raise ValueError(f"`dataset_name`={name!r} has the parts {list(parts)}; it needs 'train' and 'validation'.")
    validation = parts["validation"]
    if isinstance(validation, IterableDataset):
        # Kept in memory, because every evaluation reads it again.
        limit = arguments.num_validation_stories or 2000
        validation = Dataset.from_list(list(validation.take(limit)))
    return DatasetDict(train=parts["train"], validation=validation)


def check_tokenizer_size(vocab_size: int) -> None:
    """Raises `ValueError` for a byte-level tokenizer without room for all bytes and special tokens."""
    if vocab_size < 258:
        raise ValueError(
            f"`tokenizer_vocab_size`={vocab_size} is too small: 256 bytes and two special tokens need at least 258."
        )


def train_tokenizer(texts: Dataset | IterableDataset, vocab_size: int) -> PreTrainedTokenizerFast:
    """
    Trains a byte-level BPE tokenizer: any UTF-8 text survives encoding and decoding.

    Args:
        texts (`Dataset` or `IterableDataset`): rows with a column `text`.
        vocab_size (`int`): number of tokens, at least 258: 256 bytes and two special tokens.
    """
    check_tokenizer_size(vocab_size)
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


def load_tokenizer(name: str, option: str = "tokenizer_name") -> PreTrainedTokenizerBase:
    """
    Loads a tokenizer by folder, `tokenizer.json` file or hub name, and adds missing end-of-text and padding tokens.

    Raises:
        ValueError: no such tokenizer, or that of a lookup table; `option` is what the message calls it.
    """
    remedy = (
        "leave it out to train one on the corpus" if option == "tokenizer_name" else "give a trained model's folder"
    )
    file = Path(name, "tokenizer.json")
    if file.is_file() and not Path(name, "tokenizer_config.json").is_file():
        name = str(file)
    try:
        is_file = name.endswith(".json")
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=name) if is_file else AutoTokenizer.from_pretrained(name)
    # The tokenizer libraries raise all kinds of errors for truncated and foreign files.
    except Exception as error:
        cause = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"`{option}`={name!r} is neither a folder with a tokenizer.json nor an available hub tokenizer "
            f"({cause}); {remedy}."
        ) from error
    if reads_a_table(tokenizer):
        raise ValueError(f"`{option}`={name!r} reads a lookup table, not text; {remedy}.")
    # If padding looked like the end of a text, fine-tuning with masked padding would unlearn to stop.
    defaults = {"eos_token": END_OF_TEXT, "bos_token": tokenizer.eos_token or END_OF_TEXT, "pad_token": PAD}
    missing = {key: token for key, token in defaults.items() if getattr(tokenizer, key) is None}
    tokenizer.add_special_tokens(missing)
    return tokenizer


def make_blocks(texts: DatasetDict, tokenizer: PreTrainedTokenizerBase, arguments: DataArguments) -> Blocks:
    """
    Tokenises `<|endoftext|> story <|endoftext|> story ...` and cuts the stream into blocks of `block_size` tokens.

    With `keep_documents_apart`, the token before a story has position 0. It is also the target of the last token of
    the story before, so that every token is predicted from its own story. The end of the corpus, shorter than a block,
    is dropped.

    Raises:
        ValueError: a part shorter than one block.
    """
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id

    def tokenise(rows: dict[str, list]) -> dict[str, list]:
        # A text that contains "<|endoftext|>" does not end there.
        options = {"add_special_tokens": False, "return_attention_mask": False, "split_special_tokens": True}
        # Blocks fit the model, whatever the length of a story.
        options["verbose"] = False
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
        # Blocks are cut from batches of this many stories; each batch drops less than a block at its end.
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
    return Blocks(
        train=parts["train"][1],
        validation=parts["validation"][1],
        vocab_size=len(tokenizer),
        validation_bytes_per_token=bytes_per_token,
        card=describe_corpus(arguments.dataset_name),
    )


def describe_corpus(name: str) -> CardFacts:
    """What a model card says about a corpus of text."""
    is_local = Path(name).exists()
    return CardFacts(
        name=Path(name).name if is_local else name,
        example='"Once upon a time"',
        explanation="Bits per byte are comparable between tokenizers; nats per token and perplexity are not.",
        limits="A small model for research on architectures, not for use with people. It knows its training text and "
        "nothing else, invents freely, and repeats the biases of that text.",
        options=TEXT_OPTIONS,
        hub_name=name if "/" in name and not is_local else None,
        language=LANGUAGES.get(name),
    )


def positions_within_documents(block: list[int], start: int) -> list[int]:
    """Position ids of a block that restart at 0 at every `start` token."""
    positions, position = [], -1
    for token in block:
        position = 0 if token == start else position + 1
        positions.append(position)
    return positions
