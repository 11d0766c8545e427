import pytest
import torch
from families import VISIBLE
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import modeling_prism  # noqa: F401  (registers the architectures)


def assert_close_but_not_equal(logits, expected):
    """Rounded weights, read as they are meant: the logits differ, by less than 15 % of their spread."""
    difference = (logits.float() - expected).abs()
    assert VISIBLE * expected.std() < difference.max() and difference.mean() < 0.15 * expected.std()


@pytest.mark.row("torchao", "weights of 8 bits")
def test_torchao(make, ids):
    quantization = pytest.importorskip("torchao.quantization")
    model, expected = make(), make()(ids).logits
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert_close_but_not_equal(model(ids).logits, expected)


@pytest.mark.row("optimum-quanto", "weights of 8 bits")
def test_quanto(make, ids):
    quanto = pytest.importorskip("optimum.quanto")
    model, expected = make(), make()(ids).logits
    quanto.quantize(model, weights=quanto.qint8)
    quanto.freeze(model)
    assert_close_but_not_equal(model(ids).logits, expected)


@pytest.mark.row("bitsandbytes", "weights of 4 bits, on a CPU")
def test_bitsandbytes(make, ids, tmp_path):
    pytest.importorskip("bitsandbytes")
    sizes = {"hidden_size": 64, "intermediate_size": 64}
    make(**sizes).save_pretrained(tmp_path)
    expected = make(**sizes)(ids).logits
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    with torch.no_grad():
        assert_close_but_not_equal(model(ids).logits, expected)
