"""What prediction and fit cost beyond the trunks, by ratio in one run: medians of rounds in turn.

    MANYEYES_WEIGHTS=weights python benchmarks/speed.py --data sets/mvtec_ad/bottle

1. Prediction on a batch in memory against the forward passes of the distinct trunks on it; also of the fused map alone
   (its discriminator, and no head that looks at one member).
2. The same pictures from their files: the ensemble against its members one after the other as separate detectors, each
   of which decodes, places, looks through its own trunk and judges with the heads that the ensemble has on its map.
   ``three`` shares decoding and nothing else: its members look through different trunks. ``one-trunk`` is three
   detectors through one trunk, a memory bank, a discriminator and a Gaussian.
3. The fit, from files to thresholds, against the extraction in it; with the parts that take most.
4. With a CUDA device, pictures per second of ``bundled``, ``standard`` and each member, from memory to verdict. Weights
   that cannot be had are random there, and the table says so.

Writes benchmarks/results/speed.md. A quick try: --images 12 --rounds 1 --steps 9 --only one-trunk.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accuracy import alone, bundled, three
from torch import Tensor, nn

from manyeyes.backbones import PatchCoreConfig, TimmConfig, TrunkPool
from manyeyes.config import Config
from manyeyes.data import ImageBatches, ImageSet, Sample, read_image_set
from manyeyes.device import resolve_device, trunk_precision
from manyeyes.ensemble import Ensemble, EnsembleConfig, Extraction, FeatureStore, MemberConfig
from manyeyes.ensemble.branch import Branch
from manyeyes.ensemble.presets import LITE0, load_config, score_level
from manyeyes.ensemble.reading import TapSource
from manyeyes.ensemble.training import fit_extracted, split
from manyeyes.errors import WeightsError
from manyeyes.files import write_text
from manyeyes.fusion import IndependentPcaConfig
from manyeyes.heads import DiscriminatorConfig, GaussianConfig, MemoryBankConfig
from manyeyes.progress import Silent

BATCH = 8
BATCHES = (1, 8, 64)
SHORT = 50
RESULTS = Path(__file__).parent / "results" / "speed.md"


def one_trunk() -> EnsembleConfig:
    """PatchCore, SimpleNet and a pooled Gaussian through the trunk that comes with the installation."""
    maps = PatchCoreConfig(trunk=LITE0, stages=(2, 3, 4))
    members = (
        MemberConfig(name="patchcore", extractor=maps, heads=(MemoryBankConfig(),)),
        MemberConfig(name="simplenet", extractor=maps, heads=(DiscriminatorConfig(),), fusion=IndependentPcaConfig()),
        MemberConfig(name="pooled", extractor=TimmConfig(trunk=LITE0, stages=(2, 3, 4)), heads=(GaussianConfig(),)),
    )
    return score_level("one-trunk", members)


def separate(config: EnsembleConfig, canvas: int) -> list[EnsembleConfig]:
    """Its members as detectors of their own, on the ensemble's canvas."""
    if config.heads:
        return alone(config, canvas)
    frame = config.frame.sized(canvas)
    return [score_level(member.name, (member,)).model_copy(update={"frame": frame}) for member in config.members]


def with_steps(config: EnsembleConfig, steps: int) -> EnsembleConfig:
    """The config with discriminators of so many steps, which cost the same in prediction."""
    values = config.model_dump(mode="json")
    for head in (head for owner in (values, *values["members"]) for head in owner["heads"]):
        if head["kind"] == "discriminator":
            head["steps"] = steps
    return EnsembleConfig.parse(values)


def feature_level(config: EnsembleConfig) -> EnsembleConfig:
    """The fused map and the discriminator on it, without any head that looks at one member."""
    members = tuple(member.model_copy(update={"heads": ()}) for member in config.members)
    return config.model_copy(
        update={"name": f"{config.name}-fused-map-alone", "members": members, "heads": config.heads[:1]}
    )


CONFIGS: dict[str, Callable[[], EnsembleConfig]] = {"three": three, "bundled": bundled, "one-trunk": one_trunk}


@dataclass
class Fitting:
    """Fits on a set and keeps the seconds of everything."""

    image_set: ImageSet
    folder: Path
    device: torch.device

    def __call__(self, config: EnsembleConfig) -> tuple[Ensemble, Counter[str]]:
        """A fitted ensemble; seconds of ``extraction``, ``fit`` (the rest) and of each kind of part in it."""
        seconds: Counter[str] = Counter()

        def memory(_: Branch, __: TapSource, part: Config, ___: nn.Module, fit: Callable[[], object]) -> None:
            seconds[part.model_dump()["kind"]] += self.timed(fit)

        def fit() -> None:
            fit_extracted(ensemble, *stored[0], split(self.image_set, config), None, extraction, Silent(), memory)

        ensemble = Ensemble(config).to(self.device)
        frame = config.frame.sized(ensemble.canvas)
        extraction = Extraction(FeatureStore(self.folder), self.device, BATCH)
        stored: list[Any] = []
        seconds["extraction"] = self.timed(
            lambda: stored.append(extraction(ensemble.eyes, self.image_set.train, frame, "extracting", Silent()))
        )
        seconds["fit"] = self.timed(fit)
        return ensemble, seconds

    def timed(self, function: Callable[[], object]) -> float:
        start = time.perf_counter()
        function()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start


def predict(ensemble: Ensemble, images: Tensor, device: torch.device) -> None:
    with trunk_precision(device):
        ensemble.predict(images)


def look(ensemble: Ensemble, images: Tensor, device: torch.device) -> None:
    """The distinct trunks and nothing else."""
    with torch.inference_mode(), trunk_precision(device):
        for trunk in ensemble.eyes.each():
            trunk(images, ensemble.eyes.stages[trunk.key])


def judge_files(ensemble: Ensemble, samples: Sequence[Sample], device: torch.device) -> None:
    for batch in ImageBatches(samples, ensemble.config.frame.sized(ensemble.canvas), BATCH):
        predict(ensemble, batch.images.to(device), device)


def in_turn(part: Callable[[], None], whole: Callable[[], None], rounds: int, fitting: Fitting) -> tuple[float, ...]:
    """Medians of seconds of both, and of whole / part round by round with its extremes."""
    part()
    whole()
    pairs = [(fitting.timed(part), fitting.timed(whole)) for _ in range(rounds)]
    ratios = sorted(b / a for a, b in pairs)
    parts, wholes = zip(*pairs, strict=True)
    return statistics.median(parts), statistics.median(wholes), ratios[0], statistics.median(ratios), ratios[-1]


def cells(first: float, second: float, low: float, middle: float, high: float, images: int) -> str:
    milliseconds = f"{1000 * first / images:.1f} | {1000 * second / images:.1f}"
    return f"{milliseconds} | {low:.2f}, **{middle:.2f}**, {high:.2f} |"


def prediction_row(ensemble: Ensemble, samples: Sequence[Sample], rounds: int, fitting: Fitting) -> str:
    frame, device = ensemble.config.frame.sized(ensemble.canvas), fitting.device
    images = next(iter(ImageBatches(samples[:BATCH], frame, BATCH))).images.to(device)
    found = in_turn(lambda: look(ensemble, images, device), lambda: predict(ensemble, images, device), rounds, fitting)
    return f"| {ensemble.config.name} | {cells(*found, len(images))}"


def separate_row(ensemble: Ensemble, samples: Sequence[Sample], rounds: int, fitting: Fitting) -> str:
    canvas = ensemble.canvas[0]
    detectors = [fitting(with_steps(config, SHORT))[0] for config in separate(ensemble.config, canvas)]

    def members() -> None:
        for detector in detectors:
            judge_files(detector, samples, fitting.device)

    found = in_turn(members, lambda: judge_files(ensemble, samples, fitting.device), rounds, fitting)
    return f"| {ensemble.config.name} | {cells(*found, len(samples))}"


def fit_row(name: str, seconds: Counter[str]) -> str:
    pca = seconds["independent_pca"] + seconds["global_pca"]
    whole = (seconds["extraction"] + seconds["fit"]) / seconds["extraction"]
    parts = (seconds["discriminator"], seconds["memory_bank"], pca)
    return (
        f"| {name} | {seconds['extraction']:.1f} | {seconds['fit']:.1f} | **{whole:.2f}** | "
        f"{' | '.join(f'{part:.1f}' for part in parts)} | {100 * pca / seconds['extraction']:.1f} |"
    )


def with_any_weights(config: EnsembleConfig) -> EnsembleConfig:
    """The config, its members with random weights where theirs cannot be had, which their names then say."""
    members = []
    for member in config.members:
        try:
            member.extractor.build(TrunkPool())
        except WeightsError:
            values = member.model_dump(mode="json")
            for owner in values["extractor"].get("sources", [values["extractor"]]):
                owner["trunk"]["weights"] = "random"
            values["name"] = f"{member.name}-random"
            member = MemberConfig.parse(values)
        members.append(member)
    return config.model_copy(update={"members": tuple(members)})


def throughput_rows(compiled: bool, fitting: Fitting) -> list[str]:
    """Pictures per second at every batch size; the fit is short, which costs the same in prediction."""
    rows = []
    for preset in ("bundled", "standard"):
        config = with_steps(with_any_weights(load_config(preset)), SHORT)
        for part in (config, *separate(config, Ensemble(config).canvas[0])):
            ensemble = fitting(part)[0]
            if compiled:
                ensemble.eyes.compile_trunks()
            speeds = []
            for batch in BATCHES:
                images = torch.rand(batch, 3, *ensemble.canvas, device=fitting.device)
                for _ in range(3):
                    predict(ensemble, images, fitting.device)
                times = [fitting.timed(lambda i=images, e=ensemble: predict(e, i, fitting.device)) for _ in range(15)]
                speeds.append(f"{batch / statistics.median(times):.0f}")
            name = preset if part is config else f"{preset}: {part.name}"
            rows.append(f"| {name} | {' | '.join(speeds)} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=209, help="training pictures at most; banks grow with them")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, help="of the discriminators, for a quick try")
    parser.add_argument("--only", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--throughput", action="store_true", help="table 4 without a CUDA device, too")
    parser.add_argument("--compile", action="store_true", help="compile the trunks of table 4")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    found = read_image_set(arguments.data)
    image_set = replace(found, train=found.train[: arguments.images], validation=())
    samples = found.test[: 2 * BATCH]
    tables: dict[str, list[str]] = {"prediction": [], "separate": [], "fit": [], "throughput": []}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only:
            fitting = Fitting(image_set, Path(folder) / name, device)
            config = CONFIGS[name]()
            ensemble, seconds = fitting(with_steps(config, arguments.steps) if arguments.steps else config)
            tables["fit"].append(fit_row(name, seconds))
            tables["prediction"].append(prediction_row(ensemble, samples, arguments.rounds, fitting))
            if ensemble.config.heads:
                fused, _ = fitting(with_steps(feature_level(ensemble.config), SHORT))
                tables["prediction"].append(prediction_row(fused, samples, arguments.rounds, fitting))
            tables["separate"].append(separate_row(ensemble, samples, arguments.rounds, fitting))
        if device.type == "cuda" or arguments.throughput:
            tables["throughput"] = throughput_rows(arguments.compile, Fitting(image_set, Path(folder) / "gpu", device))
    text = report(tables, arguments, len(image_set.train), device)
    print(text)
    write_text(arguments.out, text)


def report(tables: dict[str, list[str]], arguments: argparse.Namespace, train: int, device: torch.device) -> str:
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    lines = [
        "# Speed",
        "",
        f"`python {' '.join(sys.argv)}`",
        f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}, batch {BATCH}, medians of "
        f"{arguments.rounds} rounds in turn; {train} training pictures.",
        "",
        "## Prediction beyond the trunks",
        "",
        "| ensemble | trunks, ms per image | prediction, ms per image | ratio, round by round (min, median, max) |",
        "|---|---|---|---|",
        *tables["prediction"],
        "",
        "## From files: members one after the other, and the ensemble",
        "",
        "| ensemble | members apart, ms per image | ensemble, ms per image | ratio (min, median, max) |",
        "|---|---|---|---|",
        *tables["separate"],
        "",
        "## Fit",
        "",
        "| ensemble | extraction, s | the rest, s | both / extraction | discriminators, s | memory banks, s | PCA, s | "
        "PCA, % of extraction |",
        "|---|---|---|---|---|---|---|---|",
        *tables["fit"],
    ]
    if tables["throughput"]:
        lines += [
            "",
            f"## Pictures per second, from memory to verdict{', trunks compiled' if arguments.compile else ''}",
            "",
            f"| | {' | '.join(f'batch {batch}' for batch in BATCHES)} |",
            f"|---|{'---|' * len(BATCHES)}",
            *tables["throughput"],
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
