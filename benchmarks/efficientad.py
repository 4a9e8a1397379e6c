"""EfficientAD and PUAD: the distilled teacher as a feature, the detectors, the cost of a branch, what members add.

    python benchmarks/efficientad.py teachers --data sets --out study --teachers bundled plain=plain.safetensors random
    python benchmarks/efficientad.py puad --data sets --out study --penalty photographs
    python benchmarks/efficientad.py cost --data sets --out study
    MANYEYES_WEIGHTS=weights python benchmarks/efficientad.py members --data sets --out study --penalty photographs

``--data`` holds the sets named in SETS of accuracy.py. Cells that are finished in ``--out`` are not made again, a
killed training goes on. Each part writes benchmarks/results/efficientad_PART.md. This program chooses nothing
on a test split; choices that were made with test figures in view: docs/decisions.md.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accuracy import SETS, bundled, three

from manyeyes.backbones import EfficientAdConfig, EfficientAdTrunkConfig, PdnTrunkConfig
from manyeyes.backbones.student_fit import StudentFit
from manyeyes.backbones.student_schedule import Schedule, TrainingConfig
from manyeyes.data import ImageBatches, ImageSet, read_image_set
from manyeyes.device import resolve_device
from manyeyes.ensemble import EnsembleConfig, Extraction, FeatureStore, MemberConfig, fit_ensemble, with_choice
from manyeyes.ensemble.presets import efficientad_member, eye, pooled_student_member, score_level
from manyeyes.ensemble.presets import puad as puad_of
from manyeyes.experiments.compare import run_study
from manyeyes.experiments.study import Cell, Study
from manyeyes.files import write_text
from manyeyes.progress import shown

RESULTS = Path(__file__).parent / "results"
BATCH = 8
VARIANTS = ("teacher", "efficientad", "both", "auto", "teacher-auto", "both-auto")
MARGIN = 0.3
"""What a combination may lose against its better part, in points."""


def teacher_eye(name: str, weights: str) -> MemberConfig:
    """A teacher's map as it is: a memory bank and a Gaussian on its pooled features; nothing is trained."""
    trunk = EfficientAdTrunkConfig(teacher=PdnTrunkConfig(weights=weights))
    return eye(name, EfficientAdConfig(trunk=trunk, maps=("teacher",)))


def trained(member: MemberConfig, trunk: EfficientAdTrunkConfig, **changes: Any) -> MemberConfig:
    """The same member looking through ``trunk``."""
    assert isinstance(member.extractor, EfficientAdConfig)
    extractor = member.extractor.model_copy(update={"trunk": trunk, **changes})
    return member.model_copy(update={"extractor": extractor})


def puads(trunk: EfficientAdTrunkConfig) -> list[EnsembleConfig]:
    """PUAD with the student's and with the teacher's pooled features; both look through one training."""
    alone, pooled = trained(efficientad_member(), trunk), pooled_student_member()
    student = trained(pooled, trunk)
    teacher = trained(pooled, trunk, maps=("teacher_pooled",))
    return [puad_of("puad", alone, student), puad_of("puad-teacher", alone, teacher)]


def variants(base: EnsembleConfig, trunk: EfficientAdTrunkConfig, names: Sequence[str]) -> list[EnsembleConfig]:
    """The ensemble as it is, and those named: what is added to it, and ``auto`` if made defects choose."""
    eyes = (eye("pdn", EfficientAdConfig(trunk=trunk, maps=("teacher",))),)
    scores = (trained(efficientad_member(), trunk), trained(pooled_student_member(), trunk))
    added = {"teacher": eyes, "efficientad": scores, "both": (*eyes, *scores), "auto": ()}
    found = [base]
    for name in names:
        what, _, auto = name.partition("-")
        update = {"name": f"{base.name}-{name}", "members": (*base.members, *added[what])}
        config = base.model_copy(update=update)
        found.append(with_choice(config, config.name) if "auto" in (what, auto) else config)
    return found


def percent(values: Iterable[float]) -> str:
    """Mean over seeds and, where there are several, their spread."""
    found = [100 * value for value in values]
    if not found:
        return "-"
    return f"{statistics.fmean(found):.1f}" + (f" ({statistics.stdev(found):.1f})" if len(found) > 1 else "")


def image_auroc(cells: Sequence[Cell], head: str | None = None) -> list[float]:
    figures = [cell.figures for cell in cells]
    return [float(f["heads"][head]["image_auroc"] if head else f["image"]["auroc"]) for f in figures]


def row(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def heading(sets: Sequence[ImageSet]) -> list[str]:
    return [row("", [image_set.name for image_set in sets]), f"|---|{'---|' * len(sets)}"]


def teachers(arguments: argparse.Namespace) -> list[str]:
    """Image AUROC of every teacher's map under a memory bank, of its pooled features, and of both."""
    named = {name: file or name for name, _, file in (teacher.partition("=") for teacher in arguments.teachers)}
    configs = [score_level(f"pdn-{name}", (teacher_eye("teacher", weights),)) for name, weights in named.items()]
    sets = read(arguments)
    study = studied(configs, sets, arguments.out, arguments)
    lines = heading(sets)
    for config in configs:
        for label, head in (("memory bank", "memory_bank"), ("pooled Mahalanobis", "gaussian"), ("both", None)):
            found = [image_auroc(study.of(config.name, s.name), head and f"teacher/{head}") for s in sets]
            lines.append(row(f"{config.name}: {label}", [percent(values) for values in found]))
    return lines


def puad(arguments: argparse.Namespace) -> list[str]:
    """Image AUROC of EfficientAD, of pooled features and of their sum, with the cost of the training."""
    trunk = trunk_of(arguments)
    sets = read(arguments)
    study = studied(puads(trunk), sets, arguments.out, arguments)
    parts = {
        "EfficientAD alone": ("puad", "efficientad/efficientad"),
        "pooled student alone": ("puad", "pooled/gaussian"),
        "pooled teacher alone": ("puad-teacher", "pooled/gaussian"),
        "**PUAD** (student)": ("puad", None),
        "PUAD (teacher)": ("puad-teacher", None),
    }
    found = {label: [image_auroc(study.of(name, s.name), head) for s in sets] for label, (name, head) in parts.items()}
    lines = [*heading(sets), *(row(label, [percent(values) for values in each]) for label, each in found.items())]
    for whole, pooled in (("**PUAD** (student)", "pooled student alone"), ("PUAD (teacher)", "pooled teacher alone")):
        lost = []
        for index in range(len(sets)):
            alone, other, both = (
                100 * statistics.fmean(found[label][index]) for label in ("EfficientAD alone", pooled, whole)
            )
            lost.append(f"{both - max(alone, other):+.1f}{'' if both >= max(alone, other) - MARGIN else ' (!)'}")
        lines.append(row(f"{whole.replace('*', '')} against its better part, points", lost))
    # The second ensemble of a seed finds the training of the first: the longer time is that of the training.
    fits = [
        statistics.fmean(
            max(cell.figures["cost"]["fit_seconds"] for cell in study.cells if (cell.data, cell.seed) == (s.name, seed))
            for seed in arguments.seeds
        )
        for s in sets
    ]
    lines.append(row("training and fit, s", [f"{seconds:.0f}" for seconds in fits]))
    schedule = trunk.training.schedule_for(resolve_device(arguments.device))
    said = "a folder of penalty pictures" if trunk.training.penalty else "views of two photographs as penalty pictures"
    how = "the autoencoder learns, then the student is fitted" if schedule.fit else "student and autoencoder learn"
    return [*lines, "", f"{schedule.steps:,} steps of {schedule.images} pictures: {how}; {said}."]


def members(arguments: argparse.Namespace) -> list[str]:
    """Image AUROC of the default ensembles without and with members of EfficientAD: its teacher's map as one more eye,
    its own maps and its student's pooled features as scores, or both; declared, or chosen by made defects."""
    trunk = trunk_of(arguments)
    sets = read(arguments)
    lines = heading(sets)
    for base, canvas in ((three(), 448), (bundled(), 384)):
        if base.name not in arguments.bases:
            continue
        configs = variants(base, trunk, arguments.variants)
        framed = [config.model_copy(update={"frame": config.frame.sized(canvas)}) for config in configs]
        study = studied(framed, sets, arguments.out / base.name, arguments)
        without = [statistics.fmean(image_auroc(study.of(base.name, s.name))) for s in sets]
        for config in framed:
            found = [image_auroc(study.of(config.name, s.name)) for s in sets]
            lines.append(row(f"**{config.name}**" if config is framed[0] else config.name, list(map(percent, found))))
            if config is not framed[0]:
                gained = [100 * (statistics.fmean(each) - before) for each, before in zip(found, without, strict=True)]
                marked = [f"{gain:+.1f}{'' if gain >= -MARGIN else ' (!)'}" for gain in gained]
                lines.append(row(f"{config.name} against {base.name}, points", marked))
    return lines


def cost(arguments: argparse.Namespace) -> list[str]:
    """Pooling and Mahalanobis distance as a share of EfficientAD's forward pass, both timed in turn on one batch."""
    device = resolve_device(arguments.device)
    # A fitted student shares layers with its teacher, so that the forward pass is that of the device's own schedule.
    own = TrainingConfig().schedule_for(device).fit
    brief = StudentFit(pictures=2, natural=2, positions=1000, rounds=0) if own is not None else None
    training = TrainingConfig(schedule=Schedule(steps=1, statistics=2, fit=brief))
    teacher = PdnTrunkConfig(weights=arguments.teacher)
    config = puads(EfficientAdTrunkConfig(teacher=teacher, training=training))[0]
    image_set = read(arguments)[0]
    image_set = replace(image_set, train=image_set.train[:24])
    extraction = Extraction(FeatureStore(arguments.out / "cost"), device, BATCH)
    ensemble, _ = fit_ensemble(config, image_set, extraction)
    frame = config.frame.sized(ensemble.canvas)
    images = next(iter(ImageBatches(image_set.test[:BATCH], frame, BATCH))).images.to(device)
    trunk, pooled = ensemble.trainable[0], ensemble.branches[1]
    maps = trunk(images, ["student_teacher"])["student_teacher"]
    key = ensemble.extractors[1].taps[0].key

    def unpicturable() -> None:
        pooled.judge({key: maps.mean(dim=(2, 3), keepdim=True)})

    forwards, branches, shares = [], [], []
    with torch.inference_mode():
        for index in range(arguments.rounds + 1):
            forward = seconds(lambda: trunk(images, ["local", "global"]), device)
            branch = seconds(unpicturable, device)
            if index:  # the first round warms up
                forwards.append(1000 * forward / len(images))
                branches.append(1000 * branch / len(images))
                shares.append(branch / forward)
    shares.sort()
    kind = "trained" if brief is None else "fitted"
    return [
        "| forward pass of EfficientAD, ms per image | unpicturable branch, ms per image | share (min, median, max) |",
        "|---|---|---|",
        f"| {statistics.median(forwards):.2f} | {statistics.median(branches):.3f} | "
        f"{', '.join(f'{100 * share:.2f} %' for share in (shares[0], statistics.median(shares), shares[-1]))} |",
        "",
        f"{teacher.size} teacher at {teacher.image_size} px, student {kind}, batch {len(images)}, medians of "
        f"{arguments.rounds} rounds in turn, {torch.get_num_threads()} threads.",
    ]


def seconds(function: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def trunk_of(arguments: argparse.Namespace) -> EfficientAdTrunkConfig:
    """The teacher and the training that the command line asks for; the schedule is the device's own."""
    training = TrainingConfig(penalty=str(arguments.penalty) if arguments.penalty else None, steps=arguments.steps)
    return EfficientAdTrunkConfig(
        teacher=PdnTrunkConfig(size=arguments.size, weights=arguments.teacher), training=training
    )


def read(arguments: argparse.Namespace) -> list[ImageSet]:
    return [replace(read_image_set(arguments.data / SETS[name]), name=name) for name in arguments.sets]


def studied(
    configs: Sequence[EnsembleConfig], sets: Sequence[ImageSet], out: Path, arguments: argparse.Namespace
) -> Study:
    with shown() as progress:
        return run_study(configs, sets, out, seeds=arguments.seeds, device=arguments.device, progress=progress)


PARTS = {
    "teachers": (teachers, "Image AUROC of teachers' features, nothing trained"),
    "puad": (puad, "Image AUROC of EfficientAD and PUAD"),
    "cost": (cost, "Cost of PUAD's unpicturable branch"),
    "members": (members, "Image AUROC of the default ensembles with members of EfficientAD"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--bases", nargs="+", default=["three", "bundled"], choices=["three", "bundled"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, help="of members")
    parser.add_argument("--teachers", nargs="+", default=["bundled", "random"], help="bundled, random or NAME=FILE")
    parser.add_argument("--penalty", type=Path, help="folder of natural pictures")
    parser.add_argument("--teacher", default="bundled", help="bundled, random, or a file")
    parser.add_argument("--size", default="small", choices=["small", "medium"])
    parser.add_argument("--steps", type=int, help="instead of the device's own number")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    make, title = PARTS[arguments.part]
    lines = make(arguments)
    device = resolve_device(arguments.device)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    seeds = f"seeds {', '.join(map(str, arguments.seeds))}" if arguments.part != "cost" else "one run"
    head = [
        f"# {title}",
        "",
        f"`python {' '.join(sys.argv)}`",
        f"on {platform.system()}, {machine}, torch {torch.__version__}, {seeds}; spread over seeds in brackets.",
        "",
    ]
    text = "\n".join([*head, *lines]) + "\n"
    print(text)
    write_text(RESULTS / f"efficientad_{arguments.part}.md", text)


if __name__ == "__main__":
    main()
