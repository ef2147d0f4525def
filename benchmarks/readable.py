"""How well phonemes can be read from tokens, and how much of that is lost on speakers whom no training has seen.

    python benchmarks/readable.py CORPUS/phonemes.jsonl.gz TOKENS [--column content] [--steps 1500] [--json OUT]

A small convolutional reader of 13 frames (260 ms) learns the phoneme in the middle of each span from three quarters
of the train speakers. Where it fails on the others, the reader is to blame; where it fails more on the valid split,
the units are, which know their training speakers too well. Minutes on one core and no language model: how candidates of
unit encoders are compared. Spans lie some 60 ms late against the frames of the tokens (`--earlier`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from vivavoce.core import radix
from vivavoce.core.checkpoint import write_json
from vivavoce.recipes import label
from vivavoce.recipes.tokens import Tokens

Clip = tuple[int, np.ndarray, np.ndarray]  # speaker, symbols [T, channels], phoneme [T] (-1: none)
NONE, CROP = -1, 100


class Reader(nn.Module):
    """Symbols [B, T, channels] -> logits of phonemes [B, T, phonemes]."""

    def __init__(self, levels: list[int], phonemes: int) -> None:
        super().__init__()
        self.table = nn.Embedding(sum(levels), 160)
        nn.init.normal_(self.table.weight, std=0.3)
        self.one, self.two = nn.Conv1d(160, 192, 7, padding=3), nn.Conv1d(192, 192, 7, padding=3)
        self.out, self.drop = nn.Conv1d(192, phonemes, 1), nn.Dropout(0.2)
        self.register_buffer("base", torch.tensor([0, *levels[:-1]]).cumsum(0))

    def forward(self, x: Tensor) -> Tensor:
        y = self.table(x + self.base).sum(-2).transpose(1, 2)
        y = self.drop(torch.relu(self.one(y)))
        return self.out(y + self.drop(torch.relu(self.two(y)))).transpose(1, 2)


def clips_of(tokens: Tokens, split: str, spans: dict, column: str, levels: list[int], earlier: int) -> list[Clip]:
    """The clips of a split that have phonemes and last a second or more."""
    data, out = tokens.split(split), []
    speakers, _ = data.labels("speaker")
    for i, name in enumerate(data.clips["id"]):  # type: ignore[call-overload]
        if name not in spans or data.frames[i] < 50:
            continue
        at = slice(int(data.offsets[i]), int(data.offsets[i + 1]))
        x = (data.views[0][0] if column == "view" else getattr(data, "codes" if column == "codes" else "content"))[at]
        if column == "codes":
            symbols = x[:, : len(levels)].astype(np.int64)
        else:
            symbols = radix.unpack(torch.from_numpy(x.astype(np.int64)), levels).numpy()
        phones = np.full(len(x), NONE)
        for phone, *ends in spans[name]:
            middle = round(sum(ends) / 2 * 50) - earlier
            phones[max(0, middle - 1) : middle + 1] = phone
        out.append((int(speakers[i]), symbols, phones))
    return out


def batch(clips: list[Clip], rng: np.random.Generator, size: int = 32) -> tuple[Tensor, Tensor]:
    """Random crops: symbols [size, CROP, channels], phonemes [size, CROP]."""
    x, y = np.zeros((size, CROP, clips[0][1].shape[1]), np.int64), np.full((size, CROP), NONE)
    for row in range(size):
        _, symbols, phones = clips[rng.integers(len(clips))]
        a = int(rng.integers(0, max(1, len(phones) - CROP + 1)))
        n = min(CROP, len(phones) - a)
        x[row, :n], y[row, :n] = symbols[a : a + n], phones[a : a + n]
    return torch.from_numpy(x), torch.from_numpy(y)


@torch.no_grad()
def read(model: Reader, clips: list[Clip]) -> dict[str, float]:
    """Share of phonemes read right, cross-entropy in nats, how many they were."""
    right, nats, n = 0, 0.0, 0
    model.eval()
    for _, symbols, phones in clips[:600]:
        logits, y = model(torch.from_numpy(symbols)[None])[0], torch.from_numpy(phones)
        logits, y = logits[y != NONE], y[y != NONE]
        right, n = right + int((logits.argmax(-1) == y).sum()), n + len(y)
        nats += float(nn.functional.cross_entropy(logits, y, reduction="sum"))
    model.train()
    return {"right": right / n, "nats": nats / n, "frames": n}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("phonemes")
    p.add_argument("tokens", type=Path)
    p.add_argument("--column", default="content", choices=("content", "view", "codes"),
                   help="units, those of the first perturbed view, or the codec's first four codebooks")  # fmt: skip
    p.add_argument("--steps", type=int, default=1500)
    p.add_argument("--earlier", type=int, default=3, help="frames by which spans lie late")
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    torch.manual_seed(0)
    tokens, spans = Tokens(a.tokens), label.read_phonemes(a.phonemes)
    levels = [tokens.head["codebook_size"]] * 4
    if a.column != "codes":
        levels = tokens.head["content_levels"] or [tokens.head["content_units"]]
    train, valid = (clips_of(tokens, s, spans, a.column, levels, a.earlier) for s in ("train", "valid"))
    rng = np.random.default_rng(0)
    speakers = rng.permutation(sorted({s for s, _, _ in train}))
    apart = set(speakers[: len(speakers) // 4].tolist())
    seen, held = ([c for c in train if (c[0] in apart) is side] for side in (False, True))
    model = Reader(levels, 1 + max(q for s in spans.values() for q, *_ in s))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    for step in tqdm(range(a.steps), unit="step"):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 50) * (1 - step / a.steps)
        x, y = batch(seen, rng)
        loss = nn.functional.cross_entropy(model(x).transpose(1, 2), y, ignore_index=NONE, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    names = ("the reader's own clips", "train speakers it has not seen", "valid speakers")
    rows = {name: read(model, clips) for name, clips in zip(names, (seen, held, valid))}
    for name, row in rows.items():
        print(f"{name}: {row['right']:.3f} of {row['frames']} phonemes read right, {row['nats']:.3f} nats")
    if a.json:
        write_json(a.json, {"tokens": str(a.tokens), "column": a.column, "rows": rows})


if __name__ == "__main__":
    main()
