"""AU-PRO and AU-sPRO of 300 maps of 512 x 512 in one pass, against loops over 200 thresholds, in one run.

Writes benchmarks/results/metrics_speed.md. Each contestant runs in a process of its own, so that its peak memory is its
own; the maps are made anew, one by one, and the time to make them is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from scipy import ndimage

SIDE, THRESHOLDS, LIMITS = 512, 200, (0.01, 0.05, 0.1, 0.3, 1.0)
RESULT = Path(__file__).parent / "results" / "metrics_speed.md"


def make(count: int) -> Iterator[tuple[np.ndarray, list[tuple[np.ndarray, float]]]]:
    """Smooth noise as a detector gives it, (512, 512) float32; every second map has one to three elliptic regions."""
    for index in range(count):
        rng = np.random.default_rng(index)
        scores = cv2.resize(rng.normal(size=(64, 64)).astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        regions = []
        for _ in range(int(rng.integers(1, 4)) if index % 2 else 0):
            mask = np.zeros((SIDE, SIDE), np.uint8)
            centre, axes = rng.integers(60, SIDE - 60, 2).tolist(), rng.integers(10, 50, 2).tolist()
            cv2.ellipse(mask, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
            regions.append((mask > 0, float(0.6 * mask.sum())))
            scores += mask * np.float32(rng.uniform(0.5, 2.5))
        yield scores, regions


def clocks() -> np.ndarray:
    return np.array([time.process_time(), time.perf_counter()])


def one_pass(count: int) -> tuple[np.ndarray, dict[str, float]]:
    """manyeyes; besides AU-PRO and AU-sPRO this finishes pixel AUROC, AUPR, F1 max and IoU, all exactly."""
    from manyeyes.experiments.metrics import PixelStatistics

    spent, statistics = np.zeros(2), PixelStatistics(("defect",))
    for index, (scores, regions) in enumerate(make(count)):
        start = clocks()
        statistics.update(scores, regions, name=str(index), defect="defect" if regions else "good")
        spent += clocks() - start
    start = clocks()
    found = statistics.finish()
    spent += clocks() - start
    spro = found["groups"]["defect"]["au_spro"]
    return spent, {"AU-PRO 0.3": found["all"]["au_pro"].value} | {f"AU-sPRO {at}": spro[str(at)].value for at in LIMITS}


def loop(count: int, label_inside: bool) -> tuple[np.ndarray, dict[str, float]]:
    """For each of 200 equidistant thresholds, every map is cut, and each of its regions' overlap taken.

    ``label_inside``: the masks' components are labelled anew at each threshold, as the copied versions of this loop
    do; else they are labelled once and kept.
    """
    maps, held = (list(items) for items in zip(*make(count), strict=True))
    start = clocks()
    unions = [np.logical_or.reduce([np.zeros((SIDE, SIDE), bool), *(mask for mask, _ in r)]) for r in held]
    low, high = min(m.min() for m in maps), max(m.max() for m in maps)
    kept = None if label_inside else [components(union) for union in unions]
    outside = sum(int((~union).sum()) for union in unions)
    rates, pros, spros = [0.0], [0.0], [0.0]
    for threshold in np.linspace(high, low, THRESHOLDS):
        false, pro, spro = 0, [], []
        for index, (scores, regions, union) in enumerate(zip(maps, held, unions, strict=True)):
            called = scores >= threshold
            false += int((called & ~union).sum())
            for part in components(union) if kept is None else kept[index]:
                pro.append(called[part].mean())
            for mask, area in regions:
                spro.append(min((called & mask).sum() / area, 1.0))
        rates.append(false / outside)
        pros.append(float(np.mean(pro)))
        spros.append(float(np.mean(spro)))
    values = {"AU-PRO 0.3": area_to(rates, pros, 0.3)} | {f"AU-sPRO {at}": area_to(rates, spros, at) for at in LIMITS}
    return clocks() - start, values


def components(union: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    """Coordinates of each 8-connected component."""
    labels, count = ndimage.label(union, structure=np.ones((3, 3)))
    return [np.nonzero(labels == index) for index in range(1, count + 1)]


def area_to(xs: list[float], ys: list[float], limit: float) -> float:
    grid = np.array([x for x in xs if x < limit] + [limit])
    values = np.r_[np.array(ys)[: len(grid) - 1], np.interp(limit, xs, ys)]
    return float(np.sum(np.diff(grid) * (values[1:] + values[:-1]) / 2) / limit)


CONTESTANTS = {
    "one pass (manyeyes)": lambda count: one_pass(count),
    "200 thresholds, labelled in the loop": lambda count: loop(count, True),
    "200 thresholds, labelled once": lambda count: loop(count, False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--maps", type=int, default=300)
    parser.add_argument("--only", choices=list(CONTESTANTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        spent, values = CONTESTANTS[options.only](options.maps)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"processor": spent[0], "wall": spent[1], "peak_mib": peak, "values": values}))
        return
    rows = {}
    for name in CONTESTANTS:
        command = [sys.executable, __file__, "--maps", str(options.maps), "--only", name]
        rows[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{name}: {rows[name]['processor']:.1f} s, {rows[name]['peak_mib']:.0f} MiB", flush=True)
    report(rows, options.maps)


def report(rows: dict[str, dict[str, object]], count: int) -> None:
    fast = rows["one pass (manyeyes)"]
    lines = [
        "# Speed of the pixel-level figures",
        "",
        f"`python benchmarks/metrics_speed.py --maps {count}`: {count} maps of {SIDE} x {SIDE}, every second one",
        f"with 1-3 regions; {os.cpu_count()} CPU cores ({platform.machine()}), NumPy {np.__version__}. Other work ran",
        f"beside it (load {os.getloadavg()[0]:.1f} when it ended), so that processor time is the fairer column.",
        "",
        "| | processor s | times slower | wall s | times slower | peak MiB | " + " | ".join(fast["values"]) + " |",
        "|---|---|---|---|---|---|" + "---|" * len(fast["values"]),
    ]
    for name, row in rows.items():
        values = " | ".join(f"{value:.5f}" for value in row["values"].values())
        times = " | ".join(f"{row[key]:.2f} | {row[key] / fast[key]:.1f}" for key in ("processor", "wall"))
        lines.append(f"| {name} | {times} | {row['peak_mib']:.0f} | {values} |")
    lines += [
        "",
        "The one pass is exact and also gives pixel AUROC, AUPR, F1 max and IoU; the loops take 200 equidistant",
        "thresholds, so their figures are off by what lies between them. Peak memory is the whole process; the loops",
        "hold all maps and masks, the one pass takes maps one by one and keeps their scores. The first loop is the one",
        "that is copied most: it labels each mask's components at each threshold; the second labels them once.",
    ]
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
