"""Train the codec's decoder on what it will be given: the mean vectors of a language model, not only codes.

`train codec` teaches the decoder the sound of quantised vectors; in use it hears expectations of them, in other voices,
led away from the source's (vivavoce.guidance). Here the encoder, the codebooks, the units and the language model stay
as they are, so tokens, voices and models go on fitting, and only the decoder learns, from three kinds of rows: a clip's
own codes and what the language model says of it in its own voice, both of which are to sound as the recording does;
and conversions, of which no recording exists, but whose words a Whisper is to hear as it hears the source's. It is the
fine-tuning of a vocoder on its acoustic model's output (Shen et al. 2018, section 3.2), with a perceptual loss.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vivavoce.codec import Codec
from vivavoce.codec.losses import MultiResolutionSTFT
from vivavoce.core.errors import ConfigError
from vivavoce.lm import VoiceLM
from vivavoce.recipes.corpus import HOP
from vivavoce.recipes.critics import Turns, crossed, turned
from vivavoce.recipes.readers import WhisperReader, load_reader
from vivavoce.recipes.tokens import Tokens
from vivavoce.recipes.train_joint import JointRecipe, JointTask
from vivavoce.recipes.train_lm import as_source, summed
from vivavoce.recipes.trainer import TrainConfig, fit
from vivavoce.units import prosody


@dataclass
class DecoderRecipe:
    """`vivavoce train decoder` reads this."""

    tokens: str
    pack: str  # the pack behind the tokens
    codec: str  # folder of the codec whose decoder goes on learning
    units: str  # folders of the encoder and of the language model that will be used with it
    lm: str
    reader: str  # folder of a Whisper (recipes.whisper)
    train: TrainConfig
    batch_size: int = 12  # clips, half of which are said by the language model, and as many conversions again
    crop_frames: int = 128
    prompt_frames: list[int] = field(default_factory=lambda: [100, 150])
    boost: dict = field(default_factory=dict)
    spectral: float = 1.0  # weight of the distance to the recording's spectra
    reread: float = 3.0  # weight of what the reader misses of the words, as a share of the variance
    heard: float = 1.0  # weight of what its lower layers miss
    lead: float = 0.6  # up to this much of its mean distance from the source's own sound is added to a conversion
    valid_batches: int = 8


class DecoderTrainer(nn.Module):
    """A codec of whose parameters only the decoder's learn."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.codec = codec.requires_grad_(False)
        for part in (codec.decoder, codec.head):
            part.requires_grad_(True)

    def forward(self, z: Tensor, f0: Tensor, periodicity: Tensor, level: Tensor) -> Tensor:
        """Vectors [N, T, code_dim] and what goes with them -> waveform [N, T * hop], whose last hop is not whole."""
        late = self.codec.late * HOP
        sound = self.codec.decode(z, f0, periodicity, level)[0][:, late:]
        return nn.functional.pad(sound, (0, late))


class DecoderTask:
    """See recipes.trainer.Task."""

    def __init__(self, config: DecoderRecipe) -> None:
        self.config = c = config
        shape = VoiceLM.from_pretrained(c.lm).config
        books = [1.0] * shape.n_codebooks
        self.speaker = JointTask(JointRecipe(
            tokens=c.tokens, train=c.train, model=shape, start_from=c.lm, codec=c.codec, units=c.units, pack=c.pack,
            batch_size=c.batch_size, crop_frames=c.crop_frames, prompt_frames=c.prompt_frames, boost=c.boost,
            codebook_weights=books, regression=1.0, unit_corruption=0.0, unit_jitter=0.0,
        ))  # fmt: skip
        self.speaker.model.eval().requires_grad_(False)
        if not isinstance(self.speaker.codec, Codec):
            raise ConfigError(f"codec: {c.codec} is not one of ours, whose decoder this trains")
        self.model: nn.Module = DecoderTrainer(self.speaker.codec)
        reader = load_reader(c.reader, Tokens(c.tokens).head["content_levels"], self.speaker.waves.pack)
        if not isinstance(reader, WhisperReader):
            raise ConfigError(f"reader: {c.reader} is not a Whisper, which hears more than words")
        self.reader = self.speaker.reader = reader
        self.stft = MultiResolutionSTFT()

    def batch(self, rng: np.random.Generator) -> dict[str, Tensor]:
        return self.speaker.batch(rng)

    @torch.no_grad()
    def rows(self, b: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], Tensor]:
        """A batch of B clips -> vectors [N, T, d] of B clips, said in their own voices and then as codes, and then of
        conversions; F0 (Hz), periodicity and level (dB) [N, T]; and which clips they are of [N]."""
        task, device = self.speaker, b["mask"].device
        task.model.to(device)
        turns, n, half = crossed(b), len(b["mask"]), -(-len(b["mask"]) // 2)
        own = torch.arange(n, device=device)
        turns = Turns(*(torch.cat((own[:half], x[n:][:half])) for x in turns))
        books = task.books.to(device)
        fine = summed(books, b["fine"])
        said = task._said(task.model, b, books, turns)[1].float()
        mask = b["mask"][turns.source][half:, :, None]
        apart = said[half:] - fine[turns.source[half:]]  # from what the codec hears of the source
        mean = (apart * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp_min(1.0)
        led = said[half:] + self.config.lead * torch.rand_like(mean[..., :1]) * mean
        depth = len(books) if torch.rand(()) < 0.5 else b["target"].shape[-1]
        codes = summed(books[:depth], b["fine"][half:, :, :depth])
        prompt = as_source({k[7:]: v for k, v in b.items() if k.startswith("prompt_")})
        moved = turned(prompt, as_source({**b, "prosody": b["melody"]}), turns)[1]
        melody = prosody.dequantise(b["melody"][half:])
        sounds = [torch.cat((x[:half], y, x[half:])) for x, y in zip(moved[2:], melody)]
        f0, periodicity, level = sounds
        which = torch.cat((own, turns.source[half:]))
        return torch.cat((said[:half], codes, led)), (f0, periodicity, level), which

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        c = self.config
        z, (f0, periodicity, level), which = self.rows(batch)
        n, half = len(batch["mask"]), -(-len(batch["mask"]) // 2)
        sound, recording = model(z, f0, periodicity, level), batch["recording"][which][:, : z.shape[1] * HOP]
        known = batch["mask"][which] > 0
        known[:, -Codec.late :] = False  # their sound is not whole
        gate = known.repeat_interleave(HOP, dim=1)
        numbers: dict[str, Tensor] = {}
        total = z.new_zeros(())
        reader = self.reader.to(z.device)
        stft = self.stft.to(z.device)
        kinds = {"said": slice(0, half), "codes": slice(half, n), "converted": slice(n, None)}
        for name, at in kinds.items():
            if not len(which[at]):  # nobody speaks
                continue
            words, heard = reader.distances(sound[at], recording[at], known[at])
            numbers[f"words_{name}"], loss = words, c.reread * words
            if name != "converted":
                spectral = stft((sound[at] * gate[at]).float(), recording[at] * gate[at])
                numbers |= {f"spectral_{name}": spectral, f"heard_{name}": heard}
                loss = loss + c.spectral * spectral + c.heard * heard
            total = total + loss * len(which[at]) / len(which)
        return total, numbers

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        device, found = next(self.model.parameters()).device, []
        for i in range(self.config.valid_batches):
            rng = np.random.Generator(np.random.Philox(key=1234, counter=[0, 0, 0, i]))
            torch.manual_seed(i)
            b = self.speaker._draw(self.speaker.valid, rng, training=False)
            found.append(self.loss(self.model, {k: v.to(device) for k, v in b.items()})[1])
        return {k: float(np.mean([float(f[k]) for f in found if k in f])) for k in found[0]}

    def export(self, folder: Path) -> None:
        assert isinstance(self.model, DecoderTrainer)
        self.model.codec.save_pretrained(folder)


def run(config: DecoderRecipe) -> dict[str, float]:
    """Train, validate, export."""
    return fit(DecoderTask(config), config.train)
