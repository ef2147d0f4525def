"""The front door: load a model, enrol voices, convert, open streams."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import fields, replace
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vivavoce.codec import VoiceCodec, load_codec
from vivavoce.core import int8
from vivavoce.core.audio import BLOCK_SECONDS, mono_blocks, open_audio
from vivavoce.core.checkpoint import FORMAT_VERSION, read_json, resolve_folder
from vivavoce.core.errors import AudioError, CheckpointError, ConfigError, VivavoceError
from vivavoce.core.resample import resample
from vivavoce.core.traced import TOGETHER, eager
from vivavoce.engine import Engine, Settings
from vivavoce.fit import fit, say_all, scale_of
from vivavoce.guidance import Way, look, steerable, strangers
from vivavoce.lm import Source, VoiceLM
from vivavoce.stream import Stream, limit
from vivavoce.units import HubertUnits, UnitEncoder, load_units, prosody
from vivavoce.units.model import Units
from vivavoce.units.speaking import Speaking
from vivavoce.voice import Voice

MIN_SECONDS, MAX_SECONDS = 1.0, 30.0  # of a reference recording; what is beyond is left unread
PROMPT_FRAMES = 150  # unit frames at most; 3 s, as in training
SCAN_SECONDS = 60.0  # of a file, for its pitch register
MUTE = 0.1  # semitones: a register that is no further from the target's own was told by nobody, or need not be told


def load(model: str | Path | None = None, precision: str = "int8", threads: int | None = 1) -> Changer:
    """Load the embedded default, a model folder, or a hub id, on the CPU.

    Args:
        precision: of the linear layers in streams and conversion: "int8" (about 1.6 times as fast, see
            docs/decisions.md) or "float32". Enrolling always runs in float32.
        threads: 1; or 2, of which one hears the next frame while the other speaks: the same bits, sooner where there
            are several frames to a push. Torch's own threads are set to as many for the whole process, less that one:
            one frame's matrices are too small to share, and where other programs want the cores, threads that wait
            for one another can be thirty times slower. None: one, and torch's as they are.

    Raises:
        CheckpointError: a missing or foreign file, named.
        ConfigError: another precision.
    """
    if threads is not None:
        torch.set_num_threads(max(1, threads - 1))
    changer = Changer.from_pretrained(model, precision)
    if (threads or 1) > 1:
        changer.beside = ThreadPoolExecutor(1, "vivavoce-hears", torch.set_num_threads, (1,))
    return changer


class Changer:
    """A voice changer: three models and the voices that came with them."""

    def __init__(self, codec: VoiceCodec, units: UnitEncoder | HubertUnits, lm: VoiceLM, tokeniser: str,
                 voices: dict[str, Voice] | None = None, precision: str = "float32") -> None:  # fmt: skip
        if precision not in ("int8", "float32"):
            raise ConfigError(f"precision {precision!r}: use int8 or float32")
        self.codec, self.units, self.lm = codec.eval(), units.eval(), lm.eval()
        quick = precision == "int8" and int8.available()
        live = int8.int8 if quick else (lambda module: module)
        self._live_codec, self._live_units, self._live_lm = live(self.codec), live(self.units), live(self.lm)
        self.tokeniser, self.lm_fingerprint = tokeniser, ""  # of codec and units; of the language model
        self.voices = voices or {}
        self.crowd: Voice | None = None  # frames of many speakers: strangers, for guidance
        self.speaking: Speaking | None = None  # tells speech from other sounds, for the register
        self.beside: Executor | None = None  # where the next frame is heard while one is spoken

    @classmethod
    def from_pretrained(cls, model: str | Path | None = None, precision: str = "int8") -> Changer:
        """See `load`."""
        folder = model_folder(model)
        head = read_json(folder / "config.json")
        if not isinstance(head, dict) or head.get("model_type") != "vivavoce":
            raise CheckpointError(f"{folder}: not a vivavoce model folder (config.json says otherwise)")
        if head.get("format_version") != FORMAT_VERSION:
            raise CheckpointError(
                f"{folder}: format version {head.get('format_version')}, this release reads {FORMAT_VERSION}"
            )
        codec = load_codec(folder / "codec")
        units = load_units(folder / "units")
        lm = VoiceLM.from_pretrained(folder / "lm")
        c, u, m = codec.config, units.config, lm.config
        grid = {(head.get("sample_rate"), head.get("hop")), codec.hears, (u.sample_rate, u.hop)}
        heard = all(getattr(u, k) == getattr(m, k) for k in ("content_units", "content_levels", "expression_levels"))
        if len(grid) > 1 or not heard or m.n_codebooks > c.n_codebooks or m.codebook_size != c.codebook_size:
            raise CheckpointError(f"{folder}: codec, units and lm do not belong together; fetch the folder anew")
        changer = cls(codec, units, lm, fingerprint(folder), precision=precision)
        changer.lm_fingerprint = fingerprint(folder, ("lm",))
        for path in sorted((folder / "voices").glob("*.voice")):
            voice = Voice.load(path)
            changer.voices[voice.name] = voice
        if (folder / "crowd.voice").is_file():
            changer.crowd = changer.voice(Voice.load(folder / "crowd.voice"))
        if (folder / "speaking").is_dir():
            changer.speaking = Speaking.from_pretrained(folder / "speaking")
            if changer.speaking.config.units != fingerprint(folder, ("units",)):
                raise CheckpointError(f"{folder}: speaking/ is of other units; fit it with vivavoce.recipes.speaking")
        return changer

    def voice(self, name: str | Path | Voice) -> Voice:
        """A voice by embedded name, `.voice` file or recording.

        Raises:
            VivavoceError: an unknown name (with the near ones), or a voice of another model.
        """
        if isinstance(name, Voice):
            found = name
        elif str(name) in self.voices:
            found = self.voices[str(name)]
        elif str(name).endswith(".voice"):
            found = Voice.load(name)
        elif Path(name).exists() or Path(name).suffix:
            return self.enroll(name)
        else:
            near = difflib.get_close_matches(str(name), self.voices, n=3, cutoff=0.3)
            there = f"there are: {', '.join(self.voices) or 'none'}."
            hint = f"did you mean {', '.join(near)}?" if near else there
            raise VivavoceError(f"unknown voice {str(name)!r}; {hint} A recording or .voice file will do, too.")
        if found.tokeniser != self.tokeniser:
            raise CheckpointError(f"voice {found.name!r} is of another model; enrol its recording again")
        self._check(found)
        return found if found.fitted == self.lm_fingerprint else found.unfitted()

    def _check(self, voice: Voice) -> None:
        """Raise CheckpointError if a voice's prompt has shapes or values that the model cannot look up."""
        c, levels = self.lm.config, torch.tensor(self.lm.config.expression_levels)
        p, k = (*voice.codes.shape, 0, 0)[:2]
        d = self.codec.config.code_dim if steerable(self.codec, self.lm) else 0  # type: ignore[union-attr]
        fits = not d or all(x is None or (x.shape == (d + 1, d) and bool(torch.isfinite(x).all()))
                            for x in (voice.fit, voice.strangers))  # fmt: skip
        shapes = [tuple(t.shape) for t in (voice.content, voice.expression, voice.prosody, voice.codes)]
        shapely = shapes == [(p,), (p, len(levels)), (p, 3), (p, k)]
        if not (shapely and fits and p and k >= c.n_codebooks and _within(voice.content, c.content_units)
                and _within(voice.expression, levels) and _within(voice.codes, c.codebook_size)):  # fmt: skip
            raise CheckpointError(f"voice {voice.name!r} is damaged; enrol its recording again")

    @torch.inference_mode()
    def tokenise(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """16 kHz mono samples [n] -> content [T], expression [T, channels], prosody [T, 3], codes [T, K].

        T counts the codec's frames; each has the units of the frame that covers it.
        """
        hop, ahead = self.units.config.hop, self.units.config.lookahead
        frames = -(-len(x) // hop)
        padded = torch.nn.functional.pad(x, (0, (frames + ahead) * hop - len(x)))[None]
        heard, _ = self.units(padded)
        (codes, level), _ = self.codec.encode(padded[:, : frames * hop])
        units = prosody.quantise(heard.f0[:, ahead:], heard.periodicity[:, ahead:], level)
        at = self.codec.grid.unit(torch.arange(codes.shape[1]))
        return heard.content[0, ahead:][at], heard.expression[0, ahead:][at], units[0][at], codes[0]

    def enroll(self, recording: str | Path | Tensor, rate: int | None = None, name: str | None = None,
               licence: str = "", consent: str = "", note: str = "") -> Voice:  # fmt: skip
        """Make a voice of 3 to 10 s of clean speech (a file, or samples [n] and their rate in Hz).

        Raises:
            AudioError: unreadable, shorter than 1 s, or silent.
        """
        inner, codes_of = self.units.config.sample_rate, self.codec.grid.codes
        if isinstance(recording, Tensor):
            if rate is None:
                raise AudioError("enroll: samples need their rate in Hz")
            x, label = resample(recording[None].float(), rate, inner)[0], name or "voice"
        else:
            rate, label = self._rate(recording), str(recording)
            x = resample(_first(mono_blocks(recording), round(MAX_SECONDS * rate))[None], rate, inner)[0]
        if not bool(torch.isfinite(x).all()):
            raise AudioError(f"{label}: NaN or infinite samples")
        if len(x) < MIN_SECONDS * inner:
            raise AudioError(f"{label}: {len(x) / inner:.2f} s is too short for a voice; give 3 to 10 s of speech")
        x = x[: round(MAX_SECONDS * inner)]
        content, expression, units, codes = self.tokenise(x)
        f0, periodicity, level = prosody.dequantise(units)
        heard = level > max(float(level.max()) - 35.0, -58.0)
        if int(heard.sum()) < codes_of(25):
            raise AudioError(f"{label}: silent (or nearly); give 3 to 10 s of speech")
        found = None
        if steerable(self.codec, self.lm):
            source = Source(*(t[None] for t in (content, expression, f0, periodicity, level)))
            found = fit(self.codec, self.lm, source, codes[None], self._own(x)[0])  # type: ignore[arg-type]
        keep = torch.nn.functional.max_pool1d(heard[None].float(), 11, 1, 5)[0] > 0
        content, expression, units, codes = (t[keep] for t in (content, expression, units, codes))
        best = _loudest(level[keep], codes_of(PROMPT_FRAMES))
        voice = Voice(name or Path(label).stem, content[best], expression[best], units[best], codes[best],
                      prosody.mean_register(f0, periodicity), self.tokeniser, licence, consent, note, found,
                      None, self.lm_fingerprint)  # fmt: skip
        return replace(voice, strangers=self._strangers(voice))

    def _strangers(self, voice: Voice) -> Tensor | None:
        """See vivavoce.guidance."""
        if self.crowd is None or not steerable(self.codec, self.lm):
            return None
        crowd, prompt = self.crowd.source(), (voice.source(), voice.codes[None].long())
        moved = crowd._replace(f0=crowd.f0 * (voice.register / self.crowd.register))
        return strangers(self.codec, self.lm, prompt, moved, self.crowd.codes[None].long())  # type: ignore[arg-type]

    @torch.inference_mode()
    def preview(self, voice: str | Path | Voice) -> tuple[Tensor, int]:
        """How a voice sounds: its prompt through the codec, samples [n] and their rate in Hz."""
        found = self.voice(voice)
        s = found.source()
        y, _ = self.codec.decode(found.codes[None].long(), s.f0, s.periodicity, s.level)
        return limit(y[0, self.codec.late * self.codec.config.hop :]), self.codec.config.sample_rate

    def stream(self, voice: str | Path | Voice, rate: int = 16000, settings: Settings | None = None, *,
               chunk: float | None = None, step: int | None = None, context: float | None = None,
               way: Way | None = None, **options: Any) -> Stream:  # fmt: skip
        """Open a live conversion; many streams may share one changer.

        Args:
            rate: Hz, of the samples pushed and returned.
            chunk: seconds that will be pushed at a time. Any other push does as well: `stream.latency` and `step` ask.
            step: frames of 20 ms that are computed at once, 1 to 8: more are quicker, and wait for one another. Any
                chunks give the same bits; another step gives the same but for the rounding of int8. By default as
                many as divide the chunk, so that none waits; one where no chunk is named, or where the model cannot
                (EnCodec, HuBERT, an autoregressive language model).
            context: seconds of the recent past that the language model attends to, beside the voice prompt; by
                default all that the model has. See `Settings.context`.
            way: what is known of the source's own voice beforehand (vivavoce.guidance); else a stream takes it for a
                stranger's and learns it.
            options: any field of `Settings`, such as `delay=2` or `seed=1`.

        Raises:
            VivavoceError: an unknown voice, or a setting that is out of range or beyond this model.
        """
        unknown = set(options) - {f.name for f in fields(Settings)}
        if unknown:
            raise ConfigError(f"stream: no setting {', '.join(sorted(unknown))}; see Settings")
        if chunk is not None and not 0 < chunk <= 600:
            raise ConfigError(f"chunk {chunk} s is out of range; give 0.001 to 600")
        frame, most = self.codec.config.hop / self.codec.config.sample_rate, self.lm.config.context
        if context is not None:
            if not frame <= context <= most * frame + 1e-9:
                raise ConfigError(f"context {context} s: this model takes {frame} to {most * frame:g} s")
            options["context"] = round(context / frame)
        if step is not None and not 1 <= step <= TOGETHER:
            raise ConfigError(f"step {step} is out of range; give 1 to {TOGETHER}")
        settings = replace(settings or Settings(), **options)
        self._check_settings(settings)
        step = step or self.step_of(chunk)
        parts = self._live_codec, self._live_units, self._live_lm
        engine = Engine(*parts, self.voice(voice), settings, self.crowd, way, self.beside, self.speaking, step)
        return Stream(engine, rate, chunk, self.voice)

    def step_of(self, chunk: float | None) -> int:
        """Frames that a stream computes at once by default, if it is pushed `chunk` seconds at a time: as many, up to
        `TOGETHER`, as divide the chunk. They cost little more than one, and nothing waits for them."""
        c = self.units.config
        frames = Fraction(chunk or 0.0).limit_denominator(48000) * c.sample_rate / c.hop
        return max((n for n in range(1, TOGETHER + 1) if frames and not frames % n), default=1)

    def _check_settings(self, settings: Settings) -> None:
        """Raise ConfigError for what is beyond this model."""
        most, context = self.lm.config.max_delay, self.lm.config.context
        if (settings.delay or 0) > most:
            raise ConfigError(f"delay {settings.delay}: this model takes 0 to {most}")
        if (settings.context or 1) > context:
            raise ConfigError(f"context {settings.context} frames: this model has {context}")

    def scan_register(self, path: str | Path, home: float = prosody.DEFAULT_REGISTER) -> float:
        """Pitch register in Hz of a recording's first minute; `home`: of the voice that it is to be (see
        units.prosody.speaking_register)."""
        return self._register_of(mono_blocks(path), self._rate(path), home)

    @torch.inference_mode()
    def _scan(
        self, blocks: Iterator[Tensor], rate: int, voice: Voice, settings: Settings
    ) -> tuple[Settings, Way | None]:
        """Hear a source's first minute: `settings` with its register and a delay, and its voice as against `voice`.

        Of who said nothing yet, and may later, the register is left to be learnt on the way.
        """
        self._check_settings(settings)
        c, x = self.units.config, _first(blocks, most := round(SCAN_SECONDS * rate))
        leads = steerable(self.codec, self.lm) and settings.guidance + settings.keep > 0
        y = resample(x[None], rate, c.sample_rate)[0]
        content, expression, f0, periodicity = self._heard(y, leads or self.speaking is not None)
        register = self.register(content, f0, periodicity, voice.register)
        mute = len(x) == most and 12.0 * abs(math.log2(register / voice.register)) < MUTE
        settings = replace(settings, source_register=None if mute else register).unhurried(self.lm)
        if not leads or not len(y):
            return settings, None
        codec: Any = self.codec
        own, level = self._own(y[: round(MAX_SECONDS * c.sample_rate)])
        n = own.shape[1]
        f0, periodicity, level = prosody.rounded(f0[None, :n], periodicity[None, :n], level)
        f0 = f0 * 2.0 ** (math.log2(voice.register / register) + settings.transpose / 12.0)
        source, prompt = Source(content[None, :n], expression[None, :n], f0, periodicity, level), voice.source()
        said = say_all(codec, self.lm, (prompt, voice.codes[None].long()), source, settings.delay or 0)
        return settings, look(said[0], own[0], periodicity[0], scale_of(codec), voice.strangers)

    @torch.inference_mode()
    def _own(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What a steerable codec hears of 16 kHz samples [n]: vectors [1, T, d], level in dB [1, T]."""
        codec: Any = self.codec
        frames, _ = codec.framing(torch.nn.functional.pad(x, (0, -len(x) % codec.config.hop))[None])
        return codec.hear(frames)[0]

    @torch.inference_mode()
    def _heard(self, x: Tensor, units: bool = True) -> Units:
        """Units of 16 kHz samples [n], [T, ...] each; without `units`, pitch alone is true."""
        hop, ahead, state = self.units.config.hop, self.units.config.lookahead, None
        y = torch.nn.functional.pad(x[None], (0, -len(x) % hop + ahead * hop))
        pieces = []
        with eager():  # the last piece may be as short as a stream's step
            for piece in y.split(100 * hop, dim=1):  # the tracker's spectra of a whole minute would fill 200 MB
                found, state = (self.units if units else self.units.pitch)(piece, state)
                pieces.append(found if units else (torch.zeros_like(found[0], dtype=torch.int64),) * 2 + found)
        return Units(*(torch.cat(part, dim=1)[0, ahead:] for part in zip(*pieces)))

    def _register_of(self, blocks: Iterator[Tensor], rate: int, home: float = prosody.DEFAULT_REGISTER) -> float:
        x = resample(_first(blocks, round(SCAN_SECONDS * rate))[None], rate, self.units.config.sample_rate)[0]
        heard = self._heard(x, self.speaking is not None)
        return self.register(heard.content, heard.f0, heard.periodicity, home)

    def register(self, content: Tensor, f0: Tensor, periodicity: Tensor,
                 home: float = prosody.DEFAULT_REGISTER) -> float:  # fmt: skip
        """Speaking register in Hz, of a stretch's units [T] each (see units.prosody.speaking_register)."""
        odds = torch.ones_like(periodicity)
        if self.speaking is not None:
            odds = self.speaking(content[None], periodicity[None])[0][0]
        return prosody.speaking_register(f0, periodicity, odds > 0, home)

    @staticmethod
    def _rate(path: str | Path) -> int:
        with open_audio(path) as f:
            return int(f.samplerate)

    def open(self, path: str | Path, voice: str | Path | Voice, settings: Settings | None = None,
             scan: bool = True, chunk: float | None = None) -> Stream:  # fmt: skip
        """A stream for a file, at its rate; see `convert_blocks`. `chunk`: for one that is pushed so many seconds at a
        time, as they come; else it computes as many frames at once as a step takes."""
        settings, found, rate = settings or Settings(), self.voice(voice), self._rate(path)
        way = None
        if settings.source_register is None and scan:
            settings, way = self._scan(mono_blocks(path), rate, found, settings)
        return self.stream(found, rate, settings, way=way, chunk=chunk, step=None if chunk else TOGETHER)

    def convert_blocks(self, path: str | Path, voice: str | Path | Voice, settings: Settings | None = None,
                       seconds: float = BLOCK_SECONDS, scan: bool = True) -> Iterator[Tensor]:  # fmt: skip
        """Convert a file of any length in constant memory: yields mono blocks at the file's own rate.

        Args:
            seconds: of audio pushed at a time; the result is the same with any.
            scan: where no `source_register` is given, hear the file's first minute for it beforehand, and the first
                half of that for the source's voice.
        """
        stream = self.open(path, voice, settings, scan)
        for block in mono_blocks(path, seconds):
            yield stream.push(block)
        yield stream.flush()

    def convert(self, source: str | Path | Tensor, voice: str | Path | Voice, rate: int | None = None,
                settings: Settings | None = None) -> tuple[Tensor, int]:  # fmt: skip
        """Convert a file, or mono samples [n] at `rate` Hz.

        Returns:
            samples [n], as many as went in, and their rate: the source's.

        Raises:
            AudioError: unreadable audio, or a voice that cannot be enrolled.
        """
        if not isinstance(source, Tensor):
            return torch.cat(list(self.convert_blocks(source, voice, settings))), self._rate(source)
        if rate is None:
            raise AudioError("convert: samples need their rate in Hz")
        if source.ndim != 1 or len(source) == 0:
            raise AudioError(f"convert takes mono samples of shape [n], n > 0, got {tuple(source.shape)}")
        settings, found, way = settings or Settings(), self.voice(voice), None
        if settings.source_register is None and bool(torch.isfinite(source).all()):
            settings, way = self._scan(iter([source.float()]), rate, found, settings)
        stream = self.stream(found, rate, settings, way=way, step=TOGETHER)
        return torch.cat((stream.push(source), stream.flush())), rate


def model_folder(model: str | Path | None = None) -> Path:
    """Where a model lies: the embedded default, a folder, or a hub id (which is fetched).

    Raises:
        CheckpointError: neither a folder nor a reachable hub id, or no model in it.
    """
    folder = Path(str(resources.files("vivavoce.pretrained"))) if model is None else resolve_folder(model)
    if not (folder / "config.json").is_file():
        what = "this installation holds no embedded model" if model is None else f"{folder}: not a model folder"
        raise CheckpointError(f"{what} (config.json is missing); name one, such as runs/default/model")
    return folder


def fingerprint(folder: str | Path, parts: tuple[str, ...] = ("codec", "units")) -> str:
    """What decides whether a voice is a model's: a hash of the codec's and the units' weights; and what decides whether
    its fit is: of the language model's."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update((Path(folder) / part / "model.safetensors").read_bytes())
    return digest.hexdigest()[:16]


def _loudest(level: Tensor, frames: int) -> slice:
    """The stretch of `frames` frames with the most energy."""
    if len(level) <= frames:
        return slice(0, len(level))
    total = (10.0 ** (level / 20.0)).cumsum(0)
    start = int((total[frames:] - total[:-frames]).argmax())
    return slice(start, start + frames)


def _first(blocks: Iterator[Tensor], n: int) -> Tensor:
    """The first n samples of a recording, or all; no more blocks are read than it takes."""
    x: list[Tensor] = []
    for block in blocks:
        x.append(block)
        if sum(map(len, x)) >= n:
            break
    return torch.cat(x)[:n]


def _within(index: Tensor, size: int | Tensor) -> bool:
    return bool(((index >= 0) & (index < size)).all())
