import pytest
import torch
from families import VISIBLE, assert_near


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


@pytest.mark.row("TransformerLens", "hooks on q, k, v, pattern and z")
def test_transformer_lens():
    pytest.skip("takes architectures from outside, but computes attention itself: each family needs a bridge")
