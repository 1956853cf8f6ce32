import pytest

from gspo.config import GSPOConfig, Recipe
from gspo.errors import SettingError

ORIGINAL_README = dict(
    clip_range_left=3e-4,
    clip_range_right=4e-4,
    group_size=8,
    learning_rate=1e-5,
    num_epochs=1,
    batch_size=1,
    gradient_accumulation_steps=1,
    max_grad_norm=1.0,
    use_token_level=False,
    normalize_advantages=True,
    advantage_eps=1e-8,
    output_dir="./gspo_outputs",
    logging_steps=10,
    save_steps=1000,
)


def test_the_original_fields_and_defaults():
    config = GSPOConfig()
    assert {key: getattr(config, key) for key in ORIGINAL_README} == ORIGINAL_README
    assert GSPOConfig(**ORIGINAL_README) == config


def test_every_setting_has_a_sentence_and_there_are_about_sixty():
    for name, field in Recipe.model_fields.items():
        assert field.description, name
    assert len(Recipe.model_fields) <= 65


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(clip_range_lft=1e-3), "no setting 'clip_range_lft'; did you mean 'clip_range_left'"),
        (dict(group_size="many"), "group_size = 'many': input should be a valid integer"),
        (dict(group_size=0), "group_size = 0"),
        (dict(clip_range_left=-1e-3), "clip_range_left = -0.001"),
        (dict(clip_range_right=float("nan")), "clip_range_right = nan"),
        (dict(clip_range_left=0.2), "0.2 is GRPO's"),
        (dict(top_p=0.9), "allow_truncated_sampling"),
        (dict(warmup_steps=5, max_steps=5), "leaves nothing"),
        (dict(stop=[""]), "empty stop string"),
        (dict(temperature=0), "temperature = 0"),
        (dict(old_logprobs="never"), "'auto', 'recompute' or 'behavior'"),
    ],
)
def test_what_cannot_work_is_one_sentence(settings, sentence):
    with pytest.raises(SettingError, match=sentence) as raised:
        GSPOConfig(**settings)
    assert "\n" not in str(raised.value)


def test_what_is_asked_for_by_name_is_allowed():
    assert GSPOConfig(clip_range_right=0.2, allow_wide_band=True).clip_range_right == 0.2
    assert GSPOConfig(top_p=0.9, allow_truncated_sampling=True).top_p == 0.9


def test_yaml_numbers_that_are_text_and_a_single_stop_string():
    assert GSPOConfig(clip_range_left="3e-4", stop="\n").stop == ["\n"]


def test_a_missing_key_of_a_recipe():
    with pytest.raises(SettingError, match="'prompts' is missing"):
        Recipe(model="m", reward="last_number")


def test_assignment_is_checked_like_construction():
    config = GSPOConfig()
    config.group_size = 4
    assert config.group_size == 4
    with pytest.raises(SettingError, match="group_size = 0"):
        config.group_size = 0
    with pytest.raises(SettingError, match="did you mean 'group_size'"):
        config.group_sise = 4
    with pytest.raises(SettingError, match="0.2 is GRPO's"):
        config.clip_range_left = 0.2
    assert config.clip_range_left == 3e-4
