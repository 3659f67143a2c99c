"""The page in a real browser, on a really ingested archive: what a person does, sees, and must never see."""

from __future__ import annotations

import base64
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Exported
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Route, expect, sync_playwright
from server_support import XSS_NAME, XSS_VALUE, Shown, in_thread

from mcip_qdrant.query import QueryEncoder
from mcip_qdrant.server.settings import Limits
from mcip_qdrant.store import open_store

LOOKING_S = 40


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium. A laptop without it skips loudly, CI fails."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        message = "chromium is not installed: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(f"CI must not skip this: {message}")
        pytest.skip(f"{message}: THE PAGE WAS NOT CHECKED")
    expect.set_options(timeout=LOOKING_S * 1000)
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not work for root, which CI often is; the pages are ours.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        launched = playwright.chromium.launch(executable_path=program, args=options)
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser, shown: Shown) -> Iterator[Page]:
    """A fresh tab. Whatever a test does: no error in the console, nothing refused by the policy, no request to another host."""
    context = browser.new_context(viewport={"width": 1100, "height": 800}, base_url=shown.served.url)
    context.set_default_timeout(LOOKING_S * 1000)
    tab = context.new_page()
    trouble: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        # The browser itself reports answers such as 404 and 503, which tests ask for.
        if message.type in {"error", "warning"} and "Failed to load resource" not in message.text:
            trouble.append(message.text)

    def watch(request: Request) -> None:
        if not request.url.startswith(("data:", "blob:", "http://127.0.0.1:")):
            trouble.append(f"outside host: {request.url}")

    tab.on("console", hear)
    tab.on("pageerror", lambda error: trouble.append(str(error)))
    tab.on("request", watch)
    yield tab
    assert tab.title() != "owned", "a file name or a value became a script"
    context.close()
    assert not trouble


@pytest.fixture(scope="module")
def encoder(clip: Exported) -> Iterator[QueryEncoder]:
    """The model, in this process."""
    with QueryEncoder.open(clip.folder, device="cpu", threads=2) as opened:
        yield opened


def opened(page: Page, address: str = "/") -> Page:
    """The page, once it knows its collection."""
    page.goto(address)
    expect(page.locator("#about")).not_to_be_empty()
    return page


def names(page: Page) -> list[str]:
    """Keys of the hits on the page, in order."""
    return [str(item.get_attribute("data-key")) for item in page.locator(".hit").all()]


def look_for(page: Page, words: str) -> None:
    """Type and press Enter, as a person does; returns when the answer is there."""
    box = page.get_by_role("searchbox")
    box.click()
    box.fill(words)
    box.press("Enter")
    answered(page, words)


def answered(page: Page, words: str) -> None:
    """Wait until the status line speaks of these words."""
    expect(page.get_by_role("status")).to_contain_text(words)
    expect(page.locator("#results")).not_to_have_class(re.compile("busy"))


def drop(page: Page, files: list[tuple[str, str, bytes]]) -> None:
    """Drop files onto the page, as a file manager does."""
    given = [[name, kind, base64.b64encode(data).decode()] for name, kind, data in files]
    page.evaluate(
        """files => {
            const transfer = new DataTransfer();
            for (const [name, type, data] of files)
                transfer.items.add(new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], name, { type }));
            for (const kind of ["dragover", "drop"])
                document.body.dispatchEvent(new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: transfer }));
        }""",
        given,
    )


def pictures_are_loaded(page: Page) -> None:
    """Every picture in view shows something."""
    page.wait_for_function(
        """() => [...document.querySelectorAll(".hit img")].slice(0, 6)
                .every(image => image.complete && image.naturalWidth > 0)"""
    )


def test_words_find_what_the_library_finds(page: Page, shown: Shown) -> None:
    opened(page)
    expect(page.locator("#about")).to_contain_text("61 images")
    expect(page.locator(".hit")).to_have_count(0)
    look_for(page, "a harbour at night")
    expected = shown.served.search(text="a harbour at night", limit=24)["hits"]
    assert names(page) == [hit["key"] for hit in expected]
    scores = page.locator(".score").all_inner_texts()
    assert scores == [f"{hit['score']:.3f}" for hit in expected]
    pictures_are_loaded(page)
    assert "?q=a+harbour+at+night" in page.url


def test_more_comes_at_the_end_until_there_is_none(page: Page, shown: Shown) -> None:
    opened(page)
    look_for(page, "stones")
    more = page.get_by_role("button", name="More", exact=True)
    more.click()
    expect(page.locator(".hit")).to_have_count(48)
    assert page.evaluate("document.activeElement.closest('.hit').dataset.key") == names(page)[24]
    more.click()
    expect(page.locator(".hit")).to_have_count(60)
    expect(more).to_be_hidden()
    assert len(set(names(page))) == 60


def test_a_click_shows_more_like_it_and_back_goes_back(page: Page, shown: Shown) -> None:
    opened(page)
    look_for(page, "stones")
    before = names(page)
    page.locator(".hit button").nth(2).click()
    answered(page, "images like")
    expected = shown.served.search(like=before[2], limit=24)["hits"]
    assert names(page) == [hit["key"] for hit in expected]
    assert before[2] not in names(page)
    page.go_back()
    answered(page, "stones")
    assert names(page) == before
    page.go_forward()
    answered(page, "images like")
    page.reload()
    answered(page, "images like")


def test_a_dropped_picture_finds_itself_first(page: Page, shown: Shown) -> None:
    opened(page)
    drop(page, [("mine.jpg", "image/jpeg", shown.bytes_of("photo-0033.jpg"))])
    answered(page, "your picture")
    assert names(page)[0] == "photos/photo-0033.jpg"
    expect(page.locator(".score").first).to_have_text("1.000")
    expect(page.get_by_role("list", name="What is searched for")).to_contain_text("mine.jpg")


def test_back_finds_pictures_and_their_weights(page: Page, shown: Shown) -> None:
    opened(page)
    look_for(page, "at night")
    drop(page, [("mine.jpg", "image/jpeg", shown.bytes_of("photo-0011.jpg"))])
    answered(page, "mixed with your picture")
    with page.expect_response("**/v1/search"):
        page.get_by_label("Weight of mine.jpg").press("Home")
    answered(page, "mixed with your picture")
    mixed = names(page)
    page.locator(".hit button").nth(2).click()
    answered(page, "images like")
    expect(page.get_by_role("searchbox")).to_have_value("")
    page.go_back()
    answered(page, "mixed with your picture")
    assert names(page) == mixed
    expect(page.get_by_role("searchbox")).to_have_value("at night")
    expect(page.get_by_label("Weight of mine.jpg")).to_have_value("-1")
    page.go_back()
    answered(page, "for “at night”")
    expect(page.get_by_role("searchbox")).to_have_value("at night")
    page.go_forward()
    answered(page, "mixed with your picture")
    assert names(page) == mixed


def test_text_is_text_also_with_a_picture_of_it(page: Page) -> None:
    opened(page)
    kept = page.evaluate(
        """() => {
            const given = new DataTransfer();
            given.setData("text/plain", "a red car");
            const dropped = new DragEvent("drop", { dataTransfer: given, bubbles: true, cancelable: true });
            const box = document.querySelector("#words");
            const kept = [box.dispatchEvent(dropped)];
            given.items.add(new File([new Uint8Array(3)], "preview.png", { type: "image/png" }));
            kept.push(box.dispatchEvent(new ClipboardEvent("paste", { clipboardData: given, bubbles: true, cancelable: true })));
            return kept;
        }"""
    )
    assert kept == [True, True], "the browser does with it what it always does"
    expect(page.get_by_role("alert")).to_be_empty()
    expect(page.locator("#parts")).to_be_hidden()


def test_a_pasted_picture_too(page: Page, shown: Shown) -> None:
    opened(page)
    page.evaluate(
        """data => {
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], "image.png", { type: "image/png" }));
            document.querySelector("#words").dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }));
        }""",
        base64.b64encode(shown.bytes_of("photo-0012.jpg")).decode(),
    )
    answered(page, "your picture")
    assert names(page)[0] == "photos/photo-0012.jpg"


def test_words_and_a_picture_are_mixed_by_weight(page: Page, shown: Shown, encoder: QueryEncoder) -> None:
    opened(page)
    look_for(page, "at night")
    path = shown.folder / "photo-0011.jpg"
    page.set_input_files("#file", path)
    answered(page, "mixed with your picture")
    store_like = shown.served.search(vector=encoder.mix(("at night", 1.0), (path, 1.0)).tolist(), limit=24)["hits"]
    assert names(page) == [hit["key"] for hit in store_like]
    page.get_by_label("Weight of at night").focus()
    with page.expect_response("**/v1/search"):
        page.keyboard.press("Home")  # the slider's least: away from the words
    expect(page.locator("#results")).not_to_have_class(re.compile("busy"))
    away = shown.served.search(vector=encoder.mix(("at night", -1.0), (path, 1.0)).tolist(), limit=24)["hits"]
    assert names(page) == [hit["key"] for hit in away]
    assert page.evaluate("document.activeElement.type") == "range", "the slider keeps the keyboard"
    page.get_by_role("button", name="Remove at night").click()
    answered(page, "for your picture")
    assert names(page)[0] == "photos/photo-0011.jpg"


@pytest.mark.parametrize("weight", [-1, 0])
def test_what_is_left_alone_counts_fully(page: Page, shown: Shown, weight: int) -> None:
    opened(page)
    look_for(page, "at night")
    drop(page, [("mine.jpg", "image/jpeg", shown.bytes_of("photo-0011.jpg"))])
    answered(page, "mixed with your picture")
    slider = page.get_by_label("Weight of mine.jpg")
    with page.expect_response("**/v1/search"):
        slider.evaluate(
            "(e, weight) => { e.value = weight; for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind)); }",
            weight,
        )
    page.get_by_role("button", name="Remove at night").click()
    answered(page, "for your picture")
    expect(page.get_by_role("alert")).to_be_empty()
    assert names(page)[0] == "photos/photo-0011.jpg"


def test_too_many_and_too_large_pictures_are_said_before_they_are_sent(page: Page, shown: Shown) -> None:
    opened(page)
    sent: list[Request] = []
    page.on("request", lambda request: sent.append(request) if request.url.endswith("/v1/search") else None)
    small = shown.bytes_of("photo-0011.jpg")
    drop(page, [(f"mine-{number}.jpg", "image/jpeg", small) for number in range(17)])
    expect(page.get_by_role("alert")).to_have_text("A mix takes at most 16 pictures, words count as one; these are 17.")
    assert not sent
    page.get_by_role("button", name="Remove mine-0.jpg").click()
    answered(page, "16 pictures")
    page.goto("/")
    opened(page)
    page.evaluate(
        """() => {
            const dataTransfer = new DataTransfer();
            for (const name of ["a", "b", "c"])
                dataTransfer.items.add(new File([new Uint8Array(9e6)], `${name}.jpg`, { type: "image/jpeg" }));
            document.body.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer }));
        }"""
    )
    expect(page.get_by_role("alert")).to_have_text("The pictures of a mix may have 25 MB together; these have 27 MB.")
    assert len(sent) == 1


def test_filters_narrow_the_answer(page: Page) -> None:
    opened(page)
    look_for(page, "stones")
    page.locator("#filters summary").click()
    with page.expect_response("**/v1/search"):
        page.get_by_label("2016").check()
    answered(page, "within the filters")
    assert 10 <= page.locator(".hit").count() < 24
    with page.expect_response("**/v1/search"):
        page.get_by_label("harbour").check()
    answered(page, "within the filters")
    assert 0 < page.locator(".hit").count() < 10
    with page.expect_response("**/v1/search"):
        page.get_by_role("button", name="Clear filters").click()
    expect(page.locator(".hit")).to_have_count(24)


def test_numbers_of_filters_follow_the_other_filters(page: Page, shown: Shown) -> None:
    def counted(field: str, **within: object) -> dict[str, int]:
        answer = shown.served.post("/v1/facets", {"fields": [field], "limit": 100, **within}).json()
        return {str(value["value"]): value["count"] for value in answer["facets"][0]["values"]}

    def shows(label: str, count: int) -> None:
        expect(page.locator("label", has=page.get_by_label(label)).locator(".count")).to_have_text(str(count))

    opened(page)
    page.locator("#filters summary").click()
    of_2016 = {"must": [{"key": "year", "match": {"value": 2016}}]}
    places, years = counted("place"), counted("year")
    shows("harbour", places["harbour"])
    page.get_by_label("2016").check()
    assert counted("place", filter=of_2016)["harbour"] < places["harbour"]
    shows("harbour", counted("place", filter=of_2016)["harbour"])
    shows("2017", years["2017"])
    page.get_by_role("button", name="Clear filters").click()
    shows("harbour", places["harbour"])


def test_names_and_values_are_text_whatever_they_hold(page: Page, shown: Shown) -> None:
    opened(page)
    drop(page, [(XSS_NAME, "image/jpeg", shown.bytes_of(XSS_NAME))])
    answered(page, "your picture")
    first = page.locator(".hit").first
    expect(first.locator(".name")).to_have_text(XSS_NAME)
    expect(page.locator("#parts")).to_contain_text(XSS_NAME)
    page.locator("#filters summary").click()
    expect(page.get_by_label(XSS_VALUE)).to_be_visible()
    page.get_by_label(XSS_VALUE).check()
    first.get_by_role("button").click()
    answered(page, "images like")
    look_for(page, "<img src=x onerror=document.title='owned'>")
    page.goto("/?q=%3Cscript%3Edocument.title%3D'owned'%3C/script%3E&like=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E")
    expect(page.get_by_role("alert")).to_contain_text("no image with key or id")
    assert page.locator("img[src='x']").count() == 0


def test_nothing_found_and_nothing_asked(page: Page) -> None:
    opened(page)
    page.route("**/v1/search", lambda route: route.continue_(post_data=none_found(route.request)))
    page.get_by_role("searchbox").fill("nothing like this")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("No images found for “nothing like this”")
    expect(page.get_by_role("button", name="More", exact=True)).to_be_hidden()
    page.get_by_role("searchbox").fill("")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_be_empty()


def none_found(request: Request) -> str:
    """The page's own request, with a score that no image reaches."""
    import json

    return json.dumps({**(request.post_data_json or {}), "score_threshold": 2.0})


def test_what_is_no_picture_is_said_and_the_page_goes_on(page: Page, shown: Shown) -> None:
    opened(page)
    drop(page, [("notes.txt", "text/plain", b"no picture")])
    expect(page.get_by_role("alert")).to_contain_text("not a picture")
    drop(page, [("broken.jpg", "image/jpeg", shown.bytes_of("photo-0001.jpg")[:400])])
    expect(page.get_by_role("alert")).to_contain_text("damaged")
    page.get_by_role("button", name="Remove broken.jpg").click()
    look_for(page, "stones")
    expect(page.get_by_role("alert")).to_be_empty()
    assert page.locator(".hit").count() == 24


def test_a_server_error_is_shown_and_can_be_tried_again(page: Page) -> None:
    opened(page)
    page.route("**/v1/search", lambda route: route.abort())
    page.get_by_role("searchbox").fill("stones")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("The server cannot be reached.")
    page.unroute("**/v1/search")
    page.get_by_role("button", name="Try again").click()
    answered(page, "stones")
    assert page.locator(".hit").count() == 24


@pytest.mark.parametrize("fails", ["the next page", "the numbers beside the filters"])
def test_an_error_goes_once_trying_again_has_worked(page: Page, fails: str) -> None:
    opened(page)
    look_for(page, "stones")
    route = "**/v1/search" if fails == "the next page" else "**/v1/facets"
    page.route(route, lambda route: route.fulfill(status=503, json={"error": {"message": "overloaded"}}))
    if fails == "the next page":
        page.get_by_role("button", name="More", exact=True).click()
    else:
        page.locator("#filters summary").click()
        page.get_by_label("2016").check()
    expect(page.get_by_role("alert")).to_have_text("overloaded")
    answered(page, "for “stones”")
    page.unroute(route)
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_be_empty()
    expect(page.get_by_role("button", name="Try again")).to_be_hidden()
    if fails == "the next page":
        expect(page.locator(".hit")).to_have_count(48)
    answered(page, "for “stones”")


def test_clearing_the_words_while_a_search_runs_leaves_nothing_faint(page: Page) -> None:
    opened(page)
    waiting: list[Route] = []

    def hold(route: Route) -> None:
        waiting.append(route)

    page.route("**/v1/search", hold)
    page.get_by_role("searchbox").fill("stones")
    page.keyboard.press("Enter")
    expect(page.locator("#results")).to_have_class(re.compile("busy"))
    page.get_by_role("searchbox").fill("")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_be_empty()
    expect(page.locator("#results")).not_to_have_class(re.compile("busy"))
    for route in waiting:
        route.abort()


def test_it_works_by_keyboard_alone(page: Page) -> None:
    opened(page)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the results")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("stones")
    page.keyboard.press("Enter")
    answered(page, "stones")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Search")).to_be_focused()
    page.keyboard.press("Tab")  # the filters
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.hit')?.dataset.key") == names(page)[0]
    page.keyboard.press("Enter")
    answered(page, "images like")


def test_a_screen_reader_hears_names_and_scores(page: Page) -> None:
    opened(page)
    look_for(page, "stones")
    expect(page.get_by_role("main")).to_be_visible()
    expect(page.get_by_role("list", name="Images found, best first").get_by_role("listitem")).to_have_count(24)
    first = page.locator(".hit").first
    name, score = first.locator(".name").inner_text(), first.locator(".score").inner_text()
    expect(first.get_by_role("button")).to_have_accessible_name(f"{name}, score {score}. More like this")
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("input:not([hidden]), button:not([hidden])")]
                .filter(e => e.checkVisibility() && !e.labels?.length && !e.textContent.trim() && !e.ariaLabel).length"""
    )
    assert unnamed == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark(browser: Browser, shown: Shown, scheme: str) -> None:
    context = browser.new_context(
        viewport={"width": 360, "height": 740}, color_scheme=scheme, base_url=shown.served.url, has_touch=True
    )
    page = opened(context.new_page())
    look_for(page, "stones")
    page.locator("#filters summary").tap()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360, "nothing sticks out"
    lefts = {item.bounding_box()["x"] for item in page.locator(".hit").all()[:6]}  # type: ignore[index]
    assert len(lefts) == 2, "two columns"
    for control in ("Search", "Add picture"):
        box = page.get_by_role("button", name=control).bounding_box()
        assert box is not None
        assert box["height"] >= 44, "large enough for a thumb"
    assert contrast(page, "#about") >= 4.5
    assert contrast(page, ".score") >= 4.5
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(23, 24, 27)"
    assert dark is (scheme == "dark")
    context.close()


@pytest.mark.parametrize("width", [360, 1100])
def test_long_and_reversed_names_stay_in_their_place(page: Page, shown: Shown, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 740})
    picture = shown.bytes_of("photo-0011.jpg")
    opened(page)
    drop(page, [(f"{'n' * 200}.jpg", "image/jpeg", picture), ("turned\u202egpj.exe.jpg", "image/jpeg", picture)])
    look_for(page, "w" * 220)
    expect(page.locator(".part")).to_have_count(3)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out"
    for label in page.locator(".part .label").all():
        assert label.evaluate(
            "e => e.getBoundingClientRect().right <= e.closest('.part').getBoundingClientRect().right"
        )
    expect(page.locator(".part .label").last).to_have_text("turned\ufffdgpj.exe.jpg")
    page.route("**/v1/search", lambda route: route.fulfill(json={"hits": [], "next_offset": None}))
    page.evaluate("history.pushState({ like: { id: 'x', name: 'turned\u202egpj.exe.jpg' } }, '', '?like=x')")
    page.evaluate("dispatchEvent(new PopStateEvent('popstate'))")
    expect(page.get_by_role("status")).to_have_text(
        "No images found for images like \u2068turned\ufffdgpj.exe.jpg\u2069."
    )


def contrast(page: Page, what: str) -> float:
    """WCAG's contrast of a text to the page behind it."""
    found: float = page.evaluate(
        """what => {
            const luminance = (colour) => {
                const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
                    .map(v => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const pair = [getComputedStyle(document.querySelector(what)).color, getComputedStyle(document.body).backgroundColor];
            const [bright, dark] = pair.map(luminance).sort((a, b) => b - a);
            return (bright + 0.05) / (dark + 0.05);
        }""",
        what,
    )
    return found


def test_the_api_page_loads_without_any_other_host(page: Page) -> None:
    page.goto("/docs")
    expect(page.get_by_role("heading", name=re.compile("mcip-qdrant"))).to_be_visible()
    page.locator(".opblock-summary", has_text="/v1/search").click()
    expect(page.get_by_text("nearest to words, a picture").first).to_be_visible()


def test_with_a_key_the_page_asks_for_it_and_shows_thumbnails(
    browser: Browser, shown: Shown, encoder: QueryEncoder, tmp_path: Path
) -> None:
    qdrant = tmp_path / "qdrant"
    shutil.copytree(shown.home / "qdrant", qdrant, ignore=shutil.ignore_patterns(".lock"))
    store = open_store(str(qdrant))
    with in_thread(encoder, Limits(), store=store, key="correct-horse", roots={"photos": shown.folder}) as url:
        context = browser.new_context()
        page = context.new_page()
        page.goto(url)
        box = page.get_by_label("This server needs an API key")
        box.fill("wrong")
        box.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("API key")
        box.fill("correct\u2013horse")  # which no header can carry
        box.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("ASCII")
        expect(box).to_be_visible()
        box.fill("correct-horse")
        box.press("Enter")
        expect(page.locator("#about")).to_contain_text("61 images")
        expect(box).to_be_hidden()
        look_for(page, "stones")
        pictures_are_loaded(page)
        assert context.cookies() == []
        context.close()
    store.close()
