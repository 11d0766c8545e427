"""The report's page in a real browser, one page per family, and the data that it reads."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from test_analysis_report import P, folder, reports, spherical_clock  # noqa: F401
from transformers import LlamaForCausalLM

from modeling_prism import MomentumForCausalLM, PrismConfig, PrismForCausalLM
from modeling_prism.analysis import __main__ as command
from modeling_prism.analysis import examine_cyclic, report, view
from modeling_prism.analysis.examine import steered
from modeling_prism.analysis.terms import TERMS, first_terms
from training.tasks.arithmetic import make_tokenizer


BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
FAMILIES = ("prism", "momentum", "spherical")
HUB_CARDS = Path(__file__).parent.parent / "hub_cards"
RELEASED = [f"{family}-tinystories" for family in FAMILIES if (HUB_CARDS / f"{family}-tinystories").is_dir()]
WINDOWS = [(390, "light"), (768, "dark"), (1280, "light"), (1600, "dark")]
in_a_browser = [
    pytest.mark.process,
    pytest.mark.experiment,
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome"),
]


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api").sync_playwright().start()
    # Containers have little shared memory.
    switches = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    browser = playwright.chromium.launch(executable_path=BROWSER, args=switches, timeout=120_000)
    yield browser
    browser.close()
    playwright.stop()


@pytest.fixture(scope="module")
def clock(tmp_path_factory):
    """The folder of the report on a model that adds modulo 23 with two frequencies."""
    place = tmp_path_factory.mktemp("clock")
    spherical_clock().save_pretrained(place / "clock")
    make_tokenizer("addition", P).save_pretrained(place / "clock")
    return command.main([str(place / "clock"), "--out", str(place / "out")]).parent


@pytest.fixture
def opened(chromium):
    """(folder, width, options of the browser) -> the page, with `said`, the console's and the network's lines."""
    contexts = []

    def open_page(out, width=1280, **options):
        contexts.append(chromium.new_context(viewport={"width": width, "height": 900}, **options))
        contexts[-1].set_default_timeout(120_000)
        page = contexts[-1].new_page()
        page.said = []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda it: it.url.startswith(("file:", "data:", "blob:")) or page.said.append(it.url))
        page.goto((out / "report.html").as_uri())
        if options.get("java_script_enabled", True):
            page.wait_for_function("document.querySelector('#head-map button, #clock input') !== null")
        return page

    yield open_page
    for context in contexts:
        context.close()


LAYOUT = """() => {
  const right = (element) => element.getBoundingClientRect().right;
  const parts = "figure, table, #tokens, #head-map, #clock, dl";
  const shown = [...document.querySelectorAll(parts)].filter((e) => e.offsetParent);
  const texts = [...document.querySelectorAll("figure text")].filter((text) => text.getBoundingClientRect().width);
  const scale = (svg) => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  const size = (text) => parseFloat(getComputedStyle(text).fontSize) * scale(text.ownerSVGElement);
  return {
    width: document.documentElement.scrollWidth,
    outside: shown.filter((e) => right(e) > innerWidth + 1).map((e) => e.id || e.className || e.tagName),
    cut: shown.filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.id || e.className || e.tagName),
    figures: [...document.querySelectorAll("figure")].filter((e) => e.offsetParent).map((e) => e.id),
    cropped: texts.filter((e) => right(e) > right(e.ownerSVGElement) + 1).map((e) => e.textContent),
    unnamed: [...document.querySelectorAll("svg")].filter((e) => !e.ariaLabel && !e.ariaHidden).length,
    repeated: [...document.querySelectorAll("[id]")].filter((e) => !e.closest("svg")).map((e) => e.id)
      .filter((id, place, all) => all.indexOf(id) < place),
    smallest: Math.min(...texts.map(size)),
  };
}"""


def check_layout(page, out, width):
    seen = page.evaluate(LAYOUT)
    assert page.said == []
    assert seen["width"] <= width and seen["outside"] == seen["cut"] == seen["cropped"] == []
    assert seen["unnamed"] == 0 and seen["repeated"] == []
    # The picture that stands in for the script is not shown beside it.
    files = {file.stem for file in (out / "figures").glob("*.png")}
    assert set(seen["figures"]) == files - {"attention_maps", "clock"}
    assert seen["smallest"] >= 8


@pytest.mark.parametrize("name", (*FAMILIES, "clock"))
class TestInABrowser:
    pytestmark = in_a_browser

    @pytest.fixture
    def out(self, name, reports, request):  # noqa: F811
        return request.getfixturevalue("clock") if name == "clock" else reports(name)[2]

    @pytest.mark.parametrize("width, scheme", WINDOWS)
    def test_everything_is_in_the_window(self, name, width, scheme, out, opened):
        page = opened(out, width, color_scheme=scheme)
        check_layout(page, out, width)
        # The test would see an error, a request, and a page that is too wide.
        page.evaluate(
            """document.body.insertAdjacentHTML("beforeend", "<figure style='width: 2000px'>wide</figure>")"""
        )
        page.evaluate("console.error('broken'); fetch('https://example.org').catch(() => {})")
        assert page.evaluate(LAYOUT)["outside"] and "broken" in page.said

    def test_without_a_script(self, name, out, opened):
        page = opened(out, java_script_enabled=False)
        picture = page.locator("figure#clock" if name == "clock" else "figure#attention_maps").locator("svg")
        assert picture.bounding_box()["width"] > 300
        assert all(not each.is_visible() for each in page.locator(".live").all())
        assert name == "clock" or page.locator("#steering td").count() == 10

    def test_in_print(self, name, out, opened):
        page = opened(out, 794)
        page.emulate_media(media="print", color_scheme="dark")
        assert all(not each.is_visible() for each in page.locator(".live, nav").all())
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def attention(folder, name, setting):  # noqa: F811
    """The attention maps (L, H, S, S) of the first text at a setting."""
    arguments = command.AnalysisArguments(out="x", texts="x")
    model = command.load_model(str(folder / name), arguments)
    tokenizer = command.load_tokenizer(str(folder / name), arguments)
    text = command.read_texts(folder / "texts.txt", 1)[0]
    (ids, *_), _ = command.read_windows(model, tokenizer, [text], 40)
    model.set_attn_implementation("eager")
    with torch.no_grad(), steered(model, view.settings_of(model)[0][setting]):
        return torch.stack(model(ids[None], output_attentions=True).attentions)[:, 0], ids, tokenizer


def weights(page):
    return torch.tensor(
        page.eval_on_selector_all("#tokens span", "all => all.map((e) => +e.style.getPropertyValue('--w'))")
    )


@pytest.mark.parametrize("name", RELEASED)
class TestAReleasedModel:
    pytestmark = in_a_browser

    def test_its_page(self, name, opened, tmp_path):
        """One test for all that is asked of a page, because each report takes half a minute."""
        options = ["--num_texts", "2", "--control_copies", "1", "--out", str(tmp_path / "out")]
        out = command.main([str(HUB_CARDS / name), *options]).parent
        for width, scheme in WINDOWS:
            page = opened(out, width, color_scheme=scheme)
            check_layout(page, out, width)
            loss = weights(page)
            page.locator("#tokens span").nth(20).hover()
            assert not torch.equal(weights(page), loss) and "bits" in page.locator("#said").inner_text()


@pytest.mark.parametrize("name", FAMILIES)
class TestTheText:
    pytestmark = in_a_browser

    def test_a_token_shows_where_each_head_looks(self, name, folder, reports, opened):  # noqa: F811
        _, numbers, out = reports(name)
        page, bits = opened(out), torch.tensor(numbers["model"]["view"]["bits"])
        trained = numbers["model"]["view"]["trained"]
        maps, ids, tokenizer = attention(folder, name, trained)
        assert page.locator("#tokens").inner_text() == "".join(tokenizer.decode([token]) for token in ids.tolist())
        assert torch.allclose(weights(page), (bits[trained] / 8).clamp(max=1), atol=2e-3)
        page.get_by_role("button", name=re.compile("Layer 1, head 2")).click()
        token = page.locator("#tokens span").nth(20)
        token.hover()
        assert torch.allclose(weights(page) ** 2, torch.nn.functional.pad(maps[1, 2, 20, :21], (0, 19)), atol=5e-3)
        assert "Layer 1, head 2" in page.locator("#said").inner_text()
        # The other way: whoever looks at the token.
        page.get_by_role("button", name="who looks here?").click()
        token.hover()
        assert torch.allclose(weights(page) ** 2, torch.nn.functional.pad(maps[1, 2, 20:, 20], (20, 0)), atol=5e-3)
        page.get_by_role("button", name="who looks here?").click()
        for button, expected in (("all heads", maps.mean((0, 1))), ("layer 1", maps[1].mean(0))):
            page.get_by_role("button", name=re.compile(f"mean of {button}$")).click()
            token.hover()
            assert torch.allclose(weights(page) ** 2, torch.nn.functional.pad(expected[20, :21], (0, 19)), atol=5e-3)
        # Off the text: the loss again.
        page.mouse.move(1, 1)
        assert torch.allclose(weights(page), (bits[trained] / 8).clamp(max=1), atol=2e-3)

    def test_the_slider_turns_the_mechanism(self, name, folder, reports, opened):  # noqa: F811
        _, numbers, out = reports(name)
        page, bits = opened(out), torch.tensor(numbers["model"]["view"]["bits"])
        page.locator("#setting").fill("0")
        assert torch.allclose(weights(page), (bits[0] / 8).clamp(max=1), atol=2e-3)
        page.locator("#tokens span").nth(20).hover()
        off = attention(folder, name, 0)[0].mean((0, 1))[20, :21]
        assert torch.allclose(weights(page)[:21] ** 2, off, atol=5e-3)
        if name == "spherical":
            # The running mean.
            assert torch.allclose(off, torch.full((21,), 1 / 21), atol=1e-6)
        assert page.locator("#steering td.now").all_inner_texts()[1] == f"{bits[0, 1:].mean():.2f}"

    def test_keys_and_touch(self, name, folder, reports, opened):  # noqa: F811
        page = opened(reports(name)[2], 390, has_touch=True)
        here = "() => [...document.querySelectorAll('#tokens span')].findIndex((e) => e.classList.contains('here'))"
        page.locator("#tokens").focus()
        for key, expected in (("ArrowRight", 0), ("ArrowRight", 1), ("End", 39), ("ArrowLeft", 38), ("Escape", -1)):
            page.keyboard.press(key)
            assert page.evaluate(here) == expected
        page.keyboard.press("ArrowDown")
        tops = page.eval_on_selector_all("#tokens span", "all => all.map((e) => e.offsetTop)")
        assert tops[page.evaluate(here)] > tops[0]
        page.locator("#setting").focus()
        page.keyboard.press("ArrowLeft")
        assert page.locator("#setting").input_value() == "1"
        page.locator("#head-map button.set").first.focus()
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.ariaPressed") == "true"
        page.locator("#tokens span").nth(7).tap()
        assert page.evaluate(here) == 7 and "bits" in page.locator("#said").inner_text()
        assert page.said == []


class TestTheClock:
    pytestmark = in_a_browser

    def test_it_adds(self, clock, opened):
        page = opened(clock, 390)
        inputs = page.locator("#clock input")
        for a, b in ((0, 0), (7, 9), (20, 21)):
            inputs.nth(0).fill(str(a))
            inputs.nth(1).fill(str(b))
            answer = (a + b) % P
            said = page.locator("#clock output").inner_text()
            assert said == f"{a} + {b} = {answer}. The 5 frequencies together answer {answer}."
            # The two frequencies that it uses are right; what the others say is weak.
            labels = page.locator("#clock .faces svg").evaluate_all("all => all.map((e) => e.ariaLabel)")
            assert sum("is 0 degrees from the right" in label for label in labels) >= 2
        assert page.said == []


# The data


def test_a_clock_of_known_frequencies():
    model = spherical_clock()
    for operation in ("add", "multiply"):
        clock = examine_cyclic(model, P, operation)["clock"]
        n = len(clock["residues"])
        assert clock["circles"].shape == (5, n, 2) and clock["hands"].shape == (n, n, 5)
    clock = examine_cyclic(model, P)["clock"]
    a, b = torch.cartesian_prod(torch.arange(P), torch.arange(P)).unbind(-1)
    for frequency in (2, 5):
        index = clock["frequencies"].tolist().index(frequency)
        turn = torch.polar(torch.ones(P * P), 2 * torch.pi * frequency * (a + b) / P)
        # Sixteen neurons double an angle to within some degrees.
        assert (clock["hands"][..., index].flatten() / turn).angle().abs().max() < 0.1
        turn = 2 * torch.pi * frequency * torch.arange(P) / P
        circle = torch.stack((turn.cos(), turn.sin()), dim=-1).to(clock["circles"].dtype)
        assert torch.allclose(clock["circles"][index], circle, atol=1e-4)


def test_heads_are_listed_by_what_they_look_at():
    heads = {name: torch.zeros(2, 2) for name in view.KINDS}
    heads["previous token"][0, 1], heads["previous token"][1, 0] = 0.5, 0.9
    heads["sink"][0, 0], heads["sink"][1, 0] = 0.2, 0.8
    heads["distance"] = torch.tensor([[9.0, 1.0], [1.0, 3.0]])
    kinds = view.kinds_of(heads, (2, 2))
    assert kinds == [("look at the token before", [2, 1]), ("spread, from near to far", [3, 0])]
    assert view.kinds_of(None, (2, 2)) == [("all heads", [0, 1, 2, 3])]


@pytest.mark.parametrize(
    "trained, labels",
    [(0.1, ["0", "0.05", "0.1", "0.55", "1"]), (1.0, ["0", "0.25", "0.5", "0.75", "1"]), (0.0, None)]
    + [(-1.0, ["-1", "-0.5", "0", "0.5", "1"]), (-0.3, ["-0.3", "-0.15", "0", "0.5", "1"])],
)
def test_five_settings_of_lambda(trained, labels):
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1}
    model = PrismForCausalLM(PrismConfig(**sizes, num_attention_heads=4, noise_coefficient=trained))
    values, said, index = view.settings_of(model)
    assert said == labels or trained == 0 and len(said) == 5
    assert values[index] == trained


def test_a_llama_opened_as_momentum_can_be_steered(folder):  # noqa: F811
    model = MomentumForCausalLM.from_pretrained(folder / "llama")
    values, labels, trained = view.settings_of(model)
    assert values == [0, 0.5, 1, 1.5, 2] and (labels[0], labels[trained]) == ("0", "2.5")
    with steered(model, 0.0):
        assert {layer.self_attn.gamma for layer in model.model.layers} == {0.0}
    assert view.settings_of(LlamaForCausalLM.from_pretrained(folder / "llama")) == ([1.0], ["as trained"], 0)


def test_the_first_text_with_a_token_to_predict_is_shown(folder):  # noqa: F811
    arguments = command.AnalysisArguments(out="x", texts="x")
    model = command.load_model(str(folder / "llama"), arguments)
    tokenizer = command.load_tokenizer(str(folder / "llama"), arguments)
    tokenizer.bos_token = None
    found = {"name": "llama", "max length": 40, "layers": 2, "heads per layer": 4}
    shown = view.view_text(model, tokenizer, ["a", "Special: <|endoftext|> $x$ 故事"], found, progress=False)
    # Special tokens in a text are characters.
    assert "<|endoftext|>" not in shown["tokens"] and len(shown["tokens"]) > 5 and shown["maps"] is None
    assert shown["bits"].shape == (1, len(shown["tokens"])) and shown["bits"][0, 0] == 0


def test_a_term_is_explained_once_where_it_first_stands():
    known = set()
    first = first_terms(["the mean distance of attention", "centroid (cycles / token)"], known)
    assert [term.name for term in first] == ["Distance", "Centroid"]
    again = first_terms(["centroid and R_c(Z | U)"], known)
    assert [term.name for term in again] == ["R_c(Z | U), coding rate"]
    assert all(term.meaning.endswith(".") for term in TERMS)


@pytest.mark.experiment
@pytest.mark.parametrize("model", FAMILIES)
def test_terms_are_explained_once_on_a_page(model, reports):  # noqa: F811
    page, _, _ = reports(model)
    for name in (
        "Bits per byte",
        "Effective rank",
        *(("Centroid", "Sink", "Cliff's delta") if model == "prism" else ()),
    ):
        assert page.count(f"<dt>{name}</dt>".replace("'", "&#39;")) == 1


def test_a_token_cannot_end_the_script(tmp_path):
    found = {
        "family": "llama",
        "name": "x",
        "view": {"tokens": ["</script>"], "bits": torch.zeros(1, 1), "maps": None},
    }
    found["view"] |= {"kinds": [], "guesses": [[]], "settings": ["as trained"], "trained": 0, "mechanism": ""}
    data = report.script_data(found)
    assert "<" not in data and json.loads(data)["tokens"] == ["</script>"]
