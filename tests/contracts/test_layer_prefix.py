"""Prefixes at chosen layers: PEFT's prefix where they are everywhere, plain attention where they are not."""

from __future__ import annotations

import pytest
import torch
from families import batch_of
from peft import PrefixTuningConfig, get_peft_model

from autopeft.candidates import BaseFormat, Candidate
from autopeft.plans import plan_of
from autopeft.trial.adapters import Resident
from autopeft.trial.model import load_base
from autopeft.trial.own import Prefix

PAIRS = [("llama", "causal-lm"), ("gpt2", "causal-lm"), ("bert", "text-classification")]
TOKENS = 5


def prefixed(source, anatomy, **tokens):
    """Load a model, attach prefixes, fill them with large numbers; gives (model, its prefixes by module)."""
    plan = plan_of(
        Candidate({"method": "layer_prefix", **{f"layer_prefix.{k}": v for k, v in tokens.items()}}), anatomy
    )
    base = load_base(source, BaseFormat(32), device="cpu", seed=0)
    adapted = Resident(base).attach(plan, task=anatomy.task, head=anatomy.head).eval()
    torch.manual_seed(3)
    for module in adapted.modules():
        if isinstance(module, Prefix):
            module.key.data.normal_()
            module.value.data.normal_()
    return adapted, {name: module for name, module in adapted.named_modules() if isinstance(module, Prefix)}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_at_every_layer_it_is_the_prefix_of_peft(family, task, padded, source_of, anatomy_of):
    """PEFT's shifts the positions of the text by the prefix, so this one is told to."""
    source, anatomy = source_of(family, task), anatomy_of(family, task)
    ours, prefixes = prefixed(source, anatomy, tokens=TOKENS)
    batch = {k: v for k, v in batch_of(task).items() if k in ("input_ids", "attention_mask")}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    if padded:
        batch["attention_mask"][0, -4:] = 0
    kind = {"causal-lm": "CAUSAL_LM", "text-classification": "SEQ_CLS"}[task]
    theirs = get_peft_model(
        load_base(source, BaseFormat(32), device="cpu", seed=0),
        PrefixTuningConfig(num_virtual_tokens=TOKENS, task_type=kind),
    ).eval()
    heads = anatomy.attentions[0].heads, anatomy.attentions[0].key_dim
    embedding = theirs.prompt_encoder["default"].embedding.weight.data.view(TOKENS, -1, 2, *heads)
    for layer, prefix in enumerate(prefixes.values()):
        embedding[:, layer, 0] = prefix.key.data.transpose(0, 1)
        embedding[:, layer, 1] = prefix.value.data.transpose(0, 1)
    positions = torch.arange(TOKENS, TOKENS + batch["input_ids"].shape[1]).expand(len(batch["input_ids"]), -1)
    with torch.no_grad():
        expected = theirs(**batch).logits
        found = ours(**batch, position_ids=positions).logits
        kept = batch["attention_mask"].bool() if task == "causal-lm" else slice(None)
        plain = Resident(load_base(source, BaseFormat(32), device="cpu", seed=0)).model.eval()(**batch).logits
    torch.testing.assert_close(found[kept], expected[kept], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain[kept], expected[kept], atol=1e-2)


def test_a_layer_without_one_computes_as_the_base_does(source_of, anatomy_of):
    source, anatomy = source_of("llama", "causal-lm"), anatomy_of("llama", "causal-lm")
    per_layer = {"tokens[0]": 0, "tokens[1]": 3, "tokens[2]": 0}
    adapted, prefixes = prefixed(source, anatomy, **per_layer)
    assert {name: module.size for name, module in prefixes.items()} == {"model.layers.1.self_attn.prefix": 3}
    plain = load_base(source, BaseFormat(32), device="cpu", seed=0).eval()
    batch = batch_of("causal-lm")
    with torch.no_grad():
        with_it = adapted(**batch, output_hidden_states=True).hidden_states
        without = plain(**batch, output_hidden_states=True).hidden_states
        assert torch.equal(with_it[1], without[1])
        assert not torch.allclose(with_it[2], without[2], atol=1e-3)
        angles = plain.model.rotary_emb(with_it[2], torch.arange(with_it[2].shape[1])[None])
        last = plain.model.norm(plain.model.layers[2](with_it[2], attention_mask=None, position_embeddings=angles))
    torch.testing.assert_close(with_it[3], last)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_writes_the_same_with_a_cache_and_without(family, source_of, anatomy_of):
    adapted, _ = prefixed(source_of(family, "causal-lm"), anatomy_of(family, "causal-lm"), tokens=TOKENS)
    prompt = batch_of("causal-lm")["input_ids"][:, :4]
    mask = torch.ones_like(prompt)
    mask[0, :2] = 0  # padded on the left, as for generation
    written = [
        adapted.generate(
            input_ids=prompt, attention_mask=mask, max_new_tokens=8, min_new_tokens=8, do_sample=False, use_cache=cached
        )
        for cached in (True, False)
    ]
    assert torch.equal(*written)


@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_it_may_be_checkpointed(family, task, source_of, anatomy_of):
    """PEFT's may not: transformers drops the cache that it comes as."""
    gradients = []
    for checkpointed in (False, True):
        adapted, prefixes = prefixed(source_of(family, task), anatomy_of(family, task), tokens=TOKENS)
        if checkpointed:
            adapted.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        adapted.train()(**batch_of(task)).loss.backward()
        gradients.append([p.grad for prefix in prefixes.values() for p in prefix.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert all(g.abs().max() > 0 for g in gradients[0])


def test_an_attention_of_its_own_is_refused_with_the_reason(anatomy_of):
    from autopeft.methods import METHODS

    method = METHODS["layer_prefix"]
    assert not anatomy_of("t5", "text-classification").attentions
    assert "takes no keys" in method.refuses({}, 32, anatomy_of("t5", "text-classification"))
