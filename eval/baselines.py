"""Rungs that need no converter of ours: each makes a folder of converted files from a folder of sources.

    identity   the source itself: what a measure says when nothing was lost, and nothing changed
    shuffled   another source, by a seeded derangement: what chance gives
    cascade    speech to text to speech: pocketsphinx hears, espeak-ng says it in a voice of the target's register

They are resumed, and are measured like any other folder. The cascade keeps its own timing: nothing is stretched or
cut to the source's length, so measures that go frame by frame see what it does to time as well.
"""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from vivavoce.core import audio
from vivavoce.core.checkpoint import atomic_path
from vivavoce.core.errors import AudioError, CorpusError
from vivavoce.core.resample import resample
from vivavoce.eval.judges import RATE, JudgeError, make
from vivavoce.eval.pairs import recordings

VOICES = {"low": "en-us+m3", "high": "en-us+f3"}  # espeak-ng's
SILENCE = 1e-4  # peak
REGISTER_HZ = 165.0  # median F0 between low and high


def derangement(n: int, seed: int = 0) -> np.ndarray:
    """A random permutation [n] that leaves nothing in its place (one cycle: Sattolo 1986). Raises CorpusError."""
    if n < 2:
        raise CorpusError("one clip cannot be shuffled; give two or more sources")
    rng = np.random.default_rng(seed)
    order = np.arange(n)
    for i in range(n - 1, 0, -1):
        j = int(rng.integers(i))
        order[i], order[j] = order[j], order[i]
    return order


def identity(sources: str | Path, out: str | Path) -> Path:
    """Copies of the sources. Raises CorpusError: no recordings, a folder that cannot be written."""
    files = recordings(sources)
    return _copies(files, list(files.values()), Path(out))


def shuffled(sources: str | Path, out: str | Path, seed: int = 0) -> Path:
    """Each source's name with another source's sound. Raises CorpusError: see `identity`; fewer than two."""
    files = recordings(sources)
    paths = list(files.values())
    return _copies(files, [paths[i] for i in derangement(len(paths), seed)], Path(out))


def _copies(files: dict[str, Path], sounds: list[Path], out: Path) -> Path:
    for key, sound in zip(files, sounds):
        path = out / f"{key}{sound.suffix}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temp:
                shutil.copyfile(sound, temp)
        except OSError as e:
            raise CorpusError(f"{path}: cannot be written ({e})") from None
    return out


def cascade(sources: str | Path, out: str | Path, target: str | Path | None = None,
            targets: str | Path | None = None, progress: bool = True) -> Path:  # fmt: skip
    """Speech to text to speech, English. Beside each FILE.wav stands FILE.txt, the text that was heard.

    What has no words (a laugh, a sob) mostly comes out as silence or as a stray word: that is the point. Where no word
    was heard, the clip is silence as long as the source. Files have the source's sample rate.

    Args:
        target: a recording of the target; its median F0 chooses a low or a high voice.
        targets: folder with one for each source, by the same names. Without either the voice is low.

    Raises:
        CorpusError: no recordings; a folder that cannot be written.
        JudgeError: pocketsphinx or espeak-ng is not installed.
    """
    parts = Cascade()
    voices = recordings(targets) if targets is not None else {}
    for key, path in tqdm(recordings(sources).items(), desc="cascade", unit="clip", disable=not progress):
        done = Path(out) / f"{key}.wav"
        if done.is_file():
            continue
        own = voices.get(key, Path(target) if target is not None else None)
        try:
            x, rate = audio.load(path)
            y, text = parts(x, rate, "low" if own is None else parts.register(own))
            done.parent.mkdir(parents=True, exist_ok=True)
            done.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
            audio.save(done, y, rate)
        except AudioError as e:
            tqdm.write(f"skipped: {e}")
        except OSError as e:
            raise CorpusError(f"{done}: cannot be written ({e})") from None
    return Path(out)


class Cascade:
    """The recogniser and the synthesiser. Raises JudgeError when either is not installed."""

    def __init__(self) -> None:
        try:
            from pocketsphinx import Decoder
        except ImportError as e:
            raise JudgeError(f"the cascade is not available ({e}); to have it: pip install pocketsphinx") from None
        if shutil.which("espeak-ng") is None:
            raise JudgeError("the cascade is not available (no program espeak-ng); to have it: apt install espeak-ng")
        self._decoder = Decoder(samprate=RATE, loglevel="FATAL")
        self._registers: dict[Path, str] = {}

    def __call__(self, x: torch.Tensor, rate: int, register: str = "low") -> tuple[torch.Tensor, str]:
        """Samples [n] at `rate` -> what the cascade says at `rate`, of any length, and the text in between."""
        wave = resample(x[None], rate, RATE)[0].numpy()
        text = self.hear(wave) if np.abs(wave).max(initial=0.0) > SILENCE else ""  # it hears words in zeros
        if not text:
            return torch.zeros(len(x)), ""
        said, own = self.say(text, VOICES[register])
        return resample(said[None], own, rate)[0], text

    def hear(self, wave: np.ndarray) -> str:
        """The words of a 16 kHz clip [samples]."""
        self._decoder.start_utt()
        pcm = (np.clip(wave, -1, 1) * 32767).astype("<i2").tobytes()
        self._decoder.process_raw(pcm, full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return found.hypstr.strip() if found is not None else ""

    def say(self, text: str, voice: str) -> tuple[torch.Tensor, int]:
        """espeak-ng's reading [samples] and its sample rate."""
        import soundfile

        done = subprocess.run(["espeak-ng", "-v", voice, "--stdin", "--stdout"], input=text.encode(),
                              capture_output=True, timeout=120)  # fmt: skip
        if done.returncode or not done.stdout:
            raise AudioError(f"espeak-ng cannot say {text[:40]!r} ({done.stderr.decode(errors='replace').strip()})")
        x, rate = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
        return torch.from_numpy(x), rate

    def register(self, recording: Path) -> str:
        """`low` or `high`, by the median F0 of a recording's voiced frames."""
        if recording not in self._registers:
            pitch = make("pitch")
            x, _ = audio.load(recording, RATE)
            heard = pitch.analyse(x.numpy())
            hz = heard["hz"][heard["on"]]
            self._registers[recording] = "high" if len(hz) and np.median(hz) > REGISTER_HZ else "low"
        return self._registers[recording]


BASELINES: dict[str, Callable[..., Path]] = {"identity": identity, "shuffled": shuffled, "cascade": cascade}
