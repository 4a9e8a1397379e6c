"""All figures of one evaluation as plain JSON: whole set, groups, and each defect type against all good images."""

from __future__ import annotations

from typing import Any

from manyeyes.experiments.metrics.figure import mean, to_json
from manyeyes.experiments.metrics.image import ImageStatistics, image_figures, ranking_figures
from manyeyes.experiments.metrics.pixel import LIMITS, PRO_LIMIT, PixelStatistics


def summarise(
    image: ImageStatistics,
    pixel: PixelStatistics,
    threshold: float | None = None,
    pixel_threshold: float | None = None,
    repetitions: int = 0,
    seed: int = 0,
    limit: float = PRO_LIMIT,
    limits: tuple[float, ...] = LIMITS,
) -> dict[str, Any]:
    """``image``, ``pixel``, ``au_pro``, ``au_spro`` (only where the statistics have groups), ``by_defect``, ``counts``,
    ``pro_curve`` (false-positive rates and overlaps, or null).

    A null has its reason in ``undefined``, under its dotted path; ``intervals`` holds the 95 % intervals where
    ``repetitions`` > 0; ``notes`` holds what a reader must know. With groups (LOCO), ``image`` also has each group
    against all good images and the ``mean`` of their AUROCs; its other figures take all defective images together.
    """
    found = pixel.finish(limit, limits, pixel_threshold, repetitions, seed)
    good = image.good
    of_image: dict[str, Any] = dict(image_figures(good, image.defective, threshold, repetitions, seed))
    tree: dict[str, Any] = {"image": of_image, "pixel": found["all"], "au_pro": found["all"]["au_pro"]}
    if image.groups:
        groups = {name: ranking_figures(good, image.of(name), repetitions, seed) for name in image.groups}
        of_image |= groups
        of_image["mean"] = {"auroc": mean({name: figures["auroc"] for name, figures in groups.items()})}
    if pixel.groups:
        tree["au_spro"] = {name: figures["au_spro"] for name, figures in found["groups"].items()}
    tree["by_defect"] = {
        kind: {
            "image": image_figures(good, image.of_defect(kind), threshold, repetitions, seed),
            **({"pixel": found["defects"][kind]} if kind in found["defects"] else {}),
        }
        for kind in image.kinds()
    }
    summary = to_json(tree, pixel.notes)
    kinds = {kind: len(image.of_defect(kind)) for kind in image.kinds()}
    counts = {"good": len(good), "defective": sum(kinds.values()), "by_defect": kinds}
    curve = found["curve"] and [values.round(5).tolist() for values in found["curve"]]
    return summary | {"counts": counts, "pro_curve": curve}
