"""The page in a real browser: silent, alone, readable on a phone, and everything in it can be pressed."""

import os

import pytest

from msf.report.page import report_page
from tests.msf.report.browser import Browser, find_chromium

PHONE, DESK = (390, 844), (1280, 900)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("there is no Chromium")
    with Browser(chromium, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def url(findings, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report_page(findings), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(params=[PHONE, DESK], ids=["phone", "desk"])
def shown(browser, url, request):
    width, height = request.param
    browser.open(url, width=width, height=height, scheme="light")
    return browser


def test_nothing_is_complained_of_and_nothing_leaves_the_page(shown, url):
    assert shown.run("document.readyState") == "complete"
    complaints = shown.of("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    assert complaints == []
    asked = [event["request"]["url"] for event in shown.of("Network.requestWillBeSent")]
    assert asked[0] == url
    assert all(address.startswith("data:") for address in asked[1:])
    assert shown.run("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


def test_it_is_as_wide_as_the_window(shown):
    assert shown.run("document.documentElement.scrollWidth <= window.innerWidth")
    inside = "[...document.querySelectorAll('svg, img')].every(e => e.getBoundingClientRect().right <= innerWidth + 1)"
    assert shown.run(inside)
    assert shown.run("Math.min(...[...document.querySelectorAll('p, th, td')].map(e => parseFloat(getComputedStyle(e)"
                     ".fontSize)))") >= 12  # fmt: skip


def test_links_and_details_do_what_they_say(shown):
    n_links = shown.run("document.querySelectorAll('nav a').length")
    assert n_links >= 8
    for number in range(n_links):
        target = shown.run(f"document.querySelectorAll('nav a')[{number}].getAttribute('href')")
        shown.click(f"document.querySelectorAll('nav a')[{number}]")
        assert shown.run("location.hash") == target
        assert shown.run(f"document.querySelector('{target}').tagName") == "H2"
    n_details = shown.run("document.querySelectorAll('details').length")
    assert n_details == 2
    for number in range(n_details):
        assert not shown.run(f"document.querySelectorAll('details')[{number}].open")
        shown.click(f"document.querySelectorAll('summary')[{number}]")
        assert shown.run(f"document.querySelectorAll('details')[{number}].open")
    assert shown.of("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded") == []


def test_night_and_paper_have_colours_of_their_own(shown):
    colours = {}
    for scheme, medium in (("light", ""), ("dark", ""), ("dark", "print")):
        shown.look(scheme, medium)
        colours[scheme, medium] = shown.run(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor,"
            " getComputedStyle(document.querySelector('svg text')).fill]"
        )
    assert colours["light", ""][1] == colours["dark", "print"][1] == "rgb(255, 255, 255)"
    assert colours["dark", ""][1] != colours["light", ""][1]
    for ink, _, drawn in colours.values():
        assert ink == drawn
    assert shown.run("getComputedStyle(document.querySelector('nav')).display") == "none"


def test_a_screen_reader_finds_figures_and_pictures_by_name(shown):
    shown.look("light")
    nodes = shown.ask("Accessibility.getFullAXTree")["nodes"]
    images = [node for node in nodes if node.get("role", {}).get("value") in ("image", "img")]
    assert len(images) > 20
    assert all(node["name"]["value"] for node in images if not node.get("ignored"))
    assert [node for node in nodes if node.get("role", {}).get("value") == "main"]


def test_screenshots_are_left_where_they_are_wanted(shown):
    folder = os.environ.get("MSF_SCREENSHOTS")
    if folder is None:
        pytest.skip("the environment variable MSF_SCREENSHOTS names no folder")
    import base64
    from pathlib import Path

    width = shown.run("window.innerWidth")
    for scheme in ("light", "dark"):
        shown.look(scheme)
        picture = base64.b64decode(shown.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"])
        (Path(folder) / f"{width}-{scheme}.png").write_bytes(picture)
        assert picture.startswith(b"\x89PNG")
