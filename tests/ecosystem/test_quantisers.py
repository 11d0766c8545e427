import pytest
import torch
from families import VISIBLE
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import modeling_prism  # noqa: F401  (registers the architectures)


def assert_rounded(logits, expected, share):
    """Rounded weights, read as they are meant: the logits differ, on average by less than a share of their spread."""
    difference = (logits.float() - expected).abs() / expected.std()
    assert VISIBLE < difference.max() and difference.mean() < share


@pytest.mark.row("torchao", "weights of 8 bits")
def test_torchao(make, ids):
    quantization = pytest.importorskip("torchao.quantization")
    model, expected = make(), make()(ids).logits
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert_rounded(model(ids).logits, expected, 0.1)


@pytest.mark.row("optimum-quanto", "weights of 8 bits")
def test_quanto(make, ids):
    quanto = pytest.importorskip("optimum.quanto")
    model, expected = make(), make()(ids).logits
    quanto.quantize(model, weights=quanto.qint8)
    quanto.freeze(model)
    assert_rounded(model(ids).logits, expected, 0.1)


@pytest.mark.row("bitsandbytes", "weights of 4 bits, on a CPU")
def test_bitsandbytes(make, ids, tmp_path):
    pytest.importorskip("bitsandbytes")
    sizes = {"hidden_size": 64, "intermediate_size": 64}
    make(**sizes).save_pretrained(tmp_path)
    expected = make(**sizes)(ids).logits
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    with torch.no_grad():
        assert_rounded(model(ids).logits, expected, 0.5)
