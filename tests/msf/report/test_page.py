"""The page: all that there is to show, in words that are true, for who sees it and who does not."""

import re
from html.parser import HTMLParser

import pytest
import torch

from msf.judge.uncertainty import UNCERTAINTY_SCORES
from msf.report.page import N_ERRORS, N_UNCERTAIN, breakable, flat, number, report_page
from msf.report.words import percent, summary
from tests.msf.report.conftest import find

VOID = {"img", "meta", "link", "br", "input", "wbr"}


class Page(HTMLParser):
    """A page that was read: elements with their attributes, and all text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._open = [], [], []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), tuple(self._open)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), tuple(self._open)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def of(self, *tags):
        return [attributes for tag, attributes, _ in self.elements if tag in tags]


@pytest.fixture(scope="module")
def text(findings):
    return report_page(findings)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_it_asks_for_nothing_that_it_does_not_hold(text, page):
    addresses = [
        value
        for _, attributes, _ in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "srcset", "data", "action")
    ]
    assert len(addresses) > N_UNCERTAIN
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert not page.of("script", "iframe", "object", "embed")
    policy = next(meta["content"] for meta in page.of("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'")


def test_every_score_is_shown_with_its_curve_and_its_numbers(page, findings):
    words = "".join(page.texts)
    for name in UNCERTAINTY_SCORES:
        assert name in words
        assert number(findings.metrics["scores"][name]["aurc"]) in words
    assert len([a for a in page.of("svg") if a.get("role") == "img"]) == len(findings.bands) + 1
    assert set(findings.bands) == {
        name for name, score in findings.prediction.scores().items() if len(score.unique()) > 1
    }


def test_a_score_that_comes_later_is_shown_too(findings, dataset, monkeypatch):
    monkeypatch.setitem(UNCERTAINTY_SCORES, "doubt", lambda prediction: -prediction.probability.amax(1))
    assert "<h3>doubt</h3>" in report_page(find(dataset, 2.0))


def test_pictures_and_figures_have_words_for_who_cannot_see_them(page):
    assert all(image["alt"].strip() for image in page.of("img"))
    assert all(svg["aria-label"].strip() for svg in page.of("svg") if "role" in svg)


def test_headings_are_in_order_and_sections_have_their_names(page):
    levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    names = {attributes["id"] for tag, attributes, _ in page.elements if "id" in attributes}
    assert {section["aria-labelledby"] for section in page.of("section")} <= names
    assert {link["href"][1:] for link in page.of("a")} <= names


def test_names_are_given_once(page):
    names = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(names) == len(set(names))


def test_tables_have_captions_and_headers_with_scope(page):
    assert len(page.of("caption")) == len(page.of("table"))
    assert {header["scope"] for header in page.of("th")} == {"row", "col"}


def test_names_of_classes_are_text_and_no_markup(text):
    assert "<b>pale</b>" not in text
    assert "&lt;b&gt;pale&lt;/b&gt;" in text
    assert "round &amp; firm" in text


def test_the_surest_errors_and_the_least_sure_pictures_are_those(findings):
    score = findings.prediction.scores()[findings.score]
    wrong = findings.prediction.label != findings.labels
    assert wrong[findings.certain_errors].all()
    assert len(findings.certain_errors) == int(wrong.sum()) > N_ERRORS
    assert score[findings.certain_errors[0]] == score[wrong].min()
    assert score[findings.uncertain[0]] == score.max()
    assert (score[findings.uncertain].diff() <= 0).all()


def test_sentences_say_what_the_figures_do(findings):
    sentences = " ".join(summary(findings))
    right = float((findings.prediction.label == findings.labels).double().mean())
    assert f"right for {percent(right)} of them" in sentences
    kept = findings.order[: round(0.7 * len(findings.labels))]
    risk = float((findings.prediction.label != findings.labels)[kept].double().mean())
    assert f"{percent(risk)} where {percent(0.3, 0)} are referred" in sentences
    assert "no part in the training" in sentences


def test_splits_are_called_what_they_are_to_the_network(dataset):
    assert "no part in the training" in next(summary(find(dataset, 2.0)))
    foreign = next(summary(find(dataset, 2.0, is_foreign=True)))
    assert "other data than those that the network was trained with" in foreign
    assert "no part in the training" not in foreign


def test_a_curve_that_rises_again_is_said_to(dataset):
    findings = find(dataset, 2.0, ranked_by="nearest_distance")
    wrong = (findings.prediction.label != findings.labels).double()
    object.__setattr__(findings.prediction, "nearest_distance", 1 - wrong)
    assert "It does not keep falling beyond half" in " ".join(summary(findings))
    again = find(dataset, 2.0, ranked_by="nearest_distance")
    object.__setattr__(again.prediction, "nearest_distance", wrong)
    assert "It keeps falling beyond half" in " ".join(summary(again))


def test_without_errors_there_is_a_page_too(dataset):
    findings = find(dataset, 0.0)
    page = Page(report_page(findings))
    words = " ".join("".join(page.texts).split())
    assert "No prediction is wrong." in words
    assert "nothing tells which uncertainty score would find one" in words
    assert "Generated against real" not in words


def test_many_classes_show_the_most_likely_and_how_many_more_there_are(dataset):
    from msf.report import page

    findings = find(dataset, 2.0)
    card = page._card(findings, 0)
    assert len(card["bars"]) == 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "_MOST_BARS", 2)
        card = page._card(findings, findings.certain_errors[0])
    shown = [name for name, _, _ in card["bars"]]
    assert {card["label"], card["true"]} <= set(shown)
    assert card["n_more"] == 5 - len(shown)


def test_large_pictures_are_made_smaller(tmp_path):
    import base64
    import io

    import numpy as np
    from PIL import Image

    from msf.report.drawing import picture_uri

    uri = picture_uri(np.zeros((300, 200, 1), np.uint8), 100)
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        assert (image.size, image.mode) == ((67, 100), "L")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (0.12345, "0.1235"), (1234.5, "1,234.5"), (1e-6, "1e-06"), (3, "3"), (True, "True"), ("x", "x")],
)
def test_numbers_are_written_as_a_person_would(value, shown):
    assert number(value) == shown


def test_names_are_parted_behind_underscores_and_stay_text():
    assert breakable("a_b<i>") == "a_<wbr>b&lt;i&gt;"


def test_nested_figures_are_named_by_their_path():
    nested = {"a": 1, "b": {"c": {"d": 2.0}, "curve": [1, 2]}, "e": None}
    assert list(flat(nested)) == [("a", 1), ("b c d", 2.0), ("e", None)]


def test_the_recommended_score_ranks_where_none_is_asked_for(dataset):
    findings = find(dataset, 2.0)
    assert findings.score == "margin"
    assert "most uncertain by margin" in " ".join(summary(findings))
    assert find(dataset, 2.0, ranked_by="disagreement").score == "disagreement"


def test_an_unknown_score_is_refused(dataset):
    with pytest.raises(ValueError, match=r"score must be one of nearest_distance.*got 'doubt'"):
        find(dataset, 2.0, ranked_by="doubt")


def luminance(colour):
    digits = colour.lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = torch.tensor([int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)])
    linear = torch.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ torch.tensor([0.2126, 0.7152, 0.0722]))


def contrast(one, other):
    """Return the ratio of WCAG 2."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colours_can_be_read_by_day_by_night_and_on_paper(text):
    palettes = [dict(re.findall(r"--(\w+): (#\w+)", rule)) for rule in re.findall(r":root \{([^}]*)\}", text)]
    assert len(palettes) == 3
    for colours in palettes:
        for background in (colours["page"], colours["card"]):
            for name in ("ink", "quiet", "accent", "bad", "good"):
                assert contrast(colours[name], background) >= 4.5, (name, background)
            assert contrast(colours["faint"], background) >= 2.2
