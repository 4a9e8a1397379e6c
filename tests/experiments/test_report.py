"""The report page without a browser: what it says, that it is whole, and that it survives odd studies."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve
from studies import finished_study, trapezoid

from manyeyes.experiments.metrics import delong, paired_test
from manyeyes.experiments.report import write_report
from manyeyes.experiments.report.contest import Contest, holm
from manyeyes.experiments.report.curves import digits, pro_curves, roc, roc_curves
from manyeyes.experiments.report.gallery import Painter, disagreements, galleries
from manyeyes.experiments.report.page import embedded
from manyeyes.experiments.report.verdict import verdict
from manyeyes.experiments.report.words import (
    breakable,
    correlation,
    number,
    plain_name,
    points,
    signed,
    span,
    whole_percent,
)
from manyeyes.experiments.study import Study
from manyeyes.files import read_json, write_json

STRENGTHS = {"weak": 0.1, "strong": 3.0, "even": 1.5}


class Page(HTMLParser):
    """Tags with their attributes, text outside scripts, and the embedded data."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.inside: list[str] = []
        self.data = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inside.append(str(dict(attrs).get("type", tag)))

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.inside.pop()

    def handle_data(self, data):
        if self.inside and self.inside[-1] == "application/json":
            self.data += data
        elif not self.inside:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def written(study) -> Page:
    return Page(write_report(study).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return finished_study(tmp_path_factory.mktemp("study"), STRENGTHS, good=12, defective=10)


@pytest.fixture(scope="module")
def page(study):
    return written(study)


def test_nothing_is_fetched(page):
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "poster", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value)
    assert not {tag for tag, _ in page.tags} & {"iframe", "object", "embed", "base"}


def test_style_and_script_fetch_nothing(study):
    html = write_report(study).read_text(encoding="utf-8")
    bare = re.sub(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+", "", html).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|url\((?!#)|@import|fetch\(|XMLHttpRequest|import\(", bare)


def test_figures_in_the_table_are_the_cells(study, page):
    for cell in study.cells:
        figures = cell.figures
        for value in (figures["image"]["auroc"], figures["image"]["f1_max"]):
            assert f"{100 * value:.1f}" in page.text
        missed = sum(p["label"] and not p["alarm"] for p in cell.pictures)
        assert f"{missed} of 10" in page.text


def test_embedded_scores_decide_as_the_cells_did(study, page):
    (data,) = json.loads(page.data)["sets"]
    cells = {cell.ensemble: cell for cell in study.cells}
    assert [one["name"] for one in data["ensembles"]] == Contest.read(study, "parts").ranking
    for one in data["ensembles"]:
        pictures = cells[one["name"]].pictures
        assert [s >= one["threshold"] for s in one["parts"][0]["scores"]] == [p["alarm"] for p in pictures]
        assert {part["label"] for part in one["parts"][1:]} == {"one", "two", "picturable", "unpicturable"} | set(
            pictures[0]["heads"]
        )


def test_a_rounded_zero_has_no_sign():
    assert [signed(text) for text in ("-0.0", "-0", "-0.1", "3")] == ["0.0", "0", "−0.1", "3"]


def test_intervals_of_differences_have_signs_but_not_on_zero():
    assert span((-0.0312, 0.0), sign=True) == "−3.1 to 0.0"
    assert span((0.0001, 0.25), sign=True) == "0.0 to +25.0"
    assert span((0.631, 1.0)) == "63.1 to 100.0"
    assert span((0.0, 0.0), sign=True) == span(None) == ""


def test_nine_digits_keep_every_float32_apart():
    value = np.float32(21.792757)
    for _ in range(50):
        above = np.nextafter(value, np.float32(np.inf))
        low, high = digits(np.array([value, above], np.float64))
        assert low < high
        value = above


def test_pictures_show_and_sizes_are_small(page, study):
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) > 20
    assert all(attributes["src"].startswith("data:image/jpeg;base64,/9j/") for attributes in images)
    assert all(attributes["alt"] for attributes in images)
    assert study.report.stat().st_size < 2e6


def test_names_with_markup_are_words(tmp_path):
    study = finished_study(tmp_path, {"a": 1.0, "b": 2.0}, good=3, defective=3, name='x\' "y" <img src=q> ü')
    html = write_report(study).read_text(encoding="utf-8")
    page = Page(html)
    assert "<img src=q>" not in html
    assert "<i>markup</i>" not in html
    assert "a note with <i>markup</i>" in page.text
    assert "dent <b>&\"'" in page.text
    assert 'x\' "y" <img src=q> ü-0.png' in page.text
    assert "dent <b>&\"'" in json.loads(page.data)["sets"][0]["ensembles"][0]["defects"]


def test_embedded_json_cannot_end_its_element():
    value = {"a": "</script><!-- \u2028 & ünï"}
    text = str(embedded(value))
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == value
    with pytest.raises(ValueError, match="Out of range"):
        embedded(float("nan"))


def test_breakable_escapes_first():
    assert str(breakable("a_<b>/c")) == "a_<wbr>&lt;b&gt;/<wbr>c"


@pytest.mark.parametrize(("good", "defective"), [(4, 0), (0, 4), (1, 0), (1, 1)])
def test_undefined_figures_are_dashes_with_their_reason(tmp_path, good, defective):
    page = written(finished_study(tmp_path, {"a": 1.0, "b": 2.0}, good=good, defective=defective))
    if min(good, defective) == 0:
        assert "No ranking is possible" in page.text
        titles = [attributes.get("title") for tag, attributes in page.tags if tag == "td"]
        assert f"there is no {'defective' if good else 'good'} image" in titles
        assert "–" in page.text
    else:
        assert "are few" in page.text
    assert "None" not in page.text
    assert "nan" not in page.text.split()


def test_ensembles_without_maps_have_no_heatmaps_and_say_so(tmp_path):
    page = written(finished_study(tmp_path, {"a": 1.0, "b": 1.2}, draws=False))
    assert "no head of this ensemble draws maps" in page.text
    assert not [a for tag, a in page.tags if tag == "img" and "Heatmap" in a["alt"]]


def test_sets_without_masks_have_no_outline(tmp_path):
    page = written(finished_study(tmp_path, {"a": 1.0}, masks=False))
    alts = [a["alt"] for tag, a in page.tags if tag == "img"]
    assert any("Heatmap" in alt for alt in alts)
    assert not any("outlined" in alt for alt in alts)


def test_a_picture_that_is_gone_leaves_its_card(tmp_path):
    study = finished_study(tmp_path, {"a": 1.0, "b": 2.0})
    for path in (tmp_path / "parts").glob("part-*.png"):
        path.unlink()
    page = written(study)
    assert "no longer where it was" in page.text
    assert not [tag for tag, _ in page.tags if tag == "img"]


def test_several_sets_and_seeds(tmp_path):
    study = finished_study(tmp_path, {"weak": 0.2, "strong": 2.0}, sets=("one", "two"), seeds=(0, 1, 2))
    page = written(study)
    contest = Contest.read(study, "one")
    values = [cell.figures["image"]["auroc"] for cell in study.of("strong", "one")]
    assert contest.mean("strong", "image", "auroc") == pytest.approx(np.mean(values))
    assert contest.placements["strong"].auroc == pytest.approx(np.mean(values))
    assert "Over all sets" in page.text
    assert "each with 3 seeds" in page.text
    assert len(json.loads(page.data)["sets"]) == 2


def test_intervals_and_differences_are_delongs(study):
    contest = Contest.read(study, "parts")
    assert contest.best == "strong"
    halves = {}
    for name in STRENGTHS:
        result = contest.first(name)
        halves[name] = result.scores[result.labels == 0], result.scores[result.labels == 1]
        assert contest.interval(name) == pytest.approx(delong.interval(*halves[name]))
    expected = {name: paired_test(*halves[name], *halves["strong"]) for name in ("weak", "even")}
    corrected = holm({name: found.p for name, found in expected.items()})
    for name, found in expected.items():
        assert contest.behind[name].value == pytest.approx(found.value)
        assert contest.behind[name].p == pytest.approx(corrected[name])
    assert "weak" in contest.beaten


def test_holm_equals_its_definition():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": None}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": None}
    )
    assert holm({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_the_headline_is_careful_where_the_lead_is_noise(tmp_path):
    unsure = verdict([Contest.read(finished_study(tmp_path / "a", {"a": 1.0, "bb": 1.1}), "parts")])
    assert not unsure.sure
    assert "within the noise" in unsure.title or "alike" in unsure.title
    study = finished_study(tmp_path / "b", {"weak": 0.0, "strong": 5.0}, good=30, defective=30)
    sure = verdict([Contest.read(study, "parts")])
    assert sure.sure
    assert sure.title == "strong ranks highest"
    assert any("significantly ahead of weak" in finding for finding in sure.findings)


def test_the_lead_over_all_sets_may_be_sure_where_single_sets_are_not(tmp_path):
    """On one of three sets all pictures are told apart by both, which is no noise."""
    contests = []
    for index, (weak, strong) in enumerate([(0.0, 3.0), (0.5, 3.0), (9.0, 9.0)]):
        name = f"set{index}"
        study = finished_study(tmp_path / name, {"weak": weak, "strong": strong}, sets=(name,), good=30, defective=30)
        contests.append(Contest.read(study, name))
    assert not contests[2].beaten
    found = verdict(contests)
    assert found.sure
    assert found.title == "strong ranks highest"


def test_folds_are_called_folds(tmp_path):
    study = finished_study(tmp_path, {"a": 0.5, "b": 2.0}, seeds=(0, 1, 2))
    seeds = Contest.read(study, "parts")
    folds = replace(
        seeds,
        results={
            name: [replace(r, cell=replace(r.cell, seed=0, fold=index)) for index, r in enumerate(results)]
            for name, results in seeds.results.items()
        },
    )
    for contest, word in ((seeds, "seed"), (folds, "fold")):
        assert (contest.runs, contest.run_word, contest.first_only) == (3, word, f" With the first {word}.")
        assert f"each with 3 {word}s; figures are means over {word}s" in verdict([contest]).lead


def test_a_small_promise_is_not_shown_as_none():
    assert [whole_percent(value) for value in (0.0, 0.004, 0.02, 0.123)] == ["0", "0.4", "2", "12"]


def test_the_choice_is_compared_with_the_best_in_hindsight(tmp_path):
    study = finished_study(tmp_path, STRENGTHS, chosen=("even",), good=12, defective=10)
    contest = Contest.read(study, "parts")
    (said,) = (finding for finding in verdict([contest]).findings if finding.startswith("even was chosen"))
    difference = contest.difference("even", "strong")
    assert f"it is {points(difference.value)} points from strong" in said
    assert "(independent PCA)" in said
    alone = finished_study(tmp_path / "alone", {"even": 1.0}, chosen=("even",))
    assert not any("chosen" in finding for finding in verdict([Contest.read(alone, "parts")]).findings)


def test_a_broken_promise_of_false_alarms_is_said(tmp_path):
    # The drawn cells alarm on half of their good pictures and promise 5 %.
    few = verdict([Contest.read(finished_study(tmp_path / "few", {"a": 2.0}, good=2, defective=9), "parts")])
    many = verdict([Contest.read(finished_study(tmp_path / "many", {"a": 2.0}, good=24, defective=9), "parts")])
    assert not any("promised" in finding for finding in few.findings)
    assert any("12 of 24 good test pictures where 5 % were promised" in finding for finding in many.findings)


def test_roc_equals_scikit_learn():
    rng = np.random.default_rng(3)
    good, defective = rng.integers(0, 9, 40).astype(float), rng.integers(2, 12, 25).astype(float)
    x, y = roc(good, defective)
    labels, scores = np.r_[np.zeros(40), np.ones(25)], np.r_[good, defective]
    assert trapezoid(y, x) == pytest.approx(roc_auc_score(labels, scores))
    # Scikit-learn's points are more: it keeps some that lie on a line between others.
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    theirs = {(round(a, 9), round(b, 9)) for a, b in zip(fpr, tpr, strict=True)}
    assert {(round(a, 9), round(b, 9)) for a, b in zip(x, y, strict=True)} <= theirs
    for a, b in theirs:
        here = np.abs(x - a) < 1e-9
        low, high = (y[here].min(), y[here].max()) if here.any() else [np.interp(a, x, y)] * 2
        assert low - 1e-9 <= b <= high + 1e-9, "every point of theirs is on the curve"
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)


def test_pro_curves_are_the_cells_in_a_square_of_100(study, page):
    contest = Contest.read(study, "parts")
    found, limit = pro_curves(contest)
    assert limit == pytest.approx(0.3)
    assert [curve.ensemble for curve in found] == contest.ranking
    for curve in found:
        rates, overlaps = study.of(curve.ensemble, "parts")[0].pro_curve
        points = np.array([part.split() for part in curve.path[1:].split("L")], float)
        assert points[:, 0] == pytest.approx(np.array(rates) / 0.3 * 100, abs=0.006)
        assert points[:, 1] == pytest.approx(100 - 100 * np.array(overlaps), abs=0.006)
        area = trapezoid(1 - points[:, 1] / 100, points[:, 0] / 100)
        assert float(curve.area) == pytest.approx(100 * area, abs=0.1), "the figure beside it is the area under it"
    assert "PRO: pixels." in page.text


def test_curves_carry_their_areas(study):
    contest = Contest.read(study, "parts")
    for curve in roc_curves(contest):
        points = np.array([part.split() for part in curve.path[1:].split("L")], float)
        area = trapezoid(100 - points[:, 1], points[:, 0]) / 100
        assert float(curve.area) == pytest.approx(area, abs=0.1)


def test_without_maps_there_is_a_roc_curve_alone(tmp_path):
    study = finished_study(tmp_path, {"a": 1.0, "b": 1.2}, draws=False)
    page = written(study)
    assert pro_curves(Contest.read(study, "parts"))[0] == []
    assert "ROC: whole parts." in page.text
    assert "PRO: pixels." not in page.text


def test_ensembles_without_a_member_stand_in_tables_alone(tmp_path):
    strengths = {"all": 1.5, "all-without-two": 3.0}
    page = written(finished_study(tmp_path, strengths, good=12, defective=10))
    contest = Contest.read(finished_study(tmp_path, strengths, good=12, defective=10), "parts")
    assert contest.best == "all-without-two"
    assert [curve.ensemble for curve in roc_curves(contest)] == ["all"]
    assert not [a for tag, a in page.tags if tag == "img" and "all-without-two" in a["alt"]]
    assert "fitted anew" in page.text
    assert "stand in the tables" in page.text


def test_costs_and_the_baseline_stand_on_the_page(tmp_path):
    study = finished_study(tmp_path, STRENGTHS, good=12, defective=10)
    page = written(Study(study.folder, study.cells, "even"))
    assert "Against even" in page.text
    assert "812 MB" in page.text
    assert "◆" in page.text
    assert "Which one should run?" not in written(finished_study(tmp_path / "one", {"a": 1.0})).text


def test_the_choice_stands_on_the_page_and_in_its_appendix(tmp_path):
    study = finished_study(tmp_path, STRENGTHS, chosen=("even",), good=12, defective=10)
    page = written(study)
    assert "Choice without labels: even" in page.text
    assert "40 structural defects" in page.text
    assert "6 of the 78 that were made" in page.text
    assert "Members left out, and from the fused map with them" in page.text
    alts = [a["alt"] for tag, a in page.tags if tag == "img"]
    assert sum(alt.startswith("Made defect: ") for alt in alts) == 6
    assert "Made defect: cut paste, outlined" in alts
    assert "Spearman’s rank correlation with the test pictures" in page.text
    assert "is not known" not in page.text
    for path in (tmp_path / "made").glob("*.png"):
        path.unlink()
    figures = next(cell for cell in study.cells if cell.ensemble == "even").folder / "figures.json"
    known = read_json(figures)
    del known["choice"]["truth"]
    write_json(figures, known)
    page = written(study)
    assert "What the candidates would have done on the test pictures is not known" in page.text
    assert "The picture is no longer where it was." in page.text
    assert "Appendix" not in written(finished_study(tmp_path / "plain", {"a": 1.0})).text


def test_galleries_show_the_worst_first(study):
    result = Contest.read(study, "parts").first("weak")
    shown = {gallery.title: gallery.cards for gallery in galleries(Painter(result, "weak"))}
    scores = {p["path"]: p for p in result.pictures}
    misses = [scores[card.path] for card in shown["Worst misses"]]
    assert all(p["label"] and not p["alarm"] for p in misses)
    assert [p["score"] for p in misses] == sorted(p["score"] for p in misses)
    alarms = [scores[card.path] for card in shown["Worst false alarms"]]
    assert all(not p["label"] and p["alarm"] for p in alarms)
    assert len({card.defect for card in shown["Best found"][:2]}) == 2


def test_disagreements_start_with_split_decisions(study):
    contest = Contest.read(study, "parts")
    found = disagreements(contest, [Painter(contest.first(name), name) for name in contest.ranking])
    alarms = [{view.alarm for view in card.views} for card in found.cards]
    assert alarms[0] == {True, False}
    assert all(len(card.views) == 3 for card in found.cards)
    assert disagreements(contest, [Painter(contest.first("weak"), "weak")]) is None


def test_the_fused_map_is_read_from_the_run(page):
    assert "Fused map: 5 components by independent PCA" in page.text
    assert "one 25 %" in page.text
    assert "one: 80.0 % of the variance kept" in page.text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (21.7927, "21.8"), (-4.138, "−4.14"), (12345.6, "12346"), (3e7, "3.00e+07")]
)
def test_numbers_for_people(value, text):
    assert number(value) == text


def test_correlations_have_a_true_sign_and_kinds_are_words():
    assert [correlation(value) for value in (0.5, -0.251, -0.001, 0.0, None)] == ["+0.50", "−0.25", "0.00", "0.00", "–"]
    assert [plain_name(name) for name in ("independent_pca", "score_level")] == ["independent PCA", "score level"]
