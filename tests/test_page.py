"""The page in Chromium or Chrome, driven by playwright, on a server with a stand-in for the network."""

import base64
import io
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.networks import Brightness
from helpers.served import Served, serving
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from purinet_jax.prediction.backgrounds import Blur
from purinet_jax.prediction.files import plan, predict_files
from purinet_jax.prediction.rendering import Kind, Style

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (Debian: apt-get install chromium)")

# Only the loopback's names resolve, so that a page that needs the network fails.
OFFLINE = ("--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        expect.set_options(timeout=20_000)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OFFLINE)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serving(Brightness()) as served:
        yield served


@pytest.fixture
def page(browser: Browser, server: Served) -> Iterator[Page]:
    with browser.new_context(accept_downloads=True, viewport={"width": 1000, "height": 700}) as context:
        page = context.new_page()
        errors: list[str] = []
        requested: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: requested.append(request.url))
        page.goto(f"http://127.0.0.1:{server.port}/")
        expect(page.locator("#limits")).to_contain_text("up to 32 MB and 64 megapixels")
        yield page
        assert [error for error in errors if "status of 415" not in error] == []
        ours = (f"http://127.0.0.1:{server.port}/", f"blob:http://127.0.0.1:{server.port}/")
        assert [url for url in requested if not url.startswith(ours)] == []


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two images whose right half is "salient": red."""
    folder = tmp_path_factory.mktemp("photos")
    files = []
    for name, (height, width) in (("wide.png", (90, 160)), ("high.jpg", (120, 80))):
        pixels = np.random.default_rng(height).integers(0, 60, (height, width, 3), np.uint8)
        pixels[:, width // 2 :, 0] += 190
        Image.fromarray(pixels).save(folder / name)
        files.append(folder / name)
    return files


def insert(page: Page, event: str, files: list[Path]) -> None:
    """Drops files on the page, or pastes them."""
    contents = [[file.name, base64.b64encode(file.read_bytes()).decode()] for file in files]
    script = """([event, files]) => {
      const transfer = new DataTransfer();
      for (const [name, text] of files)
        transfer.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name));
      const options = {bubbles: true, cancelable: true};
      if (event === "paste") {
        document.body.dispatchEvent(new ClipboardEvent("paste", {...options, clipboardData: transfer}));
      } else {
        for (const name of ["dragenter", "dragover", "drop"])
          document.body.dispatchEvent(new DragEvent(name, {...options, dataTransfer: transfer}));
      }
    }"""
    page.evaluate(script, [event, contents])


def predicted(photo: Path, kind: Kind, folder: Path, **style: Any) -> bytes:
    """Returns what `purinet predict` writes."""
    network: Any = Brightness()
    jobs = plan([photo], folder / f"{photo.stem}_{kind}.png", kind=kind, existing="overwrite")
    (result,) = predict_files(network, jobs, Style(kind, **style))
    assert result.error is None
    return result.job.output.read_bytes()


def saved(page: Page, act: Callable[[], None]) -> tuple[str, bytes]:
    with page.expect_download() as download:
        act()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def test_dropped_photos_are_shown_in_every_kind_and_downloaded(page: Page, photos: list[Path], tmp_path: Path) -> None:
    insert(page, "drop", photos)
    status = page.get_by_role("status")
    expect(status).to_have_text("2 photos, cut-outs ready.")
    expect(page.get_by_role("heading", level=2)).to_have_text(["wide.png", "high.jpg"])
    name, data = saved(page, page.get_by_role("button", name="Download wide.png").click)
    assert (name, data) == ("wide_cutout.png", predicted(photos[0], "cutout", tmp_path))

    for label, kind in (("Map", "map"), ("Mask", "mask"), ("Overlay", "overlay"), ("Attention", "attention")):
        page.get_by_role("radio", name=label).set_checked(True, force=True)
        expect(status).to_contain_text("ready")
        for index, photo in enumerate(photos):
            result = page.get_by_role("img", name=f"of {photo.name}").nth(0)
            expect(result).to_be_visible()
            expect(result).to_have_js_property("complete", True)
            name, data = saved(page, page.get_by_role("button", name=f"Download {photo.name}").click)
            assert name == f"{photo.stem}_{kind}.png"
            assert data == predicted(photo, kind, tmp_path)  # type: ignore[arg-type]
            with Image.open(io.BytesIO(data)) as image:
                assert page.locator(".after").nth(index).evaluate("image => image.naturalWidth") == image.width
    expect(page.locator("#legend")).to_be_visible()

    page.get_by_role("radio", name="Cut-out").set_checked(True, force=True)
    name, data = saved(page, page.get_by_role("button", name="Download all (zip)").click)
    assert name == "purinet_cutout.zip"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["wide_cutout.png", "high_cutout.png"]
        for photo, info in zip(photos, archive.infolist(), strict=True):
            assert archive.read(info) == predicted(photo, "cutout", tmp_path)
            assert info.date_time[0] >= 2026


def test_backgrounds_are_shown_and_downloaded(page: Page, photos: list[Path], tmp_path: Path) -> None:
    insert(page, "paste", photos[:1])
    expect(page.get_by_role("status")).to_have_text("1 photo, cut-out ready.")
    stage = page.locator(".stage")
    expect(stage).to_have_class("stage split-on checks")
    page.get_by_role("radio", name="White").set_checked(True, force=True)
    expect(stage).to_have_css("background-color", "rgb(255, 255, 255)")
    page.locator("#colour").fill("#0080ff")
    expect(stage).to_have_css("background-color", "rgb(0, 128, 255)")
    name, data = saved(page, page.get_by_role("button", name="Download wide.png").click)
    assert name == "wide_cutout.png"
    assert data == predicted(photos[0], "cutout", tmp_path, background=(0, 128, 255))


def test_blur_matting_and_specks_change_the_result(page: Page, photos: list[Path], tmp_path: Path) -> None:
    page.locator("#files").set_input_files(photos[:1])
    status = page.get_by_role("status")
    expect(status).to_have_text("1 photo, cut-out ready.")
    style: dict[str, Any] = {"background": Blur(), "matting": True, "min_area": 0.005}
    for role, label, change in (
        ("radio", "Blur", ["background"]),
        ("checkbox", "Hair and fur", ["background", "matting"]),
        ("checkbox", "No specks", list(style)),
    ):
        with page.expect_response("**/v1/cutout**"):
            page.get_by_role(role, name=label).set_checked(True, force=True)  # type: ignore[arg-type]
        expect(status).to_have_text("1 photo, cut-out ready.")
        _, data = saved(page, page.get_by_role("button", name="Download wide.png").click)
        assert data == predicted(photos[0], "cutout", tmp_path, **{name: style[name] for name in change})
    expect(page.locator(".stage")).to_have_class("stage split-on")
    page.get_by_role("radio", name="Map").set_checked(True, force=True)
    expect(status).to_have_text("1 photo, map ready.")
    expect(page.get_by_role("checkbox", name="Hair and fur")).to_be_hidden()
    _, data = saved(page, page.get_by_role("button", name="Download wide.png").click)
    assert data == predicted(photos[0], "map", tmp_path, min_area=0.005)


def test_a_dropped_address_is_explained(page: Page, photos: list[Path]) -> None:
    drop = """(type) => {
      const transfer = new DataTransfer();
      transfer.setData(type, "https://example.org/photo.jpg");
      document.body.dispatchEvent(new DragEvent("drop", {bubbles: true, cancelable: true, dataTransfer: transfer}));
    }"""
    page.evaluate(drop, "text/uri-list")
    expect(page.get_by_role("alert")).to_contain_text("copy the photo there and paste it here")
    insert(page, "drop", photos[:1])
    expect(page.locator("#notice")).to_be_hidden()
    page.evaluate(drop, "text/plain")
    expect(page.get_by_role("alert")).to_have_text("No photo was dropped.")


def test_the_file_chooser_offers_what_the_server_reads(page: Page, server: Served) -> None:
    accepted = page.locator("#files").evaluate("input => input.accept").split(",")
    assert set(server.get("/v1").json["inputs"]) <= set(accepted)
    expect(page.locator("#limits")).to_contain_text("JPEG, PNG, WebP")


@pytest.mark.slow
def test_a_large_photo_is_cut_out_on_a_small_screen(page: Page, tmp_path: Path) -> None:
    pixels = np.zeros((4000, 6000, 3), np.uint8)
    pixels[1000:3000, 1500:4500] = (250, 120, 40)
    file = tmp_path / "large.jpg"
    Image.fromarray(pixels).save(file, quality=90)
    page.set_viewport_size({"width": 360, "height": 640})
    page.locator("#files").set_input_files(file)
    expect(page.get_by_role("status")).to_have_text("1 photo, cut-out ready.", timeout=60_000)
    expect(page.get_by_text("6000 × 4000 pixels")).to_be_visible()
    expect(page.locator(".after")).to_have_js_property("naturalWidth", 6000, timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    _, data = saved(page, page.get_by_role("button", name="Download large.jpg").click)
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (6000, 4000)


def test_sliders_compare_and_set_the_threshold(page: Page, photos: list[Path], tmp_path: Path) -> None:
    page.locator("#files").set_input_files(photos[:1])
    expect(page.get_by_role("status")).to_have_text("1 photo, cut-out ready.")
    split = page.get_by_role("slider", name="Before and after, wide.png")
    box = page.locator(".stage").bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"], middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.25, middle, steps=3)
    page.mouse.up()
    expect(split).to_have_value("25")
    for selector, clip in ((".before", "inset(0px 75% 0px 0px)"), (".after", "inset(0px 0px 0px 25%)")):
        expect(page.locator(selector)).to_have_css("clip-path", clip)

    page.get_by_role("radio", name="Mask").set_checked(True, force=True)
    expect(page.get_by_role("status")).to_contain_text("mask ready")
    threshold = page.get_by_role("slider", name="Threshold")
    with page.expect_response("**/v1/map"):  # of which the preview is made
        threshold.focus()
    with page.expect_response("**/v1/mask?threshold=0.9") as response:
        threshold.fill("0.9")
        expect(page.locator(".preview")).to_be_visible()
        expect(page.locator("#threshold-value")).to_have_text("0.90")
        pixels = "c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
        near = page.locator(".preview").evaluate(pixels)[::4]
    assert response.value.status == 200
    expect(page.locator(".preview")).to_be_hidden()
    _, data = saved(page, page.get_by_role("button", name="Download wide.png").click)
    assert data == predicted(photos[0], "mask", tmp_path, threshold=0.9)
    with Image.open(io.BytesIO(data)) as mask:
        assert np.mean(np.asarray(mask).ravel() != near) < 0.02


def test_a_text_file_is_reported_and_photos_are_processed(page: Page, photos: list[Path], tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("no image")
    insert(page, "drop", [notes, photos[0]])
    expect(page.get_by_role("alert")).to_have_text("notes.txt: not an image, or a damaged one")
    expect(page.get_by_role("status")).to_have_text("2 photos, 1 failed, cut-out ready.")
    expect(page.get_by_role("button", name="Download notes.txt")).to_be_hidden()
    expect(page.get_by_role("button", name="Try again notes.txt")).to_be_hidden()
    page.get_by_role("button", name="Remove notes.txt").click()
    expect(page.get_by_role("status")).to_have_text("1 photo, cut-out ready.")
    expect(page.get_by_role("button", name="Remove wide.png")).to_be_focused()


def test_the_page_works_by_keyboard(page: Page, photos: list[Path], tmp_path: Path) -> None:
    def focused() -> str:
        script = "e => e.getAttribute('aria-label') || (e.labels?.[0] ?? e).textContent.trim().split('\\n')[0]"
        return str(page.locator(":focus").evaluate(script))

    page.on("filechooser", lambda _: None)  # playwright handles the dialogue instead of the browser
    page.keyboard.press("Tab")
    assert focused().startswith("Choose photos")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(photos)
    expect(page.get_by_role("status")).to_have_text("2 photos, cut-outs ready.")
    stops = []
    for _ in range(20):
        page.keyboard.press("Tab")
        stops.append(focused())
        outlines = page.evaluate(
            "[...document.querySelectorAll('*')].some((e) => getComputedStyle(e).outlineStyle === 'solid')"
        )
        assert outlines, f"no outline shows the focus on {stops[-1]}"
        if stops[-1] == "Cut-out":
            page.keyboard.press("ArrowRight")
            expect(page.get_by_role("radio", name="Map")).to_be_checked()
            page.keyboard.press("ArrowRight")
            expect(page.get_by_role("radio", name="Mask")).to_be_checked()
        if stops[-1] == "Threshold":
            page.keyboard.press("ArrowRight")
            expect(page.locator("#threshold-value")).to_have_text("0.51")
            expect(page.get_by_role("status")).to_contain_text("masks ready")
        if stops[-1].startswith("Before and after"):
            page.keyboard.press("End")
            expect(page.locator(":focus")).to_have_value("100")
        if stops[-1] == "Download high.jpg":
            _, data = saved(page, lambda: page.keyboard.press("Enter"))
            assert data == predicted(photos[1], "mask", tmp_path, threshold=0.51)
            break
    assert stops == [
        "Cut-out",
        "No specks",
        "Threshold",
        "Download all (zip)",
        "Remove all",
        "Before and after, wide.png",
        "Download wide.png",
        "Remove wide.png",
        "Before and after, high.jpg",
        "Download high.jpg",
    ]


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(…)" (WCAG 2)."""
    values = np.array([float(x) for x in colour[colour.index("(") + 1 : -1].split(",")[:3]]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_small_screens_are_readable_in_light_and_dark(page: Page, photos: list[Path], scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 360, "height": 640})
    page.locator("#files").set_input_files(photos)
    expect(page.get_by_role("status")).to_have_text("2 photos, cut-outs ready.")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    paper = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (paper > 0.8) if scheme == "light" else (paper < 0.05)
    texts = page.evaluate(
        """[...document.querySelectorAll("h1, h2, p, legend, button, label, .choice span:not(.hidden, .swatch), a")]
          .filter((e) => e.checkVisibility() && e.innerText.trim())
          .map((e) => {
            const ink = getComputedStyle(e).color;
            const text = e.innerText;
            while (getComputedStyle(e).backgroundColor === "rgba(0, 0, 0, 0)") e = e.parentElement;
            return [text, ink, getComputedStyle(e).backgroundColor];
          })"""
    )
    assert len(texts) > 15
    for text, *colours in texts:
        dark, bright = sorted(luminance(colour) for colour in colours)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, text
    boxes = page.evaluate(
        """[...document.querySelectorAll("button, .choice label")].filter((e) => e.checkVisibility())
          .map((e) => e.getBoundingClientRect()).map((box) => [box.left, box.right, box.height])"""
    )
    assert all(0 <= left < right <= 360 and height >= 39 for left, right, height in boxes)


def test_the_page_asks_for_a_token_and_keeps_it_for_the_tab(browser: Browser, photos: list[Path]) -> None:
    with serving(Brightness(attention=False), token="s3cret") as served, browser.new_context() as context:
        page = context.new_page()
        late: list[Route] = []

        def hold_one(route: Route) -> None:
            """Delays the response to a wrong token until the right one is given."""
            if route.request.headers.get("authorization") == "Bearer wrong" and not late:
                late.append(route)
            else:
                route.continue_()

        page.route("**/v1/cutout**", hold_one)
        page.goto(f"http://127.0.0.1:{served.port}/")
        page.locator("#files").set_input_files(photos)
        field = page.get_by_label("This server needs a token")
        for token in ("wrong", "s3cret"):
            expect(field).to_be_focused()
            field.fill(token)
            with page.expect_response("**/v1/cutout**"):
                page.keyboard.press("Enter")
        late[0].continue_()
        expect(page.get_by_role("status")).to_have_text("2 photos, cut-outs ready.")
        expect(field).to_be_hidden()
        expect(page.get_by_role("radio", name="Attention")).to_be_hidden()
