"""Tasks, one per file. Each gives the training command blocks of tokens, and its model cards facts about them."""

from dataclasses import dataclass, field

from datasets import Dataset, IterableDataset


# The label of a token that is not scored, as everywhere in transformers.
IGNORED = -100
# The metrics of text, as `training/metrics/language_modeling` names them.
METRICS = ("nats_per_token", "perplexity", "bits_per_byte", "next_token_accuracy")


@dataclass
class CardFacts:
    """
    What a model card says about the data.

    Attributes:
        name (`str`): the data, as a reader knows them.
        example (`str`): the arguments with which the card calls the model's pipeline.
        explanation (`str`): how to read the metrics.
        limits (`str`): what the model cannot do.
        options (`tuple[str, ...]`): the options of `DataArguments` that the data depend on.
        task (`str`): the task for the hub, "other" if the hub has no name for it.
        data_type (`str`): the kind of data for the hub.
        evaluated_on (`str`): the name of the evaluated part.
        hub_name (`str`, *optional*): the dataset's name on the hub.
        language (`str`, *optional*): the language code of the text, if it is known.
    """

    name: str
    example: str
    explanation: str
    limits: str
    options: tuple[str, ...]
    task: str = "text-generation"
    data_type: str = "text"
    evaluated_on: str = "validation"
    hub_name: str | None = None
    language: str | None = None


@dataclass
class Blocks:
    """
    Blocks of tokens, ready for `Trainer`.

    Attributes:
        train, validation: rows of `input_ids` and `labels`, all of one length, and whatever else the model reads
            (`position_ids` or `shift_labels`).
        vocab_size (`int`): number of tokens that the rows may hold.
        validation_bytes_per_token (`float`): UTF-8 bytes per token of the validation part, separators counted as
            tokens. It turns nats per token into bits per byte.
        card (`CardFacts`): what a model card says about the data.
        label_shift (`int`): number of places between a label and the logits that predict it.
        metrics (`dict[str, str]`): the metrics to report, and the names to report them by.
    """

    train: Dataset | IterableDataset
    validation: Dataset
    vocab_size: int
    validation_bytes_per_token: float
    card: CardFacts
    label_shift: int = 1
    metrics: dict[str, str] = field(default_factory=lambda: {name: name for name in METRICS})
