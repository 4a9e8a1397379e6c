"""How often the a-contrario mask fires on independent noise, beside what it promises.

    python benchmarks/false_alarms.py

Squares of independent standard normal values are what a perfect flow makes of good pictures: three maps as U-Flow's,
narrow and wide, and one map of one channel, which is what other heads draw. 60 pictures to fit on and 600 others to
count on; windows marked per picture, divided by ``false_alarms``. One is the promise. Writes
benchmarks/results/false_alarms.md.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from manyeyes.files import write_text
from manyeyes.heads import AContrarioConfig

RESULTS = Path(__file__).parent / "results" / "false_alarms.md"
Shapes = Sequence[tuple[int, int, int]]
MAPS: dict[str, Shapes] = {
    "three maps of 96, 64, 48 channels": ((96, 8, 8), (64, 16, 16), (48, 32, 32)),
    "three maps of 24, 16, 12 channels": ((24, 8, 8), (16, 16, 16), (12, 32, 32)),
    "one map, 32 x 32": ((1, 32, 32),),
    "one map, 64 x 64": ((1, 64, 64),),
}
CONFIGS = {
    "default": AContrarioConfig(),
    "the paper's chance": AContrarioConfig(chances=(0.1,)),
    "windows of preset uflow": AContrarioConfig(windows=(1,)),
}
PROMISED = (1.0, 10.0)


def noise(pictures: int, shapes: Shapes, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(pictures, *shape, generator=generator).square() for shape in shapes]


def fired(config: AContrarioConfig, shapes: Shapes, pictures: int) -> float:
    """Windows marked per picture, as a share of what was promised."""
    test = config.build().fit([noise(60, shapes, 0)])
    limit = math.log10(config.false_alarms)
    marked = sum(int((found < limit).sum()) for _, found in test.judged(noise(pictures, shapes, 1)))
    return marked / pictures / config.false_alarms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=600)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    columns = [(name, promised) for name in CONFIGS for promised in PROMISED]
    lines = [
        "# False alarms of the a-contrario mask on independent noise",
        "",
        f"`python {' '.join(sys.argv)}`",
        f"{platform.machine()}, torch {torch.__version__}; {arguments.pictures} pictures; windows marked per picture, "
        "divided by the number promised.",
        "",
        f"| | {' | '.join(f'{name}, {promised:g} promised' for name, promised in columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for label, shapes in MAPS.items():
        configs = [CONFIGS[name].model_copy(update={"false_alarms": promised}) for name, promised in columns]
        shares = [f"{fired(config, shapes, arguments.pictures):.2f}" for config in configs]
        lines.append(f"| {label} | {' | '.join(shares)} |")
        print(lines[-1], flush=True)
    write_text(arguments.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
