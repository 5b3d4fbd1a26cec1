"""`wetok eval --report` as a reader meets it: the page in a real browser."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from wetok.checkpoint import save_folder
from wetok.cli import main
from wetok.config import ModelConfig
from wetok.model.network import TokenizerNetwork

NAMES = ["zebra.png", 'a <b> "q" \u00e9.png', "photo 10.png", "photo 9.png"]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --disable-dev-shm-usage"
)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["eval", "--device", "cpu", *map(str, arguments)])
    return int(ended.value.code or 0)


def save_model(folder: Path) -> Path:
    """A generative one whose noise has random weights, so that seeds differ."""
    torch.manual_seed(0)
    config = ModelConfig(
        bits=8, groups=2, channels=8, mults=(1, 1), blocks=1, patch=2, generative=True
    )
    network = TokenizerNetwork(config)
    with torch.no_grad():
        network.decoder.conv_in.weight[:, 8:].normal_(std=0.2)
    save_folder(folder, network, "toy-gd")
    return folder


def save_photos(folder: Path) -> Path:
    folder.mkdir()
    for index, name in enumerate(NAMES):
        pixels = np.random.default_rng(index).integers(0, 256, (9, 12, 3), np.uint8)
        size = (900, 420) if index == 2 else (60 + index, 44)
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(folder / name)
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report over four images and one that can't be read, with three samples of each."""
    place = tmp_path_factory.mktemp("report")
    code = run(
        *("-m", save_model(place / "model"), "-d", save_photos(place / "photos"), "--samples", 3),
        *("--protocol", "original", "--frechet", "none", "--report", place / "page" / "new"),
    )
    assert code == 1  # of the image that failed
    return place / "page" / "new"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(driver)
    session = webdriver.Chrome(options=options, service=service)
    yield session
    session.quit()


def look(browser: Any, page: Path, width: int = 1200, dark: bool = False) -> None:
    """Opens the page in a window of that width."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    still = {"name": "prefers-reduced-motion", "value": "reduce"}  # no picture is of a movement
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme, still]})
    browser.get(page.as_uri())


def shot(browser: Any, element: Any) -> np.ndarray:
    picture = Image.open(io.BytesIO(base64.b64decode(element.screenshot_as_base64)))
    return np.asarray(picture.convert("RGB")).astype(int)


def test_the_page_opens_by_itself(report: Path, browser: Any) -> None:
    """No error, no request to anywhere, and every picture is there."""
    browser.get("about:blank")  # what the browser itself loads when it starts is over then
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    look(browser, report / "index.html")
    assert browser.title == "toy-gd on 4 images"
    sizes = browser.execute_async_script(
        "const done = arguments[0];"
        "Promise.all([...document.images].map(i => i.decode().then(() => "
        "[i.naturalWidth, i.naturalHeight, i.alt]))).then(done, e => done(String(e)))"
    )
    assert isinstance(sizes, list), sizes
    # Of each image: two in the slider, original, three samples, two maps; and two legends.
    assert len(sizes) == 4 * 8 + 2
    assert all(width > 0 and height > 0 and alt for width, height, alt in sizes)
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert any(url.startswith("file:") for url in asked)
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}
    assert len({url for url in asked if url.startswith("file:")}) == 1


def test_the_slider_moves(report: Path, browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    look(browser, report / "index.html")
    card = browser.find_element("css selector", ".card")
    stack, slider = (card.find_element("css selector", name) for name in (".stack", "input"))
    original = card.find_element("css selector", "img.original")
    again = card.find_element("css selector", "img.again")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", stack)
    assert slider.get_attribute("value") == "50" and "share" in slider.get_attribute("aria-label")

    slider.send_keys(Keys.HOME)
    assert slider.get_attribute("value") == "0" and slider.get_attribute("aria-valuetext")[0] == "0"
    left = shot(browser, stack)
    slider.send_keys(Keys.END)
    right = shot(browser, stack)
    # At its ends the stack shows one picture whole, but for the line.
    edge = 8
    for seen, whole, other in ((left, again, original), (right, original, again)):
        pictures = [shot(browser, one) for one in (whole, other)]
        height, width = (min(one.shape[axis] for one in (seen, *pictures)) for axis in (0, 1))
        inner = np.s_[edge : height - edge, edge : width - edge]
        near, far = (np.abs(seen[inner] - one[inner]).mean() for one in pictures)
        assert near < 2 < far

    browser.execute_script(
        "const box = arguments[0].getBoundingClientRect();"
        "arguments[0].setPointerCapture = () => {};"
        "arguments[0].dispatchEvent(new PointerEvent('pointerdown', {pointerId: 1, buttons: 1,"
        "clientX: box.left + box.width / 4, clientY: box.top + 5}))",
        stack,
    )
    assert float(slider.get_attribute("value")) == pytest.approx(25, abs=1)


def test_a_click_sorts(report: Path, browser: Any) -> None:
    look(browser, report / "index.html")
    table = browser.find_element("css selector", "table.sortable")
    heads = table.find_elements("css selector", "thead th")
    names = [head.text.strip() for head in heads]
    assert names[:4] == ["Image", "Width", "Height", "Bits a pixel"] and "PSNR (dB)" in names

    def column(index: int) -> list[str]:
        rows = table.find_elements("css selector", "tbody tr")
        return [row.find_elements("css selector", "th, td")[index].text for row in rows]

    def click(index: int) -> str:
        button = heads[index].find_element("css selector", "button")
        browser.execute_script("arguments[0].click()", button)
        return str(heads[index].get_attribute("aria-sort"))

    psnr = names.index("PSNR (dB)")
    found = column(psnr)
    assert click(psnr) == "ascending" and column(psnr) == sorted(found, key=float)
    assert click(psnr) == "descending" and column(psnr) == sorted(found, key=float, reverse=True)
    assert click(0) == "ascending" and heads[psnr].get_attribute("aria-sort") is None
    assert column(0) == ['a <b> "q" \u00e9.png', "photo 9.png", "photo 10.png", "zebra.png"]
    click(1)
    assert column(1) == ["60", "61", "63", "900"]


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_it_fits_every_width(report: Path, browser: Any, width: int) -> None:
    look(browser, report / "index.html", width)
    inner, room, needed = browser.execute_script(
        "const e = document.documentElement; return [innerWidth, e.clientWidth, e.scrollWidth]"
    )
    assert inner == width and needed == room
    wide = browser.execute_script(
        "return [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, .across,"
        ".stack') && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML)"
    )
    assert [one[:80] for one in wide if "skip" not in one] == []


def luminance(colour: str) -> float:
    channels = [int(one) / 255 for one in colour.strip("rgba()").split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
def test_it_can_be_read_by_day_and_by_night(report: Path, browser: Any, dark: bool) -> None:
    """WCAG's contrast of 4.5 for all text, on the ground that it stands on."""
    look(browser, report / "index.html", dark=dark)
    pairs = browser.execute_script(
        "const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e)"
        ".backgroundColor; if (c !== 'rgba(0, 0, 0, 0)') return c; } };"
        "return ['body', 'header p', 'a:not(.skip)', '.card > p', 'figcaption', '.facts th', "
        "'.scroll thead th', 'footer'].map(s => { const e = document.querySelector(s);"
        "return [s, getComputedStyle(e).color, ground(e)]; })"
    )
    assert luminance(pairs[0][2]) < 0.05 if dark else luminance(pairs[0][2]) > 0.9
    for name, text, ground in pairs:
        low, high = sorted((luminance(text), luminance(ground)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (name, text, ground)


def test_the_report_is_a_receipt(report: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--verify", report / "scores.json") == 1  # the broken image, once more
    assert "the scores agree with" in capsys.readouterr().err
    page = (report / "index.html").read_text("utf-8")
    assert 'id="failed"' in page and "broken.png" in page and page.count("Invented") >= 4
    assert sorted(path.name for path in report.iterdir()) == [
        "images.csv",
        "index.html",
        "scores.json",
    ]


def test_a_folder_that_can_not_be_is_told_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    photos = save_photos(tmp_path / "photos")
    assert run("-m", save_model(tmp_path / "m"), "-d", photos, "--report", tmp_path / "file") == 2
    err = capsys.readouterr().err
    assert err.startswith("wetok: --report ") and err.count("\n") == 1


def test_another_system_has_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = save_photos(tmp_path / "photos")
    (photos / "broken.png").unlink()
    spec, page = f"folder:{photos}?bpp=0.25", tmp_path / "page"
    arguments = ("--protocol", "original", "--frechet", "none", "--report", page)
    assert run("-m", spec, "-d", photos, *arguments) == 0
    out, err = capsys.readouterr()
    for line in out.splitlines():
        if "usage" in line or "dead" in line or "encode (s" in line:
            assert line.split("\u2502")[2].strip() == "-", line
    assert f"report in {page / 'index.html'}" in err
    text = (page / "index.html").read_text("utf-8")
    assert 'id="codes"' not in text and ">inf</td>" in text and "<td>0.250</td>" in text
