"""`vivavoce serve`: who may come in, voices and files, metrics, the page, and how it starts."""

from __future__ import annotations

import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tiny

pytest.importorskip("starlette", reason="needs the extra `serve`")
pytest.importorskip("httpx")
pytest.importorskip("websockets", reason="needs the extra `serve`")
pytest_plugins = ["servers"]

from servers import HTTP, RATE, SPEECH, WAIT, Client, Server, Town, eventually, offline, opened, stopped  # noqa: E402
from websockets.exceptions import InvalidStatus  # noqa: E402

from vivavoce.changer import Changer  # noqa: E402
from vivavoce.core.errors import VivavoceError  # noqa: E402
from vivavoce.engine import Settings  # noqa: E402
from vivavoce.serve.errors import ERRORS, ProtocolError  # noqa: E402
from vivavoce.serve.limits import Door  # noqa: E402
from vivavoce.serve.metrics import Metrics  # noqa: E402
from vivavoce.serve.server import Options, banner, serve  # noqa: E402

# ---------------------------------------------------------------- who may come in


@pytest.mark.parametrize(("host", "origin", "code"), [
    ("localhost:80", None, None), ("127.0.0.1", None, None), ("[::1]:80", None, None),
    ("localhost:80", "http://localhost:80", None), ("localhost:80", "https://friend.example", None),
    ("localhost:80", "http://localhost:81", "foreign-origin"), ("localhost:80", "null", "foreign-origin"),
    ("localhost", "https://evil.example", "foreign-origin"), ("evil.example", "http://evil.example", "foreign-host"),
    ("", None, "foreign-host"), ("localhost.evil.example", None, "foreign-host"),
])  # fmt: skip
def test_the_door(host: str, origin: str | None, code: str | None) -> None:
    headers = {"host": host} | ({"origin": origin} if origin else {})
    door = Door(origins=("https://friend.example",))
    if code is None:
        return door.check_origin(headers)
    with pytest.raises(ProtocolError) as e:
        door.check_origin(headers)
    assert (e.value.code, e.value.status) == (code, 403)


def test_foreign_origins_are_refused(server: Server) -> None:
    with pytest.raises(InvalidStatus) as e:
        opened(server.ws, origin="https://evil.example")  # type: ignore[arg-type]
    assert e.value.response.status_code == 403 and b"--allow-origin" in (e.value.response.body or b"")
    for answer in (HTTP.get(f"{server.url}/voices", headers={"Origin": "https://evil.example"}),
                   HTTP.post(f"{server.url}/convert?voice=ada", headers={"Host": "evil.example"})):  # fmt: skip
        assert answer.status_code == 403


def test_tokens(town: Town) -> None:
    locked = town.serve(door=Door(token="sesame"))
    for token, word in (("", "missing"), ("open", "wrong")):
        code, message, _ = Client(opened(locked.ws), token=token).refused()
        assert code == "bad-token" and word in message
        answer = HTTP.get(f"{locked.url}/voices", headers={"Authorization": f"Bearer {token}"} if token else {})
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    locked.client(token="sesame").socket.close()
    bearer = {"Authorization": "Bearer sesame"}
    client = Client(opened(locked.ws, additional_headers=bearer))
    client.expect("ready")
    client.socket.close()
    assert HTTP.get(f"{locked.url}/metrics", headers=bearer).status_code == 200
    assert HTTP.get(f"{locked.url}/healthz").status_code == HTTP.get(locked.url).status_code == 200


# ---------------------------------------------------------------- voices and files


def recording(x: np.ndarray, rate: int = RATE, form: str = "FLAC") -> bytes:
    import io

    file = io.BytesIO()
    soundfile.write(file, x, rate, format=form)
    return file.getvalue()


def test_voices_are_enrolled_used_kept_private_and_forgotten(server: Server, changer: Changer) -> None:
    listed = HTTP.get(f"{server.url}/voices").json()["voices"]
    assert [v["id"] for v in listed] == ["ada", "bela"]
    x = tiny.voiced(2.5, f0=180.0)
    made = HTTP.post(f"{server.url}/voices", params={"name": "Cleo", "consent": "hers"}, content=recording(x.numpy()))
    assert made.status_code == 201
    voice = made.json()
    assert (voice["name"], voice["consent"]) == ("Cleo", "hers")
    assert HTTP.get(f"{server.url}/voices").json()["voices"] == listed  # nobody else sees it
    client = server.client(voice=voice["id"])
    client.audio(SPEECH)
    kept = HTTP.get(f"{server.url}/voices/{voice['id']}?file").content
    heard = client.finish()
    again = HTTP.post(f"{server.url}/voices", params={"consent": "hers"}, content=kept).json()
    assert again["name"] == "Cleo" and again["id"] != voice["id"]
    twin = server.client(voice=again["id"])
    twin.audio(SPEECH)
    assert np.array_equal(twin.finish(), heard) and not np.array_equal(heard, offline(changer, SPEECH))
    assert HTTP.delete(f"{server.url}/voices/{voice['id']}").status_code == 204
    assert HTTP.get(f"{server.url}/voices/{voice['id']}").status_code == 404
    assert HTTP.delete(f"{server.url}/voices/ada").status_code == 403


def test_only_so_many_voices_are_kept(town: Town) -> None:
    small = town.serve(replace(WAIT, voices=2))
    sound = recording(tiny.voiced(1.5).numpy())
    ids = [HTTP.post(f"{small.url}/voices?consent=x", content=sound).json()["id"] for _ in range(2)]
    assert HTTP.get(f"{small.url}/voices/{ids[0]}").status_code == 200  # used: the other goes first
    ids.append(HTTP.post(f"{small.url}/voices?consent=x", content=sound).json()["id"])
    assert [HTTP.get(f"{small.url}/voices/{i}").status_code for i in ids] == [200, 404, 200]


def test_preview(server: Server, changer: Changer) -> None:
    import io

    answer = HTTP.get(f"{server.url}/voices/ada/preview")
    y, rate = soundfile.read(io.BytesIO(answer.content))
    want, _ = changer.preview("ada")
    assert rate == RATE and np.abs(y - want.numpy()).max() <= 1 / 32768


def test_files_are_converted_as_the_library_does(server: Server, changer: Changer, tmp_path: Path) -> None:
    x = tiny.voiced(1.7, 22050)
    path = tmp_path / "in.flac"
    path.write_bytes(recording(x.numpy(), 22050))
    answer = HTTP.post(f"{server.url}/convert?voice=bela&seed=5", content=path.read_bytes())
    (tmp_path / "out.wav").write_bytes(answer.content)
    y, rate = soundfile.read(tmp_path / "out.wav", dtype="float32")
    want, _ = changer.convert(path, "bela", settings=Settings(5))
    assert (answer.status_code, rate, len(y)) == (200, 22050, len(x))
    assert answer.headers["content-length"] == str(44 + 2 * len(x))
    assert np.abs(y - want.numpy()).max() <= 1 / 32768


SILENT = recording(np.zeros(2 * RATE, np.float32))


@pytest.mark.parametrize(("path", "body", "status", "word"), [
    ("convert?voice=ada", b"not audio at all", 422, "not readable as audio"),
    ("convert?voice=ada", b"", 400, "no recording"),
    ("convert?voice=ada", bytes(300_001), 413, "0.286 MB"),
    ("convert?voice=ada&name=my.wav", recording(np.zeros(4 * RATE)), 422, "my.wav: longer than the 3 s"),
    ("convert?voice=nobody", SILENT, 404, "nobody"), ("convert", SILENT, 400, "?voice="),
    ("convert?voice=/etc/passwd", SILENT, 404, "no voice"),
    ("convert?voice=ada&seed=x", SILENT, 400, "seed"), ("convert?voice=ada&transpose=nan", SILENT, 422, "transpose"),
    ("voices?name=x&consent=y", SILENT, 422, "x: silent"), ("voices", SILENT, 400, "consent"),
    ("voices?consent=y", recording(SPEECH)[:2000], 422, "damaged"),
    ("voices?consent=y", b"\x40\0\0\0\0\0\0\0{}", 422, "safetensors"),
])  # fmt: skip
def test_bad_uploads(path: str, body: bytes, status: int, word: str, server: Server) -> None:
    answer = HTTP.post(f"{server.url}/{path}", content=body)
    told = answer.json()["error"]
    assert answer.status_code == status and word in told["message"] and told["code"] in ERRORS
    assert "tmp" not in told["message"]


def test_an_upload_without_a_length_is_cut_off(server: Server) -> None:
    answer = HTTP.post(f"{server.url}/convert?voice=ada", content=iter([bytes(100_000)] * 4))
    assert answer.status_code == 413


def test_a_download_that_is_broken_off_frees_its_place(server: Server) -> None:
    with HTTP.stream("POST", f"{server.url}/convert?voice=ada", content=recording(tiny.voiced(2.9).numpy())) as answer:
        assert next(answer.iter_bytes())[:4] == b"RIFF"
    server.idle()


def test_only_so_many_jobs(town: Town) -> None:
    busy = town.serve(replace(WAIT, jobs=1))
    with stopped(town.pool.desk):
        body = recording(SPEECH)
        sock = socket.create_connection(("127.0.0.1", busy.port))
        head = f"POST /convert?voice=ada HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        sock.sendall(head.encode() + body)
        eventually(lambda: busy.service.jobs == 1)
        answer = HTTP.post(f"{busy.url}/convert?voice=ada", content=body)
        assert answer.status_code == 503 and answer.headers["retry-after"] and "at a time" in answer.text
    sock.close()
    busy.idle()


# ---------------------------------------------------------------- metrics, page, start


def test_metrics_are_well_formed(server: Server) -> None:
    text = HTTP.get(f"{server.url}/metrics").text
    line = re.compile(r'(# (HELP|TYPE) \w+ .+|\w+(\{\w+="[^"]*"\})? [-+0-9.e]+)')
    assert all(line.fullmatch(row) for row in text.strip().splitlines()), text
    assert "vivavoce_streams 0\n" in text and "vivavoce_streams_max 4\n" in text
    rows = [float(r.split()[-1]) for r in text.splitlines() if "_bucket" in r]
    assert rows == sorted(rows) and rows[-1] == float(re.findall(r"_count (\S+)", text)[0])


def test_counting() -> None:
    m = Metrics()
    m.count("refusals_total", code="full")
    m.count("refusals_total", 2, code="idle")
    assert m.value("refusals_total") == 3 and 'vivavoce_refusals_total{code="idle"} 2\n' in m.text()


def test_the_page_and_all_it_asks_for(server: Server) -> None:
    page = HTTP.get(server.url)
    assert page.headers["content-type"].startswith("text/html") and "default-src 'self'" in page.headers[
        "content-security-policy"]  # fmt: skip
    names = set(re.findall(r'(?:src|href)="([\w.-]+)"', page.text))
    scripts = [HTTP.get(f"{server.url}/{n}").text for n in names if n.endswith(".js")]
    while scripts:
        found = set(re.findall(r'(?:from|addModule\()\s*"(?:\./)?([\w.-]+\.js)"', scripts.pop())) - names
        names |= found
        scripts += [HTTP.get(f"{server.url}/{n}").text for n in found]
    assert {"style.css", "app.js", "live.js", "worklet.js"} <= names
    for name in names:
        answer = HTTP.get(f"{server.url}/{name}")
        assert answer.status_code == 200 and not re.search(r"https?://(?!www\.w3\.org)", answer.text), name
    ids = set(re.findall(r'id="([\w-]+)"', page.text)) | {"add-voice"}
    for name in (n for n in names if n.endswith(".js")):
        script = HTTP.get(f"{server.url}/{name}").text
        asked = set(re.findall(r'\$\("([\w-]+)"\)|getElementById\("([\w-]+)"\)', script))
        assert {a or b for a, b in asked} <= ids, name


def test_the_protocol_is_documented() -> None:
    text = (Path(__file__).resolve().parent.parent / "docs" / "serve.md").read_text(encoding="utf-8")
    assert {c for c in ERRORS if f"`{c}`" not in text} == set()
    for code, (close, status) in ERRORS.items():
        assert re.search(rf"`{code}` \|[^\n]*\| {close} \| {status} \|", text), code
    frames = {"hello", "ready", "voice", "bypass", "ping", "pong", "stats", "late", "notice", "error", "bye"}
    assert {m for m in frames if f'"type": "{m}"' not in text} == set()


def test_the_banner_warns(town: Town) -> None:
    def said(**options: Any) -> str:
        return "\n".join(banner(Options(**options), town.pool, 8765))

    assert "http://localhost:8765/" in said() and "anyone" not in said()
    assert "anyone" in said(host="0.0.0.0") and "https" in said(host="0.0.0.0")
    assert "anyone" not in said(host="0.0.0.0", token="x") and "#token=" in said(token="secret")
    assert "secret" not in said(token="secret")


def test_an_address_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(VivavoceError, match="another --port"):
        serve(Options(port=taken.getsockname()[1]))
    with pytest.raises(VivavoceError, match="an address of this machine"):
        serve(Options(host="no.such.host.invalid"))


@pytest.mark.parametrize("words", ["--port 99999", "--port x", "--max-streams 0", "--late never",
                                   "--allow-origin example.org", "--max-upload -1"])  # fmt: skip
def test_wrong_usage(words: str, capsys: pytest.CaptureFixture) -> None:
    from vivavoce.cli import main

    with pytest.raises(SystemExit) as e:
        main(["serve", *words.split()])
    assert e.value.code == 2 and words.split()[0].strip("-") in capsys.readouterr().err


def test_a_key_without_a_certificate(capsys: pytest.CaptureFixture) -> None:
    from vivavoce.cli import main

    assert main(["serve", "--key", "key.pem"]) == 1
    assert "https needs both" in capsys.readouterr().err
