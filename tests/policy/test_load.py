import pytest
import torch
from transformers import AutoModel, GPT2Config

from gspo.errors import DataError, SettingError
from gspo.policy.load import Policy, load_model
from gspo.policy.probe import choose_attention
from tiny import CONFIGS, tiny_model


def test_a_model_without_a_head_is_refused_by_name():
    body = AutoModel.from_config(CONFIGS["llama"]())
    with pytest.raises(DataError, match="AutoModelForCausalLM"):
        Policy(body)


def test_sixteen_bit_models_get_float32_master_weights(caplog):
    caplog.set_level("INFO", "gspo")
    model = tiny_model(dtype=torch.bfloat16)
    Policy(model)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert "came in bfloat16 and gets float32 master weights" in caplog.text


def test_a_float64_model_stays_and_float64_can_be_asked_for():
    assert next(Policy(tiny_model(dtype=torch.float64)).model.parameters()).dtype == torch.float64
    policy = Policy(tiny_model(), dtype="float64")
    assert next(policy.model.parameters()).dtype == torch.float64


def test_dropout_is_off_by_value_even_in_train_mode():
    from transformers import AutoModelForCausalLM

    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64)  # dropout 0.1 by default
    model = AutoModelForCausalLM.from_config(config)
    choose_attention(Policy(model))
    model.train()
    x = torch.arange(10)[None]
    assert torch.equal(model(x).logits, model(x).logits)


def test_a_device_or_folder_that_is_not_there():
    with pytest.raises(SettingError, match="device 'cuda:9' cannot be used here"):
        Policy(tiny_model(), device="cuda:9")
    with pytest.raises(DataError, match="cannot load a causal language model from './nowhere'"):
        load_model("./nowhere")


def test_a_training_mode_that_cannot_be_silenced_is_not_used(caplog):
    caplog.set_level("INFO", "gspo")
    model = tiny_model()
    mlp = model.model.layers[0].mlp
    quiet = mlp.forward
    mlp.forward = lambda x: quiet(x) * (1 + mlp.training)
    policy = Policy(model)
    choose_attention(policy)
    policy.start_learning()
    assert not model.training and "learns in evaluation mode" in caplog.text


def test_weights_that_are_not_finite_are_refused():
    model = tiny_model()
    model.lm_head.weight.data[3] = torch.nan
    with pytest.raises(DataError, match="not finite"):
        choose_attention(Policy(model))


def test_release_gives_everything_back():
    model = tiny_model("gemma3").train()
    before = model.config._attn_implementation
    policy = Policy(model)
    choose_attention(policy)
    policy.checkpoint_activations()
    policy.release()
    assert model.config._attn_implementation == before and model.training
    assert not model.is_gradient_checkpointing
    assert all("forward" not in vars(module) for module in model.modules())
