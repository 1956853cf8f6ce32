"""Checkpoints: weights, optimizer, position in the run, and the rollout batch in hand.

A checkpoint is a folder `step-NNNNNN` that is written under another name, synced and renamed, so
that one that has its name is whole. Nothing in it is pickled.
"""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, safe_open, save_file
from torch import Tensor

from gspo.policy.load import Policy, without_progress_bar
from gspo.policy.optimizer import PolicyOptimizer
from gspo.types import Group, Sample

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save_checkpoint(
    checkpoints: Path,
    policy: Policy,
    optimizer: PolicyOptimizer,
    tokenizer,
    progress: dict,
    groups: list[Group],
    keep: int,
) -> Path:
    """Writes `checkpoints/step-NNNNNN`, then removes all but the newest `keep`.

    Args:
        progress: plain values to be found again by `load_checkpoint`; `step` names the folder.
        groups: the rollout batch in hand, of which some minibatches are still to be learned.
    """
    folder = checkpoints / f"step-{progress['step']:06d}"
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    save_model(unfinished, policy, tokenizer)
    save_file(_optimizer_tensors(optimizer), unfinished / "optimizer.safetensors")
    tensors, metadata = _pack_groups(groups)
    save_file(tensors, unfinished / "rollout_batch.safetensors", metadata)
    (unfinished / "progress.json").write_text(json.dumps(progress, indent=1), encoding="utf-8")
    for path in unfinished.iterdir():
        _sync(path)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    _sync(checkpoints)
    for old in checkpoint_folders(checkpoints)[:-keep]:
        shutil.rmtree(old)
    return folder


def save_model(folder: Path, policy: Policy, tokenizer) -> None:
    """A folder that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer` load."""
    with without_progress_bar():
        policy.model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def checkpoint_folders(checkpoints: Path) -> list[Path]:
    """All whole checkpoints, oldest first."""
    return sorted(p for p in checkpoints.glob("step-*") if p.suffix != ".unfinished")


def load_checkpoint(
    folder: Path, policy: Policy, optimizer: PolicyOptimizer
) -> tuple[dict, list[Group]]:
    """Puts weights and optimizer back in place; returns the progress and the batch in hand."""
    progress = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    _load_weights(folder, policy)
    moments = load_file(folder / "optimizer.safetensors")
    state = {
        i: {name: moments[f"{key}.{name}"] for name in MOMENTS if f"{key}.{name}" in moments}
        for i, key in enumerate(optimizer.parameters)
    }
    param_groups = optimizer.adamw.state_dict()["param_groups"]
    optimizer.adamw.load_state_dict({"state": state, "param_groups": param_groups})
    optimizer.steps = progress["step"]
    return progress, _unpack_groups(folder / "rollout_batch.safetensors")


def _load_weights(folder: Path, policy: Policy) -> None:
    """Through transformers, which stores some models (experts, for one) under other names than it
    runs them with."""
    with without_progress_bar():
        saved = type(policy.model).from_pretrained(folder, dtype="auto")
    policy.model.load_state_dict(saved.state_dict())


def _optimizer_tensors(optimizer: PolicyOptimizer) -> dict[str, Tensor]:
    state = optimizer.adamw.state_dict()["state"]
    return {
        f"{key}.{name}": state[i][name].contiguous()
        for i, key in enumerate(optimizer.parameters)
        if i in state
        for name in MOMENTS
    }


def _pack_groups(groups: list[Group]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Samples as named tensors and, for what is no tensor, JSON in the file's metadata."""
    tensors: dict[str, Tensor] = {"format": torch.ones(1)}
    rows: list[list[dict]] = []
    for g, group in enumerate(groups):
        rows.append([])
        for s, sample in enumerate(group.samples):
            plain = {}
            for field in dataclasses.fields(Sample):
                value = getattr(sample, field.name)
                if isinstance(value, Tensor):
                    tensors[f"{g}.{s}.{field.name}"] = value.cpu().clone()
                else:
                    plain[field.name] = value
            rows[-1].append(plain)
    return tensors, {"samples": json.dumps(rows)}


def _unpack_groups(path: Path) -> list[Group]:
    with safe_open(path, framework="pt") as file:
        rows = json.loads(file.metadata()["samples"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    groups = [
        Group([Sample(**{"tokens": None, "response_mask": None} | row) for row in g]) for g in rows
    ]
    for name, tensor in tensors.items():
        if name != "format":
            g, s, field = name.split(".")
            setattr(groups[int(g)].samples[int(s)], field, tensor)
    return groups


def _sync(path: Path) -> None:
    """Makes sure that a file's or folder's contents have reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
