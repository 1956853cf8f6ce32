"""The command line: what it runs, what it refuses, and with which exit code."""

import json

import pytest
import yaml
from transformers import AutoModelForCausalLM

from gspo import cli
from tiny import tiny_model


@pytest.fixture
def recipe(tmp_path, tokenizer):
    """A recipe of a tiny model in a folder, with its prompts."""
    tiny_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"w{i} w{i + 1}", "answer": str(i)} for i in range(3, 9)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = dict(
        model=str(tmp_path / "model"),
        prompts=str(tmp_path / "prompts.jsonl"),
        reward="last_number",
        chat=False,
        group_size=4,
        batch_size=2,
        minibatches_per_rollout=2,
        max_response_tokens=6,
        output_dir=str(tmp_path / "run"),
        tensorboard=False,
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def run(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    return code, capsys.readouterr()


def test_a_recipe_is_trained_and_an_option_overrides_it(recipe, capsys):
    code, output = run(capsys, "train", recipe, "--learning-rate", "1e-3", "--save_steps=1")
    assert code == 0
    folder = recipe.parent / "run"
    assert str(folder / "final") in output.out
    assert yaml.safe_load((folder / "config.yaml").read_text())["learning_rate"] == 1e-3
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 3
    AutoModelForCausalLM.from_pretrained(folder / "final")


def test_resume_goes_on_in_the_same_folder(recipe, capsys):
    assert run(capsys, "train", recipe, "--max_steps", 2, "--save_steps", 1)[0] == 0
    assert run(capsys, "train", recipe, "--resume", "--save_steps", 1)[0] == 0
    lines = (recipe.parent / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


def test_a_reward_from_a_file_and_weights(recipe, capsys):
    (recipe.parent / "mine.py").write_text(
        "def short(queries, responses, answer):\n    return [-len(r) for r in responses]\n"
    )
    rewards = f"[last_number, {recipe.parent / 'mine.py'}:short]"
    code, _ = run(capsys, "train", recipe, "--reward", rewards, "--reward_weights", "[1, 0.1]")
    assert code == 0
    line = (recipe.parent / "run" / "metrics.jsonl").read_text().splitlines()[0]
    assert json.loads(line)["reward/short"] < 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--clip_rnge_left", "1e-3"], "did you mean 'clip_range_left'?"),
        (["--group_size", "many"], "group_size = 'many'"),
        (["--group_size", "1"], "group_size = 1"),
        (["--clip_range_left", "0.2"], "0.2 is GRPO's"),
        (["--kl_coef", "0.1"], "needs a reference_model"),
        (["--reward", "nonsense"], "there is no reward 'nonsense'"),
        (["--reward", "no.such.module:f"], "No module named 'no'"),
        (["--reward", "nowhere.py:f"], "there is no file 'nowhere.py'"),
        (["--reward_weights", "[1, 2]"], "2 values for 1 rewards"),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--prompt_field", "question"], "question"),
        (["--model", "./nowhere"], "./nowhere"),
        (["--device", "cuda:7"], "device 'cuda:7'"),
        (["--resume"], "no run to resume"),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_code_2(recipe, capsys, arguments, sentence):
    code, output = run(capsys, "train", recipe, *arguments)
    assert code == 2
    assert sentence in output.err
    assert len(output.err.strip().splitlines()) == 1
    assert not (recipe.parent / "run").exists()


def test_a_broken_recipe_or_command(tmp_path, capsys):
    for text in ("model: [", "- a list", ""):
        (tmp_path / "broken.yaml").write_text(text)
        code, output = run(capsys, "train", tmp_path / "broken.yaml")
        assert code == 2 and len(output.err.strip().splitlines()) == 1
    assert run(capsys, "train", tmp_path / "none.yaml")[0] == 2
    assert run(capsys, "trian", "x.yaml")[0] == 2


def test_a_prompt_that_lacks_the_field_that_the_reward_needs(recipe, capsys):
    (recipe.parent / "prompts.jsonl").write_text('{"prompt": "w3"}\n')
    code, output = run(capsys, "train", recipe)
    assert code == 2 and "'answer'" in output.err
