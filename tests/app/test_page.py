"""The page as visitors meet it: a running server, driven in Chromium and by many at once."""

from __future__ import annotations

import http.client
import io
import json
import re
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed (pip install 'wetok[app]')")

from tests.app.serving import Server, Visit, chromium
from tests.app.toys import photo, save_maker, save_model, saved, tokenizer
from wetok.checkpoint import load
from wetok.codec.tokens import Tokens
from wetok.evaluate.pixels import psnr
from wetok.model.tokenizer import Tokenizer

SIZE = (90, 60)
HUGE = 300_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, a generator and files to give to the page."""
    place = tmp_path_factory.mktemp("app")
    save_model(place / "gd", "toy-gd", generative=True)
    save_model(place / "plain", "toy")
    save_maker(place / "maker", load(str(place / "gd")))
    saved(place / "mine.png", 9, SIZE)
    saved(place / "wide.png", 8, (300, 200))
    saved(place / "far.png", 7, (600, 500))
    (place / "bad.png").write_bytes(b"no image")
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    Image.fromarray(noise).save(place / "heavy.png")
    assert (place / "heavy.png").stat().st_size > HUGE > (place / "far.png").stat().st_size
    tokenizer("stranger", bits=10).encode(photo()).save(place / "foreign.wetok")
    (place / "broken.wetok").write_bytes(b"\x89WTK and no more")
    (place / "downloads").mkdir()
    return place


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    running = Server(
        *("-m", "gd", "-m", "plain", "--generator", "maker"),
        *("--max-upload", HUGE / 1e6, "--max-pixels", 0.03),
        folder=folder,
    )
    try:
        yield running
        if running.process.poll() is None:
            code, out, err = running.end(signal.SIGTERM)
            assert (code, out, err) == (0, "", ""), err  # no traceback of any visitor's mistake
            assert [one.name for one in running.folder.glob("wetok-app-*")] == []
    finally:
        running.process.kill()


@pytest.fixture(scope="module")
def browser(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile"), folder / "downloads") as session:
        yield session


@pytest.fixture(scope="module")
def visit(server: Server, browser: Any) -> Visit:
    return Visit(browser, server.url)


@pytest.fixture(scope="module")
def gd(folder: Path) -> Tokenizer:
    return load(str(folder / "gd"))


def fetched(url: str) -> np.ndarray:
    with urllib.request.urlopen(url) as answer:
        return np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB"))


def reconstructed(model: Tokenizer, image: Image.Image, seed: int = 0) -> np.ndarray:
    return np.asarray(model.decode(model.encode(image), seed=seed)[0])


def given(visit: Visit, folder: Path, name: str = "mine.png") -> None:
    visit.give("#photo", folder / name)
    visit.until(lambda: Path(name).stem in visit.text("#save") and visit.idle())


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Alike but for the last bit here and there: two processes may add in another order."""
    if one.shape != other.shape:
        return False
    return bool(np.abs(one.astype(int) - other).max() <= 2)


def shown(visit: Visit, selector: str, expected: np.ndarray, which: int = 1) -> None:
    """Waits until one of the two pictures under a slider has these pixels."""
    visit.until(lambda: same(fetched(visit.pictures(selector)[which]), expected))


# One visitor


def test_the_page_opens_by_itself(visit: Visit, server: Server) -> None:
    """A sample is there at once; nothing comes from elsewhere, and nothing goes wrong."""
    visit.browser.get("about:blank")
    visit.log()
    visit.open()
    assert visit.browser.title == "wetok"
    assert "made smaller" in visit.text("#facts") and "451 x 300" in visit.text("#facts")
    sizes = visit.browser.execute_async_script(
        "const done = arguments[0];"
        "Promise.all([...document.querySelectorAll('#slider img, #samples img, #photo img')]"
        ".map(i => i.decode().then(() => i.naturalWidth))).then(done, e => done(String(e)))"
    )
    assert isinstance(sizes, list) and len(sizes) == 6 and min(sizes) > 0, sizes
    fonts = visit.browser.execute_script(
        "return [getComputedStyle(document.querySelector('h1')).fontFamily, document.fonts.size]"
    )
    assert "system-ui" in fonts[0]
    wrong, asked = visit.log()
    assert wrong == []
    own = [url for url in asked if url.startswith(server.url + "/")]
    others = [url for url in asked if not url.startswith((server.url + "/", "data:", "blob:"))]
    assert len(own) > 20 and [url for url in others if not url.startswith("chrome")] == []


def test_a_photo_of_ones_own(visit: Visit, folder: Path, gd: Tokenizer) -> None:
    visit.open()
    given(visit, folder)
    expected = reconstructed(gd, photo(9, SIZE))
    shown(visit, "#slider", expected)
    assert np.array_equal(fetched(visit.pictures("#slider")[0]), np.asarray(photo(9, SIZE)))

    tokens = gd.encode(photo(9, SIZE))
    visit.tab("Numbers")
    visit.until(lambda: "PSNR" in visit.text("#numbers"))
    told = visit.text("#numbers")
    score = psnr(*(tensor_of(one) for one in (expected, np.asarray(photo(9, SIZE))))).item()
    assert "90 x 60 pixels" in told and f"{score:.2f}" in told
    assert f"{tokens.bpp:.3f} bits a pixel" in told and f"{len(tokens.to_bytes()):,} bytes" in told
    assert re.search(r"Time to encode\s+\d+\.\d\d s", told) and "LPIPS-alex" in told

    visit.click(visit.all("#save")[0])
    target = folder / "downloads/mine.wetok"
    visit.until(target.exists)
    assert target.read_bytes() == tokens.to_bytes()
    assert Tokens.load(target) == tokens


def tensor_of(pixels: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]


def test_the_slider_moves(visit: Visit) -> None:
    from selenium.webdriver import ActionChains

    handle = visit.all("#slider .handle, #slider [role=slider], #slider .inner")[0]
    before = handle.location["x"]
    visit.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", handle)
    ActionChains(visit.browser).click_and_hold(handle).move_by_offset(-80, 0).release().perform()
    visit.until(lambda: abs(before - 80 - handle.location["x"]) < 12)


def test_difference_and_tokens(visit: Visit, folder: Path, gd: Tokenizer) -> None:
    visit.open()
    given(visit, folder)
    assert re.search(r"levels of 255\. Mean \d+\.\d\d, at most", visit.text("#map-scale"))
    again, original = reconstructed(gd, photo(9, SIZE)), np.asarray(photo(9, SIZE))
    mean = np.abs(again.astype(int) - original).mean()
    assert f"Mean {mean:.2f}" in visit.text("#map-scale")
    assert fetched(visit.pictures("#map")[0]).shape == original.shape

    visit.tab("Tokens")
    sizes = visit.until(
        lambda: visit.browser.execute_script(
            "return [...document.querySelectorAll('#groups img')].map(i => [i.naturalWidth, "
            "i.naturalHeight, i.width > 100, getComputedStyle(i).imageRendering])"
        )
    )
    _, groups, height, width = gd.encode(photo(9, SIZE)).ids.shape
    assert sizes == [[width, height, True, "pixelated"]] * groups
    assert f"Group {groups}" in visit.text("#groups")


def test_samples_models_and_seeds(visit: Visit, gd: Tokenizer, folder: Path) -> None:
    visit.open()
    visit.click(visit.all("#samples button")[2])
    visit.until(lambda: "rocket" in visit.text("#save") and visit.idle())
    given(visit, folder)

    seed = visit.all("#seed input")[0]
    seed.send_keys("\b7")
    shown(visit, "#slider", reconstructed(gd, photo(9, SIZE), 7))

    def pick(name: str) -> None:
        visit.all("#model input")[0].click()
        option = visit.until(
            lambda: [one for one in visit.all("[role=option]") if one.text.strip("✓ \n") == name]
        )[0]
        option.click()

    pick("toy")
    shown(visit, "#slider", reconstructed(load(str(folder / "plain")), photo(9, SIZE)))
    visit.until(lambda: "deterministic" in visit.text("#about") and not visit.all("#seed input"))
    visit.tab("Invented")
    visit.until(lambda: "nothing is invented" in visit.text("#no-invention"))
    pick("toy-gd")
    visit.until(lambda: visit.all("#seed input") and visit.idle())


def test_codecs(visit: Visit, folder: Path) -> None:
    from wetok.evaluate.codecs import codecs_here

    visit.open()
    given(visit, folder)
    visit.tab("Codecs")
    visit.click(visit.until(lambda: visit.all("#compare"))[0])
    titles = [name.upper().replace("WEBP", "WebP") for name in codecs_here()]
    wanted = [title for title in titles if title in ("JPEG", "WebP", "AVIF")]
    visit.until(
        lambda: (
            all(title in visit.text("#rivals tbody") for title in wanted)
            and "on its way" not in visit.text("#rivals")
            and visit.idle()
        )
    )
    assert "toy-gd" in visit.text("#rivals") and "quality" in visit.text("#rivals")
    pictures = [visit.until(lambda: visit.pictures("#rival-slider"))[1]]
    for title in wanted[1:]:
        visit.choose("#rival", title)
        pictures.append(
            visit.until(
                lambda: [one for one in visit.pictures("#rival-slider")[1:] if one not in pictures]
            )[0]
        )
    seen = [fetched(one) for one in pictures]
    assert all(one.shape == (SIZE[1], SIZE[0], 3) for one in seen)
    assert not np.array_equal(seen[0], seen[-1])


def test_damage(visit: Visit, folder: Path, gd: Tokenizer) -> None:
    visit.open()
    given(visit, folder)
    visit.tab("Damage")
    total = gd.encode(photo(9, SIZE)).ids.numel()
    seen: list[str] = []

    def hurt() -> str:
        before = visit.text("#hurt-facts")
        visit.click(visit.until(lambda: visit.all("#hurt"))[0])
        visit.until(lambda: visit.text("#hurt-facts") not in ("", before) and visit.idle())
        seen.append(visit.text("#hurt-facts"))
        assert len(visit.pictures("#hurt-slider")) == 2
        return seen[-1]

    assert f"{round(0.05 * total):,} of {total:,} tokens changed" in hurt()
    visit.choose("#kind", "Flip bits")
    visit.until(lambda: "Share of the bits" in visit.text("#percent"))
    assert f"{round(0.05 * total * 4):,} of {total * 4:,} bits" in hurt()
    visit.choose("#kind", "Zero one group")
    visit.until(lambda: visit.all("#group input"))
    assert "against the original" in hurt()
    visit.choose("#kind", "Shuffle a rectangle")
    visit.until(lambda: len(visit.all("#box input[type=range]")) == 4)
    hurt()
    visit.choose("#kind", "another photo")
    visit.until(lambda: visit.pictures("#other"))
    hurt()
    assert len(set(seen)) == 5


def test_invented_and_generated(visit: Visit, folder: Path, gd: Tokenizer) -> None:
    visit.open()
    given(visit, folder)
    visit.tab("Invented")
    (button,) = visit.until(
        lambda: [one for one in visit.all("button") if one.text.startswith("Show what")]
    )
    visit.click(button)
    visit.until(lambda: "over 4 seeds" in visit.text("#tabs") and visit.pictures("#invented-map"))
    pictures = [reconstructed(gd, photo(9, SIZE), seed) for seed in range(4)]
    spread = np.sqrt(np.stack(pictures).astype(float).var(0, ddof=1).mean(-1))
    assert f"Mean {spread.mean():.2f}" in visit.text("#tabs")

    visit.tab("Generate")
    visit.click(visit.until(lambda: visit.all("#generate"))[0])
    visit.until(lambda: len(visit.pictures("#made")) == 4 and visit.idle())
    assert "seed 3" in visit.text("#made")
    assert len({fetched(one).tobytes() for one in visit.pictures("#made")}) == 4


def test_files_of_tokens(visit: Visit, folder: Path, gd: Tokenizer) -> None:
    gd.encode(photo(5, SIZE)).save(folder / "tokens.wetok")
    visit.open()
    visit.give("#open", folder / "tokens.wetok")
    visit.until(lambda: "tokens.wetok" in visit.text("#save") and visit.idle())
    expected = reconstructed(gd, photo(5, SIZE))
    visit.until(lambda: same(fetched(visit.pictures("#alone")[0]), expected))
    assert visit.pictures("#slider") == [] and "PSNR" not in visit.text("#facts")
    assert "no original" in visit.text("#map-scale") and visit.pictures("#photo") == []
    visit.give("#open", folder / "foreign.wetok")
    told = visit.toast()
    assert "made by the model 'stranger'" in told and "not on this page" in told
    visit.give("#open", folder / "broken.wetok")
    assert "Broken.wetok: " in visit.toast()
    assert "tokens.wetok" in visit.text("#save")  # what was there stays


def test_what_is_no_photo(visit: Visit, folder: Path, server: Server) -> None:
    visit.open()
    given(visit, folder)
    for name, told in (
        ("bad.png", "Image 'bad.png' is not an image of a known format"),
        ("far.png", "Far.png has 600 x 500 pixels; this page takes 0.24 megapixels"),
        ("heavy.png", "exceed"),
    ):
        visit.give("#photo", folder / name)
        message = visit.toast()
        assert told in message and "Traceback" not in message, message
        assert str(server.folder) not in message
        assert "mine.wetok" in visit.text("#save")
    given(visit, folder, "wide.png")
    assert "300 x 200 pixels are more than this page takes" in visit.text("#facts")
    given(visit, folder)
    assert "made smaller" not in visit.text("#facts")


TABS = ["Difference", "Numbers", "Tokens", "Codecs", "Damage", "Invented", "Generate"]


@pytest.mark.parametrize("width", [320, 390])
def test_it_fits_a_phone(visit: Visit, width: int) -> None:
    visit.open(width, dark=True)
    for name in TABS:
        visit.tab(name)
        time.sleep(0.2)
        inner, room, needed = visit.browser.execute_script(
            "const e = document.documentElement;return [innerWidth, e.clientWidth, e.scrollWidth]"
        )
        assert inner == width and needed == room == width, name
        wide = visit.browser.execute_script(
            "return [...document.querySelectorAll('#lead *, #main *')].filter(e => e.offsetParent "
            "&& !e.closest('.visually-hidden, .scroll') && getComputedStyle(e).visibility !== "
            "'hidden' && e.getBoundingClientRect().right > innerWidth + 1)"
            ".map(e => e.outerHTML.slice(0, 90))"
        )
        assert wide == [], (name, wide)


def luminance(colour: str) -> float:
    channels = [float(one) / 255 for one in colour.strip("rgba()").split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
def test_it_can_be_read_by_day_and_by_night(visit: Visit, dark: bool) -> None:
    """WCAG's contrast of 4.5 for text, on the ground that it stands on."""
    visit.open(dark=dark)
    visit.tab("Damage")
    visit.until(lambda: visit.all("#hurt"))
    pairs = visit.browser.execute_script(
        "const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e)"
        ".backgroundColor; if (c !== 'rgba(0, 0, 0, 0)') return c; } return 'rgb(255,255,255)' };"
        "return ['body', '#lead p', '.figures strong', '.figures span', '.note', '#save', "
        "'#hurt', '#kind label', '#tabs button[role=tab]'].map(s => { const e = "
        "document.querySelector(s); return [s, getComputedStyle(e).color, ground(e)]; })"
    )
    assert luminance(pairs[0][2]) < 0.05 if dark else luminance(pairs[0][2]) > 0.9
    for name, text, ground in pairs:
        low, high = sorted((luminance(text), luminance(ground)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (name, text, ground)


def test_nothing_went_wrong_all_the_while(visit: Visit, server: Server) -> None:
    wrong, asked = visit.log()
    # Of the file that was too heavy Gradio logs the answer, 413; and it asks for the progress of
    # uploads that are done.
    known = ("413", "upload_progress", " Response")
    assert [one for one in wrong if not any(word in one for word in known)] == []
    assert asked
    schemes = (server.url + "/", "data:", "blob:", "chrome", "about:")
    assert [url for url in asked if not url.startswith(schemes)] == []


# Many visitors, and others


def test_twenty_at_once(server: Server, folder: Path, gd: Tokenizer) -> None:
    """Each gets the numbers of the own photograph, and none an error."""
    client = pytest.importorskip("gradio_client", reason="gradio_client is not installed")
    files = [saved(folder / f"visitor-{number}.png", 20 + number, SIZE) for number in range(20)]

    def one(number: int) -> tuple[float, Any]:
        own = client.Client(server.url, verbose=False, download_files=False)
        began = time.monotonic()
        photo_file = client.handle_file(files[number])
        result = own.predict(photo_file, "toy-gd", number, api_name="/reconstruct")
        return time.monotonic() - began, result

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(one, range(20)))
    for number, (_, result) in enumerate(answers):
        text = json.dumps(result, default=str)
        size = len(gd.encode(photo(20 + number, SIZE)).to_bytes())
        assert f"visitor-{number}.wetok" in text and f"{size:,} bytes" in text
        urls = re.findall(r'"url": "(http[^"]+image\.png)"', text)
        expected = reconstructed(gd, photo(20 + number, SIZE), number)
        assert any(same(fetched(url), expected) for url in urls[:2])
    print("seconds of twenty visitors:", sorted(round(seconds, 2) for seconds, _ in answers))


def asked(server: Server, path: str, method: str = "GET", body: bytes = b"") -> tuple[int, bytes]:
    """Status and answer; the path goes out as it is written."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest(method, path, skip_host=False)
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_no_file_can_be_fetched(server: Server, folder: Path, repo: Path) -> None:
    (own,) = server.folder.glob("wetok-app-*")
    weights = folder / "gd" / "model.safetensors"
    for target in (
        *("/etc/passwd", "/etc/hostname", str(weights), str(repo / "README.md"), "README.md"),
        *("gd/config.json", "../gd/config.json", f"{own}/../../gd/config.json"),
        *(f"{own}/%2e%2e/%2e%2e/gd/config.json", f"{own}/..%2f..%2fgd%2fconfig.json"),
        *("%2fetc%2fpasswd", "//etc/passwd", "/proc/self/environ", str(own), f"{own}/"),
        *("http://127.0.0.1:1/", "https://example.org/x.png", "file:///etc/passwd"),
    ):
        for route in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/gradio_api/proxy="):
            status, content = asked(server, route + target)
            assert status in (403, 404) and b"root:" not in content, (route, target, status)
    for path in ("/static/../../../etc/passwd", "/assets/..%2f..%2fblocks.py", "/monitoring"):
        assert asked(server, path)[0] in (403, 404), path
    for path in ("/etc/passwd", str(weights), "http://127.0.0.1:1/x.png"):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        body = json.dumps({"data": [file, "toy-gd", 0], "fn_index": 0, "session_hash": "x"})
        assert asked(server, "/gradio_api/queue/join", "POST", body.encode())[0] == 400, path
        body = json.dumps({"data": [file, "toy-gd", 0]})
        assert asked(server, "/gradio_api/call/reconstruct", "POST", body.encode())[0] == 400


def test_gradio_itself_refuses_foreign_files(folder: Path, monkeypatch: Any) -> None:
    """Without the guard, too: a page counts as launched, so its checks of paths are on."""
    from types import SimpleNamespace

    from gradio.exceptions import InvalidPathError
    from gradio.processing_utils import move_files_to_cache

    import wetok.app.server as serving
    from wetok.app.desk import Desk
    from wetok.app.models import Models
    from wetok.app.page import Outbox, build
    from wetok.app.photos import Limits

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder / "cache"))
    page = build(Desk(Models([tokenizer()]), Limits(), []), Outbox(folder / "out"))
    serving.application(page, folder, Limits())
    from gradio.context import LocalContext

    LocalContext.blocks.set(page)
    try:
        file = {"path": str(folder / "mine.png"), "meta": {"_type": "gradio.FileData"}}
        block = SimpleNamespace(proxy_url=None)
        with pytest.raises(InvalidPathError):
            move_files_to_cache(file, block, check_in_upload_folder=True)  # type: ignore[arg-type]
    finally:
        LocalContext.blocks.set(None)


def test_a_full_queue_is_told_politely() -> None:
    import asyncio

    from wetok.app.server import BUSY, _speak_politely

    class Queue:
        async def push(self, state: str) -> tuple[bool, str, str]:
            return False, "Queue is full. Max size is 64", state

    queue = Queue()
    _speak_politely(queue)
    assert asyncio.run(queue.push("queue_full"))[1] == BUSY
    assert asyncio.run(queue.push("error"))[1] == "Queue is full. Max size is 64"


def test_a_mistake_is_one_line(
    folder: Path, server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    import sys

    from wetok.cli import main

    def told(*arguments: object) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["app", *map(str, arguments)])
        assert ended.value.code == 2
        err = capsys.readouterr().err
        assert err.startswith("wetok: ") and err.count("\n") == 1
        return err

    assert f"--port {server.port}: in use at 127.0.0.1; give another" in told("--port", server.port)
    assert "--host nowhere.invalid" in told("--host", "nowhere.invalid", "--port", 0)
    assert "no model 'tiny-48y'" in told("-m", "tiny-48y", "--port", 0)
    assert "no such folder" in told("--generator", folder / "none", "--port", 0)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install 'wetok[app]'" in told("--port", 0)


def test_ctrl_c_ends_it_quietly(folder: Path) -> None:
    """Also while somebody's page is open."""
    other = folder / "other"
    other.mkdir()
    running = Server("--device", "cpu", folder=other)
    with socket.create_connection(("127.0.0.1", running.port)) as open_page:
        open_page.sendall(b"GET /gradio_api/heartbeat/abc HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert open_page.recv(20).startswith(b"HTTP/1.1 200")
        assert running.end(signal.SIGINT) == (0, "", "")
    assert list(running.folder.glob("wetok-app-*")) == []
