"""The terminal of `vivavoce live`: keys in, meters out."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any

from vivavoce.live.loop import Loop
from vivavoce.stream import Latency

KEYS = "b bypass   n/p next, previous voice   1-9 voice   q quit"


@contextlib.contextmanager
def keys() -> Iterator[Any]:
    """A function that returns the keys pressed since it was last called; none where stdin is no terminal."""
    if not sys.stdin.isatty():
        yield lambda: ""
        return
    import termios
    import tty

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def pressed() -> str:
        found = b""
        while select.select([fd], [], [], 0)[0] and (more := os.read(fd, 64)):
            found += more
        return found.decode(errors="ignore")

    try:
        tty.setcbreak(fd)
        yield pressed
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def act(loop: Loop, key: str) -> bool:
    """Do what a key says; false for quit."""
    if key in "qQ\x1b":
        return False
    if key in "bB":
        loop.toggle_bypass()
    elif key in "nN":
        loop.next_voice(1)
    elif key in "pP":
        loop.next_voice(-1)
    elif key.isdecimal() and 1 <= int(key) <= len(loop.voices):
        loop.switch(int(key) - 1)
    return True


def budget(latency: Latency, loop: Loop, devices: tuple[float, float]) -> list[tuple[str, float]]:
    """The latency from mouth to ear, item by item, in ms."""
    items = [(name.replace("_", "-"), ms) for name, ms in vars(latency).items() if ms]
    return [("microphone", 1000 * devices[0]), *items, ("compute p95", loop.meters.percentile(95)),
            ("playback buffer", 1000 * loop.buffer / loop.rate), ("loudspeaker", 1000 * devices[1])]  # fmt: skip


def meter(db: float, width: int = 40) -> str:
    """A level from -60 to 0 dB as a bar of `width` characters."""
    n = round(width * min(max((db + 60.0) / 60.0, 0.0), 1.0))
    return "█" * n + "·" * (width - n) + f" {max(db, -99.0):4.0f} dB"


def panel(loop: Loop, devices: tuple[float, float], lines: deque[str]) -> Any:
    """What is shown, as a rich renderable."""
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    m, table = loop.meters, Table.grid(padding=(0, 2))
    for i, engine in enumerate(loop.voices):
        here = i == loop.voice
        table.add_row(f"{i + 1}" if i < 9 else "", Text(engine.voice.name, style="bold reverse" if here else ""))
    body = Table.grid(padding=(0, 1))
    body.add_row("in", Text(meter(m.level_in)), "" if m.gate_open else "gate closed")
    body.add_row("out", Text(meter(m.level_out)), "BYPASS" if loop.bypass else "")
    items = budget(loop.stream.latency, loop, devices)
    body.add_row("ms", Text(" + ".join(f"{name} {ms:.0f}" for name, ms in items)), "")
    body.add_row("", Text(f"= {sum(ms for _, ms in items):.0f} ms from mouth to ear", style="bold"), "")
    body.add_row("load", f"{loop.load:.2f} of this machine's time; {m.underruns} missed deadlines, "
                 f"{1000 * m.dropped / loop.rate:.0f} ms left out", "")  # fmt: skip
    whole = Table.grid()
    whole.add_row(table)
    whole.add_row(body)
    for line in lines:
        whole.add_row(Text(line, style="yellow"))
    state = "[bold red]OVERLOADED: original" if loop.overloaded else "[bold green]live"
    return Panel(whole, title=f"vivavoce {state}", subtitle=KEYS)
