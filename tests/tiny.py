"""Tiny random models of each family, made from their configs."""

import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

VOCABULARY = 64
EOS = 1
SIZES = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    bos_token_id=0,
    eos_token_id=EOS,
    pad_token_id=EOS,
    initializer_range=0.3,
)
MOE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)

CONFIGS = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=8),
    "qwen3_moe": lambda: Qwen3MoeConfig(**SIZES, head_dim=8, **MOE),
    "gemma3": lambda: Gemma3TextConfig(
        **SIZES,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "gemma2": lambda: Gemma2Config(
        **SIZES,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=5,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=4.0,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "mistral": lambda: MistralConfig(**SIZES, head_dim=8, sliding_window=5),
    "gpt_oss": lambda: GptOssConfig(
        **SIZES,
        head_dim=8,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention"],
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "granite": lambda: GraniteConfig(**SIZES, logits_scaling=2.0),
    "cohere": lambda: CohereConfig(**SIZES, logit_scale=0.5),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=EOS,
    ),
    "mamba": lambda: MambaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        state_size=4,
        bos_token_id=0,
        eos_token_id=EOS,
        pad_token_id=EOS,
        initializer_range=0.3,
    ),
}


def tiny_model(family: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **kwargs):
    """A model of the family with random weights, the same for the same seed."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[family](), **kwargs).to(dtype)
    return model.eval()


def staying_in_float64(model):
    """transformers' RMSNorm computes in float32 whatever the model's dtype; torch's own does not.

    With the cast, the gradient of a shared prompt token is rounded once, and that of its G copies
    in the plain computation G times: they agree to 1e-7 and no better.
    """
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if type(module).__name__ in ("LlamaRMSNorm", "Qwen3RMSNorm"):
                norm = torch.nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon)
                norm.weight = module.weight
                setattr(parent, name, norm)
    return model
