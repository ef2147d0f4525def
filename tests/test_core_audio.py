"""Audio files and resampling: what goes in comes out, and every failure is one clear AudioError."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import signal
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import db, full_disk, names, sine
from hypothesis import given
from hypothesis import strategies as st

from vivavoce.core import audio
from vivavoce.core.audio import SUFFIXES, AudioWriter, load, mono_blocks, open_audio, save
from vivavoce.core.errors import AudioError, VivavoceError
from vivavoce.core.resample import Resampler, resample

# ---------------------------------------------------------------- files

LOSSLESS_RATES = (4000, 8000, 11025, 16000, 22050, 44100, 48000, 96000, 192000)
LOSSY = [(".ogg", r) for r in (4000, 8000, 16000, 44100, 96000, 192000)]
LOSSY += [(".opus", r) for r in (8000, 12000, 16000, 24000, 48000)]
LOSSY += [(".mp3", r) for r in (8000, 11025, 16000, 22050, 44100, 48000)]


@pytest.mark.parametrize("rate", LOSSLESS_RATES)
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".WAV"])
def test_lossless_round_trip(tmp_path: Path, suffix: str, rate: int) -> None:
    x = sine(440.0, rate, rate // 3 + 7, 0.9)
    save(tmp_path / f"a{suffix}", x, rate)
    y, found = load(tmp_path / f"a{suffix}")
    assert found == rate and y.dtype == torch.float32 and y.shape == x.shape
    assert (y - x).abs().max() < 1.01 / 32768
    assert names(tmp_path) == [f"a{suffix}"]


@pytest.mark.parametrize("suffix,rate", LOSSY)
def test_lossy_round_trip(tmp_path: Path, suffix: str, rate: int) -> None:
    x = sine(440.0, rate, rate + 7, 0.5)
    save(tmp_path / f"a{suffix}", x, rate)
    y, found = load(tmp_path / f"a{suffix}")
    assert found == rate and y.shape == x.shape  # no lost or added samples
    inner = slice(rate // 10, -rate // 10)
    assert db((y - x)[inner].square().mean() / x[inner].square().mean()) < -12  # and in its place
    assert names(tmp_path) == [f"a{suffix}"]


@pytest.mark.parametrize("subtype,step", [("FLOAT", 1e-7), ("PCM_24", 2.0**-22), ("PCM_16", 2.0**-14)])
def test_subtype_is_respected(tmp_path: Path, subtype: str, step: float) -> None:
    x = 0.3 * torch.randn(1000)
    with AudioWriter(tmp_path / "a.wav", 16000, subtype) as f:
        f.write(x)
    assert soundfile.info(str(tmp_path / "a.wav")).subtype == subtype
    assert (load(tmp_path / "a.wav")[0] - x.clamp(-1, 1)).abs().max() <= step or subtype == "FLOAT"


@pytest.mark.parametrize("channels", [1, 2, 8])
@pytest.mark.parametrize(
    "suffix,subtype", [("wav", "PCM_U8"), ("wav", "PCM_24"), ("wav", "DOUBLE"), ("flac", "PCM_16")]
)
def test_any_channel_count_becomes_the_mean(tmp_path: Path, channels: int, suffix: str, subtype: str) -> None:
    x = np.random.default_rng(0).uniform(-0.9, 0.9, (1000, channels)).astype(np.float32)
    soundfile.write(str(tmp_path / f"a.{suffix}"), x, 32000, subtype=subtype)
    y, rate = load(tmp_path / f"a.{suffix}")
    assert rate == 32000 and y.shape == (1000,)
    assert np.abs(y.numpy() - x.mean(1)).max() < (0.01 if subtype == "PCM_U8" else 1e-4)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_block_reading_equals_whole_reading(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    save(path, 0.2 * torch.randn(40001), 16000)
    whole = torch.from_numpy(soundfile.read(str(path), dtype="float32")[0])
    for seconds in (1e-9, 0.0371, 10):
        if seconds == 1e-9:  # one sample at a time; only the start of it
            blocks = [b for b, _ in zip(mono_blocks(path, seconds), range(50), strict=False)]
            assert all(len(b) == 1 for b in blocks)
            torch.testing.assert_close(torch.cat(blocks), whole[:50], atol=1e-6, rtol=0)
        else:
            torch.testing.assert_close(torch.cat(list(mono_blocks(path, seconds))), whole, atol=1e-6, rtol=0)


def test_block_reading_takes_constant_memory(tmp_path: Path) -> None:
    save(tmp_path / "a.flac", 0.1 * torch.randn(48000 * 60), 48000)  # 11.5 MB as float32
    tracemalloc.start()
    n = sum(len(b) for b in mono_blocks(tmp_path / "a.flac", seconds=0.5))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n == 48000 * 60 and peak < 1_000_000


def test_load_resamples(tmp_path: Path) -> None:
    save(tmp_path / "a.wav", sine(440, 44100, 44100, 0.5), 44100)
    y, rate = load(tmp_path / "a.wav", 16000)
    assert rate == 16000 and len(y) == 16000
    assert (y - sine(440, 16000, 16000, 0.5))[100:-100].abs().max() < 1e-3


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("n", [1, 2, 31])
def test_very_short_audio(tmp_path: Path, suffix: str, n: int) -> None:
    save(tmp_path / f"a{suffix}", torch.full((n,), 0.5), 16000)
    y, _ = load(tmp_path / f"a{suffix}", 8000)
    assert len(y) == math.ceil(n / 2) and torch.isfinite(y).all()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_zero_samples_are_named(tmp_path: Path, suffix: str) -> None:
    save(tmp_path / f"a{suffix}", torch.zeros(0), 16000)
    with pytest.raises(AudioError, match=rf"a{suffix}: (holds no samples|not readable|.*0 bytes)"):
        load(tmp_path / f"a{suffix}")


def bad_input(folder: Path, kind: str) -> Path:
    path = folder / "bad.wav"
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("this is not audio\n" * 100)
    elif kind == "header only":
        save(path, torch.zeros(100), 16000)
        path.write_bytes(path.read_bytes()[:20])
    return path


@pytest.mark.parametrize("kind,says", [
    ("missing", "no such file"), ("folder", "is a folder"), ("empty", "0 bytes"),
    ("text", "not readable as audio.*wav, flac"), ("header only", "not readable as audio"),
])  # fmt: skip
def test_bad_input_is_named(tmp_path: Path, kind: str, says: str) -> None:
    path = bad_input(tmp_path, kind)
    for read in (load, open_audio, lambda p: list(mono_blocks(p))):
        with pytest.raises(AudioError, match=f"bad.wav: .*{says}") as e:
            read(path)
        assert isinstance(e.value, VivavoceError) and "\n" not in str(e.value)


def test_unreadable_file_says_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.wav", torch.zeros(10), 16000)
    monkeypatch.setattr(os, "access", lambda *a, **k: False)  # tests may run as root
    with pytest.raises(AudioError, match=r"a\.wav: no permission"):
        load(tmp_path / "a.wav")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_located(tmp_path: Path, value: float) -> None:
    x = np.zeros((3000, 2), np.float32)
    x[1234, 1] = value
    soundfile.write(str(tmp_path / "a.wav"), x, 1000, subtype="FLOAT")
    for seconds in (0.1, 10):
        with pytest.raises(AudioError, match=r"a\.wav: .*index 1234"):
            list(mono_blocks(tmp_path / "a.wav", seconds))


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".opus", ".mp3"])
@pytest.mark.parametrize("how", ["cut", "scrambled"])
def test_damage_is_an_error_not_a_shorter_file(tmp_path: Path, suffix: str, how: str) -> None:
    path = tmp_path / f"a{suffix}"
    save(path, 0.3 * sine(300, 16000, 80000) + 0.05 * torch.randn(80000), 16000)
    data = bytearray(path.read_bytes())
    half = len(data) // 2
    if how == "cut":
        data = data[:half]
    else:
        data[half : half + 2000] = bytes(255 - b for b in data[half : half + 2000])
    path.write_bytes(data)
    if suffix in (".ogg", ".opus") and how == "cut":  # cut between two pages, an Ogg file is a shorter one
        with contextlib.suppress(AudioError):
            assert 0 < len(load(path)[0]) < 80000
        return
    with pytest.raises(AudioError, match=rf"a{suffix}: (damaged|not readable)"):
        load(path)


def test_piped_flac_without_a_total_is_whole(tmp_path: Path) -> None:
    save(tmp_path / "a.flac", 0.3 * torch.randn(40000), 16000)
    want, _ = load(tmp_path / "a.flac")
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[21] &= 0xF0  # STREAMINFO's 36-bit sample count, 0 = unknown, as encoders write into a pipe
    data[22:26] = bytes(4)
    (tmp_path / "b.flac").write_bytes(data)
    assert torch.equal(load(tmp_path / "b.flac")[0], want)


# ---------------------------------------------------------------- writer


def test_writer_in_blocks_equals_save(tmp_path: Path) -> None:
    x = 0.3 * torch.randn(200_000)
    save(tmp_path / "a.wav", x, 16000)
    with AudioWriter(tmp_path / "b.wav", 16000) as f:
        for block in (x[:0], x[:1], x[1:70_000], x[70_000:]):
            f.write(block)
        assert names(tmp_path)[-1] == "a.wav"  # nothing stands at the path yet
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


def test_writer_takes_any_float_tensor_and_clips(tmp_path: Path) -> None:
    x = torch.tensor([0.0, 0.5, 1.5, -3.0], requires_grad=True)
    for t in (x, x.double(), x.half(), x.bfloat16(), x.detach().repeat(2)[::2]):
        save(tmp_path / "a.wav", t, 16000)
        y, _ = load(tmp_path / "a.wav")
        assert (y - t.detach().float().clamp(-1, 1)).abs().max() < 1e-4


def test_minutes_of_vorbis_in_one_call(tmp_path: Path) -> None:
    x = sine(200, 8000, 8000 * 60 * 10, 0.3)  # libsndfile's encoder overflows the stack on this
    save(tmp_path / "a.ogg", x, 8000)
    assert soundfile.info(str(tmp_path / "a.ogg")).frames == len(x)


@pytest.mark.parametrize("name,rate,says", [
    ("a.aac", 16000, r"unknown suffix '\.aac'.*\.wav"), ("a", 16000, "unknown suffix ''"),
    ("none/a.wav", 16000, "none: no such folder"), ("taken.wav", 16000, "is a folder"),
    ("a.opus", 44100, "44100 Hz, only 8000, 12000, 16000, 24000, 48000"), ("a.mp3", 96000, "96000 Hz, only"),
    ("a.ogg", 384000, "384000 Hz, only 1000 to 200000"), ("a.wav", 0, "0 Hz"), ("a.wav", -16000, "-16000 Hz"),
    ("a.flac", 768000, "a.flac"),
])  # fmt: skip
def test_what_cannot_be_written_is_named(tmp_path: Path, name: str, rate: int, says: str) -> None:
    (tmp_path / "taken.wav").mkdir()
    with pytest.raises(AudioError, match=says) as e:
        save(tmp_path / name, torch.zeros(100), rate)
    assert names(tmp_path) == ["taken.wav"] and "\n" not in str(e.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_full_disk_at_any_byte(tmp_path: Path, suffix: str) -> None:
    """libsndfile buffers, and drops the errors of its last block: the file must be whole or not there."""
    path, x = tmp_path / f"a{suffix}", 0.3 * torch.randn(30000)
    save(path, x, 16000)
    size = path.stat().st_size
    path.unlink()
    for limit in (0, 1, 30, 1000, size // 2, size - 1000, size - 100, size - 1):
        with full_disk(limit), pytest.raises(AudioError, match=rf"a{suffix}: .*\(File too large\)"):
            save(path, x, 16000)
        assert names(tmp_path) == []
    with full_disk(size + 1000):  # Ogg's size varies by its random serial number's checksum, little
        save(path, x, 16000)
    assert len(load(path)[0]) == len(x)


def test_failure_keeps_what_stood_there(tmp_path: Path) -> None:
    save(tmp_path / "a.wav", torch.full((100,), 0.5), 16000)
    before = (tmp_path / "a.wav").read_bytes()
    with full_disk(100), pytest.raises(AudioError):
        save(tmp_path / "a.wav", torch.zeros(1000), 16000)
    assert names(tmp_path) == ["a.wav"] and (tmp_path / "a.wav").read_bytes() == before


@pytest.mark.parametrize("method", ["write", "close"])
def test_no_space_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    real = getattr(soundfile.SoundFile, method)

    def fail(self, *args):
        real(self, *args)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as m, pytest.raises(AudioError, match=r"a\.wav: .*No space left on device"):
        m.setattr(soundfile.SoundFile, method, fail)
        save(tmp_path / "a.wav", torch.zeros(1000), 16000)
    assert names(tmp_path) == []


@pytest.mark.parametrize("where", ["tempfile.mkstemp", "os.replace", "os.chmod"])
def test_unwritable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def fail(*args, **kw):
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere/.a.wav.x1y2.wav")

    monkeypatch.setattr(where, fail)
    with pytest.raises(AudioError, match=r"a\.wav: cannot be written \(Permission denied\)$"):
        save(tmp_path / "a.wav", torch.zeros(1000), 16000)
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_exception_in_the_block_passes(tmp_path: Path, suffix: str, kind: type[BaseException]) -> None:
    error = kind("boom")
    with pytest.raises(kind, match="boom") as caught, AudioWriter(tmp_path / f"a{suffix}", 16000) as f:
        f.write(torch.zeros(5000))
        raise error
    assert caught.value is error and names(tmp_path) == []
    assert caught.traceback[-1].name == test_exception_in_the_block_passes.__name__  # not where it was cleaned up


def test_exception_in_the_block_wins_over_a_failing_close(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="boom"), AudioWriter(tmp_path / "a.mp3", 16000) as f:
        f.write(torch.zeros(50))
        with full_disk(0):
            f.__exit__(ValueError, ValueError("boom"), None)
            assert names(tmp_path) == []
        raise ValueError("boom")


@pytest.mark.parametrize("late", [False, True], ids=["in a block", "in the header, at the end"])
def test_an_interruption_within_libsndfile_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """Python drops what is raised in a callback from C, and the writing would go on."""
    plain, due = audio._Sink.write, []

    def interrupted(self: audio._Sink, data: bytes) -> int:
        if due:
            os.kill(os.getpid(), due.pop())
            time.sleep(0.01)
        return plain(self, data)

    monkeypatch.setattr(audio._Sink, "write", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), AudioWriter(tmp_path / "x.wav", 16000) as f:
            due += [] if late else [signal.SIGINT]
            f.write(torch.zeros(70_000))
            due += [signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert not due and names(tmp_path) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_is_not_written(tmp_path: Path, bad: float) -> None:
    with pytest.raises(AudioError, match=r"a\.wav: NaN or infinite"):
        save(tmp_path / "a.wav", torch.tensor([0.0, bad]), 16000)
    assert names(tmp_path) == []


def test_wrong_shape_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shape"):
        save(tmp_path / "a.wav", torch.zeros(2, 100), 16000)
    assert names(tmp_path) == []


def test_written_file_respects_umask(tmp_path: Path) -> None:
    old = os.umask(0o026)
    try:
        save(tmp_path / "a.wav", torch.zeros(10), 16000)
    finally:
        os.umask(old)
    assert (tmp_path / "a.wav").stat().st_mode & 0o777 == 0o640


def test_every_suffix_has_a_format() -> None:
    assert set(audio.FORMATS) == set(SUFFIXES)


# ---------------------------------------------------------------- resampling

PAIRS = [(44100, 16000), (16000, 44100), (48000, 16000), (16000, 48000), (8000, 16000), (16000, 8000),
         (22050, 16000), (16000, 24000), (4000, 16000), (192000, 16000), (11025, 48000)]  # fmt: skip


@pytest.mark.parametrize("a,b", PAIRS)
@pytest.mark.parametrize("part", [0.02, 0.4, 0.76])
def test_pass_band_sine(a: int, b: int, part: float) -> None:
    f, n = part * min(a, b) / 2, a // 4
    y = resample(sine(f, a, n)[None], a, b)[0]
    edge = 2 * Resampler(a, b).lookahead * b // a + 1
    assert db((y - sine(f, b, len(y)))[edge:-edge].square().mean() / 0.5) < -60


@pytest.mark.parametrize("a,b", [p for p in PAIRS if p[0] > p[1]])
@pytest.mark.parametrize("part", [0.0, 0.5, 0.95])
def test_no_aliasing(a: int, b: int, part: float) -> None:
    low = 1.18 * b / 2  # above the transition band
    f = low + part * max(a / 2 - low, 0.0)
    if f >= a / 2:
        pytest.fail("choose a pair with room above the transition band")
    y = resample(sine(f, a, a // 2)[None], a, b)[0]
    edge = 2 * Resampler(a, b).lookahead * b // a + 1
    assert db(y[edge:-edge].square().mean() / 0.5) < -60


@pytest.mark.parametrize("a,b", PAIRS)
def test_against_scipy_on_band_limited_noise(a: int, b: int) -> None:
    signal = pytest.importorskip("scipy.signal")
    n = a // 4
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(n))
    spectrum[np.fft.rfftfreq(n, 1 / a) > 0.7 * min(a, b) / 2] = 0
    x = np.fft.irfft(spectrum, n)
    g, half = math.gcd(a, b), 64 * max(a, b) // math.gcd(a, b)
    h = signal.firwin(2 * half + 1, 0.95 / (max(a, b) // g), window=("kaiser", 12.0)) * (b // g)
    want = signal.resample_poly(x, b // g, a // g, window=h / (b // g))
    got = resample(torch.from_numpy(x).float()[None], a, b)[0].numpy()
    assert len(got) == len(want)
    edge = len(got) // 5
    assert db(np.square(got - want)[edge:-edge].mean() / np.square(want).mean()) < -60


@pytest.mark.parametrize("a,b", [*PAIRS, (16000, 16000), (16001, 16000), (1000, 768000)])
def test_length_is_exact(a: int, b: int) -> None:
    for n in (0, 1, 2, 3, 7, 160, 441, 1000):
        y = resample(torch.randn(2, n), a, b)
        assert y.shape == (2, -(-n * b // a)) and torch.isfinite(y).all()


@pytest.mark.parametrize("a,b", PAIRS)
def test_constant_stays_constant(a: int, b: int) -> None:
    y = resample(torch.ones(1, a // 10), a, b)[0]
    edge = Resampler(a, b).lookahead * b // a + 1
    assert (y[edge:-edge] - 1).abs().max() < 1e-5


@given(pair=st.sampled_from([*PAIRS, (16000, 16000)]), sizes=st.lists(st.integers(0, 400), max_size=12),
       singles=st.integers(0, 5), seed=st.integers(0, 99))  # fmt: skip
def test_any_chunking_equals_one_call(pair: tuple[int, int], sizes: list[int], singles: int, seed: int):
    sizes = [*sizes, 0, *[1] * singles, 0]
    x = torch.rand(2, sum(sizes), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    r = Resampler(*pair)
    whole, _ = r(x, None, last=True)
    state, out, n = None, [], 0
    for i, size in enumerate(sizes):
        y, state = r(x[:, n : n + size], state, last=i == len(sizes) - 1)
        n += size
        out.append(y)
        if i < len(sizes) - 1:  # nothing is held back beyond the stated look-ahead
            assert sum(o.shape[1] for o in out) >= (n - r.lookahead) * pair[1] / pair[0] - 1
    torch.testing.assert_close(torch.cat(out, 1), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("a,b", PAIRS)
def test_state_stays_bounded_and_an_hour_sounds_like_a_second(a: int, b: int) -> None:
    r, x = Resampler(a, b), torch.randn(1, 4000)
    _, state = r(x[:, :997])
    kept, start, n_in, n_out = state
    k = 24 * 3600 * a // r.down  # the same stream a day later
    late = (kept, start + k * r.down, n_in + k * r.down, n_out + k * r.up)
    for size in (0, 1, 1000, 2000):
        y, state = r(x[:, :size], state)
        z, late = r(x[:, :size], late)
        assert torch.equal(y, z)
    for _ in range(100):
        _, state = r(x[:, :100], state)
        assert state[0].shape[1] <= 2 * r.lookahead + 2
        assert state[0].untyped_storage().nbytes() < 4 * (100 + 4 * r.lookahead + 4000)  # no view of all that was


def test_resampling_is_fast() -> None:
    x, r = torch.randn(1, 44100 * 5), Resampler(44100, 16000)
    best = math.inf
    for _ in range(3):
        t = time.perf_counter()
        r(x, None, last=True)
        best = min(best, time.perf_counter() - t)
    assert best < 0.25, f"{5 / best:.0f} times real time"  # about 500 times on an idle core


@pytest.mark.parametrize("pair", [(0, 16000), (16000, 999), (16000, 768001), (-8000, 16000)])
def test_impossible_rate_is_named(pair: tuple[int, int]) -> None:
    with pytest.raises(AudioError, match=r"sample rate .* Hz is outside 1000 to 768000"):
        Resampler(*pair)
