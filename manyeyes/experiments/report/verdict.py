"""The headline in words: what was compared, which ensemble ranks highest, and how far that can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import betabinom

from manyeyes.experiments.report.contest import SIGNIFICANT, Contest, Result, overall
from manyeyes.experiments.report.standings import standings
from manyeyes.experiments.report.words import number, percent, plain_name, points, significance, span, whole_percent

FEW = 30
"""With fewer pictures of a class on a set, rates move in steps of more than 3 %, and the page says so."""


STRANGE = 0.01
"""A promise of false alarms counts as broken where its keeping would be less probable than this."""


@dataclass(frozen=True)
class Tile:
    """A large number and what it is."""

    label: str
    text: str
    small: str


@dataclass(frozen=True)
class Verdict:
    """``sure`` is whether the ranking stands out of the noise."""

    title: str
    lead: str
    sure: bool
    findings: list[str]
    tiles: list[Tile]


def verdict(contests: Sequence[Contest]) -> Verdict:
    """Words for the whole study."""
    order = overall(contests)
    best, auroc = order[0]
    lead = _compared(contests, len(order))
    if auroc is None:
        reason = contests[0].reason(best, "image", "auroc")
        return Verdict("No ranking is possible", lead, False, [f"Image AUROC is undefined: {reason}."], [])
    rivals = [name for name, value in order[1:] if value is not None]
    findings = [_named(contest, contests, _standing(contest)) for contest in contests] if rivals else []
    findings += [_named(contest, contests, text) for contest in contests for text in _chosen(contest)]
    findings += [_named(contest, contests, text) for contest in contests for text in _warnings(contest, best)]
    sure = bool(rivals) and _stands_out(contests, best, rivals)
    if not rivals:
        title = f"{best}: image AUROC {percent(auroc)} %"
    elif sure:
        title = f"{best} ranks highest"
    elif all(value == auroc for _, value in order if value is not None):
        title = "All ensembles rank alike"
    else:
        title = f"{best} ranks highest, but its lead is within the noise"
    return Verdict(title, lead, sure or not rivals, findings, _tiles(contests, best, auroc))


def _compared(contests: Sequence[Contest], count: int) -> str:
    what = "One ensemble" if count == 1 else f"{count} ensembles"
    sets = []
    for contest in contests:
        figures = contest.any.figures
        counts = figures["counts"]
        sets.append(
            f"{contest.data} (fitted on {figures['train_images']} good pictures, thresholds set on "
            f"{figures['validation_images']} more, tested on {counts['good']} good and {counts['defective']} defective)"
        )
    most = max(contests, key=lambda contest: contest.runs)
    word = f"{most.run_word}s"
    runs = f", each with {most.runs} {word}; figures are means over {word}" if most.runs > 1 else ""
    return f"{what} on {_joined(sets)}{runs}."


def _joined(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _named(contest: Contest, contests: Sequence[Contest], sentence: str) -> str:
    """The sentence, with the set that it speaks of where there are several."""
    return f"{contest.data}: {sentence}" if len(contests) > 1 else sentence


def _stands_out(contests: Sequence[Contest], best: str, rivals: Sequence[str]) -> bool:
    """Whether its lead over every rival, in the mean over sets, is significant."""
    found = {each.ensemble: each.difference for each in standings(contests, best)}
    leads = [found[name] for name in rivals]
    return all(lead is not None and lead.p is not None and lead.p < SIGNIFICANT and lead.value < 0 for lead in leads)


def _standing(contest: Contest) -> str:
    """One sentence about the ranking on one set."""
    if not contest.behind:
        return "The ensembles cannot be compared, good or defective test pictures are missing."
    others, beaten = len(contest.behind), contest.beaten
    if not beaten:
        pictures = len(contest.common)
        return (
            f"{contest.best} comes first, but on {pictures} test pictures no other ensemble is "
            "significantly behind it (paired DeLong tests, Holm-corrected, 5 % level). Let the cost decide, "
            "or test on more pictures."
        )
    if len(beaten) == others:
        return f"{contest.best} is significantly ahead of {_joined(beaten)}."
    level = [name for name in contest.behind if name not in beaten]
    return f"{contest.best} is significantly ahead of {_joined(beaten)}; {_joined(level)} cannot be told apart from it."


def _chosen(contest: Contest) -> list[str]:
    """How the ensembles that were chosen without labels compare with the best that was not."""
    chosen = [name for name in contest.whole if "choice" in contest.first(name).figures]
    rivals = [name for name in contest.whole if name not in chosen]
    found = []
    for name in chosen if rivals else ():
        difference = contest.against(rivals[0]).get(name)
        if difference is None:
            continue
        strategy = plain_name(contest.first(name).figures["choice"]["strategy"])
        where = "level with" if abs(difference.value) < 5e-4 else f"{points(difference.value)} points from"
        found.append(
            f"{name} was chosen without a single defect ({strategy}); it is {where} {rivals[0]}, the best of "
            f"the others in hindsight, by the test pictures ({significance(difference.p)})."
        )
    return found


def _warnings(contest: Contest, best: str) -> list[str]:
    found = []
    interval = contest.interval(best) if best in contest.results else None
    if interval is not None and interval[0] <= 0.5:
        found.append(
            f"{best} is not shown to be better than chance: the interval of its image AUROC, {span(interval)} %, "
            "reaches 50 %."
        )
    if best in contest.results:
        found += _broken_promise(contest.first(best), best)
    counts = contest.any.figures["counts"]
    few = {kind: counts[kind] for kind in ("good", "defective") if 0 < counts[kind] < FEW}
    if few:
        step = 100 / min(few.values())
        words = _joined([f"{count} {kind}" for kind, count in few.items()])
        found.append(f"{words} test pictures are few: one picture moves a rate by {step:.0f} points.")
    return found


def _broken_promise(result: Result, best: str) -> list[str]:
    """Words where more good parts raise an alarm than chance allows.

    With the threshold at the a-th largest of n validation scores, the alarms among m new good parts of the same kind
    follow a beta-binomial law, betabinom(m, a, n + 1 - a), whatever the scores' distribution.
    """
    good, n = result.figures["counts"]["good"], result.figures["validation_images"]
    alarms = sum(picture["alarm"] for picture in result.pictures if not picture["label"])
    promised = result.figures["false_alarm_rate"]["guaranteed"]
    over = max(1, int((n + 1) * promised + 1e-6))
    if not good or betabinom.sf(alarms - 1, good, over, max(1, n + 1 - over)) >= STRANGE:
        return []
    return [
        f"{best} raises false alarms on {alarms} of {good} good test pictures where {whole_percent(promised)} % were "
        "promised: more than chance allows, so the good test parts look different from those it was fitted on."
    ]


def _tiles(contests: Sequence[Contest], best: str, auroc: float) -> list[Tile]:
    where = [contest for contest in contests if best in contest.results]
    ranked = sum(contest.mean(best, "image", "auroc") is not None for contest in where)
    interval = where[0].interval(best) if len(contests) == 1 else None
    small = f"95 % interval {span(interval)}" if interval else f"mean over {ranked} sets" if ranked > 1 else ""
    tiles = [Tile("Image AUROC", f"{percent(auroc)} %", small)]
    rates = [
        ("False alarms", ("false_alarm_rate", "observed"), "of good parts"),
        ("Missed defects", ("image", "recall"), "of defective parts"),
    ]
    for label, path, of in rates:
        known = [value for contest in where if (value := contest.mean(best, *path)) is not None]
        if known:
            mean = sum(known) / len(known)
            tiles.append(Tile(label, f"{100 * (1 - mean if path[1] == 'recall' else mean):.0f} %", of))
    costs = [value for contest in where if (value := contest.mean(best, "cost", "ms_per_image")) is not None]
    if costs:
        tiles.append(Tile("Time per picture", f"{number(sum(costs) / len(costs))} ms", "on the machine of this study"))
    return tiles
