"""The report's page in a real browser: no error, no request, light and dark, narrow and on paper."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from sounds import voice, write

from vivavoce.cli import main

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "out" / "report"  # ignored by git; look at them
ARGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync"]  # fmt: skip
VIEWS = {"light": (1280, 900, "light"), "dark": (1280, 900, "dark"), "narrow": (390, 844, "light"),
         "tablet": (820, 1180, "dark")}  # fmt: skip

pytestmark = pytest.mark.realtime


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("jinja2")
    root, lines = tmp_path_factory.mktemp("page"), []
    names = ["<script>document.title='owned'<", "a very long name " * 8, *(f"clip {i}" for i in range(6))]
    for i, name in enumerate(names):
        write(root / "src" / f"{name}.wav", voice(i, 0.8))
        write(root / "out" / f"{name}.wav", voice(i if i < 5 else i + 40, 0.8, shift=1.2))
        lines.append({"id": name, "emotion": ("happy", "sad")[i % 2], "vocalisation": ("none", "laugh")[i % 3 == 0]})
    (root / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    args = ["--manifest", root / "m.jsonl", "--judges", "pitch,events", "--fail-under", "energy_corr=0.2"]
    for name in ("rival", "r"):
        more = ["--compare", root / "rival" / "summary.json"] if name == "r" else []
        assert main(["report", *map(str, (root / "src", root / "out", "-o", root / name, *args, *more))]) == 0
    return root / "r" / "report.html"


@pytest.mark.parametrize("view", VIEWS)
def test_page_opens_without_an_error_or_a_request(browser, page_file: Path, view: str) -> None:
    width, height, scheme = VIEWS[view]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    said: list[str] = []
    page.on("console", lambda m: said.append(m.text))
    page.on("pageerror", lambda e: said.append(str(e)))
    page.on("request", lambda r: said.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
    page.goto(page_file.as_uri())
    assert page.title().startswith("What survived") and said == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing hangs over the edge
    wide, narrow = (page.locator(s).first.is_visible() for s in ("svg.profile.wide", "svg.profile.narrow"))
    assert (wide, narrow) == ((True, False) if width > 760 else (False, True))
    # every player holds sound that this browser can read, as long as it should be
    for player in page.locator("audio").all():
        seconds = player.evaluate("""a => new Promise(done => a.readyState ? done(a.duration) :
            (a.onloadedmetadata = () => done(a.duration), a.onerror = () => done(-1)))""")
        assert seconds == pytest.approx(0.8, abs=0.05)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
    assert (int(dark) < 60) == (scheme == "dark")
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(PICTURES / f"{view}.png"), full_page=True)
    if view == "light":
        page.pdf(path=str(PICTURES / "print.pdf"), format="A4")
        page.emulate_media(media="print")
        assert not page.locator("audio").first.is_visible() and page.locator("svg.profile.wide").first.is_visible()
        page.set_viewport_size({"width": 720, "height": 1000})  # A4 within its margins
        page.screenshot(path=str(PICTURES / "print.png"), full_page=True)
    page.close()


def test_page_is_for_keyboards_and_screen_readers(browser, page_file: Path) -> None:
    page = browser.new_page()
    page.goto(page_file.as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the verdict"
    check = """() => {
      const all = (s) => [...document.querySelectorAll(s)];
      return {
        headings: all('h1').length,
        bare_cells: all('th').filter(x => !x.scope).length,
        bare_tables: all('table').filter(x => !x.caption).length,
        bare_pictures: all('svg').filter(x => !x.getAttribute('aria-label')).length,
        bare_players: all('audio').filter(x => !x.getAttribute('aria-label')).length,
        bare_figures: all('figure').filter(x => !x.querySelector('figcaption')).length,
        dead_links: all('a[href^="#"]').filter(x => !document.querySelector(x.getAttribute('href'))).length,
        scrollers: all('.scroll').filter(x => x.tabIndex !== 0 || !x.getAttribute('aria-label')).length,
        ids: all('[id]').length - new Set(all('[id]').map(x => x.id)).size,
      };
    }"""
    found = page.evaluate(check)
    assert found.pop("headings") == 1 and set(found.values()) == {0}, found
    page.close()


def test_playing_one_clip_stops_the_other_and_moves_the_line(browser, page_file: Path) -> None:
    page = browser.new_page()
    page.goto(page_file.as_uri())
    page.evaluate("""() => { const a = document.querySelectorAll('audio')[0]; a.muted = true; a.currentTime = 0.4; }""")
    page.wait_for_function("document.querySelector('.playhead').classList.contains('on')")
    moved = page.evaluate("new DOMMatrix(getComputedStyle(document.querySelector('.playhead')).transform).m41")
    assert moved > 100
    page.evaluate("""() => { const [a, b] = document.querySelectorAll('audio'); b.muted = true; a.loop = b.loop = true;
                      return a.play().then(() => b.play()); }""")
    assert page.evaluate("[...document.querySelectorAll('audio')].slice(0, 2).map(a => a.paused)") == [True, False]
    page.close()
