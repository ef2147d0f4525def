"""Train the unit encoder: a teacher's content labels, expression by reconstruction, pitch by distillation.

The trunk sees a speaker-perturbed spectrum. Content: a small product code (FSQ) from which the teacher's frame
labels are guessed, so that it holds what is known of them, doubts included; a head on the trunk itself guesses
them too, which trains the trunk faster. Without `content_levels` the unit is the likeliest label. Where spans of
phonemes are given, these are guessed as well: they know no speaker.
Expression: whatever else a small decoder needs to rebuild the *unperturbed* spectrum, given content,
pitch, level and a summary of the speaker from elsewhere in the clip; the perturbation and a few levels
keep the speaker out of it. Pitch: the offline tracker's F0 and confidence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.core.errors import ConfigError, CorpusError
from vivavoce.core.layers import ConvNeXtStack
from vivavoce.recipes import label
from vivavoce.recipes.corpus import NO_LABEL, Pack, check_grid
from vivavoce.recipes.data import VOICED, Crops, collate, faster, random_gain
from vivavoce.recipes.perturb import perturb, spec_mask
from vivavoce.recipes.trainer import TrainConfig, fit, take_over
from vivavoce.units import UnitEncoder, UnitsConfig
from vivavoce.units.pitch import BINS, decode_pitch, encode_pitch


@dataclass
class UnitsRecipe:
    """`vivavoce train units` reads this."""

    pack: str
    train: TrainConfig
    model: UnitsConfig = field(default_factory=UnitsConfig)
    batch_size: int = 16
    crop_frames: int = 100
    boost: dict = field(default_factory=dict)
    phonemes: str | None = None  # JSONL (.gz) of {"id", "phonemes", "spans"}, see recipes.label
    spans_earlier: int = 0  # frames by which the spans lie late against the teacher
    phoneme_weight: float = 1.0
    warp: float = 0.17  # speaker perturbation: formants by up to this factor
    eq_db: float = 5.0
    pitch_warp: float = 0.4  # harmonics by up to a factor of exp(pitch_warp), formants stay
    noise_probability: float = 0.3  # added noise (white, or another crop), 5 to 35 dB below the speech
    speed: int = 3  # played up to this many twentieths faster or slower
    mask_bands: int = 10  # mel bins, and half hops, that a mask hides at most
    mask_steps: int = 10
    dropout: float = 0.1  # of the trunk's features
    teacher_units: int = 500  # classes of the teacher's labels
    expression_weight: float = 1.0
    pitch_weight: float = 1.0  # 0: the pitch tracker stays as it is
    valid_clips: int = 48
    start_from: str | None = None  # folder of a trained encoder to go on from; parts of another shape start anew
    only_pitch: bool = False  # train the pitch tracker alone and leave the units as they are


class UnitsTrainer(nn.Module):
    """The encoder and the helpers that training needs and the export leaves behind."""

    def __init__(self, config: UnitsConfig, teacher_units: int, phonemes: int = 0) -> None:
        super().__init__()
        self.encoder = UnitEncoder(config)
        self.speaker = ConvNeXtStack(config.n_mels, 96, 2)
        if config.content_levels:
            n = len(config.content_levels)
            self.content: nn.Module = nn.Linear(n, 128)
            self.guess = nn.Sequential(nn.Linear(n, 384), nn.GELU(), nn.Linear(384, teacher_units))
            self.direct = nn.Linear(config.dim, teacher_units)
            if phonemes:
                self.spell = nn.Sequential(nn.Conv1d(n, 256, 7, padding=3), nn.GELU(), nn.Conv1d(256, phonemes, 1))
                self.direct_spell = nn.Linear(config.dim, phonemes)
        else:
            self.content = nn.Embedding(config.content_units, 128)
        self.rebuild = ConvNeXtStack(128 + len(config.expression_levels) + 3 + 96, 192, 3, kernel_size=3)
        self.out = nn.Linear(192, config.n_mels)

    def pitch_losses(self, wave: Tensor, f0: Tensor, periodicity: Tensor) -> dict[str, Tensor]:
        """Pitch and voicing losses against the offline tracker, and how often the two part."""
        enc, d = self.encoder, self.encoder.config.lookahead
        pitch = enc.pitch.logits(wave)[0][:, d:].float()
        f0, voiced = f0[:, :-d], periodicity[:, :-d]
        nll = -(encode_pitch(f0) * F.log_softmax(pitch[..., :BINS], -1)).sum(-1)
        loss = (nll * voiced).sum() / voiced.sum().clamp_min(1.0)
        voicing = F.binary_cross_entropy_with_logits(pitch[..., BINS], voiced)
        with torch.no_grad():
            both = voiced > VOICED
            cents = 1200 * torch.log2(decode_pitch(pitch[..., :BINS]) / f0)[both].abs()
            agree = ((pitch[..., BINS] > 0) == both).float().mean()
        return {"pitch": loss, "voicing": voicing, "gross_pitch": (cents > 50).float().mean(),
                "octave_pitch": (cents > 600).float().mean(), "voicing_hit": agree}  # fmt: skip

    def forward(self, wave: Tensor, clean: Tensor, f0: Tensor, periodicity: Tensor, teacher: Tensor,
                phoneme: Tensor | None = None, warp: float = 0.0, eq_db: float = 0.0, pitch_warp: float = 0.0,
                masks: tuple[int, int] = (0, 0), dropout: float = 0.0, only_pitch: bool = False,
                with_pitch: bool = True) -> dict[str, Tensor]:  # fmt: skip
        """`wave` may be noisy; `clean` is what expression must rebuild. Returns losses and accuracies."""
        if only_pitch:
            return self.pitch_losses(wave, f0, periodicity)
        enc, d = self.encoder, self.encoder.config.lookahead
        mel, _ = enc.spectra(wave)
        target, _ = enc.spectra(clean)
        target = target[:, 1::2]
        heard = perturb(mel, warp, eq_db, pitch=pitch_warp) if warp else mel
        h, _ = enc.features(spec_mask(heard, *masks) if any(masks) else heard)
        h = F.dropout(h[:, d:], dropout)
        label = teacher[:, :-d]
        logits, spelling = enc.content_head(h), {}
        if enc.config.content_levels:
            code, _ = enc.content_fsq(logits)
            logits = self.guess(code)
            direct = _guessed(self.direct(h), label)
            content = self.content(code.detach())
            if phoneme is not None:
                spelling = self._spelling(code, h, phoneme[:, :-d])
        else:
            direct = h.sum() * 0
            content = self.content(logits.argmax(-1))
        ce = _guessed(logits, label)
        values, _ = enc.fsq(enc.expression_head(h))
        level = clean.unfold(1, 320, 320).square().mean(-1).clamp_min(1e-8).log10()[:, :-d] / 4 + 1
        octaves = torch.log2(f0.clamp(30, 2000) / 200)[:, :-d] * periodicity[:, :-d]
        who = self.speaker(target.roll(target.shape[1] // 2, 1))[0].mean(1, keepdim=True)
        who = who.expand(-1, values.shape[1], -1)
        prosody = torch.stack((octaves, periodicity[:, :-d], level), -1)
        mask = (level > 0.05)[..., None].float()  # silence has nothing to rebuild

        def rebuilt(v: Tensor) -> Tensor:
            y, _ = self.rebuild(torch.cat((content, v, prosody, who), -1))
            return ((self.out(y).float() - target[:, :-d]).abs() * mask).sum() / mask.sum().clamp_min(1) / 80

        recon = rebuilt(values)
        with torch.no_grad():
            hit = _hit(logits, label)
            without = rebuilt(torch.zeros_like(values)) if not self.training else recon
        pitch = self.pitch_losses(wave, f0, periodicity) if with_pitch else {}
        return {"content": ce, "direct": direct, "recon": recon, "hit": hit, "recon_without": without,
                **spelling, **pitch}  # fmt: skip

    def _spelling(self, code: Tensor, h: Tensor, phoneme: Tensor) -> dict[str, Tensor]:
        """How well phonemes [B, T] are guessed from codes [B, T, n] and from the trunk's features [B, T, dim]."""
        logits = self.spell(code.transpose(1, 2)).transpose(1, 2)
        return {"spell": _guessed(logits, phoneme), "direct_spell": _guessed(self.direct_spell(h), phoneme),
                "spell_hit": _hit(logits, phoneme)}  # fmt: skip


def _guessed(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy of logits [B, T, classes] where there is a label [B, T]; a 0 with a gradient without any."""
    known = label != NO_LABEL
    if not known.any():
        return logits.sum() * 0
    return F.cross_entropy(logits[known].float(), label[known], label_smoothing=0.05)


def _hit(logits: Tensor, label: Tensor) -> Tensor:
    """Share of labels [B, T] that logits [B, T, classes] guess right; NaN without any."""
    known = label != NO_LABEL
    return (logits.argmax(-1) == label)[known].float().mean()


class UnitsTask:
    """See recipes.trainer.Task."""

    def __init__(self, config: UnitsRecipe) -> None:
        self.config = config
        check_grid("model", config.model.sample_rate, config.model.hop, config.pack)
        self.pack = Pack(config.pack)
        spare = -(-config.crop_frames * config.speed // 20)  # what a faster crop needs more
        named, count = phonemes_of(self.pack, config) if config.phonemes and not config.only_pitch else ({}, 0)
        self.crops = Crops(self.pack, "train", config.crop_frames + spare, config.boost, named)
        torch.manual_seed(config.train.seed)
        start = UnitEncoder.from_pretrained(config.start_from) if config.start_from else None
        if config.only_pitch and start is None:
            raise ConfigError("only_pitch: say in start_from= which encoder's pitch tracker to train")
        model = start.config if config.only_pitch and start else config.model
        self.model: nn.Module = UnitsTrainer(model, config.teacher_units, count)
        if start is not None:
            take_over(self.model.encoder, start, str(config.start_from))  # type: ignore[arg-type]
        if config.only_pitch:
            self.model.requires_grad_(False)
            self.model.encoder.pitch.requires_grad_(True)  # type: ignore[operator,union-attr]
        elif not config.pitch_weight:
            self.model.encoder.pitch.requires_grad_(False)  # type: ignore[operator,union-attr]

    def batch(self, rng: np.random.Generator) -> dict[str, Tensor]:
        c, items = self.config, []
        for _ in range(c.batch_size):
            item = self.crops.draw(rng)
            item.pop("clip")
            item = faster(item, 20 + int(rng.integers(-c.speed, c.speed + 1)), c.crop_frames)
            items.append({**item, "clean": random_gain(item["wave"], rng)})
        for item, other in zip(items, [*items[1:], items[0]]):
            clean = item["wave"] = item["clean"]
            if rng.random() < c.noise_probability:
                noise = other["clean"] if rng.random() < 0.5 else rng.normal(0, 1, clean.shape)
                ratio = np.sqrt(np.mean(clean**2) / max(float(np.mean(noise**2)), 1e-12))
                item["wave"] = clean + (noise * ratio * 10 ** (-rng.uniform(5, 35) / 20)).astype(np.float32)
        return collate(items)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        c = self.config
        with_pitch = c.only_pitch or c.pitch_weight > 0
        out = model(**batch, warp=c.warp, eq_db=c.eq_db, pitch_warp=c.pitch_warp, masks=(c.mask_bands, c.mask_steps),
                    dropout=c.dropout, only_pitch=c.only_pitch, with_pitch=with_pitch)  # fmt: skip
        total = c.pitch_weight * (0.5 * out["pitch"] + out["voicing"]) if with_pitch else torch.zeros(())
        if not c.only_pitch:
            total = total + out["content"] + 0.5 * out["direct"] + c.expression_weight * out["recon"]
            if "spell" in out:
                total = total + c.phoneme_weight * (out["spell"] + 0.5 * out["direct_spell"])
        return total, out

    def validate(self) -> dict[str, float]:
        clips = self.pack.split("valid") or self.pack.split("train")
        rows: dict[str, list[dict[str, float]]] = {"speech": [], "vocal": []}
        for clip in clips[:: max(1, len(clips) // self.config.valid_clips)][: self.config.valid_clips]:
            item = self.crops.cut(clip, 0, min(clip["frames"], 500))
            batch = collate([{**item, "clean": item["wave"]}])
            device = next(self.model.parameters()).device
            out = self.model(**{k: v.to(device) for k, v in batch.items()})
            kind = "speech" if clip.get("vocalisation", "none") == "none" else "vocal"
            rows[kind].append({k: float(v) for k, v in out.items()})
        return {f"{kind}/{k}": float(np.nanmean([r[k] for r in rs])) for kind, rs in rows.items() if rs
                for k in ("hit", "spell_hit", "recon", "recon_without", "gross_pitch", "octave_pitch", "voicing_hit")
                if k in rs[0] and not all(np.isnan(r[k]) for r in rs)}  # fmt: skip

    def export(self, folder: Path) -> None:
        encoder = self.model.encoder
        assert isinstance(encoder, UnitEncoder)
        encoder.save_pretrained(folder)


def phonemes_of(pack: Pack, config: UnitsRecipe) -> tuple[dict[str, np.ndarray], int]:
    """A phoneme a frame of the pack (NO_LABEL where there is none), and how many phonemes there are.

    Raises:
        ConfigError: without `content_levels`, where the unit itself is the teacher's label.
        CorpusError: a file that cannot be read, or that names no clip of the pack.
    """
    if not config.model.content_levels:
        raise ConfigError("phonemes: needs model.content_levels, a product code that they can shape")
    spans = label.read_phonemes(str(config.phonemes))
    out = np.full(len(pack.teacher), NO_LABEL, np.uint16)
    for clip in pack.clips:
        if clip["id"] in spans:
            named = label.phones_of(spans[clip["id"]], clip["frames"], config.spans_earlier)
            out[clip["offset"] : clip["offset"] + clip["frames"]] = np.where(named == label.UNKNOWN, NO_LABEL, named)
    if (out == NO_LABEL).all():
        raise CorpusError(f"{config.phonemes}: names no clip of {config.pack}")
    return {"phoneme": out}, int(out[out != NO_LABEL].max()) + 1


def run(config: UnitsRecipe) -> dict[str, float]:
    """Train, validate, export."""
    return fit(UnitsTask(config), config.train)
