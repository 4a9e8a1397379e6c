"""Do the 95 % intervals cover? 1,000 simulated evaluations per row, the truth known; 900 to 990 must cover.

Writes benchmarks/results/intervals.md. Image scores are normal, so the true AUROC is Phi(shift / sqrt(2)); true AUPR
and F1 max come from 400,000 images with the same share of defects. Pixel rows draw small maps whose images differ in
how visible their defect is; their truth is the mean over all simulated sets.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from scipy.stats import norm

from manyeyes.experiments.metrics import PixelStatistics, delong, image_figures, paired_difference, paired_test
from manyeyes.experiments.metrics.bootstrap import interval, replicates

RESULT = Path(__file__).parent / "results" / "intervals.md"
SETTINGS = [(50, 50, 1.2), (50, 50, 2.3), (30, 100, 2.3), (100, 60, 2.9)]
"""Good images, defective images, and by how many standard deviations the defective ones lie higher."""
DRAWS = 1000


def image_rows(repetitions: int) -> list[tuple[str, str, float, int, int]]:
    rows = []
    for good, defective, shift in SETTINGS:
        rng = np.random.default_rng([good, defective, round(10 * shift)])
        truth = {"auroc": float(norm.cdf(shift / np.sqrt(2)))}
        share = good / (good + defective)
        many = image_figures(rng.normal(size=int(4e5 * share)), rng.normal(shift, 1, int(4e5 * (1 - share))))
        truth |= {name: float(many[name].value or 0) for name in ("aupr", "f1_max")}
        found: dict[str, list[delong.Interval | None]] = {name: [] for name in ("DeLong auroc", *truth)}
        for seed in range(repetitions):
            scores = rng.normal(size=good), rng.normal(shift, 1, defective)
            figures = image_figures(*scores)
            found["DeLong auroc"].append(delong.interval(*scores))
            for name in truth:
                estimate = figures[name].value
                found[name].append(interval(replicates(name, *scores, DRAWS, seed), estimate, min(map(len, scores))))
        for name, intervals in found.items():
            value = truth[name.split()[-1]]
            label = name if name.startswith("DeLong") else f"bootstrap {name}"
            rows.append((label, f"{good} good, {defective} defective", value, covered(intervals, value), repetitions))
    return rows


def paired_rows(repetitions: int, good: int = 60, defective: int = 60) -> list[tuple[str, str, float, int, int]]:
    """Two runs that share most of their noise; the second is the better one."""
    rng = np.random.default_rng(5)
    truth = float(norm.cdf(1.6 / np.sqrt(2)) - norm.cdf(1.3 / np.sqrt(2)))
    tested, drawn = [], []
    for seed in range(repetitions):
        shared = rng.normal(0, np.sqrt(0.7), good + defective)
        runs = []
        for shift in (1.6, 1.3):
            scores = shared + rng.normal(0, np.sqrt(0.3), good + defective)
            runs += [scores[:good], scores[good:] + shift]
        tested.append(paired_test(*runs).interval)
        drawn.append(paired_difference("auroc", *runs, DRAWS, seed).interval)
    where = f"{good} good, {defective} defective"
    return [
        ("paired DeLong, difference of auroc", where, truth, covered(tested, truth), repetitions),
        ("paired bootstrap, difference of auroc", where, truth, covered(drawn, truth), repetitions),
    ]


def pixel_rows(repetitions: int, good: int = 30, defective: int = 40) -> list[tuple[str, str, float, int, int]]:
    rng = np.random.default_rng(6)
    names = ("auroc", "aupr", "f1_max", "au_pro")
    found: dict[str, list[delong.Interval | None]] = {name: [] for name in names}
    values: dict[str, list[float]] = {name: [] for name in names}
    mask = np.zeros((16, 16), bool)
    mask[4:9, 5:10] = True
    for seed in range(repetitions):
        statistics = PixelStatistics()
        for index in range(good + defective):
            scores = rng.normal(rng.normal(0, 0.3), 1, (16, 16)).astype(np.float32)
            if index >= good:
                scores[mask] += rng.normal(2, 0.7)
            regions = [(mask, 25.0)] if index >= good else []
            statistics.update(scores, regions, name=str(index), defect="bad" if index >= good else "good")
        figures = statistics.finish(repetitions=DRAWS // 2, seed=seed)["all"]
        for name in names:
            values[name].append(figures[name].value)
            found[name].append(figures[name].interval)
    where = f"{good} good, {defective} defective maps of 16 x 16"
    return [
        (
            f"bootstrap over images, pixel {name}",
            where,
            float(np.mean(values[name])),
            covered(found[name], np.mean(values[name])),
            repetitions,
        )
        for name in names
    ]


def covered(intervals: list[delong.Interval | None], truth: float) -> int:
    """An interval that could not be given does not cover."""
    return sum(found is not None and found[0] <= truth <= found[1] for found in intervals)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=1000)
    repetitions = parser.parse_args().repetitions
    start = time.perf_counter()
    rows = image_rows(repetitions) + paired_rows(repetitions)
    rows += pixel_rows(repetitions) + pixel_rows(repetitions, defective=4)
    lines = [
        "# Coverage of the 95 % intervals",
        "",
        f"`python benchmarks/intervals.py --repetitions {repetitions}`: {time.perf_counter() - start:.0f} s; {DRAWS}",
        f"bootstrap draws ({DRAWS // 2} for maps). Wanted: 90.0 to 99.0 % covered.",
        "",
        "| interval of | set | true value | covered | share | wanted |",
        "|---|---|---|---|---|---|",
    ]
    for name, where, truth, hits, of in rows:
        good = "yes" if 0.9 <= hits / of <= 0.99 else "**no**"
        lines.append(f"| {name} | {where} | {truth:.4f} | {hits} of {of} | {100 * hits / of:.1f} % | {good} |")
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
