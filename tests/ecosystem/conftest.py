"""
Every test is a row of the table in modeling_prism/README.md, run for each family and for a Llama of the same size.

`results.json` keeps the outcome of each row; a row that was not run again keeps its own.
"""

import contextlib
import importlib.metadata
import json
import re
from pathlib import Path

import pytest
import torch
from families import COMMON, ROUTING_CASES, random_ids, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from tests.ecosystem.table import RESULTS, write_table


def make_llama(attn_implementation: str = "sdpa", **overrides):
    torch.manual_seed(0)
    config = LlamaConfig(**{**COMMON, "num_attention_heads": 4, "initializer_range": 0.13, **overrides})
    return LlamaForCausalLM._from_config(config, attn_implementation=attn_implementation).eval()


ROWS = pytest.StashKey()
FAMILIES = {"llama": make_llama, **{case.id: case.values[0].model for case in ROUTING_CASES}}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def make(family):
    """(overrides of the config) -> a model whose head is not tied to the embeddings, in eval mode."""
    return lambda **overrides: FAMILIES[family](**{"tie_word_embeddings": False, **overrides})


@pytest.fixture
def llama():
    return make_llama


@pytest.fixture
def ids():
    return random_ids(2, 11)


@pytest.fixture
def folder(make, tmp_path):
    """A saved model with its tokenizer, which turns text into up to one token per byte."""
    tokenizer = tiny_tokenizer()
    model = make(vocab_size=len(tokenizer), max_position_embeddings=256)
    # Half a character cannot be compared.
    ids = range(len(tokenizer))
    model.generation_config.suppress_tokens = [id for id in ids if not tokenizer.decode(id).isalpha()]
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def pytest_configure(config):
    config.addinivalue_line("markers", "row(tool, what, refused): a row; `refused` maps families to words")


@pytest.hookimpl(hookwrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """A family that a row refuses in words passes if, and only if, these words come."""
    row, family = pyfuncitem.get_closest_marker("row"), getattr(pyfuncitem, "callspec", None)
    words = row.kwargs.get("refused", {}).get(family and family.params["family"])
    outcome = yield
    if words is None:
        return
    error = outcome.excinfo and outcome.excinfo[1]
    if error is None:
        outcome.force_exception(AssertionError(f"works, though it is said to be refused with {words!r}"))
    elif re.search(words, str(error)):
        pyfuncitem.user_properties.append(("outcome", "refused"))
        outcome.force_result(True)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if call.when == "call" or report.skipped or report.failed:
        told = dict(item.user_properties).get("outcome", "yes")
        outcome = "not tried" if report.skipped else "fails" if report.failed else told
        families = [item.callspec.params["family"]] if hasattr(item, "callspec") else FAMILIES
        tool, what = item.get_closest_marker("row").args
        row = item.config.stash.setdefault(ROWS, {}).setdefault(f"{tool}: {what}", {})
        row.update(dict.fromkeys(families, outcome))
        if report.skipped:
            row["reason"] = report.longrepr[2].removeprefix("Skipped: ")


def pytest_sessionfinish(session):
    rows = session.config.stash.get(ROWS, {})
    if rows:
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
        requirements = "".join(file.read_text() for file in sorted(Path(__file__).parent.glob("requirements*.txt")))
        names = re.findall(r"^([\w.-]+)==", requirements, flags=re.MULTILINE)
        versions = known.get("versions", {})
        for name in ("torch", "transformers", *names):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[name] = importlib.metadata.version(name)
        merged = {label: {**known["rows"].get(label, {}), **row} for label, row in rows.items()}
        found = {"versions": versions, "rows": {**known["rows"], **merged}}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        write_table()
