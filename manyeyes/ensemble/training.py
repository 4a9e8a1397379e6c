"""From a folder of pictures to a run folder: read, hold out, extract, fit, save; resumable at every step."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from manyeyes.backbones import Eyes
from manyeyes.config import read_yaml
from manyeyes.data import Frame, ImageSet, Sample, hold_out
from manyeyes.device import Precision, resolve_device, trunk_dtype, trunk_precision
from manyeyes.ensemble.choosing import Chosen, fit_and_choose
from manyeyes.ensemble.config import EnsembleConfig
from manyeyes.ensemble.ensemble import Ensemble
from manyeyes.ensemble.memory import Memory, fit_anew
from manyeyes.ensemble.run import STATE, load_run, owned, read_header, save_run
from manyeyes.ensemble.store import FeatureStore, StoredTaps
from manyeyes.ensemble.trunks import TRAINED, train_trunks
from manyeyes.errors import DataError, RunError
from manyeyes.files import write_text
from manyeyes.fusion import AutoConfig
from manyeyes.progress import Progress, Silent

FEATURES = "features"
PENDING = "unfinished.yaml"


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted ensemble, on how many pictures, and where it was declared with a choice, how it was chosen."""

    ensemble: Ensemble
    train: int
    validation: int
    chosen: Chosen | None = None


@dataclass(frozen=True)
class Extraction:
    """Where and how features are taken; the same for every ensemble that shares a store."""

    store: FeatureStore
    device: torch.device
    batch_size: int = 8
    precision: Precision = "auto"
    skip_bad: bool = False

    @property
    def trained(self) -> Path:
        """Where trunks that had to be trained are kept."""
        return self.store.folder / TRAINED

    def __call__(
        self, eyes: Eyes, samples: Sequence[Sample], frame: Frame, what: str, progress: Progress
    ) -> tuple[StoredTaps, tuple[Sample, ...]]:
        """Taps of ``samples`` and the samples they belong to, in order."""
        with trunk_precision(self.device, self.precision):
            taps, kept, skipped = self.store.extract(
                eyes,
                samples,
                frame,
                batch_size=self.batch_size,
                device=self.device,
                skip_bad=self.skip_bad,
                progress=progress.step(what),
            )
        for path, reason in skipped:
            progress.say(f"left out {path}: {reason}")
        return taps, kept


def split(image_set: ImageSet, config: EnsembleConfig) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Training and validation normals: the set's own, else held out of train by seed.

    Raises: DataError if fewer than two good pictures are there to be split.
    """
    if not image_set.train:
        raise DataError(f"{image_set.root}: there is no training picture")
    if image_set.validation:
        return image_set.train, image_set.validation
    if len(image_set.train) < 2:
        raise DataError(
            f"{image_set.root}: only one training picture; at least 2 are needed, one of them for the threshold"
        )
    return hold_out(image_set.train, config.validation, config.seed)


def fit_ensemble(
    config: EnsembleConfig,
    image_set: ImageSet,
    extraction: Extraction,
    progress: Progress | None = None,
    ensemble: Ensemble | None = None,
    labelled: ImageSet | None = None,
) -> tuple[Ensemble, dict[str, Any]]:
    """Extract what is not stored yet and fit.

    Features of all training and validation pictures lie in one list, so that another seed's split extracts nothing.
    Returns: the ensemble; seconds and counts of the fit.
    """
    progress = progress or Silent()
    ensemble = (ensemble or Ensemble(config)).to(extraction.device)
    require_labels(ensemble, labelled)
    train, validation = split(image_set, config)
    everything = (*image_set.train, *image_set.validation)
    frame = config.frame.sized(ensemble.canvas)
    begun = time.perf_counter()
    train_trunks(ensemble, train, frame, extraction.trained, extraction.skip_bad, progress)
    start = time.perf_counter()
    taps, kept = extraction(ensemble.eyes, everything, frame, f"extracting {image_set.name}", progress)
    extracted = time.perf_counter()
    extra = _labelled(ensemble, labelled, extraction, frame, progress)
    fit = fit_extracted(ensemble, taps, kept, (train, validation), extra, extraction, progress)
    fitted, ensemble = time.perf_counter(), fit.ensemble
    return ensemble, {
        **({"choice": fit.chosen.record} if fit.chosen else {}),
        "train_images": fit.train,
        "validation_images": fit.validation,
        "left_out": sorted(str(sample.path) for sample in set(everything) - set(kept)),
        "seconds": {
            "trunks": round(start - begun, 2),
            "extraction": round(extracted - start, 2),
            "fit": round(fitted - extracted, 2),
        },
        "score_threshold": float(ensemble.score_threshold_),
        "map_threshold": float(ensemble.map_threshold_),
        "false_alarm_rate": {
            "asked": config.threshold.false_alarm_rate,
            "guaranteed": float(ensemble.guaranteed_rate_),
        },
        "validation_scores": [round(float(value), 6) for value in ensemble.validation_scores_],
    }


def fit_extracted(
    ensemble: Ensemble,
    taps: StoredTaps,
    samples: Sequence[Sample],
    parts: tuple[Sequence[Sample], Sequence[Sample]],
    labelled: tuple[StoredTaps, Tensor] | None,
    extraction: Extraction,
    progress: Progress,
    memory: Memory = fit_anew,
) -> Fit:
    """Fit from taps of ``samples``, of which ``parts`` are for training and validation; then choose, where declared.

    Raises: DataError if no readable picture is left in one of them.
    """
    position = {sample.path: index for index, sample in enumerate(samples)}
    rows = [[position[sample.path] for sample in whole if sample.path in position] for whole in parts]
    for part, purpose in zip(rows, ("train on", "validate with"), strict=True):
        if not part:
            raise DataError(f"no readable picture is left to {purpose}; mend the files or give more good pictures")
    train, validation = (taps.subset(part) for part in rows)
    ensemble.trunk_dtype = trunk_dtype(extraction.device, extraction.precision)
    if not isinstance(ensemble.config.fusion, AutoConfig):
        ensemble.fit(train, validation, labelled, progress, memory)
        return Fit(ensemble, len(train), len(validation))
    held = [samples[row] for row in rows[1]]
    chosen = fit_and_choose(ensemble, train, validation, held, extraction, progress, memory)
    ensemble.clear_checkpoints(train)
    return Fit(chosen.ensemble, len(train), len(validation), chosen)


def require_labels(ensemble: Ensemble, labelled: ImageSet | None) -> None:
    """Raises: DataError if the combiner learns from labels and there are none."""
    if ensemble.needs_labels and (labelled is None or not labelled.test):
        raise DataError(
            f"combiner {ensemble.config.combiner.kind} learns from labelled pictures: give a folder of good and "
            "defective ones to `manyeyes train` with --labelled, apart from the test set, or choose another combiner"
        )


def _labelled(
    ensemble: Ensemble, labelled: ImageSet | None, extraction: Extraction, frame: Frame, progress: Progress
) -> tuple[StoredTaps, Tensor] | None:
    if labelled is None:
        return None
    if not ensemble.needs_labels:
        progress.say(
            f"combiner {ensemble.config.combiner.kind} learns from good pictures alone: labelled ones not used"
        )
        return None
    taps, kept = extraction(ensemble.eyes, labelled.test, frame, "extracting labelled pictures", progress)
    return taps, torch.tensor([sample.label for sample in kept])


def train_run(
    config: EnsembleConfig,
    image_set: ImageSet,
    out: str | Path,
    *,
    device: str = "auto",
    batch_size: int = 8,
    precision: Precision = "auto",
    skip_bad: bool = False,
    resume: bool = False,
    labelled: ImageSet | None = None,
    progress: Progress | None = None,
) -> Ensemble:
    """Train into a run folder. After a kill, the same call with ``resume`` goes on and ends with the same scores, on a
    GPU to rounding.

    Raises: RunError if the folder already holds a run, is another config's or other pictures', or is being written.
    """
    out, data = Path(out), _data_of(image_set, labelled)
    with owned(out):
        progress = progress or Silent()
        if (found := _finished(out, config, data, resume, progress)) is not None:
            progress.say(f"{out}: already finished, nothing to do")
            return found.to(resolve_device(device))
        where, ensemble = resolve_device(device), Ensemble(config)
        require_labels(ensemble, labelled)
        split(image_set, config)
        pending = yaml.safe_dump({"data": data}) + config.to_yaml()
        write_text(out / PENDING, pending)  # what was refused until here leaves nothing to resume
        extraction = Extraction(FeatureStore(out / FEATURES, config.store), where, batch_size, precision, skip_bad)
        ensemble, figures = fit_ensemble(config, image_set, extraction, progress, ensemble, labelled)
        figures["data"] = data
        save_run(out, ensemble, where, figures, declared=config)
        (out / PENDING).unlink(missing_ok=True)
        shutil.rmtree(out / FEATURES, ignore_errors=True)
        return ensemble


def _data_of(image_set: ImageSet, labelled: ImageSet | None) -> dict[str, Any]:
    """By what a resumed call knows its pictures: where they lie, and a digest of their names, splits and labels."""
    root = image_set.root.resolve()
    parts = [
        [os.path.relpath(sample.path.resolve(), root) for sample in part]
        for part in (image_set.train, image_set.validation)
    ]
    known = [(os.fspath(sample.path.resolve()), sample.label) for sample in labelled.test] if labelled else []
    digest = hashlib.sha256(json.dumps([*parts, known]).encode()).hexdigest()[:16]
    return {"root": os.fspath(root), "layout": image_set.layout, "pictures": sum(map(len, parts)), "digest": digest}


def _require_same_root(out: Path, known: dict[str, Any], data: dict[str, Any]) -> None:
    """Raises: RunError if a run was begun on another folder than that of ``data``; an old one may not say on which."""
    if known.get("root", data["root"]) != data["root"]:
        raise RunError(f"{out}: holds a run on {known['root']}, not on {data['root']}; choose another folder")


def _difference(known: dict[str, Any], data: dict[str, Any]) -> str | None:
    """How the pictures that a run knows differ from those of ``data``, None if they do not."""
    if known.get("digest", data["digest"]) == data["digest"]:
        return None
    return f"{known.get('pictures')} good ones then, {data['pictures']} now, or other names"


def _finished(
    out: Path, config: EnsembleConfig, data: dict[str, Any], resume: bool, progress: Progress
) -> Ensemble | None:
    """The finished run that a resumed call finds, if any; refuses to touch what is not this run's.

    An unfinished one goes on with the pictures that are there now: somebody may have taken a broken one away.
    """
    pending = out / PENDING
    if pending.exists():
        if not resume:
            raise RunError(f"{out}: holds an unfinished run; go on with --resume, or choose another folder")
        values = read_yaml(pending)
        known = values.pop("data", None) or {}
        if EnsembleConfig.parse(values, str(pending)) != config:
            raise RunError(f"{out}: the unfinished run has another config ({pending}); choose another folder")
        _require_same_root(out, known, data)
        if changed := _difference(known, data):
            progress.say(
                f"{data['root']}: pictures have changed since the run began ({changed}); it goes on with these"
            )
        return None
    if (out / STATE).exists():
        if not resume:
            raise RunError(f"{out}: already holds a run; choose another folder or delete it")
        found_config, details = read_header(out)
        if details.get("declared", found_config.fingerprint()) != config.fingerprint():
            raise RunError(f"{out}: already holds a run of another config; choose another folder")
        known = details["metrics"].get("data") or {}
        _require_same_root(out, known, data)
        if changed := _difference(known, data):
            raise RunError(
                f"{out}: holds a run on other pictures of {data['root']} ({changed}); choose another folder, or delete "
                "it to train anew"
            )
        found = load_run(out)
        shutil.rmtree(out / FEATURES, ignore_errors=True)  # there if the run was killed while it cleaned up
        return found
    if (out / FEATURES).exists():
        # It would be deleted at the end.
        raise RunError(f"{out}: holds a folder {FEATURES} that is not this run's; choose another folder")
    return None
