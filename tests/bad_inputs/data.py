"""Corpora and tokenizers: options of `training.pretrain`, and the files that they name."""

import json

from training import pretrain

from . import Row, link, refused


WORLD = ("recipe.yaml", "corpus", "finished", "table")


def give(given):
    refused(pretrain.main, "recipe.yaml --output_dir run", given)


TEXT = "<|endoftext|>\n".join(f"Tom had {number} red balls and a dog that ran away.\n" for number in range(40))
ROWS_OF_JSON = "".join(json.dumps({"text": f"Story {number}."}) + "\n" for number in range(9))
FOLDER = "--dataset_name c"


def corpus(train, suffix="txt", valid=TEXT, options=FOLDER):
    def row(says, more=""):
        parts = {f"c/train.{suffix}": train, f"c/valid.{suffix}": valid}
        return Row(f"{options} {more}", says, {name: part for name, part in parts.items() if part is not None})

    return row


ROWS = [
    corpus(b"")("train part of .* holds no text"),
    corpus(b" \n<|endoftext|>\n \n")("train part of .* holds no text"),
    corpus("\ufeff\n\n")("train part of .* holds no text"),
    corpus(TEXT, valid=b"")("validation part of .* holds no text"),
    corpus("Zoë".encode("latin-1"))("train.txt' is not UTF-8 .*0xeb.*iconv"),
    corpus("Once".encode("utf-16"))("train.txt' is not UTF-8"),
    corpus(TEXT, valid="Zoë".encode("latin-1"))("valid.txt' is not UTF-8"),
    corpus(TEXT, valid=None)("no validation part.*valid or validation"),
    corpus(None)("no train part"),
    corpus(None, valid=None)("there is no such|neither a local file or folder"),
    corpus(TEXT)("are identical: hold out"),
    corpus("Tom ran.")("train part has .* tokens, less than one block of `block_size`=32"),
    corpus(TEXT + "More.", valid="Tom ran.")("validation part has .* tokens, less than one block"),
    corpus(ROWS_OF_JSON, "jsonl", ROWS_OF_JSON + "\n")("are identical"),
    corpus(ROWS_OF_JSON, "jsonl", TEXT)("valid.jsonl' could not be read as .jsonl"),
    corpus('{"text": 3}\n{"text": 4}\n', "jsonl", ROWS_OF_JSON)("`text_column`='text' .* does not hold text"),
    corpus('{"text": ["a"]}\n', "jsonl", ROWS_OF_JSON)("`text_column`='text' .* does not hold text"),
    corpus('{"text": "a"}\n{"te', "jsonl", ROWS_OF_JSON)("train.jsonl' could not be read as .jsonl"),
    corpus(b"\x00\xff", "jsonl", ROWS_OF_JSON)("train.jsonl' (could not be read|is not UTF-8)"),
    corpus("", "jsonl", ROWS_OF_JSON)("train part|train.jsonl"),
    corpus("[]", "json", ROWS_OF_JSON)("train part|train.json"),
    corpus(ROWS_OF_JSON, "jsonl", ROWS_OF_JSON + ROWS_OF_JSON)(
        "`text_column`='story' .*'text'", "--text_column story"
    ),
    corpus("not parquet", "parquet", "not either")("train.parquet' could not be read as .parquet"),
    corpus("", "parquet", "not either")("train.parquet' could not be read as .parquet"),
    corpus(ROWS_OF_JSON, "jsonl", ROWS_OF_JSON + '{"text": ""}\n')("are identical", "--num_validation_stories 3"),
    corpus("text\nTom, who ran\nAnn\n", "csv", "text\nb\n")("train.csv' could not be read as .csv: Length of header"),
    corpus("title\na\n", "csv", "title\nb\n")("`text_column`='text' is not in the train part.*'title'"),
    corpus('text\n"a', "csv", "text\nb\n")("train.csv|train part"),
    corpus("text\n1\n2\n", "csv", "text\n3\n")("`text_column`='text' .* does not hold text"),
    corpus("", "csv", "text\nb\n")("train.csv' could not be read|train part"),
    corpus("text\nZoë\n".encode("latin-1"), "csv", "text\nb\n")("train.csv' is not UTF-8"),
    Row(FOLDER, "no train part", {"c/train.pdf": "x", "c/valid.pdf": "x"}),
    Row(FOLDER, "has train.txt and train.csv, .* keep one", {"c/train.txt": TEXT, "c/train.csv": "text\na\n"}),
    Row(FOLDER, "no train part", {"c/train.txt": None, "c/valid.txt": TEXT}),
    Row(FOLDER, "there is no such|no train part", {"c": None}),
    Row(FOLDER, "train", {"c/train.txt": link("nowhere"), "c/valid.txt": TEXT}),
    Row("--dataset_name a.txt", "no validation part.*--validation_file", {"a.txt": TEXT}),
    Row("--dataset_name a.txt --validation_file b.txt", "no validation part.*b.txt", {"a.txt": TEXT}),
    Row("--dataset_name a.txt --validation_file a.txt", "are identical", {"a.txt": TEXT}),
    Row("--dataset_name a.pdf --validation_file b.txt", "a.pdf' is not one of .txt", {"a.pdf": "x", "b.txt": TEXT}),
    Row("--validation_file corpus/valid.txt", "`validation_file` needs a single file"),
    Row("--dataset_name missing.txt", "`dataset_name`='missing.txt': there is no such file"),
    Row("--dataset_name /missing/folder", "there is no such file or folder"),
    Row("--dataset_name ./missing", "there is no such file or folder"),
    Row("--dataset_name additon", "`dataset_name`='additon' is not .*: did you mean 'addition'"),
    Row("--dataset_name Addition", "did you mean 'addition'"),
    Row("--dataset_name storie", "did you mean 'stories'"),
    Row("--dataset_name nobody/nothing", "`dataset_name`='nobody/nothing' is neither .*--dataset_name stories"),
    Row("--dataset_name ''", "`dataset_name`"),
    # Tokenizers.
    Row("--tokenizer_name t", "`tokenizer_name`='t' is neither", {"t": None}),
    Row("--tokenizer_name t", "'t/tokenizer.json' is neither", {"t/tokenizer.json": "{"}),
    Row("--tokenizer_name t", "'t/tokenizer.json' is neither", {"t/tokenizer.json": "{}"}),
    Row("--tokenizer_name t", "'t/tokenizer.json' is neither", {"t/tokenizer.json": "[1]"}),
    Row("--tokenizer_name t.json", "`tokenizer_name`='t.json' is neither", {"t.json": b"\xff"}),
    Row("--tokenizer_name table", "`tokenizer_name`='table' reads a lookup table, not text"),
    Row("--tokenizer_name corpus", "`tokenizer_name`='corpus' is neither"),
    Row("--tokenizer_name finished --config_overrides vocab_size=290", "data have 300 tokens.*`vocab_size`=290"),
]
