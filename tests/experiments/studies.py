"""Finished studies made of drawn pictures and given scores, without a trunk: what the report reads, and no more."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image
from safetensors.torch import save_file

from manyeyes.data import Region, Sample
from manyeyes.ensemble import load_config
from manyeyes.experiments.evaluation import Evaluation
from manyeyes.experiments.metrics import ImageStatistics, PixelStatistics, image_figures, summarise
from manyeyes.experiments.metrics.figure import to_json
from manyeyes.experiments.study import Cell, Study, write_cell
from manyeyes.files import write_text


def trapezoid(y: ArrayLike, x: ArrayLike) -> float:
    """The area under a line through points: NumPy's own is called otherwise before 2.0."""
    heights, places = np.asarray(y, float), np.asarray(x, float)
    return float((np.diff(places) * (heights[1:] + heights[:-1]) / 2).sum())


def drawn_parts(
    folder: Path, good: int = 6, defective: int = 5, masks: bool = True, name: str = "part"
) -> list[Sample]:
    """Noisy grey pictures, the defective ones with a dark square and its mask; kinds alternate."""
    samples = []
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(good + defective):
        pixels = rng.integers(90, 160, (48, 64, 3), dtype=np.uint8)
        regions: tuple[Region, ...] = ()
        kind = "good" if number < good else ("scratch", "dent <b>&\"'")[number % 2]
        path = folder / f"{name}-{number}.png"
        if kind != "good":
            pixels[10:20, 30:40] = 20
            if masks:
                mask = np.zeros((48, 64), np.uint8)
                mask[10:20, 30:40] = 255
                Image.fromarray(mask).save(folder / f"mask-{number}.png")
                regions = (Region(folder / f"mask-{number}.png"),)
        Image.fromarray(pixels).save(path)
        samples.append(Sample(path, kind, kind, regions))
    return samples


def finished_cell(
    folder: Path,
    ensemble: str,
    data: str,
    samples: list[Sample],
    seed: int = 0,
    strength: float = 1.5,
    draws: bool = True,
    chosen: bool = False,
) -> Cell:
    """A cell whose scores are noise, plus ``strength`` on defective pictures; with ``chosen`` that of a choice."""
    rng = np.random.default_rng([seed, len(ensemble)])
    labels = np.array([sample.label for sample in samples])
    heads = {
        f"{member}/{head}": (rng.normal(size=len(samples)) + strength * labels).astype(np.float32)
        for member in ("one", "two")
        for head in ("memory_bank", "gaussian")
    }
    scores = np.sum(list(heads.values()), axis=0, dtype=np.float32)
    good = scores[labels == 0]
    threshold = float(np.median(good) if len(good) else 0.0)
    parts = {
        "heads": heads,
        "members": {name: heads[f"{name}/memory_bank"] + heads[f"{name}/gaussian"] for name in ("one", "two")},
        "branches": {"unpicturable": heads["one/gaussian"] + heads["two/gaussian"]},
    }
    if draws:
        parts["branches"]["picturable"] = heads["one/memory_bank"] + heads["two/memory_bank"]
    image, pixel = ImageStatistics(), PixelStatistics()
    image.update(scores.tolist(), [s.path.name for s in samples], [s.defect for s in samples])
    maps = np.zeros((len(samples), 64, 64), np.float16)
    if draws:
        maps += rng.normal(size=maps.shape).astype(np.float16) * 0.3
        maps[labels == 1, 13:27, 30:40] = 4
    figures = summarise(image, pixel, threshold)
    figures.pop("pro_curve")
    rising = np.linspace(0, 1, 9)
    pro_curve = [(0.3 * rising).tolist(), (rising ** (1 / (1 + strength))).tolist()] if draws else None
    figures["pixel"]["au_pro"] = figures.pop("au_pro")
    if pro_curve and labels.any():
        figures["pixel"]["au_pro"] = trapezoid(pro_curve[1], pro_curve[0]) / 0.3

    def auroc(values: np.ndarray) -> float | None:
        return to_json(image_figures(values[labels == 0], values[labels == 1]))["auroc"]

    figures |= {kind: {n: {"image_auroc": auroc(v)} for n, v in found.items()} for kind, found in parts.items()}
    figures |= {"threshold": threshold, "map_threshold": 2.0, "train_images": 40, "validation_images": 20}
    observed = float((good >= threshold).mean()) if len(good) else None
    figures["false_alarm_rate"] = {"asked": 0.05, "guaranteed": 0.05, "observed": observed}
    figures["cost"] = {"ms_per_image": 20.0, "ms_trunks": 15.0, "ms_heads": 5.0, "fit_seconds": 3.0}
    figures["cost"] |= {"peak_memory_mb": 812.0, "artefact_mb": 3.1 * strength}
    figures["cost"]["ms_per_image"] += 10 * strength
    figures["notes"] = [*figures["notes"], "a note with <i>markup</i>"]
    pictures = [
        {
            "path": str(sample.path),
            "defect": sample.defect,
            "group": sample.group,
            "label": sample.label,
            "score": float(scores[row]),
            "alarm": bool(scores[row] >= threshold),
            "masks": [str(region.path) for region in sample.regions],
            **{kind: {n: float(v[row]) for n, v in found.items()} for kind, found in parts.items()},
        }
        for row, sample in enumerate(samples)
    ]
    cell = Cell(ensemble, data, seed, folder / "cells" / f"{data}--{ensemble}--{seed}")
    config = load_config("bundled-independent", ["members.0.name=one", "members.1.name=two"])
    write_text(cell.run / "config.yaml", config.to_yaml())
    fused = {
        "branches.0.fusion.shares_": torch.tensor([0.25, 0.75]),
        "branches.0.fusion.sizes_": torch.tensor([2, 3]),
        "branches.0.fusion.weight_": torch.zeros(5, 10),
        "branches.0.fusion.explained_variance_ratio_": torch.tensor([0.5, 0.3, 0.2, 0.2, 0.2]),
        "branches.0.heads.fused/discriminator.weight": torch.zeros(1),
    }
    save_file(fused, str(cell.run / "state.safetensors"))
    if chosen:
        figures["choice"] = choice_record(folder / "made", figures)
    write_cell(cell, Evaluation(figures, pictures, maps, pro_curve))
    return cell


def choice_record(folder: Path, figures: dict) -> dict:
    """What figures say of a choice, with made pictures; the truths of heads and members are the cell's own."""
    kinds = [("cut_paste", "structural"), ("scar", "structural"), ("removed", "logical"), ("doubled", "logical")]
    made = []
    for sample, (kind, group) in zip(drawn_parts(folder, good=0, defective=6), kinds + kinds[:2], strict=True):
        mask = str(sample.regions[0].path)
        made.append({"path": str(sample.path), "mask": mask, "kind": kind, "group": group})

    def proxies(structural: float, logical: float) -> dict[str, float]:
        return {"structural": structural, "logical": logical, "mean": (structural + logical) / 2}

    heads = {
        "independent_pca/discriminator": proxies(0.97, 0.83),
        "global_pca/discriminator": proxies(0.9, 0.8),
        "one/memory_bank": proxies(0.95, 0.7),
        "one/gaussian": proxies(0.6, 0.85),
        "two/memory_bank": proxies(0.8, 0.72),
        "two/gaussian": proxies(0.52, 0.5),
    }
    strategies = {
        "independent_pca": proxies(0.98, 0.9),
        "independent_pca, equal weights": proxies(0.96, 0.88),
        "global_pca": proxies(0.95, 0.9),
        "score_level": proxies(0.94, 0.86),
    }
    fused = {name: 0.5 + 0.4 * heads[name]["mean"] for name in heads if "pca" in name}
    return {
        "strategy": "independent_pca",
        "weights": {"one/gaussian": 0.4, "fused/discriminator": 1.0, "one/memory_bank": 0.75, "two/memory_bank": 0.31},
        "dropped": ["global_pca/discriminator", "two/gaussian"],
        "weak_members": ["three"],
        "made_defects": {"structural": 40, "logical": 38},
        "proxies": {
            "heads": heads,
            "members": {"one": proxies(0.9, 0.8), "two": proxies(0.7, 0.7)},
            "strategies": strategies,
        },
        "truth": {
            "heads": {n: figures["heads"][n]["image_auroc"] for n in heads if n in figures["heads"]} | fused,
            "members": {name: figures["members"][name]["image_auroc"] for name in ("one", "two")},
            "strategies": {name: proxy["logical"] + 0.05 for name, proxy in strategies.items()},
        },
        "made": made,
    }


def finished_study(
    folder: Path,
    strengths: dict[str, float],
    sets: tuple[str, ...] = ("parts",),
    seeds: tuple[int, ...] = (0,),
    **parts,
) -> Study:
    draws, chosen = parts.pop("draws", True), parts.pop("chosen", ())
    cells = []
    for data in sets:
        samples = drawn_parts(folder / data, **parts)
        for ensemble, strength in strengths.items():
            cells += [
                finished_cell(folder, ensemble, data, samples, seed, strength, draws, ensemble in chosen)
                for seed in seeds
            ]
    return Study(folder, tuple(cells))
