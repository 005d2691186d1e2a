"""Small configurations of many architectures, with the kinds of linear that each has, by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers as t

_WIDTHS = {"hidden_size": 64, "intermediate_size": 112, "num_attention_heads": 4, "vocab_size": 128}
_SMALL = {**_WIDTHS, "num_hidden_layers": 2}
_GROUPED = {**_SMALL, "num_key_value_heads": 2, "pad_token_id": 0}
_PLAIN = "query key value output up down"
_GATED = "query key value output gate up down"
_FUSED = "qkv output up down"
_LM, _CLASSES, _SEQ2SEQ = "causal-lm", "text-classification", "seq2seq-lm"


@dataclass(frozen=True)
class Architecture:
    """A configuration; the kinds of the linears of its layers, in the order of KINDS; what of it cannot be used.

    Attributes:
        sizes: Some kinds with their (fan in, fan out), from the configuration by hand.
        refused: Methods that must be refused, or are not for the task.
    """

    config: Any
    task: str
    kinds: str
    layers: int = 2
    norms_in_layers: int = 4
    norms_outside: int = 1
    sizes: dict[str, tuple[int, int]] | None = None
    refused: tuple[str, ...] = ()

    def refuses(self, method: str) -> bool:
        """Say whether a method must be refused; adaption prompts are for a few families, and tokens for their task."""
        if method == "adaption_prompt":
            return method in self.refused or self.config.model_type not in ("llama", "mistral", "gpt2")
        # A hybrid is refused with any of its parts, which go by short names there.
        short = {"prefix": "layer_prefix", "prompt": "prompt_tuning"}
        parts = {short.get(part, part) for part in method.split("+")}
        return not parts.isdisjoint(self.refused) or (
            "layer_prefix" in parts and self.config.model_type in _OWN_ATTENTION
        )


_OWN_ATTENTION = (
    *("gpt_neo", "gptj", "deberta-v2", "mpnet", "longformer", "funnel", "bart", "gemma2", "bloom", "falcon", "mpt"),
    "xlnet",
)
"""Architectures whose attention does not go through transformers' interface, or is not that of one stack."""
_PREFIX = ("prefix_tuning", "cartridge")
_PROMPTS = ("prompt_tuning", "p_tuning", *_PREFIX)

SMALL = {"lora.rank": 2, "shira.rank": 1, "gralora.blocks": 1, "miss.rank": 8, "peanut.rank": 8}
"""Settings with which a method fits such small models."""

ARCHITECTURES = {
    "opt": Architecture(
        t.OPTConfig(
            hidden_size=64,
            ffn_dim=112,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=128,
            word_embed_proj_dim=64,
        ),
        _LM,
        _PLAIN,
        sizes={"query": (64, 64), "up": (64, 112), "down": (112, 64)},
    ),
    "opt, narrow embedding": Architecture(
        t.OPTConfig(
            hidden_size=64,
            ffn_dim=112,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=128,
            word_embed_proj_dim=32,
        ),
        _LM,
        _PLAIN,
    ),
    "gpt-neox": Architecture(t.GPTNeoXConfig(**_SMALL), _LM, _FUSED, sizes={"qkv": (64, 192), "output": (64, 64)}),
    "gpt-neo": Architecture(
        t.GPTNeoConfig(hidden_size=64, num_layers=2, num_heads=4, vocab_size=128, attention_types=[[["global"], 2]]),
        _LM,
        _PLAIN,
    ),
    "gpt-j": Architecture(
        t.GPTJConfig(n_embd=64, n_layer=2, n_head=4, vocab_size=128, rotary_dim=8), _LM, _PLAIN, norms_in_layers=2
    ),
    "gpt-bigcode": Architecture(
        t.GPTBigCodeConfig(n_embd=64, n_layer=2, n_head=4, vocab_size=128),
        _LM,
        _FUSED,
        sizes={"qkv": (64, 64 + 2 * 16)},
    ),
    "phi-3, all fused": Architecture(
        t.Phi3Config(**_GROUPED), _LM, _FUSED, sizes={"qkv": (64, 64 + 2 * 32), "up": (64, 224), "down": (112, 64)}
    ),
    "phi": Architecture(t.PhiConfig(**_SMALL), _LM, _PLAIN, norms_in_layers=2),
    "distilbert": Architecture(
        t.DistilBertConfig(dim=64, hidden_dim=112, n_layers=2, n_heads=4, vocab_size=128),
        _CLASSES,
        _PLAIN,
        refused=_PREFIX,
    ),
    "roberta": Architecture(t.RobertaConfig(**_SMALL), _CLASSES, _PLAIN),
    "modernbert": Architecture(
        t.ModernBertConfig(**_SMALL, pad_token_id=0),
        _CLASSES,
        _FUSED,
        norms_in_layers=3,
        norms_outside=2,
        sizes={"qkv": (64, 192), "up": (64, 224), "down": (112, 64)},
        refused=_PROMPTS,
    ),
    "deberta-v2": Architecture(t.DebertaV2Config(**_SMALL, pooler_hidden_size=64), _CLASSES, _PLAIN, refused=_PROMPTS),
    "electra, narrow embedding": Architecture(t.ElectraConfig(**_SMALL, embedding_size=32), _CLASSES, _PLAIN),
    "albert, shared layers": Architecture(
        t.AlbertConfig(**_SMALL, embedding_size=32), _CLASSES, _PLAIN, layers=1, norms_in_layers=2, refused=_PREFIX
    ),
    "mpnet": Architecture(t.MPNetConfig(**_SMALL), _CLASSES, _PLAIN, refused=_PREFIX),
    "longformer": Architecture(
        t.LongformerConfig(**_SMALL, attention_window=[4, 4]),
        _CLASSES,
        f"{_PLAIN} query_global key_global value_global",
        refused=_PREFIX,
    ),
    "funnel": Architecture(
        t.FunnelConfig(vocab_size=128, block_sizes=[1, 1], d_model=64, n_head=4, d_head=16, d_inner=112),
        _CLASSES,
        _PLAIN,
        refused=_PREFIX,
    ),
    "bart": Architecture(
        t.BartConfig(
            d_model=64,
            encoder_layers=2,
            decoder_layers=2,
            encoder_ffn_dim=96,
            decoder_ffn_dim=112,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            vocab_size=128,
        ),
        _CLASSES,
        _PLAIN,
        layers=4,
        norms_in_layers=10,
        norms_outside=2,
        refused=(*_PROMPTS, "trainable_tokens"),
    ),
    "bart, seq2seq": Architecture(
        t.BartConfig(
            d_model=64,
            encoder_layers=1,
            decoder_layers=3,
            encoder_ffn_dim=96,
            decoder_ffn_dim=112,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            vocab_size=128,
            decoder_start_token_id=2,
        ),
        _SEQ2SEQ,
        _PLAIN,
        layers=4,
        norms_in_layers=11,
        norms_outside=2,
        sizes={"query": (64, 64), "output": (64, 64)},
        refused=_PREFIX,
    ),
    "mt5": Architecture(
        t.MT5Config(d_model=64, d_kv=24, d_ff=112, num_layers=2, num_heads=4, vocab_size=128, decoder_start_token_id=0),
        _SEQ2SEQ,
        _GATED,
        layers=4,
        norms_in_layers=10,
        norms_outside=2,
        sizes={"query": (64, 96), "output": (96, 64), "gate": (64, 112), "down": (112, 64)},
        refused=_PREFIX,
    ),
    "pegasus": Architecture(
        t.PegasusConfig(
            d_model=64,
            encoder_layers=1,
            decoder_layers=1,
            encoder_ffn_dim=112,
            decoder_ffn_dim=112,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            vocab_size=128,
            decoder_start_token_id=0,
        ),
        _SEQ2SEQ,
        _PLAIN,
        norms_in_layers=5,
        norms_outside=2,
        refused=_PREFIX,
    ),
    "qwen2": Architecture(t.Qwen2Config(**_GROUPED), _LM, _GATED, sizes={"key": (64, 32), "gate": (64, 112)}),
    "qwen3": Architecture(t.Qwen3Config(**_GROUPED, head_dim=16), _LM, _GATED, norms_in_layers=8),
    "gemma": Architecture(t.GemmaConfig(**_GROUPED, head_dim=16), _LM, _GATED),
    "gemma-2": Architecture(t.Gemma2Config(**_GROUPED, head_dim=16), _LM, _GATED, norms_in_layers=8),
    "mistral": Architecture(t.MistralConfig(**_GROUPED), _CLASSES, _GATED),
    "llama, wide heads": Architecture(
        t.LlamaConfig(**_GROUPED, head_dim=48),
        _LM,
        _GATED,
        sizes={"query": (64, 192), "key": (64, 96), "output": (192, 64)},
        refused=("adaption_prompt",),
    ),
    "cohere": Architecture(t.CohereConfig(**_GROUPED), _LM, _GATED, norms_in_layers=2),
    "starcoder-2": Architecture(t.Starcoder2Config(**_GROUPED), _LM, _PLAIN),
    "bloom": Architecture(
        t.BloomConfig(hidden_size=64, n_layer=2, n_head=4, vocab_size=128), _LM, _FUSED, norms_outside=2
    ),
    "falcon, one key": Architecture(
        t.FalconConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=128),
        _LM,
        _FUSED,
        norms_in_layers=2,
        sizes={"qkv": (64, 96)},
        refused=(*_PREFIX, "glora"),
    ),
    "mpt": Architecture(t.MptConfig(d_model=64, n_layers=2, n_heads=4, vocab_size=128), _LM, _FUSED, refused=_PREFIX),
    # The experts are no linears in transformers 5, so that only the attention can be adapted.
    "mixtral": Architecture(t.MixtralConfig(**_GROUPED, num_local_experts=2), _LM, "query key value output"),
    "qwen2-moe": Architecture(
        t.Qwen2MoeConfig(**_GROUPED, num_experts=4, moe_intermediate_size=32, shared_expert_intermediate_size=48),
        _LM,
        f"{_GATED} router",
        sizes={"gate": (64, 48), "up": (64, 48), "down": (48, 64), "router": (64, 1)},
        refused=("road", "shira", "osf", "supertuning"),
    ),
    "xlnet, no linears in attention": Architecture(
        t.XLNetConfig(d_model=64, n_layer=2, n_head=4, d_inner=112, vocab_size=128),
        _LM,
        "up down",
        norms_outside=0,
        refused=_PREFIX,
    ),
}
