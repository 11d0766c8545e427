"""Corpora, tokenizers and blocks: every source, and every refusal."""

import json

import datasets
import pytest
from datasets import Dataset, DatasetDict, IterableDatasetDict
from transformers import AutoTokenizer

from training import data
from training.data import DataArguments, load_texts, load_tokenizer, make_blocks, train_tokenizer


STORIES = {"train": ["Tom ran.\nHe fell.", "Ann sang — “la”."], "validation": ["Zoë slept. 🐶"]}


def folder_of(tmp_path, suffix):
    for name, texts in (("train", STORIES["train"]), ("valid", STORIES["validation"])):
        file = tmp_path / f"{name}.{suffix}"
        if suffix == "txt":
            file.write_text("\n<|endoftext|>\n".join(texts) + "\n<|endoftext|>\n", encoding="utf-8")
        elif suffix == "jsonl":
            file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        elif suffix == "csv":
            Dataset.from_dict({"text": texts, "id": range(len(texts))}).to_csv(file)
        else:
            Dataset.from_dict({"text": texts}).to_parquet(file)
    return str(tmp_path)


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv", "parquet"])
def test_local_folders(suffix, tmp_path):
    texts = load_texts(DataArguments(dataset_name=folder_of(tmp_path, suffix)))
    assert {part: rows["text"][:] for part, rows in texts.items()} == STORIES


def test_a_file_with_its_validation_file(tmp_path):
    folder_of(tmp_path, "txt")
    arguments = DataArguments(dataset_name=f"{tmp_path}/train.txt", validation_file=f"{tmp_path}/valid.txt")
    assert load_texts(arguments)["validation"]["text"][:] == STORIES["validation"]


def test_a_changed_file_is_read_again(tmp_path):
    folder = folder_of(tmp_path, "txt")
    load_texts(DataArguments(dataset_name=folder))
    (tmp_path / "train.txt").write_text("Another story.", encoding="utf-8")
    assert load_texts(DataArguments(dataset_name=folder))["train"]["text"][:] == ["Another story."]


@pytest.mark.parametrize(
    "content, expected",
    [
        ("Tom ran.\nHe fell.\n\nAnn sang.\n", ["Tom ran.\nHe fell.", "Ann sang."]),
        ("\ufeffTom ran.\n\n\n\nAnn sang.", ["Tom ran.", "Ann sang."]),
        ("\ufeffTom ran.\n\nHe fell.\n<|endoftext|>\nAnn sang.", ["Tom ran.\n\nHe fell.", "Ann sang."]),
        ("Tom ran.\r\n\r\nAnn sang.\r\n", ["Tom ran.", "Ann sang."]),
    ],
    ids=["blank lines", "byte-order mark", "separators win over blank lines", "lines of Windows"],
)
def test_what_separates_stories_in_a_text_file(content, expected, tmp_path):
    (tmp_path / "train.txt").write_bytes(content.encode())
    (tmp_path / "valid.txt").write_text("Zoë slept.", encoding="utf-8")
    assert load_texts(DataArguments(dataset_name=str(tmp_path)))["train"]["text"][:] == expected


def test_csv_stories_that_read_like_missing_values_are_stories(tmp_path):
    for name, text in (("train", "\ufefftext\nnull\nNA\nnan\nTom ran.\n"), ("valid", "text\nZoë slept.\n")):
        (tmp_path / f"{name}.csv").write_text(text, encoding="utf-8")
    texts = load_texts(DataArguments(dataset_name=str(tmp_path)))
    assert texts["train"]["text"][:] == ["null", "NA", "nan", "Tom ran."]


def test_built_in_stories_and_limits():
    texts = load_texts(DataArguments(num_train_stories=7, num_validation_stories=3))
    assert [len(texts[part]) for part in ("train", "validation")] == [7, 3]
    assert not set(texts["train"]["text"]) & set(texts["validation"]["text"])


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_dataset(streaming, tmp_path, monkeypatch):
    # `load_dataset` on local files stands for the hub.
    folder_of(tmp_path, "jsonl")
    files = {"train": f"{tmp_path}/train.jsonl", "validation": f"{tmp_path}/valid.jsonl"}

    def from_hub(name, config_name=None, streaming=False):
        assert name == "roneneldan/TinyStories"
        return datasets.load_dataset("json", data_files=files, streaming=streaming)

    monkeypatch.setattr(data, "load_dataset", from_hub)
    arguments = DataArguments(dataset_name="roneneldan/TinyStories", streaming=streaming, block_size=8)
    texts = load_texts(arguments)
    assert [row["text"] for row in texts["train"]] == STORIES["train"]
    assert texts["validation"]["text"][:] == STORIES["validation"]
    blocks = make_blocks(texts, train_tokenizer(texts["train"], 260), arguments)
    assert all(len(row["input_ids"]) == 8 for row in blocks.train) and len(blocks.validation) >= 1


def test_a_hub_dataset_without_a_network(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(data, "load_dataset", unreachable)
    with pytest.raises(ValueError, match="roneneldan/TinyStories.*--dataset_name FOLDER.*--dataset_name stories"):
        load_texts(DataArguments(dataset_name="roneneldan/TinyStories"))


def test_a_hub_dataset_without_validation(monkeypatch):
    parts = IterableDatasetDict(train=Dataset.from_dict({"text": ["a"]}).to_iterable_dataset())
    monkeypatch.setattr(data, "load_dataset", lambda *args, **kwargs: parts)
    with pytest.raises(ValueError, match="'train' and 'validation'"):
        load_texts(DataArguments(dataset_name="somebody/something"))


def test_a_text_cannot_end_itself(tokenizer):
    blocks = make_blocks(parts("a<|endoftext|>b"), tokenizer, DataArguments(block_size=4))
    assert sum(row["input_ids"].count(tokenizer.eos_token_id) for row in blocks.train) == 1


def test_any_text_survives_the_tokenizer(tmp_path):
    texts = load_texts(DataArguments(num_train_stories=50, num_validation_stories=1))
    tokenizer = train_tokenizer(texts["train"], 400)
    assert len(tokenizer) == 400
    tokenizer.save_pretrained(tmp_path)
    for tokenizer in (tokenizer, AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(str(tmp_path))):
        assert len({tokenizer.eos_token_id, tokenizer.pad_token_id}) == 2
        for text in ("Once upon a time", "  two  spaces\n\ttab", "żółw 🐢 北京 \u200d\x07", "it 's n't ' s"):
            assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_an_existing_tokenizer_gets_a_padding_token(tmp_path):
    texts = load_texts(DataArguments(num_train_stories=5, num_validation_stories=1))
    plain = train_tokenizer(texts["train"], 300)
    plain.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.eos_token == "<|endoftext|>" and tokenizer.pad_token == "<|pad|>"
    assert tokenizer.eos_token_id == plain.eos_token_id


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(Dataset.from_dict({"text": ["a b c"]}), 258)


def parts(*texts):
    return DatasetDict({part: Dataset.from_dict({"text": list(texts)}) for part in ("train", "validation")})


def test_blocks_are_the_stream(tokenizer):
    blocks = make_blocks(parts("abcd", "efg", "hi"), tokenizer, DataArguments(block_size=4))
    stream = [token for row in blocks.train for token in row["input_ids"]]
    assert tokenizer.decode(stream) == "<|endoftext|>abcd<|endoftext|>efg<|endoftext|>hi"
    assert blocks.train["input_ids"][:] == blocks.train["labels"][:]
    assert blocks.train.column_names == ["input_ids", "labels"]
    assert blocks.validation_bytes_per_token == 9 / 12


def test_stories_kept_apart_restart_their_positions(tokenizer):
    blocks = make_blocks(parts("abcd", "efg", "hi"), tokenizer, DataArguments(block_size=4, keep_documents_apart=True))
    # A block that begins within a story begins at position 0 too, because it lacks the preceding tokens.
    assert blocks.train["position_ids"][:] == [[0, 1, 2, 3], [0, 0, 1, 2], [0, 0, 1, 2]]
