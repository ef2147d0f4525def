"""The page in a real browser, with a microphone that plays a recording. Nothing here asks how fast the machine is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tiny

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytest.importorskip("starlette", reason="needs the extra `serve`")

from servers import PATIENCE, WAIT, Server, Town, eventually, stopped  # noqa: E402

from vivavoce.serve.limits import Limits  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
SHOTS = ROOT / "out" / "web"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required"]  # fmt: skip
MICROPHONE = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
pytestmark = [pytest.mark.realtime, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    with playwright.sync_playwright() as p:
        yield p


@pytest.fixture(scope="module")
def browser(started: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Its microphone plays `speech-low`, a man's voice, again and again."""
    x, rate = soundfile.read(ROOT / "samples" / "speech-low.flac")
    said = tmp_path_factory.mktemp("microphone") / "speech.wav"
    soundfile.write(said, x, rate)
    made = started.chromium.launch(executable_path=CHROMIUM,
                                   args=[*FLAGS, *MICROPHONE, f"--use-file-for-fake-audio-capture={said}"])  # fmt: skip
    yield made
    made.close()


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    town = Town(tiny.build(tmp_path_factory.mktemp("model")), workers=1, streams=2)
    yield town
    town.close()


@pytest.fixture(scope="module")
def server(town: Town) -> Server:
    return town.serve(WAIT)


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """Opens a page that is ready; whatever it logs as an error fails the test."""
    contexts, wrong = [], []

    def visit(url: str, of: Any = browser, **options: Any) -> Any:
        contexts.append(of.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(1000 * PATIENCE)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(url)
        page.wait_for_selector("#go:not([disabled])")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert wrong == []


def shoot(page: Any, name: str, whole: bool = True) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=whole)


def go(page: Any) -> None:
    page.click("#go")
    page.wait_for_selector("body[data-state=live]")


def said_wrong(page: Any) -> str:
    page.wait_for_selector("#alert:not([hidden])")
    return page.inner_text("#alert-text")


def record(page: Any, seconds: int) -> None:
    page.click("#record")
    page.wait_for_function("n => parseInt(/\\d+/.exec(document.getElementById('record-text').textContent)) >= n",
                           arg=seconds)  # fmt: skip


def downloads(page: Any, links: str, folder: Path) -> list[tuple[np.ndarray, int]]:
    """What each of the links gives: samples and their rate."""
    found = []
    for link in page.query_selector_all(links):
        with page.expect_download() as download:
            link.click()
        path = folder / download.value.suggested_filename
        download.value.save_as(path)
        found.append(soundfile.read(path))
    return found


# ---------------------------------------------------------------- hear yourself live


def test_converted_speech_comes_back(visit: Any, tmp_path: Path) -> None:
    """With the model that ships: through the microphone, the socket and back; in the target's register."""
    import torch

    from vivavoce.changer import load

    command = [sys.executable, "-m", "vivavoce", "serve", "--port", "0", "--late", "wait", "--max-streams", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            lines = iter(process.stderr.readline, "")
            url = next(m[0] for line in lines if (m := re.search(r"http://localhost:\d+/", line)))
            page = visit(url, viewport={"width": 1280, "height": 900})
            page.click("label[for=voice-livia]")
            go(page)
            page.click("#latency summary")
            record(page, 4)
            page.wait_for_function("() => document.querySelectorAll('#latency-rows tr').length > 6")
            assert {"Look-ahead of the units", "Computing and network", "Together"} <= set(
                page.inner_text("#latency-rows").replace("\t", "\n").split("\n"))  # fmt: skip
            shoot(page, "live")
            page.click("#go")
            page.wait_for_selector("#takes li")  # however late: it waits for all of it
            take = page.eval_on_selector("#takes li", "e => ({...e.dataset})")
            (source, rate), (converted, _) = downloads(page, "#takes a", tmp_path)
            shoot(page, "take")
        finally:
            process.terminate()
            process.wait(60)
    assert process.returncode == 0
    assert len(source) == len(converted) == int(take["samples"]) >= 4 * rate and take["passed"] == "0"
    assert np.sqrt((source**2).mean()) > 0.01 and np.sqrt((converted**2).mean()) > 0.01
    changer = load()
    was, now = (changer._register_of(iter([torch.from_numpy(x).float()]), rate) for x in (source, converted))
    target = changer.voices["livia"].register
    assert abs(np.log2(now / target)) < 0.5 * abs(np.log2(was / target)), (was, now, target)
    # Aligned, too: loudness passes through a conversion, so the two envelopes rise and fall together.
    size = rate // 50
    loud = [np.log(np.abs(x[: len(x) // size * size].reshape(-1, size)).mean(1) + 1e-3) for x in (source, converted)]
    fits = [np.corrcoef(loud[0][10:-10], np.roll(loud[1], s)[10:-10])[0, 1] for s in range(-8, 9)]
    assert int(np.argmax(fits)) - 8 in (-1, 0, 1), fits


def test_bypass_voices_and_takes(visit: Any, server: Server, tmp_path: Path) -> None:
    page = visit(server.url)
    go(page)
    record(page, 1)
    page.click("label[for=hear-original]")
    page.wait_for_selector("#out[data-passed=yes]")
    assert page.inner_text("#out-name").lower() == "you, unconverted"
    page.wait_for_timeout(400)
    page.click("label[for=hear-converted]")
    page.wait_for_selector("#out[data-passed=no]")
    page.click("label[for=voice-bela]")
    assert page.inner_text("#out-name").lower() == "bela"
    page.click("#record")
    page.wait_for_selector("#takes li")
    assert "your own voice" in page.inner_text("#takes li small")
    assert page.get_attribute("body", "data-state") == "live"  # the take ends, the stream goes on
    (source, rate), (converted, _) = downloads(page, "#takes a", tmp_path)
    assert len(source) == len(converted) > rate
    same = np.abs(source - converted) < 1e-4
    assert 0.2 * rate < same.sum() < 0.9 * len(source)  # the stretch that was bypassed, in its place
    page.click("#go")
    page.wait_for_selector("body[data-state=idle]")
    server.idle()


# ---------------------------------------------------------------- voices and files


def test_enrol_by_microphone(visit: Any, server: Server) -> None:
    page = visit(server.url)
    page.click("#add-voice")
    page.click("#enrol-record")
    page.wait_for_selector("#enrol-audio:not([hidden])")
    assert page.is_disabled("#enrol-add")  # nobody has agreed yet
    page.fill("#enrol-name", "Myself")
    page.check("#enrol-consent")
    shoot(page, "enrol", whole=False)
    page.click("#enrol-add")
    page.wait_for_selector("input[data-name=Myself]", state="attached")
    assert page.is_checked("input[data-name=Myself]") and not page.is_visible("#enrol")
    go(page)
    page.wait_for_function("() => document.getElementById('latency-total').textContent")
    page.click("#go")
    page.reload()
    page.wait_for_selector("input[data-name=Myself]", state="attached")  # until the tab is closed
    assert "Myself" not in visit(server.url).inner_text("#voices")  # and to nobody else


def test_convert_a_file(visit: Any, server: Server, tmp_path: Path) -> None:
    page = visit(server.url)
    sample = ROOT / "samples" / "laugh.flac"
    page.set_input_files("#file", sample)
    page.wait_for_selector("#converted li")
    (_, _), (converted, rate) = downloads(page, "#converted a", tmp_path)
    x, was = soundfile.read(sample)
    assert (len(converted), rate) == (len(x), was) and not page.is_visible("#job")
    (tmp_path / "noise.wav").write_bytes(b"this is no recording")
    page.set_input_files("#file", tmp_path / "noise.wav")
    page.wait_for_function("() => document.getElementById('job-text').textContent.includes('not readable')")
    assert "noise.wav: not readable as audio" in page.inner_text("#job-text")
    shoot(page, "files")


# ---------------------------------------------------------------- what may go wrong


def test_without_permission(started: Any, visit: Any, server: Server) -> None:
    args = [*FLAGS, MICROPHONE[0], "--deny-permission-prompts"]
    denied = started.chromium.launch(executable_path=CHROMIUM, args=args)
    page = visit(server.url, denied)
    page.click("#go")
    assert "may not use your microphone" in said_wrong(page)
    assert page.get_attribute("body", "data-state") == "idle" and page.is_enabled("#go")
    shoot(page, "denied")
    page.click("#add-voice")
    page.click("#enrol-record")
    page.wait_for_function("() => document.getElementById('enrol-status').textContent.includes('microphone')")
    denied.close()
    server.idle()


def test_when_it_is_full(visit: Any, server: Server) -> None:
    held = [server.client(), server.client()]
    page = visit(server.url)
    page.wait_for_function("() => document.getElementById('server-text').textContent === 'All places are taken'")
    page.click("#go")
    assert "all are taken" in said_wrong(page)
    for client in held:
        client.finish()


def test_when_the_server_goes(visit: Any, town: Town) -> None:
    short = town.serve(WAIT)
    page = visit(short.url)
    go(page)
    town.servers[-1].should_exit = True
    assert "does not answer" in said_wrong(page) or "connect" in said_wrong(page)
    page.wait_for_selector("#server[data-ok=no]")
    assert page.inner_text("#server-text") == "The server does not answer"
    page.click("#go")
    page.wait_for_function("() => document.getElementById('alert-text').textContent.includes('vivavoce serve')")


def test_when_it_is_late(visit: Any, town: Town) -> None:
    page = visit(town.serve(Limits(late_after=0.2, recover_after=1.0)).url)
    go(page)
    with stopped(town.pool.live[0]):
        page.wait_for_timeout(700)
    page.wait_for_selector("#out[data-passed=yes]")
    assert "unconverted" in said_wrong(page)
    shoot(page, "late")
    page.wait_for_function("() => document.getElementById('alert-text').textContent.includes('it converts again')")
    page.wait_for_selector("#out[data-passed=no]")
    page.click("#go")
    eventually(lambda: not town.pool.taken)


def test_a_token(visit: Any, town: Town) -> None:
    from vivavoce.serve.limits import Door

    locked = town.serve(WAIT, Door(token="sesame"))
    page = visit(f"{locked.url}/#token=sesame")
    assert "token" not in page.url
    go(page)
    page.click("#go")
    page.wait_for_selector("body[data-state=idle]")


def test_a_time_limit(visit: Any, town: Town) -> None:
    page = visit(town.serve(replace(WAIT, stream=1.0)).url)
    go(page)
    assert "connect again" in said_wrong(page)


# ---------------------------------------------------------------- looks, and who cannot use a mouse


def contrast(page: Any, selector: str) -> float:
    """WCAG contrast of an element's text against what lies behind it."""
    return page.eval_on_selector(selector, """element => {
      const numbers = (css) => css.match(/[\\d.]+/g).map(Number);
      const light = (css) => numbers(css).slice(0, 3).map((v) => v / 255)
        .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
      let behind = element;
      while (behind && (numbers(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement;
      const [a, b] = [light(getComputedStyle(element).color), light(getComputedStyle(behind).backgroundColor)].sort();
      return (b + 0.05) / (a + 0.05);
    }""")  # fmt: skip


TEXTS = ("h1", ".intro p", ".voice label b", ".voice label small", "#go", "#out-name", "footer p", "#server-text",
         "label[for=hear-original]", "label[for=hear-converted]", "summary", "#file-drop p")  # fmt: skip


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 360), ("dark", 360)])
def test_looks(scheme: str, width: int, visit: Any, server: Server) -> None:
    page = visit(server.url, color_scheme=scheme, viewport={"width": width, "height": 800}, reduced_motion="reduce")
    shoot(page, f"{scheme}-{width}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate("[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > "
                         f"{width} + 0.5 && !e.closest('.unseen')).map(e => e.outerHTML.slice(0, 80))")  # fmt: skip
    assert wide == []
    for text in TEXTS:
        assert contrast(page, text) >= 4.5, text
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", back))) < 60) == (scheme == "dark")
    small = page.evaluate("[...document.querySelectorAll('button, .button, .voice label')].filter(e => "
                          "e.offsetParent && e.getBoundingClientRect().height < 36).map(e => e.outerHTML)")  # fmt: skip
    assert small == []
    page.click("#add-voice")
    box = page.query_selector("#enrol").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width
    shoot(page, f"enrol-{scheme}-{width}", whole=False)


def test_by_keyboard_alone(visit: Any, server: Server) -> None:
    page = visit(server.url)
    seen: list[str] = []
    ways: dict[str, bool] = {}
    for _ in range(40):
        page.keyboard.press("Tab")
        name, ring = page.evaluate("""() => {
          const e = document.activeElement, shown = e.matches("input.unseen, .voice input, .switch input")
            ? document.querySelector(`label[for="${e.id}"]`) : e;
          const {outlineStyle, outlineWidth} = getComputedStyle(shown);
          return [e.id || e.className || e.tagName, outlineStyle !== "none" && parseFloat(outlineWidth) >= 2];
        }""")  # fmt: skip
        if name in ("BODY", *seen[:1]):
            break
        seen.append(name)
        ways[name] = ring
    must = {"skip", "voice-ada", "hear", "add-voice", "go", "hear-converted", "file"}
    assert must <= set(seen) and all(ways.values()), (seen, ways)
    page.focus("#voice-ada")
    page.keyboard.press("ArrowDown")
    assert page.is_checked("#voice-bela")
    page.focus("#go")
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-state=live]")
    page.focus("#hear-converted")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#out[data-passed=yes]")
    page.focus("#go")
    page.keyboard.press("Space")
    page.wait_for_selector("body[data-state=idle]")
    named = page.evaluate("""() => [...document.querySelectorAll("button, input, select, canvas, audio, [role=meter]")]
      .filter((e) => !(e.labels?.length || e.textContent.trim() || e.getAttribute("aria-label") || e.type === "hidden"
        || e.id === "enrol-audio")).map((e) => e.outerHTML)""")  # fmt: skip
    assert named == []
    page.focus("#add-voice")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    assert not page.is_visible("#enrol")
