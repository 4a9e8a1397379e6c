"""Fit the global PCA block on millions of positions, streamed, and report the peak of resident memory.

    python benchmarks/pca_memory.py                        2,000,000 positions x 1,536 channels
    python benchmarks/pca_memory.py --positions 50000      a quick try (writes no result)

The features are made on the fly, batch by batch, as low-rank structure plus noise around a mean; two maps of one member
(512 channels on 32 x 32, 1,024 on 16 x 16) go through the block that ensembles use, resizing included. Memory is the
peak of the whole process, Python and torch included; "before" is the peak once everything is imported.
"""

from __future__ import annotations

import argparse
import platform
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from manyeyes.files import write_text
from manyeyes.fusion import GlobalPcaConfig
from manyeyes.maps import MapSpec

GRID = (32, 32)
FULL = 2_000_000
RANK = 64


def resident_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


class Features:
    """A re-iterable of map tuples that never exist all at once; ``seconds`` is the time that making them took."""

    def __init__(self, specs: tuple[MapSpec, ...], images: int, batch: int) -> None:
        random = torch.Generator().manual_seed(0)
        self.specs, self.images, self.batch, self.seconds = specs, images, batch, 0.0
        self.mixes = [torch.randn(spec.channels, RANK, generator=random) for spec in specs]
        self.means = [3 * torch.randn(spec.channels, 1, 1, generator=random) for spec in specs]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        random = torch.Generator().manual_seed(1)
        for start in range(0, self.images, self.batch):
            begun, b = time.perf_counter(), min(self.batch, self.images - start)
            maps = []
            for spec, mix, mean in zip(self.specs, self.mixes, self.means, strict=True):
                low = torch.randn(b, RANK, spec.grid[0] * spec.grid[1], generator=random)
                value = (mix @ low).reshape(b, spec.channels, *spec.grid) + mean
                noise = torch.rand(value.shape, generator=random)
                maps.append(value.add_(noise.sub_(0.5), alpha=3.0))
            self.seconds += time.perf_counter() - begun
            yield tuple(maps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=FULL, help="positions in all (default: %(default)s)")
    parser.add_argument("--channels", type=int, default=1536, help="channels in all (default: %(default)s)")
    parser.add_argument("--components", type=int, default=256, help="components kept (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="images in a batch (default: %(default)s)")
    arguments = parser.parse_args()

    fine = arguments.channels // 3
    specs = (
        MapSpec("made/fine", fine, 8, GRID),
        MapSpec("made/coarse", arguments.channels - fine, 16, (GRID[0] // 2, GRID[1] // 2)),
    )
    images = -(-arguments.positions // (GRID[0] * GRID[1]))
    features = Features(specs, images, arguments.batch)
    fusion = GlobalPcaConfig(components=arguments.components).build(specs, GRID)
    before, begun = resident_mb(), time.perf_counter()
    fusion.fit(features)
    seconds = time.perf_counter() - begun - features.seconds

    all_at_once = images * GRID[0] * GRID[1] * arguments.channels * 4 / 1e6
    variance = 100 * float(fusion.explained_variance_ratio_.sum())
    rows = [
        ("positions x channels", f"{images * GRID[0] * GRID[1]:,} x {arguments.channels:,}"),
        ("components kept", f"{fusion.channels}, {variance:.1f} % of the variance"),
        ("resident peak, fit included", f"{resident_mb():,.0f} MB"),
        ("resident peak before the fit", f"{before:,.0f} MB"),
        ("the features all at once would be", f"{all_at_once:,.0f} MB"),
        ("fit", f"{seconds:,.1f} s"),
        ("making the features (not part of the fit)", f"{features.seconds:,.1f} s"),
        ("machine", f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"),
    ]
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
    command = " ".join(["python benchmarks/pca_memory.py", *sys.argv[1:]])
    print(table)
    if arguments.positions >= FULL:
        text = f"# PCA fit, streamed\n\n{table}\n\nThe target is under 1,500 MB. Made by `{command}`.\n"
        write_text(Path(__file__).parent / "results" / "pca_memory.md", text)


if __name__ == "__main__":
    main()
