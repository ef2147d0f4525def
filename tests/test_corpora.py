"""Public corpora in miniature, laid out as their publishers lay them out, and what becomes of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from vivavoce.cli import main
from vivavoce.core.errors import CorpusError
from vivavoce.recipes import corpora, corpus
from vivavoce.recipes.corpora import check, common, hub

RATE = 16000


def wav(path: Path, seconds: float = 0.1, channels: int = 1, rate: int = RATE, f: float = 220.0) -> Path:
    """A tone at `f` Hz in the first channel, an octave higher in the second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(round(seconds * rate)) / rate
    x = 0.1 * np.stack([np.sin(2 * np.pi * f * 2**c * t) for c in range(channels)], 1)
    soundfile.write(path, x, rate, format={".mp3": "MP3", ".flac": "FLAC"}.get(path.suffix.lower(), "WAV"))
    return path


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def crema_d(r: Path) -> None:
    wav(r / "AudioWAV/1001_DFA_ANG_XX.wav")
    wav(r / "AudioWAV/1002_IEO_HAP_HI.wav")
    wav(r / "AudioMP3/1001_DFA_ANG_XX.mp3")
    text(r / "VideoDemographics.csv", "ActorID,Age,Sex,Race,Ethnicity\n1001,51,Male,Caucasian,Not Hispanic\n")


def ravdess(r: Path) -> None:
    wav(r / "Audio_Speech_Actors_01-24/Actor_12/03-01-06-02-02-01-12.wav")
    wav(r / "Audio_Song_Actors_01-24/Actor_01/03-02-02-01-01-02-01.wav")


def tess(r: Path) -> None:
    for name in ("OAF_back_angry", "YAF_back_ps", "OA_bite_neutral"):
        wav(r / "TESS Toronto emotional speech set data" / name.rsplit("_", 1)[0] / f"{name}.wav")


def emodb(r: Path) -> None:
    wav(r / "wav/03a01Fa.wav")
    wav(r / "wav/16b10Lb.wav")


def esd(r: Path) -> None:
    root = r / "Emotion Speech Dataset"
    wav(root / "0011/Angry/0011_000351.wav")
    wav(root / "0002/Surprise/test/0002_001401.wav")
    text(root / "0011/0011.txt", "0011_000001\tThe nine the eggs.\tNeutral\n0011_000351\tThe nine the eggs.\tAngry\n")
    (root / "0002/0002.txt").write_bytes("0002_001401\t打远一看\t惊喜\n".encode("gb18030"))


def emov_db(r: Path) -> None:
    wav(r / "bea/Amused/amused_1-15_0001.wav")
    wav(r / "sam_Sleepy/sleepiness_1-28_0002.wav")
    text(r / "cmuarctic.data", '( arctic_a0001 "Author of the danger trail." )\n')


def expresso(r: Path) -> None:
    root = r / "expresso"
    wav(root / "audio_48khz/read/ex01/laughing/base/ex01_laughing_00001.wav")
    wav(root / "audio_48khz/read/ex02/default/longform/ex02_default_longform_00001.wav", 20.0)
    wav(root / "audio_48khz/conversational/ex03-ex02/sad-sympathetic/ex03-ex02_sad-sympathetic_001.wav", 4.0, 2)
    text(root / "read_transcriptions.txt", "ex01_laughing_00001\tReady for *bed*?\n")
    text(root / "VAD_segments.txt", "# name\tspans\nex02_default_longform_00001\t(0.5, 19.5)\n"
         "ex03-ex02_sad-sympathetic_001/channel1\t(0.5, 1.5) (2.0, 3.5)\n"
         "ex03-ex02_sad-sympathetic_001/channel2\t(1.5, 2.5) (3.0, 9.0)\n")  # fmt: skip
    text(root / "splits/train.txt", "ex03-ex02_sad-sympathetic_001\t(2.2s,)\nex02_default_longform_00001\n")
    text(root / "splits/dev.txt", "ex01_laughing_00001\n")
    text(root / "splits/test.txt", "# x\nex03-ex02_sad-sympathetic_001\t(,2.2s)\n")


def vctk(r: Path) -> None:
    root = r / "VCTK-Corpus-0.92"
    for mic in (1, 2):
        wav(root / f"wav48_silence_trimmed/p225/p225_001_mic{mic}.flac")
    wav(root / "wav48_silence_trimmed/p226/p226_001_mic1.flac")
    text(root / "txt/p225/p225_001.txt", "Please call Stella.\n")
    text(root / "txt/p226/p226_001.txt", "Please  call Stella\n")
    text(root / "speaker-info.txt", "ID  AGE  GENDER  ACCENTS  REGION\np225  23  F    English    Southern  England\n")


def librispeech(r: Path) -> None:
    root = r / "LibriSpeech"
    wav(root / "train-clean-100/103/1240/103-1240-0000.flac")
    wav(root / "dev-other/1001/2/1001-2-0000.flac")
    text(root / "train-clean-100/103/1240/103-1240.trans.txt", "103-1240-0000 CHAPTER ONE\n103-1240-0001 LOST\n")
    text(root / "SPEAKERS.TXT", "; comment\n103  | F | train-clean-100 | 25.19 | Karen Savage\n")


def libritts(r: Path) -> None:
    root = r / "LibriTTS"
    wav(root / "test-clean/103/1241/103_1241_000000_000001.wav")
    text(root / "test-clean/103/1241/103_1241_000000_000001.normalized.txt", "matthew Cuthbert is surprised")


def vocalsound(r: Path) -> None:
    wav(r / "audio_16k/f0003_0_laughter.wav")
    wav(r / "audio_16k/m0004_1_sniff.wav")
    text(r / "meta/te_meta.csv", "f0003,female,31,USA,English,no\n")
    text(r / "meta/tr_meta.csv", "m0004,male,44,USA,English,no\n")


def emogator(r: Path) -> None:
    wav(r / "data/mp3/000001-02-1.mp3", 0.5)
    wav(r / "data/mp3/000357-28-3.mp3", 0.5)


def common_voice(r: Path) -> None:
    root = r / "cv-corpus-20.0/de"
    for n in range(4):
        wav(root / f"clips/common_voice_de_{n}.mp3", 0.5)
    head = "client_id\tpath\tsentence_id\tsentence\tage\tgender\taccents\tlocale\n"
    row = '{0}\tcommon_voice_de_{1}.mp3\ts{1}\tEin "Satz\ttwenties\tfemale_feminine\t\tde\n'
    a, b, c = (f"{n << 250:064x}" for n in (1, 2, 3))
    text(root / "validated.tsv", head + "".join(row.format(w, n) for n, w in enumerate((a, a, b, c))))
    text(root / "train.tsv", head + row.format(c, 3))
    text(root / "dev.tsv", head + row.format(a, 0))
    text(root / "test.tsv", head + row.format(b, 2))


def own(r: Path) -> None:
    wav(r / "anna/042_happy_1.wav")
    wav(r / "anna/laugh_happy_2.wav")
    text(r / "scripts.csv", "script,text\n042,Where have you been?\n")
    text(r / "speakers.csv", "speaker,gender,age,language,licence,consent\nanna,f,31,en,CC-BY-4.0,signed 2026-01-15\n")


MINIATURES = {f.__name__: f for f in (crema_d, ravdess, tess, emodb, esd, emov_db, expresso, vctk, librispeech,
                                      libritts, vocalsound, emogator, common_voice, own)}  # fmt: skip
WANT = {  # id -> what its line says, in part
    "crema_d-1001_DFA_ANG_XX": {"speaker": "crema_d-1001", "gender": "m", "age": 51, "emotion": "angry", "language":
                                "en", "text": "Don't forget a jacket.", "script": "crema_d-DFA", "strength": None},
    "crema_d-1002_IEO_HAP_HI": {"emotion": "happy", "gender": None, "strength": "high", "licence": "ODbL-1.0"},
    "ravdess-03-01-06-02-02-01-12": {"emotion": "fear", "emotion_raw": "fearful", "gender": "f", "style": "speech",
                                     "script": "ravdess-speech-02", "text": "Dogs are sitting by the door."},
    "ravdess-03-02-02-01-01-02-01": {"emotion": "calm", "gender": "m", "style": "song", "script": "ravdess-song-01"},
    "tess-OAF_back_angry": {"speaker": "tess-OAF", "age": 64, "text": "Say the word back.", "script": "tess-back"},
    "tess-YAF_back_ps": {"emotion": "surprise", "script": "tess-back", "licence": "CC-BY-NC-ND-4.0"},
    "tess-OAF_bite_neutral": {"speaker": "tess-OAF"},
    "emodb-03a01Fa": {"emotion": "happy", "language": "de", "gender": "m", "age": 31, "script": "emodb-a01"},
    "emodb-16b10Lb": {"emotion": "bored", "gender": "f"},
    "esd-0011_000351": {"emotion": "angry", "language": "en", "script": "esd-en-001", "text": "The nine the eggs."},
    "esd-0002_001401": {"emotion": "surprise", "language": "zh", "text": "打远一看", "official_split": "test"},
    "emov_db-bea-amused_1-15_0001": {"emotion": "happy", "emotion_raw": "amused", "gender": "f",
                                     "text": "Author of the danger trail.", "script": "arctic_a0001"},
    "emov_db-sam-sleepiness_1-28_0002": {"emotion": "sleepy", "speaker": "emov_db-sam", "text": None},
    "expresso-ex01_laughing_00001": {"style": "laughing", "emotion": "happy", "vocalisation": "none", "text":
                                     "Ready for bed?", "official_split": "valid", "speaker": "expresso-ex01"},
    "expresso-ex03-ex02_sad-sympathetic_001-1-0000500": {"speaker": "expresso-ex03", "channel": 1, "start_s": 0.5,
                                                         "duration_s": 1.0, "emotion": "sad", "official_split": "test"},
    "expresso-ex03-ex02_sad-sympathetic_001-1-0002200": {"duration_s": 1.3, "official_split": "train"},
    "expresso-ex03-ex02_sad-sympathetic_001-2-0001500": {"speaker": "expresso-ex02", "emotion": "sympathy"},
    "expresso-ex02_default_longform_00001-0010000": {"duration_s": 9.5, "emotion": "neutral"},
    "vctk-p225_001": {"gender": "f", "age": 23, "accent": "English", "text": "Please call Stella."},
    "librispeech-103-1240-0000": {"text": "CHAPTER ONE", "gender": "f", "split": "train", "subset": "train-clean-100"},
    "librispeech-1001-2-0000": {"split": "valid", "text": None},
    "libritts-103_1241_000000_000001": {"split": "test", "text": "matthew Cuthbert is surprised"},
    "vocalsound-f0003_0_laughter": {"vocalisation": "laugh", "emotion": "happy", "language": "none", "age": 31,
                                    "split": "test", "gender": "f"},
    "vocalsound-m0004_1_sniff": {"vocalisation": "breath", "emotion": None, "split": "train"},
    "emogator-000001-02-1": {"emotion": "happy", "emotion_raw": "amusement", "vocalisation": "burst"},
    "emogator-000357-28-3": {"emotion": "surprise", "speaker": "emogator-000357", "licence": "Apache-2.0"},
    "common_voice-de-common_voice_de_1": {"split": "valid", "language": "de", "gender": "f", "text": 'Ein "Satz'},
    "common_voice-de-common_voice_de_2": {"split": "test", "age_group": "twenties"},
    "common_voice-de-common_voice_de_3": {"split": "train", "licence": "CC0-1.0"},
    "own-anna-042_happy_1": {"text": "Where have you been?", "script": "own-042", "emotion": "happy", "age": 31,
                             "licence": "CC-BY-4.0", "consent": "signed 2026-01-15", "vocalisation": "none"},
    "own-anna-laugh_happy_2": {"vocalisation": "laugh", "text": None, "language": "none", "take": 2},
}  # fmt: skip
COUNTS = dict(crema_d=2, ravdess=2, tess=3, emodb=2, esd=2, emov_db=2, expresso=6, vctk=2, librispeech=2, libritts=1,
              vocalsound=2, emogator=2, common_voice=4, own=2)  # fmt: skip


def lines_of(manifest: Path) -> dict[str, dict]:
    return {c["id"]: c for c in map(json.loads, manifest.read_text(encoding="utf-8").splitlines())}


@pytest.mark.parametrize("name", MINIATURES)
def test_layout(name, tmp_path):
    MINIATURES[name](tmp_path / "their")
    summary = corpora.make(name, str(tmp_path / "their"), str(tmp_path / "out"))
    lines = lines_of(tmp_path / "out/manifest.jsonl")
    assert summary.clips == len(lines) == COUNTS[name], (list(lines), summary.problems)
    want = {k: v for k, v in WANT.items() if k.startswith(f"{name}-")}
    assert want
    for key, fields in want.items():
        assert {k: lines[key].get(k) for k in fields} == fields, key
    for clip in lines.values():
        assert set(common.FIELDS) <= set(clip) and clip["split"] in ("train", "valid", "test")
        assert clip["duration_s"] > 0 and clip["sample_rate"] == RATE and clip["vocalisation"] in common.VOCALISATIONS
        assert Path(clip["path"]).is_absolute()
        x = corpus.read_clip(tmp_path / "out", clip)
        assert abs(len(x) / corpus.RATE - clip["duration_s"]) < 0.06
    before = (tmp_path / "out/manifest.jsonl").read_bytes()
    corpora.make(name, str(tmp_path / "their"), str(tmp_path / "out"))
    assert (tmp_path / "out/manifest.jsonl").read_bytes() == before


def test_every_corpus_has_a_miniature():
    assert set(corpora.CORPORA) == set(MINIATURES)


def test_parallel_scripts_pair(tmp_path):
    vctk(tmp_path / "v")
    corpora.make("vctk", str(tmp_path / "v"), str(tmp_path))
    a, b = lines_of(tmp_path / "manifest.jsonl").values()
    assert a["script"] == b["script"] and a["speaker"] != b["speaker"] and a["text"] != b["text"]


def test_a_stretch_is_its_channel(tmp_path):
    """Channel 2 of the dialogue sounds an octave above channel 1."""
    expresso(tmp_path / "e")
    corpora.make("expresso", str(tmp_path / "e"), str(tmp_path))
    heard = {}
    for key, clip in lines_of(tmp_path / "manifest.jsonl").items():
        x = corpus.read_clip(tmp_path, clip)
        heard[key] = np.fft.rfftfreq(len(x), 1 / RATE)[np.argmax(np.abs(np.fft.rfft(x)))]
    assert abs(heard["expresso-ex03-ex02_sad-sympathetic_001-1-0000500"] - 220) < 3
    assert abs(heard["expresso-ex03-ex02_sad-sympathetic_001-2-0001500"] - 440) < 3
    with pytest.raises(CorpusError, match="no channel 3"):
        corpus.read_clip(tmp_path, {**clip, "channel": 3, "start_s": 0.0, "duration_s": 0.1})


def test_splits(tmp_path):
    esd(tmp_path / "esd")
    auto = corpora.make("esd", str(tmp_path / "esd"), str(tmp_path / "a"))
    official = corpora.make("esd", str(tmp_path / "esd"), str(tmp_path / "b"), "official")
    assert auto.splits == {"train": 2} and official.splits.get("test") == 1  # theirs parts clips, not speakers
    with pytest.raises(CorpusError, match="no official split"):
        corpora.make("tess", str(tmp_path / "esd"), str(tmp_path / "c"), "official")
    names = [f"s{n}" for n in range(4000)]
    split = common.split_speakers(names)
    assert split == common.split_speakers(reversed(names))
    count = Counter(split.values())
    assert 130 < count["valid"] < 270 and 130 < count["test"] < 270
    few = common.split_speakers(names[:1000])
    assert all(few[n] == split[n] for n in few)  # a speaker never moves
    assert sorted(common.split_speakers("abc").values()) == ["test", "train", "valid"]


def test_bad_files_are_told_and_counted(tmp_path, capsys):
    root = tmp_path / "c"
    crema_d(root)
    for n in range(8):
        text(root / f"AudioWAV/10{n + 10}_IEO_SAD_LO.wav", "no sound")
    text(root / "AudioWAV/1050_IEO_SAD_LO.wav", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (root / "AudioWAV/1051_IEO_SAD_LO.wav").touch()
    wav(root / "AudioWAV/hello.wav")
    wav(root / "AudioWAV/again/1001_DFA_ANG_XX.wav")
    wav(root / "AudioWAV/._1001_DFA_ANG_XX.wav")
    data = wav(root / "AudioWAV/1052_IEO_SAD_LO.flac", 2.0).read_bytes()
    cut = tmp_path / "cut.flac"
    cut.write_bytes(data[: len(data) // 3])
    with pytest.raises(common.AudioError, match="cut short"):
        common.probe(cut)
    summary = corpora.make("crema-d", str(root), str(tmp_path / "m.jsonl"))
    assert summary.clips == 2 and "10 unreadable" in str(summary) and "1 second copies" in str(summary)
    assert "1 of another name than 1001_DFA_ANG_XX.wav" in str(summary)
    out = capsys.readouterr()
    told = out.out + out.err
    assert told.count("skipped, unreadable: ") == common.TOLD + 1 and "more are counted only" in told
    with pytest.raises(common.AudioError, match="git lfs pull"):
        common.probe(root / "AudioWAV/1050_IEO_SAD_LO.wav")


def test_missing_files(tmp_path):
    common_voice(tmp_path / "cv")
    (tmp_path / "cv/cv-corpus-20.0/de/clips/common_voice_de_1.mp3").unlink()
    assert "1 missing" in str(corpora.make("common-voice", str(tmp_path / "cv"), str(tmp_path)))
    librispeech(tmp_path / "ls")
    assert "1 missing" in str(corpora.make("librispeech", str(tmp_path / "ls"), str(tmp_path)))  # LOST has no file


def test_unknown_layout(tmp_path, capsys):
    text(tmp_path / "x/readme.md", "hello")
    wav(tmp_path / "x/sub/a.wav")
    for name in MINIATURES:
        with pytest.raises(CorpusError, match=r"not laid out as .*; expected .*; found readme.md, sub/"):
            corpora.make(name, str(tmp_path / "x"), str(tmp_path))
    with pytest.raises(CorpusError, match="no such folder"):
        corpora.make("vctk", str(tmp_path / "none"), str(tmp_path))
    with pytest.raises(CorpusError, match="unknown corpus; known are crema_d"):
        corpora.make("timit", str(tmp_path / "x"), str(tmp_path))
    assert not (tmp_path / "manifest.jsonl").exists()


def test_command(tmp_path, capsys):
    assert main(["corpus", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in MINIATURES) and "VCTK: 44 h 110 speakers, CC-BY-4.0" in listed
    for name in ("vctk", "crema_d"):
        MINIATURES[name](tmp_path / name)
        assert main(["corpus", name, str(tmp_path / name), "-o", str(tmp_path / f"{name}.jsonl")]) == 0
    assert "2 clips" in capsys.readouterr().out
    both = tmp_path / "all.jsonl"  # combined by joining the files; paths lie below the manifest, so they are relative
    both.write_text("".join((tmp_path / f"{n}.jsonl").read_text() for n in ("vctk", "crema_d")))
    clips = corpus.scan(both)
    assert len(clips) == 4 and not any(Path(c["path"]).is_absolute() for c in clips)
    assert all(len(corpus.read_clip(both, c)) == 1600 for c in clips)
    assert main(["corpus", "vctk", str(tmp_path / "none"), "-o", str(tmp_path)]) == 1
    assert "no such folder" in capsys.readouterr().err
    for wrong in (["corpus", "vctk"], ["corpus", "vctk", "x"], ["corpus", "vctk", "x", "-o", "y", "a=b"]):
        with pytest.raises(SystemExit):
            main(wrong)


# --- load_dataset


def parquet(folder: Path, rows: int = 6, files: int = 3, bad: int | None = None) -> None:
    """Parquet shards with embedded audio, as the hub serves them."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    for k in range(files):
        items = []
        for n in range(k * rows, (k + 1) * rows):
            buffer = io.BytesIO()
            t = np.arange(RATE // 4 + 80 * n) / RATE
            soundfile.write(buffer, 0.1 * np.sin(2 * np.pi * (150 + 10 * n) * t), RATE, format="WAV")
            data = buffer.getvalue() if n != bad else b"no sound"
            items.append({"audio": {"bytes": data, "path": f"{n}.wav"}, "who": n % 5, "words": f"line {n}",
                          "mood": ["Happiness", "anger"][n % 2]})  # fmt: skip
        pq.write_table(pa.Table.from_pylist(items), folder / f"train-{k:05d}-of-{files:05d}.parquet")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def test_dataset_source(tmp_path, capsys, cache):
    parquet(tmp_path / "data", bad=4)
    out = tmp_path / "corpus"
    given = ["speaker=who", "text=words", "emotion=mood", "language=en", "licence=CC0-1.0"]
    assert main(["corpus", "datasets", str(tmp_path / "data"), "-o", str(out), *given]) == 0
    source = hub.HubSource(out)
    assert source.jobs == [("train", 0), ("train", 1), ("train", 2)] and source.by_speaker
    rows = list(source)
    assert [c["text"] for c, _ in rows] == [f"line {n}" for n in range(18)]
    assert [c["text"] for c, _ in source.read("train", 1)] == [f"line {n}" for n in range(6, 12)]
    clip = rows[7][0]
    assert [clip[k] for k in ("id", "speaker", "emotion", "language")] == ["train-00001-000001", "2", "angry", "en"]
    assert {c["speaker"]: c["split"] for c, _ in rows} == {s: common.split_speakers([s])[s] for s in "01234"}
    corpus.prepare(corpus.PrepareConfig(str(out), str(tmp_path / "pack"), pitch=False, workers=2))
    pack = corpus.Pack(tmp_path / "pack")
    assert len(pack.clips) == 17 and "skipped" in capsys.readouterr().out  # row 4 is no sound
    assert [c["text"] for c in pack.clips] == [f"line {n}" for n in range(18) if n != 4]
    with pytest.raises(CorpusError, match="streamed"):
        corpus.scan(out)
    with pytest.raises(CorpusError, match="every clip is excluded"):
        hub.write_dataset(str(tmp_path / "data"), tmp_path / "nc", {"licence": "CC-BY-NC-4.0", "split": "train"})
        corpus.prepare(corpus.PrepareConfig(str(tmp_path / "nc"), str(tmp_path / "p2")))


def test_dataset_of_audio_files(tmp_path, cache):
    for n in range(3):
        wav(tmp_path / f"data/{n}.wav", 0.3)
    text(tmp_path / "data/metadata.csv", "file_name,who\n0.wav,a\n1.wav,b\n2.wav,a\n")
    hub.write_dataset(str(tmp_path / "data"), tmp_path / "c", {"speaker": "who"})
    rows = list(hub.HubSource(tmp_path / "c"))
    assert [c["speaker"] for c, _ in rows] == ["a", "b", "a"]
    assert all(len(corpus.read_clip(tmp_path, c, data)) == 4800 for c, data in rows)


def test_dataset_refuses(tmp_path, cache):
    parquet(tmp_path / "data", 1, 1)
    with pytest.raises(CorpusError, match=r"no column 'nobody' for speaker; it has audio, who"):
        hub.write_dataset(str(tmp_path / "data"), tmp_path / "c", {"speaker": "nobody"})
    with pytest.raises(CorpusError, match="no field of the manifest"):
        hub.write_dataset(str(tmp_path / "data"), tmp_path / "c", {"speeker": "who"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="cannot be loaded as a data set"):
        hub.write_dataset(str(tmp_path / "empty"), tmp_path / "c", {})
    text(tmp_path / "c/dataset.json", '{"load": {}}')
    with pytest.raises(CorpusError, match=r"dataset\.json"):
        hub.HubSource(tmp_path / "c")


# --- the check of recordings


def voice(seconds: float = 2.0, rate: int = 48000, edge: float = 0.3, level: float = 0.2) -> np.ndarray:
    """Harmonics up to 12 kHz with silence and faint noise around them."""
    t = np.arange(round(seconds * rate)) / rate
    x = sum(np.sin(2 * np.pi * 200 * k * t + k * k) / k for k in range(1, 60))
    on = (t > edge) & (t < seconds - edge)
    return level * x / np.abs(x).max() * on + 1e-4 * np.random.default_rng(0).normal(size=len(t))


@pytest.mark.parametrize(("fault", "change"), [
    (None, lambda x: x), ("clipped", lambda x: np.clip(20 * x, -1, 1)), ("quiet", lambda x: x / 50),
    ("noisy", lambda x: x + 0.02 * np.random.default_rng(1).normal(size=len(x))),
    ("loud", lambda x: 0.98 * x / np.abs(x).max()), ("offset", lambda x: x + 0.03),
    ("cut", lambda x: x[round(0.31 * 48000) :]), ("short", lambda x: x[: round(0.5 * 48000)]),
    ("dull", lambda x: _low_pass(x)),
])  # fmt: skip
def test_check_hears(fault, change):
    found = check.measure(change(voice()), 48000).faults()
    assert found == [] if fault is None else fault in found, found


def _low_pass(x: np.ndarray) -> np.ndarray:
    spectrum = np.fft.rfft(x)
    spectrum[np.fft.rfftfreq(len(x), 1 / 48000) > 3800] = 0
    return np.fft.irfft(spectrum, len(x))


def test_check_command(tmp_path, capsys):
    for speaker, x in (("anna", voice()), ("ben", np.clip(20 * voice(), -1, 1))):
        (tmp_path / speaker).mkdir()
        soundfile.write(tmp_path / speaker / "1.wav", x, 48000)
    text(tmp_path / "ben/2.wav", "no sound")
    assert main(["corpus", "check", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "3 clips" in out and "1 unreadable, 1 without a fault" in out and "clipped" in out and "anna: 1 fine" in out
