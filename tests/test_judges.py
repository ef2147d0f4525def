"""The judges of eval/, those of a hub (on randomly initialised models), and the cache of what they heard."""

from __future__ import annotations

import json
import math
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from sounds import RATE, available, voice, write

from vivavoce.core.errors import CorpusError
from vivavoce.eval.cache import Cache
from vivavoce.eval.catalogue import METRICS
from vivavoce.eval.judges import JUDGES, JudgeError, SignalJudge, make
from vivavoce.eval.judges.events import heard_events
from vivavoce.eval.measure import Panel, measure, pair_files


@pytest.fixture
def folders(tmp_path):
    """Three sources, converted = the same at half level; c.wav is missing, d.wav too many."""
    for i, name in enumerate("abc"):
        write(tmp_path / "src" / f"{name}.wav", voice(i, 1.0))
    for name, i in (("a", 0), ("b", 1), ("d", 3)):
        write(tmp_path / "out" / f"{name}.wav", 0.5 * voice(i, 1.0))
    return tmp_path


CHEAP = ("events",)  # needs no package

# judges


@pytest.mark.parametrize("name", list(JUDGES))
def test_card_of_every_judge(name):
    card = JUDGES[name]
    assert card.kind == name and card.licence and card.columns and card.min_seconds > 0
    own = [m for m in METRICS.values() if m.judge == name]
    assert own and {c for m in own for c in m.columns} <= {*card.columns, "emotion_label"}


def test_an_unknown_judge_names_those_there_are():
    with pytest.raises(JudgeError, match="speaker, phonemes, pitch, events"):
        make("taste")


PACKAGES = [("speaker", "resemblyzer"), ("phonemes", "hama"), ("pitch", "swift_f0"), ("pitch:world", "pyworld"),
            ("quality", "speechmos"), ("speaker:x", "transformers")]  # fmt: skip


@pytest.mark.parametrize("name, module", PACKAGES)
def test_an_absent_package_says_how_to_get_it_and_the_rest_goes_on(name, module, monkeypatch, folders):
    for k in [k for k in sys.modules if k.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, k)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(JudgeError, match=f"judge '{name}' is not available.*pip install"):
        make(name)
    result = measure(pair_files(folders / "src", folders / "out").pairs, (name,), progress=False)
    assert "pip install" in result.summary["judges"][name]["absent"]
    assert result.summary["overall"]["energy_corr"]["n"] == 2


def test_speaker_judge_identity_and_strangers():
    judge = available("speaker")
    assert "webrtcvad" not in sys.modules or hasattr(sys.modules["webrtcvad"], "Vad")
    a, b = judge.analyse(voice(0)), judge.analyse(voice(1, shift=1.8))
    assert np.linalg.norm(a["embedding"]) == pytest.approx(1.0, abs=1e-4)
    same = judge.compare(a, a, a)
    assert same["sim_target"] == pytest.approx(1.0, abs=1e-5)
    assert same["margin"] == pytest.approx(0.0, abs=1e-5)
    other = judge.compare(a, b, b)
    assert other["margin"] == pytest.approx(1.0 - other["sim_source"], abs=1e-5) and other["margin"] > 0.1
    assert "margin" not in judge.compare(a, b)


def test_speaker_judge_does_not_hear_level():
    judge = available("speaker")
    a, b = judge.embed(0.1 * voice(0)), judge.embed(0.01 * voice(0))
    assert float(a @ b) == pytest.approx(1.0, abs=1e-4)


def test_phoneme_judge_identity_is_zero():
    judge = available("phonemes")
    heard = judge.analyse(voice(2, 3.0))
    assert list(heard["symbols"]) == list(judge.analyse(voice(2, 3.0))["symbols"])
    hello, help_ = ({"symbols": np.array(list(x))} for x in ("həloʊ", "həlp"))
    assert judge.compare(hello, hello)["per"] == 0.0
    assert judge.compare(hello, help_)["per"] == pytest.approx(2 / 5)


@pytest.mark.parametrize("name", ["pitch", "pitch:world"])
def test_pitch_judge_transposed_shuffled_and_silent(name):
    judge = available(name)
    heard = [judge.analyse(voice(s, 2.0)) for s in range(6)]
    higher = judge.compare(heard[0], judge.analyse(voice(0, 2.0, shift=1.5)))
    assert higher["f0_corr"] > 0.98 and higher["voicing_f1"] > 0.9
    assert higher["f0_shift"] == pytest.approx(12 * math.log2(1.5), abs=0.2)
    chance = [judge.compare(heard[i], heard[j])["f0_corr"] for i in range(6) for j in range(i)]
    assert abs(np.nanmean(chance)) < 0.35
    assert abs(higher["f0_range"]) < 0.1
    nothing = judge.compare(heard[0], judge.analyse(np.zeros(RATE, np.float32)))
    assert math.isnan(nothing["f0_corr"]) and nothing["voicing_f1"] == 0.0




def test_pitch_judge_hears_a_voice_in_a_gap():
    judge = available("pitch")
    gap = np.zeros(RATE, np.float32)
    source = np.concatenate((voice(0, 1.0), gap, voice(1, 1.0)))
    filled = source.copy()
    filled[RATE + 4000 : RATE + 12000] += voice(2, 0.5)
    a = judge.analyse(source)
    clean, haunted = judge.compare(a, a), judge.compare(a, judge.analyse(filled))
    assert clean["silence_voiced"] == 0.0 and clean["silence_frames"] > 40
    assert 0.3 < haunted["silence_voiced"] < 0.9  # half of the gap is filled, its edges do not count


def events(**spans: list[tuple[float, float]]):
    return heard_events(list(spans), spans)


def test_event_judge_counts_an_inserted_and_a_late_laugh():
    judge = make("events")
    one = events(laugh=[(0.0, 1.0)])
    same = judge.compare(one, one)
    assert same["event_kept"] == 1.0 == same["event_f1"] == same["laugh_f1"] and same["onset_ms"] == 0.0
    assert math.isnan(same["cry_f1"]) and same["cry_events"] == 0.0
    late = judge.compare(one, events(laugh=[(0.2, 1.0)]))
    assert late["laugh_f1"] == 1.0 and late["onset_ms"] == pytest.approx(200) and late["onsets"] == 1.0
    inserted = judge.compare(one, events(laugh=[(0.0, 1.0), (2.0, 2.6)]))
    assert inserted["laugh_f1"] == pytest.approx(2 / 3) and inserted["laugh_events"] == 3.0
    lost = judge.compare(one, events())
    assert lost["event"] == "laugh" and lost["event_kept"] == 0.0 and lost["event_f1"] == 0.0
    assert math.isnan(lost["onset_ms"])
    changed = judge.compare(one, events(cry=[(0.0, 1.0)]))
    assert changed["event_kept"] == 0.0 and changed["laugh_f1"] == 0.0 == changed["cry_f1"]
    added = judge.compare(events(), one)
    assert math.isnan(added["event_kept"]) and added["event_f1"] == 0.0


def test_event_judge_hears_the_spans_of_its_tagger(monkeypatch):
    judge = make("events")
    tags = judge._tagger.tag(voice(0, 1.0))
    tags.fired = ("speech", "laugh")
    tags.frames[:, list(tags.scores).index("laugh")] = 1.0
    monkeypatch.setattr(judge._tagger, "tag", lambda wave: tags)
    heard = judge.analyse(voice(0, 1.0))
    assert list(heard["fired"]) == ["laugh"] == list(heard["label"])
    assert heard["span"].tolist() == [[0.0, 1.0]]


def test_emotion_judge_agreement_and_labels():
    judge = make("emotion")
    heard = judge.analyse(voice(0, 1.0))
    assert heard["probability"].sum() == pytest.approx(1.0, abs=1e-4)
    same = judge.compare(heard, heard)
    assert same["emotion_same"] == 1.0 and same["emotion_shared"] == pytest.approx(1.0, abs=1e-4)
    p, q = np.zeros((2, len(judge.labels)), np.float32)
    p[judge.labels.index("happy")] = q[judge.labels.index("sad")] = 1.0
    other = judge.compare({"probability": p}, {"probability": q})
    assert (other["emotion_source"], other["emotion_converted"]) == ("happy", "sad")
    assert other["emotion_same"] == 0.0 == other["emotion_shared"]
    assert judge.labels_of({"emotion": "Happiness"}) == {"emotion_label": "happy"}
    assert judge.labels_of({"emotion": "pride"}) == {"emotion_label": ""}
    assert all(s["n"] > 0 and s["low"] <= s["value"] <= s["high"] for s in judge.scores())


def test_quality_judge_prefers_the_clean_version():
    judge = available("quality")
    clean = voice(0, 2.0)
    noisy = clean + 0.1 * np.random.default_rng(0).standard_normal(len(clean)).astype(np.float32)
    a, b = judge.analyse(clean), judge.analyse(noisy)
    worse = judge.compare(a, b)
    assert worse["dnsmos_change"] < 0 and worse["dnsmos_source"] == pytest.approx(float(a["mos"][0]))
    assert judge.compare(a, a)["dnsmos_change"] == 0.0


def test_signal_judge_needs_no_model():
    judge = SignalJudge(chunk_ms=40)
    a = judge.analyse(voice(0, 2.0))
    same = judge.compare(a, a)
    assert same["energy_corr"] == pytest.approx(1.0)
    zero = ("level_shift", "rate_change", "clicks", "seam_db", "level_jumps")
    assert [same[k] for k in zero] == [0.0] * len(zero)
    assert math.isnan(SignalJudge().compare(a, a)["seam_db"])


def test_two_judges_of_one_kind_are_refused():
    with pytest.raises(JudgeError, match="'pitch' and 'pitch:world' are of one kind"):
        Panel(("pitch", "pitch:world"))


def test_a_language_that_the_judge_does_not_know_is_named(folders):
    available("phonemes")
    pair = pair_files(folders / "src", folders / "out").pairs[0]
    pairs = [replace(pair, id=k, fields={"language": k}) for k in ("en", "pl")]
    result = measure(pairs, ("phonemes",), progress=False)
    assert result.summary["not_measured"] == {"phonemes": {"does not know the language 'pl'": 1}}


# what was heard, kept


def test_a_report_resumes_from_what_was_heard(folders, monkeypatch):
    pairs = pair_files(folders / "src", folders / "out").pairs
    kept = folders / "cache.sqlite"
    first = measure(pairs, CHEAP, progress=False, cache=kept)
    deaf = {k: lambda self, wave: pytest.fail("heard again") for k in ("events", "signal")}
    for kind, analyse in deaf.items():
        monkeypatch.setattr(JUDGES[kind], "analyse", analyse)
    again = measure(pairs, CHEAP, progress=False, cache=kept)
    assert again.summary == first.summary
    write(folders / "out" / "a.wav", voice(7, 1.0))
    with pytest.raises(pytest.fail.Exception, match="heard again"):
        Panel(CHEAP, kept)._heard(make("events"), folders / "out" / "a.wav")


def test_a_file_that_is_no_cache_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("not a database, but long enough to look like one" * 30)
    with pytest.raises(CorpusError, match=r"notes\.txt: no cache"):
        Cache(tmp_path / "notes.txt")


# judges of a hub: real classes, random weights

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
         "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}  # fmt: skip


def saved(model, folder, rate: int = RATE):
    transformers = pytest.importorskip("transformers")
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=rate).save_pretrained(folder)
    return str(folder)


def test_hub_speaker_judge(tmp_path):
    t = pytest.importorskip("transformers")
    tdnn = {"tdnn_dim": [16] * 5, "tdnn_kernel": [3] * 5, "tdnn_dilation": [1] * 5}
    config = t.WavLMConfig(**SMALL, **tdnn, xvector_output_dim=16)
    folder = saved(t.WavLMForXVector(config), tmp_path / "m")
    (tmp_path / "m" / "README.md").write_text("---\nlicense: mit\n---\n")
    judge = make(f"speaker:{folder}")
    a = judge.analyse(voice(0))
    assert np.linalg.norm(a["embedding"]) == pytest.approx(1.0)
    assert judge.compare(a, a, a)["margin"] == 0.0
    card = judge.card()
    assert (card["kind"], card["licence"]) == ("speaker", "mit") and len(card["version"]) == 12
    other = make(f"speaker:{saved(t.WavLMForXVector(config), tmp_path / 'other')}")
    assert other.version != judge.version and other.card()["licence"] == "not stated by the model"


@pytest.mark.parametrize("kind", ["phonemes", "words"])
def test_hub_ctc_judges(tmp_path, kind):
    t = pytest.importorskip("transformers")
    folder = saved(t.Wav2Vec2ForCTC(t.Wav2Vec2Config(**SMALL, vocab_size=6, pad_token_id=0)), tmp_path / "m")
    vocab = {"<pad>": 0, "<s>": 1, "|": 2, "a": 3, "b": 4, "c": 5}
    (tmp_path / "m" / "vocab.json").write_text(json.dumps(vocab))
    judge = make(f"{kind}:{folder}")
    logits = torch.nn.functional.one_hot(torch.tensor([[3, 3, 0, 3, 2, 1, 5, 4, 4]]), 6).float()
    judge.run = lambda *waves: types.SimpleNamespace(logits=logits)
    heard = list(judge.analyse(voice(0))["symbols"])
    assert heard == (["a", "a", "c", "b"] if kind == "phonemes" else ["aa", "cb"])
    del judge.run
    assert judge.analyse(voice(0))["symbols"].dtype.kind == "U"


def test_hub_whisper_judge(tmp_path):
    t = pytest.importorskip("transformers")
    pytest.importorskip("tokenizers")
    config = t.WhisperConfig(vocab_size=300, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                             decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_target_positions=8,
                             pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0)  # fmt: skip
    model = t.WhisperForConditionalGeneration(config)
    model.generation_config = t.GenerationConfig(max_length=6, pad_token_id=0, bos_token_id=0, eos_token_id=0,
                                                 decoder_start_token_id=0)  # fmt: skip
    model.save_pretrained(tmp_path / "m")
    t.WhisperFeatureExtractor(feature_size=80).save_pretrained(tmp_path / "m")
    words = {"<|endoftext|>": 0, **{f"w{i}": i for i in range(1, 300)}}
    from tokenizers import Tokenizer, models

    t.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>")),
                              eos_token="<|endoftext|>").save_pretrained(tmp_path / "m")  # fmt: skip
    judge = make(f"words:{tmp_path / 'm'}")
    heard = judge.analyse(voice(0))
    assert judge.compare(heard, heard)["words"] == len(heard["symbols"])
    assert all(w.startswith("w") for w in heard["symbols"])


def test_hub_emotion_judge_speaks_our_names(tmp_path):
    t = pytest.importorskip("transformers")
    names = {0: "hap", 1: "Sadness", 2: "joy", 3: "bored"}
    config = t.Wav2Vec2Config(**SMALL, num_labels=4, id2label=names, classifier_proj_size=8)
    judge = make(f"emotion:{saved(t.Wav2Vec2ForSequenceClassification(config), tmp_path / 'm')}")
    assert judge.labels == ("happy", "sad", "bored")
    assert judge.analyse(voice(0))["probability"].sum() == pytest.approx(1.0, abs=1e-5)


def test_hub_event_judge_finds_a_laugh_in_time(tmp_path):
    t = pytest.importorskip("transformers")
    names = {0: "Speech", 1: "Laughter", 2: "Giggle", 3: "Crying, sobbing"}
    config = t.ASTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                         max_length=64, num_mel_bins=32, num_labels=4, id2label=names)  # fmt: skip
    t.ASTForAudioClassification(config).save_pretrained(tmp_path / "m")
    t.ASTFeatureExtractor(num_mel_bins=32, max_length=64).save_pretrained(tmp_path / "m")
    judge = make(f"events:{tmp_path / 'm'}")
    assert set(judge.analyse(voice(0, 2.0))) == {"fired", "label", "span"}
    loud = lambda *w: types.SimpleNamespace(  # noqa: E731
        logits=torch.tensor([[0.0, -9.0, 9.0 if np.abs(x).mean() > 0.1 else -9.0, -9.0] for x in w]))
    judge.run = loud
    wave = np.zeros(4 * RATE, np.float32)
    wave[2 * RATE : 3 * RATE] = 0.5
    heard = judge.analyse(wave)
    assert list(heard["fired"]) == ["laugh"] == list(heard["label"])
    (start, end) = heard["span"][0]
    assert abs(start - 2.0) < 0.35 and abs(end - 3.0) < 0.35


def test_hub_judges_that_cannot_be_had_say_so_in_one_line(tmp_path):
    t = pytest.importorskip("transformers")
    for name in ("speaker", "phonemes", "words", "emotion", "events"):
        with pytest.raises(JudgeError, match="is not available") as e:
            make(f"{name}:{tmp_path / 'nowhere'}")
        assert "\n" not in str(e.value)
    config = t.Wav2Vec2Config(**SMALL, num_labels=2)
    folder = saved(t.Wav2Vec2ForSequenceClassification(config), tmp_path / "m", rate=8000)
    with pytest.raises(JudgeError, match="hears 8000 Hz"):
        make(f"emotion:{folder}")
    folder = saved(t.Wav2Vec2ForSequenceClassification(config), tmp_path / "m")
    with pytest.raises(JudgeError, match="none of the model's classes"):
        make(f"events:{folder}")
    with pytest.raises(JudgeError, match=r"no vocab\.json"):
        make(f"phonemes:{saved(t.Wav2Vec2ForCTC(t.Wav2Vec2Config(**SMALL)), tmp_path / 'ctc')}")
