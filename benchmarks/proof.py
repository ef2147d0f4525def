"""The table of the model card: test speakers of a corpus through every rung, judged by vivavoce.eval.

    python benchmarks/proof.py CORPUS OUT [--model DIR] [--clips 40] [--delay 0] [--temperature 0.5] [--threads 2]

CORPUS holds manifest.jsonl (tar shards allowed) with speakers in a `test` split that no training saw. Takes
up to --clips clips each of read speech, emotional speech, laughs, and cries and sobs, gives each a target
from the other test speakers with enough speech, and writes OUT/{rung}/*.wav, clips.csv and summary.json:

    codec      the source through the codec alone (codes as many as the language model writes)
    converted  vivavoce convert FILE --voice REF: the file's pitch register is scanned beforehand
    live       the same as a live stream, whose register is learnt on the way
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import zlib
from pathlib import Path

import torch

from vivavoce.changer import Changer, load
from vivavoce.core.audio import save
from vivavoce.engine import Settings
from vivavoce.eval.measure import Pair, measure
from vivavoce.recipes.corpus import RATE, read_clip, scan
from vivavoce.units import prosody
from vivavoce.voice import Voice

GROUPS = {
    "read speech": lambda c: c["vocalisation"] == "none" and c["source"] in ("librispeech", "speechocean762"),
    "emotional speech": lambda c: c["vocalisation"] == "none" and c["language"] == "en"
    and c["emotion"] not in ("neutral", "calm", "unknown"),
    "laughs": lambda c: c["vocalisation"] == "laugh",
    "cries and sobs": lambda c: c["vocalisation"] in ("cry", "sob"),
}
ROWS = (("per", "phonemes wrong against source"), ("sim_target", "similarity to target"),
        ("sim_source", "similarity to source"), ("margin", "target minus source"),
        ("f0_corr", "F0 correlation"), ("energy_corr", "energy correlation"),
        ("event_kept", "vocal event kept"))  # fmt: skip


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("corpus", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--model")
    p.add_argument("--clips", type=int, default=40)
    p.add_argument("--delay", type=int, default=Settings.delay)
    p.add_argument("--temperature", type=float, default=Settings.temperature)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--split", default="test")
    p.add_argument("--rungs", default="codec,converted,live")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    changer = load(a.model)
    clips = [c for c in scan(a.corpus) if c["split"] == a.split]
    chosen = choose(clips, a.clips)
    references = speakers(clips)
    rungs = a.rungs.split(",")
    for folder in ("sources", "targets", *rungs):
        (a.out / folder).mkdir(parents=True, exist_ok=True)
    voices, refs = {}, {}
    for speaker, clip in references.items():
        refs[speaker] = a.out / "targets" / f"{speaker}.wav"
        save(refs[speaker], torch.from_numpy(read_clip(a.corpus, clip)), RATE)
        voices[speaker] = changer.enroll(refs[speaker])
    pairs: dict[str, list[Pair]] = {r: [] for r in rungs}
    audio, spent = 0.0, 0.0
    for group, members in chosen.items():
        for clip in members:
            x = torch.from_numpy(read_clip(a.corpus, clip))
            source = a.out / "sources" / f"{clip['id']}.wav"
            save(source, x, RATE)
            others = [s for s in sorted(voices) if s != clip["speaker"]]
            target = others[zlib.crc32(clip["id"].encode()) % len(others)]
            for rung in rungs:
                began = time.perf_counter()
                y = run(changer, rung, x, voices[target], Settings(delay=a.delay, temperature=a.temperature))
                if rung == "converted":
                    spent, audio = spent + time.perf_counter() - began, audio + len(x) / RATE
                assert len(y) == len(x)
                path = a.out / rung / f"{clip['id']}.wav"
                save(path, y, RATE)
                fields = {"emotion": clip["emotion"], "vocalisation": clip["vocalisation"], "group": group,
                          "language": clip["language"]}  # fmt: skip
                pairs[rung].append(Pair(clip["id"], source, path, refs[target], fields))
    results = {}
    for rung in rungs:
        results[rung] = {}
        for g in chosen:
            mine = [q for q in pairs[rung] if q.fields["group"] == g]
            done = measure(mine, out=a.out / rung / g.replace(" ", "-"), progress=False)
            results[rung][g] = done.summary["overall"]
    report = {"results": results, "real_time_factor": spent / max(audio, 1e-9), "threads": a.threads,
              "cpu": platform.processor() or platform.machine(), "torch": torch.__version__,
              "n": {g: len(m) for g, m in chosen.items()}, "targets": len(voices)}  # fmt: skip
    (a.out / "proof.json").write_text(json.dumps(report, indent=2))
    text = markdown(results, list(chosen), rungs)
    (a.out / "proof.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"real-time factor {report['real_time_factor']:.3f} on {a.threads} threads, {audio:.0f} s of audio")


def markdown(results: dict, groups: list[str], rungs: list[str]) -> str:
    """The table, each number with its 95 % interval and the clips that it rests on."""
    lines = ["| measure | rung | " + " | ".join(groups) + " |", "|---|---|" + "---|" * len(groups)]
    for metric, title in ROWS:
        for rung in rungs:
            cells = []
            for g in groups:
                v = results[rung][g].get(metric) or {"n": 0}
                cells.append(f"{v['mean']:.2f} [{v['low']:.2f}, {v['high']:.2f}] n {v['n']}" if v["n"] else "-")
            lines.append(f"| {title} | {rung} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def choose(clips: list[dict], most: int) -> dict[str, list[dict]]:
    """Evenly over speakers, in a fixed order."""
    out = {}
    for name, wanted in GROUPS.items():
        hits = [c for c in clips if wanted(c) and c["duration_s"] >= 0.8]
        hits.sort(key=lambda c: zlib.crc32(c["id"].encode()))
        taken: list[dict] = []
        count: dict[str, int] = {}
        for round_ in range(most):
            for c in hits:
                if count.get(c["speaker"], 0) == round_ and c not in taken and len(taken) < most:
                    taken.append(c)
                    count[c["speaker"]] = round_ + 1
        if taken:
            out[name] = taken
    return out


def speakers(clips: list[dict]) -> dict[str, dict]:
    """One reference of 3 s or more for each test speaker of adult read or neutral speech."""
    out: dict[str, dict] = {}
    for c in sorted(clips, key=lambda c: c["id"]):
        speech = c["vocalisation"] == "none" and c["emotion"] in ("neutral", "calm", "unknown")
        adult = int(c.get("age") or 18) >= 18
        if speech and adult and c["duration_s"] >= 3.0 and c["speaker"] not in out:
            out[c["speaker"]] = c
    return out


@torch.inference_mode()
def run(changer: Changer, rung: str, x: torch.Tensor, voice: Voice, settings: Settings) -> torch.Tensor:
    if rung == "converted":
        return changer.convert(x, voice, RATE, settings)[0]
    if rung == "live":
        stream = changer.stream(voice, RATE, settings)
        return torch.cat((stream.push(x), stream.flush()))
    hop = changer.codec.config.hop
    padded = torch.nn.functional.pad(x, (0, hop - len(x) % hop + hop))
    _, _, units, codes = changer.tokenise(padded)
    f0, periodicity, level = prosody.dequantise(units)
    k = changer.lm.config.n_codebooks
    y, _ = changer.codec.decode(codes[None, :, :k], f0[None], periodicity[None], level[None])
    return y[0, hop : hop + len(x)]


if __name__ == "__main__":
    main()
