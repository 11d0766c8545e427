import json
import socket
import time
import urllib.request

import pytest
import torch
from families import DOCUMENTS, assert_near, right_pad


@pytest.mark.row("transformers", "a Llama as assistant writes the same text")
def test_assistant(make, llama, ids):
    assistant = llama()
    options = {"max_new_tokens": 8, "do_sample": False}
    expected = make().generate(ids[:1], **options)
    assert torch.equal(make().generate(ids[:1], assistant_model=assistant, **options), expected)


@pytest.mark.row("accelerate", "weights offloaded to the CPU")
def test_offloading(make, ids):
    accelerate = pytest.importorskip("accelerate")
    expected = make()(ids).logits
    assert_near(accelerate.cpu_offload(make(), execution_device="cpu")(ids).logits, expected)


@pytest.mark.row("accelerate", "weights offloaded to the disk")
def test_disk_offloading(make, ids, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    expected = make()(ids).logits
    assert_near(accelerate.disk_offload(make(), str(tmp_path), execution_device="cpu")(ids).logits, expected)


@pytest.mark.row("transformers", "weights in several files, loaded with `device_map`")
def test_shards(make, ids, tmp_path):
    from transformers import AutoModelForCausalLM

    model = make()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_near(AutoModelForCausalLM.from_pretrained(tmp_path, device_map="cpu")(ids).logits, model(ids).logits)


STRATEGIES = {
    "beam search": {"num_beams": 3},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "a prefill in chunks": {"prefill_chunk_size": 4},
}


@pytest.mark.row("transformers", f"{', '.join(STRATEGIES)}: the text of the same without a cache")
def test_strategies(make, ids):
    model = make()
    options = {"max_new_tokens": 8, "do_sample": False}
    for strategy in STRATEGIES.values():
        beams = {name: value for name, value in strategy.items() if name == "num_beams"}
        expected = model.generate(ids[:1], use_cache=False, **beams, **options)
        assert torch.equal(model.generate(ids[:1], **strategy, **options), expected), strategy


@pytest.mark.row("lm-evaluation-harness", "a batch of 8 scores as one at a time")
def test_lm_eval(folder):
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    questions = [
        ("Lily had", " a red ball."),
        ("The sun was very", " warm"),
        ("Tom", " went home."),
        ("A", " pond"),
    ] * 2
    requests = [instance("loglikelihood", {}, question, index) for index, question in enumerate(questions)]
    scores = []
    for batch_size in (1, 8):
        harness = huggingface.HFLM(model, tokenizer=tokenizer, batch_size=batch_size, device="cpu")
        scores.append(torch.tensor([score for score, _ in harness.loglikelihood(requests, disable_tqdm=True)]))
    torch.testing.assert_close(*scores, atol=1e-3, rtol=1e-4)
    assert scores[0].unique().numel() == 4


@pytest.mark.row("transformers", "documents packed by `DataCollatorWithFlattening` have the loss of separate ones")
def test_flattening(make):
    from transformers import DataCollatorWithFlattening

    # Llama does not tell packed documents apart where it makes a cache.
    model = make(use_cache=False)
    batch = DataCollatorWithFlattening(return_flash_attn_kwargs=False)([{"input_ids": d.tolist()} for d in DOCUMENTS])
    ids, mask = right_pad(DOCUMENTS)
    labels = ids.masked_fill(mask == 0, -100)
    assert_near(model(**batch).loss, model(ids, attention_mask=mask, labels=labels).loss)


REFUSED = {
    "momentum": "Continuous batching .* would lose the state",
    "spherical-uniform": "Continuous batching .* pages",
}


@pytest.mark.row("transformers", "continuous batching (`generate_batch`)", refused=REFUSED)
def test_continuous_batching(make):
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model = make(attn_implementation="sdpa")
    # Without a number of blocks it takes most of the memory.
    paged = ContinuousBatchingConfig(page_size=32, num_blocks=16, max_batch_tokens=64)
    config = GenerationConfig(max_new_tokens=5, do_sample=False, eos_token_id=-1, pad_token_id=0)
    found = model.generate_batch([document.tolist() for document in DOCUMENTS], config, paged)
    for document, output in zip(DOCUMENTS, found.values()):
        expected = model.generate(document[None], generation_config=config)[0, len(document) :]
        assert output.generated_tokens == expected.tolist()


def post(port, path, **request):
    """The answer of the server, or its chunks if they are streamed."""
    data = json.dumps({"max_tokens": 5, "temperature": 0.0, **request}).encode()
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"http://localhost:{port}{path}", data, headers)) as response:
        if not request.get("stream"):
            return json.load(response)
        lines = [line.decode().removeprefix("data: ").strip() for line in response if line.startswith(b"data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]


@pytest.mark.row("transformers", "`python -m modeling_prism.serve`: completions, chats, streams")
def test_serve(folder):
    pytest.importorskip("fastapi")
    from transformers import pipeline
    from transformers.cli.serve import Serve

    from modeling_prism import serve

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    serve.register()
    template = serve.template_options(folder)[1]
    server = Serve(folder, port=port, device="cpu", chat_template_kwargs=template, non_blocking=True)
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://localhost:{port}/health")
                break
            except OSError:
                time.sleep(0.2)
        expected = pipeline("text-generation", folder, device="cpu")(
            "Once upon", max_new_tokens=5, do_sample=False, return_full_text=False
        )[0]["generated_text"]
        assert post(port, "/v1/completions", model=folder, prompt="Once upon")["choices"][0]["text"] == expected
        messages = [{"role": "user", "content": "Once upon"}]
        answer = post(port, "/v1/chat/completions", model=folder, messages=messages)
        assert answer["choices"][0]["message"]["content"] == expected
        chunks = post(port, "/v1/chat/completions", model=folder, messages=messages, stream=True)
        told = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
        assert "".join(told) == expected and len(told) > 1
    finally:
        server.kill_server()


@pytest.mark.row("vLLM", "serving")
def test_vllm():
    pytest.skip("needs a GPU")


@pytest.mark.row("liger-kernel", "fused kernels")
def test_liger():
    pytest.skip("needs a GPU")


@pytest.mark.row("DeepSpeed", "ZeRO")
def test_deepspeed():
    pytest.skip("needs a GPU")
