import pytest
import torch
from families import DOCUMENTS, assert_near, left_pad, random_ids


onnxruntime = pytest.importorskip("onnxruntime")


def run_in_onnxruntime(model, file, example, inputs):
    shapes = {
        name: {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", min=2, max=60)} for name in example
    }
    torch.onnx.export(model, (), file, kwargs=example, dynamic_shapes=shapes, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(file))
    return torch.tensor(session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0])


@pytest.mark.row("ONNX", "onnxruntime gives PyTorch's logits for another length and batch")
def test_without_a_mask(make, tmp_path):
    model, ids = make(use_cache=False, num_hidden_layers=1), random_ids(3, 11)
    logits = run_in_onnxruntime(model, tmp_path / "model.onnx", {"input_ids": random_ids(2, 5)}, {"input_ids": ids})
    assert_near(logits, model(ids).logits)


@pytest.mark.row("ONNX", "the same with a padding mask")
def test_with_a_mask(make, tmp_path):
    model = make(use_cache=False, num_hidden_layers=1)
    ids, mask = left_pad(DOCUMENTS)
    example = {"input_ids": random_ids(2, 5), "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])}
    inputs = {"input_ids": ids, "attention_mask": mask}
    logits = run_in_onnxruntime(model, tmp_path / "model.onnx", example, inputs)
    assert_near(logits[mask.bool()], model(**inputs).logits[mask.bool()])


@pytest.mark.row("ONNX", "the same by transformers' `OnnxExporter`")
def test_transformers_exporter(make):
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    model = make(use_cache=False, num_hidden_layers=1)
    example = {"input_ids": random_ids(2, 5), "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])}
    ids, mask = left_pad(DOCUMENTS)
    logits = OnnxExporter().export(model, example, OnnxConfig(dynamic=True))(input_ids=ids, attention_mask=mask).logits
    assert_near(logits[mask.bool()], model(ids, attention_mask=mask).logits[mask.bool()])
