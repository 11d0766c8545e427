import pytest
import torch
from families import VISIBLE, assert_near, random_ids


@pytest.mark.row("nnsight", "read a layer, and change it")
def test_nnsight(make, ids):
    nnsight = pytest.importorskip("nnsight")
    model = make()
    expected = model(ids, output_hidden_states=True)
    traced = nnsight.NNsight(model)
    with traced.trace(ids):
        states = traced.model.layers[0].output.save()
    assert_near(states, expected.hidden_states[1])
    with traced.trace(ids):
        traced.model.layers[0].output[:, 3] = 0
        changed = traced.output.logits.save()
    difference = (changed - expected.logits).abs().amax(dim=(0, 2))
    assert difference[:3].max() == 0 and difference[3:].min() > VISIBLE


@pytest.mark.row("nnsight", "the script `training/examples/look_inside.py`")
def test_look_inside(folder):
    pytest.importorskip("nnsight")
    from training.examples import look_inside

    found = look_inside.main([folder, "Once upon a time"])
    assert len(found) == 2 and all(abs(row["loss"]) > 0 for row in found)


@pytest.mark.row("captum", "integrated gradients of embeddings add up to the change of the logit")
def test_captum(make, ids):
    attr = pytest.importorskip("captum.attr")
    model = make()
    embeds = model.get_input_embeddings()(ids).detach()

    def logit(embeds):
        return model(inputs_embeds=embeds).logits[:, -1, 5]

    found, error = attr.IntegratedGradients(logit).attribute(
        embeds, 0.1 * embeds, n_steps=200, internal_batch_size=50, return_convergence_delta=True
    )
    change = logit(embeds) - logit(0.1 * embeds)
    torch.testing.assert_close(found.sum((1, 2)).float(), change, atol=0.1 * change.abs().max().item(), rtol=0.1)


@pytest.mark.row("pyvene", "exchange a layer's states between two inputs (the class of the model registered first)")
def test_pyvene(make, ids):
    pyvene = pytest.importorskip("pyvene")
    model, other = make(), ids.flip(0, 1)
    pyvene.models.intervenable_modelcard.type_to_module_mapping.setdefault(type(model), {})
    pyvene.models.intervenable_modelcard.type_to_dimension_mapping.setdefault(type(model), {})
    config = {"component": "model.layers[0].output", "intervention_type": pyvene.VanillaIntervention}
    intervenable = pyvene.IntervenableModel([config], model=model)
    _, outputs = intervenable({"input_ids": ids}, [{"input_ids": other}])
    assert_near(outputs.logits, model(other).logits)


@pytest.mark.row("inseq", "attribute a continuation to its tokens")
def test_inseq(folder):
    inseq = pytest.importorskip("inseq")
    model = inseq.load_model(folder, "saliency")
    found = model.attribute("Once upon a time", "Once upon a time there", show_progress=False)
    assert found.sequence_attributions[0].target_attributions.isfinite().any()


@pytest.mark.row("bertviz, circuitsvis", "draw attention")
def test_drawings(make, ids):
    bertviz, attention = pytest.importorskip("bertviz"), pytest.importorskip("circuitsvis.attention")
    model = make(attn_implementation="eager")
    maps, tokens = model(ids, output_attentions=True).attentions, [f"token{index}" for index in ids[0]]
    page = bertviz.head_view([layer[:1] for layer in maps], tokens, html_action="return")
    assert tokens[3] in page.data
    assert tokens[3] in str(attention.attention_patterns(tokens=tokens, attention=maps[0][0]))


def silence(model, head):
    """A head of the first layer without output."""
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        if hasattr(attention, "head_gain"):
            attention.head_gain[head] = 0
        else:
            attention.o_proj.weight[:, head * attention.head_dim : (head + 1) * attention.head_dim] = 0


@pytest.mark.row("TransformerLens", "`modeling_prism.hooked.boot`: the model's logits, hooks by head, a head silenced")
def test_transformer_lens(folder, family, tmp_path):
    pytest.importorskip("transformer_lens")
    from transformers import AutoModelForCausalLM

    from modeling_prism.hooked import boot

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    hooked, ids = boot(folder, device="cpu"), random_ids(2, 11)
    logits, cache = hooked.run_with_cache(ids)
    assert_near(logits, model(ids).logits)
    heads = model.config.num_attention_heads
    assert cache["blocks.0.attn.hook_z"].shape[:3] == (2, 11, heads)
    assert_near(cache["blocks.0.attn.hook_pattern"], model(ids, output_attentions=True).attentions[0])
    # Llama has fewer key heads than query heads in some sizes; uniform routing has no queries.
    named = ("v",) if family == "spherical-uniform" else ("q", "k", "v")
    assert all(cache[f"blocks.0.attn.hook_{name}"].shape[:2] == (2, 11) for name in named)

    def without_output(z, hook):
        z = z.clone()
        z[:, :, 1] = 0
        return z

    silence(model, head=1)
    changed = hooked.run_with_hooks(ids, fwd_hooks=[("blocks.0.attn.hook_z", without_output)])
    assert_near(changed, model(ids).logits)
    assert (changed - logits).abs().max() > 1e-2
