"""The coreset of a real image set, chosen by a plain greedy loop and by manyeyes: seconds, covering radius, AUROC.

    python benchmarks/coreset.py --data mvtec_ad/bottle --weights tv_in1k

``--data`` holds train/good and test/<defect>; ``--weights`` is a timm tag or a file, for ResNet-18. Stages 2 and 3,
3x3 mean, on the finer grid. All start from the same position. Radii and scores are taken on all channels.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from einops import rearrange
from sklearn.metrics import roc_auc_score
from torch import Tensor

from manyeyes.backbones import FeatureExtractor, PatchCoreConfig, TimmTrunkConfig, TrunkPool
from manyeyes.data.frame import Frame
from manyeyes.data.loading import ImageBatches
from manyeyes.data.sample import Sample
from manyeyes.files import write_text
from manyeyes.heads.coreset import coreset_coordinates, covering_radius, greedy_coreset
from manyeyes.heads.nearest import exact_distances, nearest_entries
from manyeyes.maps import to_grid

CHUNK = 2048


def samples_in(folder: Path, limit: int | None) -> list[Sample]:
    return [Sample(path, defect=folder.name) for path in sorted(folder.iterdir())[:limit]]


def embeddings(samples: list[Sample], extractor: FeatureExtractor, size: int) -> Iterator[Tensor]:
    for batch in ImageBatches(samples, Frame(size=size), batch_size=8):
        maps = extractor(batch.images)
        grid = maps[0].shape[2], maps[0].shape[3]
        yield torch.cat([to_grid(value, grid) for value in maps], dim=1)


def plain_loop(features: Tensor, count: int, start: int) -> Tensor:
    """One matrix-vector product over all points and channels per pick, in float32: the usual loop, done well."""
    centred = features - features.mean(dim=0)
    squares = centred.square().sum(dim=1)
    nearest, product = torch.full_like(squares, torch.inf), torch.empty_like(squares)
    picks = [start]
    while len(picks) < count:
        torch.addmv(squares, centred, centred[picks[-1]], alpha=-2, out=product)
        torch.minimum(nearest, product.add_(squares[picks[-1]]), out=nearest)
        nearest[picks[-1]] = -torch.inf
        picks.append(int(nearest.argmax()))
    return torch.tensor(picks)


def auroc(bank: Tensor, test: list[Tensor], labels: list[int]) -> float:
    scores = [float(exact_distances(rows, bank, nearest_entries(rows, bank, 1, CHUNK), CHUNK).max()) for rows in test]
    return float(roc_auc_score(labels, scores))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", default="tv_in1k")
    parser.add_argument("--ratio", type=float, default=0.01)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int, help="images per folder, for a quick look")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "coreset.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    trunk = TimmTrunkConfig(architecture="resnet18", weights=options.weights, size=options.size)
    extractor = PatchCoreConfig(trunk=trunk, stages=(2, 3)).build(TrunkPool())
    train = samples_in(options.data / "train" / "good", options.limit)
    batches = embeddings(train, extractor, options.size)
    features = torch.cat([rearrange(maps, "b d h w -> (b h w) d") for maps in batches])
    tested = [
        sample for folder in sorted((options.data / "test").iterdir()) for sample in samples_in(folder, options.limit)
    ]
    test = [rearrange(one, "d h w -> (h w) d") for maps in embeddings(tested, extractor, options.size) for one in maps]
    labels = [sample.label for sample in tested]

    n, d = features.shape
    count, start = max(1, round(options.ratio * n)), n // 2
    ways: dict[str, Callable[[], Tensor]] = {
        f"plain loop, {d} channels": lambda: plain_loop(features, count, start),
        f"manyeyes, {d} channels": lambda: greedy_coreset(features, count, 0, start),
        "manyeyes, 64 principal axes (the default)": lambda: greedy_coreset(
            coreset_coordinates(features, 64), count, 0, start
        ),
        "as many at random": lambda: torch.randperm(n, generator=torch.Generator().manual_seed(0))[:count],
    }
    lines = ["| way | seconds | covering radius | image AUROC |", "|---|---|---|---|"]
    for name, choose in ways.items():
        began = time.perf_counter()
        picks = choose()
        seconds = time.perf_counter() - began
        bank = features[picks]
        radius = covering_radius(features, picks)
        lines.append(f"| {name} | {seconds:.2f} | {radius:.4f} | {100 * auroc(bank, test, labels):.2f} |")
        print(lines[-1], flush=True)

    limit = f" --limit {options.limit}" if options.limit else ""
    command = (
        f"python benchmarks/coreset.py --data {options.data.name} --weights {Path(options.weights).name} "
        f"--ratio {options.ratio} --size {options.size} --threads {options.threads}{limit}"
    )
    text = (
        f"# Coreset: {count:,} of {n:,} positions ({len(train)} images of {options.data.name})\n\n"
        f"ResNet-18, stages 2 and 3, {options.size} px, {d} channels.\n\n"
        + "\n".join(lines)
        + f"\n\nThe third way's seconds hold the projection. Torch {torch.__version__}, {options.threads} threads, "
        f"{platform.machine()}. Made by:\n\n```\n{command}\n```\n"
    )
    write_text(options.out, text)


if __name__ == "__main__":
    main()
