"""EnCodec per core: how fast ours encodes and decodes, offline and as a stream, against the reference in one run.

    python benchmarks/encodec.py [--seconds 10] [--bandwidth 6] [--checkpoint FOLDER]

Every column is CPU time of one thread over the time that the audio lasts (real-time factor), the best of `--rounds`
rounds that take turns, so that what else runs on the machine meets all alike. Without a checkpoint the weights are
random, which costs the same. The reference is the package `encodec`; without it, its rows are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vivavoce.codec import Encodec, EncodecConfig, EncodecDecoderStream, EncodecEncoderStream
from vivavoce.codec.encodec.weights import from_state, open_encodec


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seconds", type=float, default=10.0)
    p.add_argument("--bandwidth", type=float, default=6.0, help="kbit/s")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--checkpoint", help="an EnCodec folder or checkpoint (default: random weights)")
    args = p.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    reference = load_reference() if not args.checkpoint else None
    ours = open_encodec(args.checkpoint) if args.checkpoint else (
        from_state(reference.state_dict(), "reference") if reference is not None else Encodec(EncodecConfig()).eval())
    n = round(args.seconds * ours.config.sample_rate)
    x = 0.1 * torch.randn(n)
    codes = ours.encode(x[None], args.bandwidth)

    rows: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {}
    if reference is not None:
        reference.set_target_bandwidth(args.bandwidth)
        frames = reference.encode(x[None, None])
        rows["reference, offline"] = (lambda: reference.encode(x[None, None])), (lambda: reference.decode(frames))
    rows["ours, offline"] = (lambda: ours.encode(x[None], args.bandwidth)), (lambda: ours.decode(codes))
    for block, name in ((1, "ours, stream, 13 ms at a time"), (3, "ours, stream, 40 ms"), (15, "ours, stream, 200 ms")):
        rows[name] = encode_stream(ours, x, args.bandwidth, block), decode_stream(ours, codes[0], block)

    best = {name: [float("inf")] * 2 for name in rows}
    with torch.inference_mode():
        for _ in range(args.rounds):
            for name, jobs in rows.items():
                for k, job in enumerate(jobs):
                    began = time.process_time()
                    job()
                    best[name][k] = min(best[name][k], (time.process_time() - began) / args.seconds)
    first = next(iter(best.values()))
    print(f"{hardware()}, PyTorch {torch.__version__}, one thread; {args.seconds:g} s at {args.bandwidth:g} kbit/s\n")
    print(f"| | encode | decode | encode, of {next(iter(best))} | decode |\n|---|---|---|---|---|")
    for name, (encode, decode) in best.items():
        print(f"| {name} | {encode:.3f} | {decode:.3f} | {encode / first[0]:.2f} x | {decode / first[1]:.2f} x |")


def encode_stream(codec: Encodec, x: Tensor, bandwidth: float, block: int) -> Callable[[], object]:
    """A job that encodes x in pushes of one block."""

    def job() -> None:
        stream = EncodecEncoderStream(codec, bandwidth, block=block)
        for part in x.split(block * codec.config.hop):
            stream.push(part)
        stream.flush()

    return job


def decode_stream(codec: Encodec, codes: Tensor, block: int) -> Callable[[], object]:
    """A job that decodes codes in pushes of one block."""

    def job() -> None:
        stream = EncodecDecoderStream(codec, block=block)
        for part in codes.split(block):
            stream.push(part)
        stream.flush()

    return job


def load_reference() -> torch.nn.Module | None:
    """The reference's 24 kHz model with random weights; it imports torchaudio, of which nothing is used here."""
    here = Path(__file__).resolve().parent  # on the path, this script would be taken for the package
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != here]
    if importlib.util.find_spec("encodec") is None:
        return None
    if "torchaudio" not in sys.modules and importlib.util.find_spec("torchaudio") is None:
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    warnings.filterwarnings("ignore", message=".*weight_norm.*")
    model = importlib.import_module("encodec").EncodecModel.encodec_model_24khz(pretrained=False)
    for layer in model.quantizer.vq.layers:
        layer._codebook.embed.normal_(0, 0.01)
    return model


def hardware() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
