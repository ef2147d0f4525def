"""`vivavoce live`."""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
from collections import deque
from collections.abc import Iterator

from vivavoce.cli.common import Commands, command, duration, model_option, positive, threads_option

EXAMPLES = """\
Keys while it runs: b bypass (the original, aligned in time), n and p next and previous voice, 1 to 9 a voice, q quit.
Wear headphones: a loudspeaker that the microphone hears makes an echo. Needs pip install 'vivavoce[live]'.

examples:
  which devices       vivavoce live --list-devices
  every voice of the model, the first one to begin with
                      vivavoce live
  your own voices     vivavoce live --voice someone.voice --voice alba
  a virtual microphone for other programs (PulseAudio, PipeWire)
                      pactl load-module module-null-sink sink_name=changed
                      PULSE_SINK=changed vivavoce live --voice alba
"""


def add(commands: Commands) -> None:
    c = command(commands, "live", live, "microphone to loudspeaker, at once", EXAMPLES)
    c.add_argument("--voice", action="append", metavar="VOICE",
                   help="embedded name, .voice file or recording; again for more to switch between (default: all "
                        "that came with the model)")  # fmt: skip
    c.add_argument("--input", metavar="DEVICE", help="microphone: number, name or part of it (default: the system's)")
    c.add_argument("--output", metavar="DEVICE", help="loudspeaker: likewise")
    c.add_argument("--list-devices", action="store_true", help="say which devices there are")
    c.add_argument("--rate", type=positive, metavar="HZ", help="of the devices (default: what both take)")
    c.add_argument("--chunk", type=duration, default=0.02, metavar="20ms",
                   help="converted at a time (default 20ms; 40ms takes three fifths of the work)")  # fmt: skip
    c.add_argument("--buffer", type=duration, default=0.04, metavar="40ms",
                   help="waiting before playback begins: how late a chunk may be (default 40ms)")  # fmt: skip
    c.add_argument("--delay", type=int, metavar="FRAMES", help="see vivavoce convert --help")
    c.add_argument("--context", type=duration, metavar="1.6s", help="recent past that the model attends to "
                   "(default: all that it can)")  # fmt: skip
    c.add_argument("--seed", type=int, metavar="N", help="of all randomness")
    c.add_argument("--transpose", type=float, metavar="SEMITONES", help="shift the output's pitch")
    c.add_argument("--source-pitch", type=float, metavar="HZ", dest="source_register",
                   help="your mean pitch, where you know it (default: learnt within seconds)")  # fmt: skip
    c.add_argument("--no-gate", action="store_true", help="let the room's noise through when nobody speaks")
    threads_option(c)
    model_option(c)


def live(args: argparse.Namespace) -> int:
    from vivavoce.live import audio

    if args.list_devices:
        for d in audio.devices():
            kinds = f"{d['inputs']} in, {d['outputs']} out"
            print(f"{d['index']:3d}  {d['name']}  [{d['host']}; {kinds}; {d['rate']} Hz] {d['default']}".rstrip())
        return 0
    devices = audio.Devices(args.input, args.output, args.rate)

    from vivavoce.changer import load
    from vivavoce.core.errors import VivavoceError
    from vivavoce.gate import Gate
    from vivavoce.live.loop import Loop

    changer = load(args.model, threads=args.threads)
    names = args.voice or list(changer.voices)
    if not names:
        raise VivavoceError("this model brought no voices; name a recording or .voice file with --voice")
    given = {k: v for k in ("delay", "context", "seed", "transpose", "source_register")
             if (v := getattr(args, k)) is not None}  # fmt: skip
    stream = changer.stream(names[0], devices.rate, chunk=args.chunk, **given)
    voices = [stream.engine, *(stream.prepare(name) for name in names[1:])]
    chunk, buffer = (round(s * devices.rate) for s in (args.chunk, args.buffer))
    lines: deque[str] = deque(maxlen=4)
    gate = None if args.no_gate else Gate(devices.rate)
    loop = Loop(stream, chunk, buffer, voices, gate, say=lines.append if sys.stdout.isatty() else _print)
    stream.warm_up()
    return run(loop, devices, lines)


def _print(line: str) -> None:
    print(f"vivavoce: {line}", file=sys.stderr, flush=True)


def run(loop, devices, lines: deque[str]) -> int:
    """Play until q, Ctrl-C, or the devices are gone."""
    from vivavoce.core.errors import AudioError
    from vivavoce.live import screen

    end, failed = threading.Event(), []

    def work() -> None:
        try:
            while not end.is_set():
                loop.step()
        except Exception as e:  # into the main thread, which ends the show
            failed.append(e)
            end.set()

    worker = threading.Thread(target=work, name="convert", daemon=True)
    try:
        with screen.keys() as pressed:
            devices.start(loop.hear, loop.play)
            worker.start()
            _print(f"live, {devices.mic['name']} to {devices.speaker['name']} at {devices.rate} Hz")
            with shown(loop, devices, lines):
                while not end.wait(0.05):
                    if not all(screen.act(loop, key) for key in pressed()):
                        break
                    if not devices.alive:
                        raise AudioError("a device went away; plug it in and start again")
    finally:
        end.set()
        devices.stop()
        if worker.is_alive():
            worker.join()
    if failed:
        raise failed[0]
    m = loop.meters
    left_out = 1000 * m.dropped / loop.rate
    _print(f"{m.seconds:.0f} s; compute p95 {m.percentile(95):.1f} ms a chunk; {m.underruns} missed deadlines, "
           f"{left_out:.0f} ms left out")  # fmt: skip
    return 0


@contextlib.contextmanager
def shown(loop, devices, lines: deque[str]) -> Iterator[None]:
    """The screen while it runs, where there is one. What ends it, also while it comes up, gives the terminal back."""
    if not sys.stdout.isatty():
        yield
        return
    try:
        from rich.live import Live
    except ImportError:
        from vivavoce.core.errors import VivavoceError

        raise VivavoceError("live needs the package rich; pip install 'vivavoce[live]'") from None
    from vivavoce.live import screen

    live = Live(get_renderable=lambda: screen.panel(loop, devices.latency, lines), refresh_per_second=10)
    try:
        live.start(refresh=True)
        yield
    finally:
        live.stop()
