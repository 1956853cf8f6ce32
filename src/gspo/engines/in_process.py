"""The in-process engine: samples from the very weights that are being trained.

A prompt is prefilled once and its keys and values serve the whole group; responses decode together,
as many as fit into memory; a finished one makes room for a waiting one; the log-probability of each
token falls out of the draw. Nothing is copied and nothing has to be synchronised.
"""

from collections import deque

import numpy as np
import torch
from torch import Tensor

from gspo.engines.base import Sampling, ends_with_stop_string, eos_ids
from gspo.engines.kv_cache import DecodeAttention, KVCache, LayerShape, PrefillAttention
from gspo.engines.sampling import sample, stream_key, uniforms
from gspo.policy.attention import LayerRules
from gspo.policy.load import Policy
from gspo.types import Prompt, Rollout


class InProcessEngine:
    """Samples from a `Policy` that runs packed.

    Args:
        policy: shared with the trainer.
        tokenizer: of the model.
        memory_gib: for keys and values; decides how many responses decode at once.
        prefill_tokens: prompts prefilled together.
    """

    def __init__(
        self, policy: Policy, tokenizer, *, memory_gib: float = 4.0, prefill_tokens: int = 4096
    ) -> None:
        self.policy = policy
        self.tokenizer = tokenizer
        self.memory_gib = memory_gib
        self.prefill_tokens = prefill_tokens
        self.version = 0
        self.eos = torch.tensor(eos_ids(policy.model, tokenizer), dtype=torch.long)
        self._shapes = _layer_shapes(policy)

    def sync(self, version: int) -> None:
        self.version = version

    @torch.no_grad()
    def generate(self, prompts: list[Prompt], sampling: Sampling) -> list[list[Rollout]]:
        self.policy.model.eval()
        batch = _Batch(self, prompts, sampling)
        while batch.advance():
            pass
        return batch.rollouts

    def plan(self, prompts: list[Prompt], sampling: Sampling) -> tuple[int, int]:
        """How many responses decode at once, and how many prompts are held for them."""
        token_bytes = sum(
            heads * (key_size + value_size) * dtype.itemsize
            for heads, key_size, value_size, dtype in self._shapes.values()
        )
        tokens = self.memory_gib * 2**30 / token_bytes
        prompt_tokens = max(len(prompt.tokens) for prompt in prompts)
        # Twice the prompts that full groups would need, so that stragglers do not hold up others.
        per_row = sampling.max_response_tokens + 2 * prompt_tokens / sampling.group_size
        rows = max(1, min(len(prompts) * sampling.group_size, int(tokens / per_row)))
        return rows, min(len(prompts), 2 * -(-rows // sampling.group_size))


def _layer_shapes(policy: Policy) -> dict[int, LayerShape]:
    """What each layer stores for a token, seen in a forward pass of one."""
    shapes: dict[int, LayerShape] = {}

    def record(q: Tensor, k: Tensor, v: Tensor, rules: LayerRules) -> Tensor:
        shapes[rules.layer] = (k.shape[1], k.shape[-1], v.shape[-1], v.dtype)
        return v.repeat_interleave(q.shape[1] // v.shape[1], 1)  # one token sees only itself

    one = torch.zeros(1, 1, dtype=torch.long, device=policy.device)
    with torch.no_grad():
        policy.packed_hidden(one, one, record)
    return shapes


class _Batch:
    """One call of `generate`: rows 0 .. live - 1 are responses being sampled."""

    def __init__(self, engine: InProcessEngine, prompts: list[Prompt], sampling: Sampling) -> None:
        self.engine = engine
        self.prompts = prompts
        self.sampling = sampling
        device = engine.policy.device
        rows, slots = engine.plan(prompts, sampling)
        self.room = [
            engine.policy.room_after(len(prompt.tokens), sampling.max_response_tokens)
            for prompt in prompts
        ]
        places = max(self.room)
        self.cache = KVCache(
            engine._shapes,
            rows=rows,
            response_tokens=places,
            slots=slots,
            prompt_tokens=max(len(prompt.tokens) for prompt in prompts),
            device=device,
        )
        self.rollouts: list[list[Rollout]] = [[None] * sampling.group_size for _ in prompts]
        self.new_prompts = deque(range(len(prompts)))
        self.waiting: deque[tuple[int, int, int]] = deque()  # (prompt, response, slot)
        self.free_slots = list(range(slots))[::-1]
        self.unfinished = [sampling.group_size] * len(prompts)
        self.prompt_lengths = torch.zeros(slots, dtype=torch.long, device=device)
        self.first_logits: dict[int, Tensor] = {}  # slot -> [V], what follows its prompt
        # Of each row, on the model's device where the model needs it:
        self.live = 0
        self.capacity = rows
        self.slot = torch.zeros(rows, dtype=torch.long, device=device)
        self.length = torch.zeros(rows, dtype=torch.long)
        self.limit = torch.zeros(rows, dtype=torch.long)
        self.tokens = torch.zeros(rows, places, dtype=torch.long)
        self.logprobs: Tensor | None = None  # as `tokens`, in the dtype of the logits
        self.keys = np.zeros(rows, dtype=np.uint64)
        self.owner: list[tuple[int, int]] = [(0, 0)] * rows

    def advance(self) -> bool:
        """One more token for every live row, and first tokens for new ones; False at the end."""
        if self.live:
            self._take(self._decode(), range(self.live))
        while self._admit():
            pass
        return self.live > 0

    def _admit(self) -> bool:
        """Fills free rows with waiting responses; False when nothing could be added."""
        room = self.capacity - self.live
        if len(self.waiting) < room:
            self._prefill(room - len(self.waiting))
        first = self.live
        while self.waiting and self.live < self.capacity:
            prompt, response, slot = self.waiting.popleft()
            row = self.live
            self.slot[row], self.length[row], self.limit[row] = slot, 0, self.room[prompt]
            self.owner[row] = (prompt, response)
            source = self.prompts[prompt]
            self.keys[row] = stream_key(self.sampling.seed, source.epoch, source.position, response)
            self.live += 1
        rows = range(first, self.live)
        if rows:
            self._take(torch.stack([self.first_logits[int(self.slot[i])] for i in rows]), rows)
        return bool(rows)

    def _prefill(self, wanted: int) -> None:
        """Computes prompts, packed, until `wanted` responses more are waiting or slots run out."""
        rows: list[list[int]] = []
        slots: list[int] = []
        used = 0
        while self.new_prompts and self.free_slots and wanted > 0:
            tokens = self.prompts[self.new_prompts[0]].tokens
            used += len(tokens)
            if rows and used > self.engine.prefill_tokens:
                break
            prompt, slot = self.new_prompts.popleft(), self.free_slots.pop()
            rows.append(tokens)
            slots.append(slot)
            self.prompt_lengths[slot] = len(tokens)
            self.waiting.extend((prompt, i, slot) for i in range(self.sampling.group_size))
            wanted -= self.sampling.group_size
        if not rows:
            return
        lengths = [len(row) for row in rows]
        policy = self.engine.policy
        hidden = policy.packed_hidden(
            torch.tensor([sum(rows, [])], device=policy.device),
            torch.cat([torch.arange(n, device=policy.device) for n in lengths])[None],
            PrefillAttention(self.cache, lengths, slots),
        )
        last = torch.tensor(lengths, device=policy.device).cumsum(0) - 1
        for slot, logits in zip(slots, policy.head.logits(hidden[0, last]), strict=True):
            self.first_logits[slot] = logits

    def _decode(self) -> Tensor:
        """Logits [live, V] that follow each row's newest token."""
        policy = self.engine.policy
        n = self.live
        place = self.length[:n] - 1
        newest = self.tokens[torch.arange(n), place].to(policy.device)
        place, slot = place.to(policy.device), self.slot[:n]
        hidden = policy.packed_hidden(
            newest[:, None],
            (self.prompt_lengths[slot] + place)[:, None],
            DecodeAttention(self.cache, slot, place, self.prompt_lengths),
        )
        return policy.head.logits(hidden[:, 0])

    def _take(self, logits: Tensor, rows: range) -> None:
        """Draws a token for each of the rows from its logits, and retires what has ended."""
        s = self.sampling
        part = slice(rows.start, rows.stop)
        u = uniforms(self.keys[part], self.length[part].numpy())
        tokens, logprobs = sample(logits, u, s.temperature, s.top_k, s.top_p)
        tokens, logprobs = tokens.cpu(), logprobs.cpu()
        if self.logprobs is None:
            self.logprobs = torch.zeros(self.tokens.shape, dtype=logprobs.dtype)
        places = torch.arange(rows.start, rows.stop), self.length[part]
        self.tokens[places], self.logprobs[places] = tokens, logprobs
        self.length[part] += 1
        stopped = torch.isin(tokens, self.engine.eos)
        full = self.length[part] == self.limit[part]
        for i in reversed(rows):  # from the end: retiring moves the last row into the gap
            at = i - rows.start
            if stopped[at] or (s.stop and self._stop_string(i)):
                self._retire(i, "stop")
            elif full[at]:
                self._retire(i, "length")

    def _stop_string(self, row: int) -> bool:
        tokens = self.tokens[row, : self.length[row]].tolist()
        return ends_with_stop_string(tokens, self.sampling.stop, self.engine.tokenizer)

    def _retire(self, row: int, finish_reason: str) -> None:
        prompt, response = self.owner[row]
        length = int(self.length[row])
        tokens = self.tokens[row, :length].tolist()
        self.rollouts[prompt][response] = Rollout(
            tokens=tokens,
            behavior_logprobs=self.logprobs[row, :length].clone(),
            finish_reason=finish_reason,
            version=self.engine.version,
            text=self.engine.tokenizer.decode(tokens, skip_special_tokens=True),
        )
        self.unfinished[prompt] -= 1
        if not self.unfinished[prompt]:
            slot = int(self.slot[row])
            del self.first_logits[slot]
            self.free_slots.append(slot)
            self.free_slots.sort(reverse=True)  # low slots first keeps the decoded part small
        self.live -= 1
        last = self.live
        if row != last:
            self.cache.move_row(last, row, int(self.length[last]))
            state_of_rows = (
                self.slot,
                self.length,
                self.limit,
                self.tokens,
                self.logprobs,
                self.keys,
            )
            for state in state_of_rows:
                state[row] = state[last]
            self.owner[row] = self.owner[last]
