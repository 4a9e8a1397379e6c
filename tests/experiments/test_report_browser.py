"""The report page in headless Chromium: the slider moves, the numbers follow, the pictures show, nothing overflows."""

import shutil

import pytest
from studies import finished_study
from webdriver import browsing, chromium

from manyeyes.experiments.report import write_report
from manyeyes.experiments.report.contest import Contest
from manyeyes.experiments.report.curves import digits

pytestmark = pytest.mark.skipif(
    chromium() is None or shutil.which("chromedriver") is None, reason="needs chromium and chromedriver on the path"
)
SLIDER = ".scores [role=slider]"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    strengths = {"weak": 0.1, "strong": 3.0}
    folder = tmp_path_factory.mktemp("study")
    sets = ("one", "two")
    return finished_study(folder, strengths, sets=sets, chosen=("strong",), good=12, defective=10)


@pytest.fixture(scope="module")
def browser(study, tmp_path_factory):
    page = write_report(study)
    with browsing(tmp_path_factory.mktemp("profile")) as opened:
        opened.page = page
        yield opened


@pytest.fixture
def page(browser):
    resize(browser, 1280)
    browser.open(browser.page)
    return browser


def resize(browser, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.command("Emulation.setDeviceMetricsOverride", **metrics)


def out(browser, name):
    return browser.run(f"return document.querySelector('.scores [data-out={name}]').textContent")


def now(browser):
    return float(browser.run(f"return document.querySelector('{SLIDER}').getAttribute('aria-valuenow')"))


def choose(browser, selector, value):
    script = (
        "const s = document.querySelector(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('change'))"
    )
    browser.run(script, selector, value)


def counted(result, scores, threshold):
    """What the page must say: false alarms and misses at a threshold."""
    good = [s for s, label in zip(scores, result.labels, strict=True) if not label]
    defective = [s for s, label in zip(scores, result.labels, strict=True) if label]
    alarms, misses = sum(s >= threshold for s in good), sum(s < threshold for s in defective)
    return f"{alarms} of {len(good)}", f"{misses} of {len(defective)}"


def best(study):
    contest = Contest.read(study, "one")
    return contest.first(contest.best)


def test_it_starts_at_the_calibrated_threshold(page, study):
    result = best(study)
    assert now(page) == pytest.approx(result.figures["threshold"])
    assert (out(page, "alarms"), out(page, "misses")) == counted(result, result.scores, result.figures["threshold"])


@pytest.mark.parametrize("kind", ["mouse", "touch"])
def test_dragging_moves_the_threshold_and_the_numbers_follow(page, study, kind):
    result, start = best(study), now(page)
    for right in (90, -200):
        before = now(page)
        page.drag(f"{SLIDER} .hit", right, kind)
        assert (now(page) - before) * right > 0
        assert (out(page, "alarms"), out(page, "misses")) == counted(result, result.scores, now(page))
    page.run("document.querySelector('.scores .reset').click()")
    assert now(page) == start


def test_keys_move_the_threshold(page, study):
    result = best(study)
    seen = [now(page)]
    for key in ("ArrowRight", "PageUp", "Home", "End"):
        page.press(SLIDER, key)
        seen.append(now(page))
        assert (out(page, "alarms"), out(page, "misses")) == counted(result, result.scores, seen[-1])
    start, right, up, home, end = seen
    assert home < start < right < up < end
    page.press(SLIDER, "Home")
    assert (out(page, "alarms"), out(page, "misses")) == ("12 of 12", "0 of 10")
    page.press(SLIDER, "End")
    assert (out(page, "alarms"), out(page, "misses")) == ("0 of 12", "10 of 10")
    spoken = page.run(f"return document.querySelector('{SLIDER}').getAttribute('aria-valuetext')")
    assert "0 of 12 good parts raise a false alarm, 10 of 10 defective parts are missed" in spoken


def test_a_part_starts_with_as_many_false_alarms_as_the_whole(page, study):
    result, whole = best(study), out(page, "alarms")
    labels = page.run("return [...document.querySelector('.scores .part').options].map(o => o.textContent)")
    for index in range(1, len(labels)):
        choose(page, ".scores .part", str(index))
        assert out(page, "alarms") == whole
        kind = next(kind for kind in ("branches", "members", "heads") if labels[index] in result.pictures[0][kind])
        scores = digits(result.judged(kind, labels[index]))
        assert (out(page, "alarms"), out(page, "misses")) == counted(result, scores, now(page))


def test_the_other_ensemble_is_shown(page, study):
    choose(page, ".scores .ensemble", "1")
    assert now(page) == pytest.approx(Contest.read(study, "one").first("weak").figures["threshold"])
    choose(page, ".galleries .shown", "1")
    assert page.run("return [...document.querySelector('.galleries').querySelectorAll('.of')].map(o => o.hidden)") == [
        True,
        False,
    ]


def test_every_picture_shows(page):
    sizes = page.run("return [...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight])")
    assert len(sizes) > 40
    assert all(done and (w, h) == (64, 48) for done, w, h in sizes)


@pytest.mark.parametrize("width", [320, 375, 768, 1280])
def test_no_page_is_wider_than_its_window(page, width):
    resize(page, width)
    page.run("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert page.run("return document.documentElement.scrollWidth") <= width
    assert page.run("return document.querySelector('.plot svg').getBoundingClientRect().width") <= width


@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize(
    "selector",
    [".roc > svg .curve", ".pro > svg .curve", ".cost > svg circle", ".scatter > svg .strategies", ".weights .track i"],
)
def test_curves_costs_and_the_choice_show(page, selector, width):
    resize(page, width)
    boxes = page.run(
        "return [...document.querySelectorAll(arguments[0])].map(one => {"
        "const box = one.getBoundingClientRect(), style = getComputedStyle(one);"
        "return [box.left, box.right, box.width, box.height, style.visibility, style.opacity]; })",
        selector,
    )
    assert boxes
    for left, right, w, h, visibility, opacity in boxes:
        assert 0 <= left < right <= width
        assert min(w, h) > 2
        assert (visibility, opacity) == ("visible", "1")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_curves_stand_out_from_the_page(page, scheme):
    """WCAG AA: 3 to 1 for graphics."""
    show(page, scheme)
    paper, *strokes = page.run(
        "const of = (selector, name) =>"
        "  [...document.querySelectorAll(selector)].map(one => getComputedStyle(one)[name]);"
        "return [...of('body', 'backgroundColor'), ...of('.graph .curve, .graph circle, .scatter .heads', 'stroke')]"
    )
    assert len(strokes) > 8
    for stroke in strokes:
        assert contrast(hexadecimal(stroke), hexadecimal(paper)) >= 3, (stroke, paper)


def test_dark_mode_is_dark(page):
    seen = {}
    for scheme in ("light", "dark"):
        show(page, scheme)
        seen[scheme] = luminance(hexadecimal(page.run("return getComputedStyle(document.body).backgroundColor")))
    assert seen["dark"] < 0.05 < 0.8 < seen["light"]


def test_the_details_of_the_appendix_open(page):
    seen = "return document.querySelector('#appendix details table').checkVisibility()"
    assert not page.run(seen)
    page.run("document.querySelector('#appendix summary').click()")
    assert page.run(seen)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(page, scheme):
    """WCAG AA: 4.5 to 1 for the two text colours on every background that carries text."""
    show(page, scheme)
    names = ("ink", "muted", "accent", "paper", "panel", "soft", "warn", "sure")
    script = (
        "const style = getComputedStyle(document.documentElement);"
        "return arguments[0].map(name => style.getPropertyValue('--' + name).trim())"
    )
    colours = dict(zip(names, page.run(script, list(names)), strict=True))
    pairs = [("accent", "paper"), ("ink", "warn"), ("ink", "sure")]
    pairs += [(text, ground) for text in ("ink", "muted") for ground in ("paper", "panel", "soft")]
    for text, ground in pairs:
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def show(browser, scheme):
    browser.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])


def hexadecimal(colour):
    """From Chromium's ``rgb(1, 2, 3)``."""
    return "#" + "".join(f"{int(part):02x}" for part in colour.removeprefix("rgb(").removesuffix(")").split(","))


def contrast(a, b):
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour):
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_the_page_makes_no_request_and_no_error(page):
    assert (
        page.run("return performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:')).length") == 0
    )
    assert page("POST", "/se/log", type="browser") == []
