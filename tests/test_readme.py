"""What the README tells people to run, runs; the commands of all READMEs parse."""

import importlib
import json
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from transformers import HfArgumentParser, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from modeling_prism import PrismConfig, PrismForCausalLM, SphericalConfig, SphericalForCausalLM
from modeling_prism.analysis import __main__ as analysis
from tests.ecosystem.table import make_blocks
from training import tell
from training.data import DataArguments, load_texts, train_tokenizer
from training.experiments.common import arguments
from training.experiments.common.readme import fill
from training.experiments.grokking import run as grokking
from training.experiments.overview import plot_overview
from training.tasks.arithmetic import make_tokenizer
from training.tasks.stories import tell as tell_story


ROOT = Path(__file__).parent.parent
FOLDERS = ("configuration", "hub_cards", "modeling_prism", "tests", "training")
FILES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("README.md")),
]
TEXTS = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in FILES}
PYTHON = {
    f"{name}-{index}": code
    for name, text in TEXTS.items()
    for index, code in enumerate(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
}
NOTEBOOK = json.loads((ROOT / "modeling_prism/analysis/look_inside.ipynb").read_text(encoding="utf-8"))
CODE_CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
PYTHON["look_inside.ipynb"] = "\n".join("".join(cell["source"]) for cell in CODE_CELLS).replace("../../", "")
ANALYSIS = sorted(
    {
        command
        for text in TEXTS.values()
        for command in re.findall(r"-m modeling_prism\.analysis (outputs/[^#\n]*)", text)
    }
)


def commands_in(text: str) -> list[list[str]]:
    """
    The words after `-m` of all commands that start a module of the project: in bash blocks, and between backticks in
    the text, where a module that is only named stands for its `--help`.
    """
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    named = re.findall(r"`(python -m [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    commands = []
    for line in (*lines, *named):
        words = shlex.split(line, comments=True)
        modules = [word for word in words if word.startswith(("training.", "modeling_prism."))]
        if "-m" in words and modules:
            command = words[words.index(modules[0]) :]
            commands.append([*command, "--help"] if line in named and len(command) == 1 else command)
    return commands


COMMANDS = {
    f"{name}-{index}": command for name, text in TEXTS.items() for index, command in enumerate(commands_in(text))
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Stand-ins for outputs/quickstart, outputs/llama and outputs/modulo_23: tiny models with their tokenizers."""
    folder = tmp_path_factory.mktemp("outputs")
    texts = load_texts(DataArguments(num_train_stories=50, num_validation_stories=1))
    tokenizer: PreTrainedTokenizerFast = train_tokenizer(texts["train"], 400)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    PrismForCausalLM(PrismConfig(vocab_size=400, **sizes, **ids)).save_pretrained(folder / "quickstart")
    tokenizer.save_pretrained(folder / "quickstart")
    LlamaForCausalLM(LlamaConfig(vocab_size=400, **sizes, **ids)).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    spherical = SphericalConfig(vocab_size=24, max_position_embeddings=3, hidden_size=32, num_attention_heads=4)
    SphericalForCausalLM(spherical).save_pretrained(folder / "modulo_23")
    make_tokenizer("addition", 23).save_pretrained(folder / "modulo_23")
    return folder


@pytest.mark.parametrize("code", PYTHON.values(), ids=PYTHON)
def test_python_runs(code, trained, monkeypatch):
    # In this process, where the package is imported and registered already: a reader's is not.
    loads = "Auto" in code or "pipeline(" in code
    registers = re.search(r"^(import|from) modeling_prism|trust_remote_code=True", code, flags=re.MULTILINE)
    assert not loads or "hub_cards/llama" in code or registers
    code = code.replace("outputs/", f"{trained}/").replace("configuration/", f"{ROOT}/configuration/")
    code = code.replace("hub_cards/", f"{ROOT}/hub_cards/")
    monkeypatch.chdir(trained)
    exec(compile(code, "README", "exec"), {"__name__": "__main__"})
    if "finetuned" in code:
        tuned, before = (
            PrismForCausalLM.from_pretrained(trained / name).state_dict() for name in ("finetuned", "quickstart")
        )
        assert any((tuned[name] != before[name]).any() for name in tuned)


class Parsed(Exception):
    """Instead of what a command does after it has read its arguments."""


@pytest.fixture
def parse(monkeypatch, tmp_path):
    """Lets a module read its arguments and stops it there. Raises whatever it raises if they are wrong."""
    monkeypatch.chdir(ROOT)
    read = HfArgumentParser.parse_args_into_dataclasses

    def read_and_stop(*args, **kwargs):
        raise Parsed(*read(*args, **kwargs))

    monkeypatch.setattr(HfArgumentParser, "parse_args_into_dataclasses", read_and_stop)
    # A command is right even if this machine lacks a GPU or a compiler.
    for module in (arguments, grokking):
        for check in ("check_device", "check_compiler"):
            monkeypatch.setattr(module, check, lambda device: None)

    def call(module: str, *words: str) -> None:
        words = [str(tmp_path) if word == "FOLDER" else word for word in words]
        for word in words:
            if word.startswith("configuration/"):
                assert Path(word.split(":")[0]).exists(), f"{word} is not there"
        if hasattr(importlib.import_module(module), "__path__"):
            module += ".__main__"
        found = importlib.import_module(module)
        if not hasattr(found, "main"):
            assert not words and '__name__ == "__main__"' in Path(found.__file__).read_text(), f"{module} takes none"
            return
        if module == "training.pretrain":
            words += ["--use_cpu", "true", "--bf16", "false"]
        with pytest.raises(Parsed) as stopped:
            found.main(words)
        if module == "training.pretrain":
            model = stopped.value.args[0]
            assert bool(model.model_config) != bool(model.init_from), "from scratch, or from a model"

    return call


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_commands_parse(command, parse):
    if command[-1] != "--help":
        return parse(*command)
    with pytest.raises(SystemExit) as stopped:
        parse(*command)
    assert stopped.value.code == 0


QUICKSTART = "training.pretrain configuration/recipes/quickstart.yaml"


@pytest.mark.parametrize(
    ("command", "error", "message"),
    [
        ("training.experiments bode --arm momentum", ValueError, "Unknown option '--arm': did you mean `--arms`"),
        (f"{QUICKSTART} --learning_rates 1", ValueError, "learning_rates"),
        (f"{QUICKSTART} --init_from x --model_config y", AssertionError, "from scratch, or"),
        ("training.benchmarks.throughput configuration/models/lama-tiny", AssertionError, "lama-tiny is not there"),
        ("training.benchmarks.stacking --models eight", SystemExit, "2"),
        ("modeling_prism.analysis --texts stories.txt", SystemExit, "2"),
    ],
)
def test_commands_that_do_not_parse_are_noticed(command, error, message, parse):
    with pytest.raises(error, match=message):
        parse(*command.split())


def test_commands_are_found_in_a_text():
    text = """`python -m training.tell`, `make demo`, `python -m training.tell
x`
```bash
make demo
pip install training.x
accelerate launch -m training.pretrain a.yaml --b 'c d' \\
    --e ''   # and --compile
```
```
python -m training.bindings
```
"""
    assert commands_in(text) == [
        ["training.pretrain", "a.yaml", "--b", "c d", "--e", ""],
        ["training.tell", "--help"],
        ["training.tell", "x"],
    ]


@pytest.mark.experiment
@pytest.mark.parametrize("command", ANALYSIS)
def test_the_report_is_written(command, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").symlink_to(trained)
    (tmp_path / "stories.txt").write_text("<|endoftext|>".join(tell_story(seed).text for seed in range(3)))
    page = analysis.main([*command.split(), "--max_length", "32"])
    model, _, out = command.partition("--out ")
    out = tmp_path / (out.split()[0] if out else f"outputs/report_{Path(model.split()[0]).name}")
    assert page.resolve() == (out / "report.html").resolve() and page.stat().st_size > 100_000


def test_the_table_of_tools_is_that_of_the_results():
    text = TEXTS["modeling_prism/README.md"]
    assert fill(text, make_blocks()) == text and "| fails |" not in text


def test_the_notebook_shows_its_figures():
    shown = [output for cell in CODE_CELLS for output in cell["outputs"]]
    assert all(cell["execution_count"] for cell in CODE_CELLS) and not any(
        each["output_type"] == "error" for each in shown
    )
    assert sum("image/png" in each.get("data", {}) for each in shown) >= 9
    text = json.dumps(NOTEBOOK)
    assert len(text) < 800_000 and "site-packages" not in text


def test_there_is_something_to_run():
    assert len(PYTHON) >= 9 and len(ANALYSIS) >= 2 and len(TEXTS) >= 13
    # A file without a command is one that this test misreads.
    assert {key.rpartition("-")[0] for key in COMMANDS} == TEXTS.keys()


def test_tell(trained, capsys):
    story = tell.main([str(trained / "quickstart"), "--prompt", "Tom and Mia", "--max_new_tokens", "5"])
    assert story.startswith("Tom and Mia") and story in capsys.readouterr().out
    models = [str(trained / name) for name in ("quickstart", "llama")]
    both = tell.main([*models, "--prompt", "Tom and Mia", "--max_new_tokens", "5"])
    assert both.startswith(f"{models[0]}:\n{story}\n\n{models[1]}:\nTom and Mia")


def test_every_file_of_the_tree_exists():
    top = None
    for line in TEXTS["README.md"].split("## Files")[1].split("```")[1].strip().splitlines():
        name = line.split()[0]
        top = top if line.startswith(" ") else name
        assert (ROOT / name if name == top else ROOT / top / name).exists(), line


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        path, _, section = target.partition("#")
        if path.startswith("https://"):
            continue
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), target
        headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE) if section else ()
        anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not section or section in anchors, target


@pytest.mark.process
def test_a_wheel_holds_the_package_and_nothing_else(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"modeling_prism"}
    assert {"modeling_prism/modeling_prism.py", "modeling_prism/analysis/report.html"} <= set(names)


def test_the_titles_of_the_picture_hold():
    figure = plot_overview()
    texts = " ".join(text.get_text() for axes in figure.axes for text in axes.texts)
    numbers = re.findall(r"(signal|noise) heads: (\d+) tokens|(sphere|LayerNorm):\n([\d,]+) epochs", texts)
    value = {a or c: int((b or d).replace(",", "")) for a, b, c, d in numbers}
    assert 2 * value["noise"] < value["signal"] and 2 * value["sphere"] < value["LayerNorm"]
    sheared, plain = sorted((max(line.get_ydata()) for line in figure.axes[4].lines), reverse=True)[1:]
    assert sheared > 0.9 and plain < 0.1
