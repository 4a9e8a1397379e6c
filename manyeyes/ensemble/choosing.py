"""Carry a choice out: defects are made from validation normals, every candidate judges them, one ensemble remains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn

from manyeyes.data import Sample
from manyeyes.data.made import made_frame, make_defects
from manyeyes.ensemble.branch import Branch
from manyeyes.ensemble.choice import Array, Choice, Evidence, choose, left_out_scores, verified, weak_members
from manyeyes.ensemble.ensemble import FEWEST, Ensemble
from manyeyes.ensemble.memory import Memory, fit_anew
from manyeyes.ensemble.reading import TapSource
from manyeyes.ensemble.store import StoredTaps, samples_fingerprint
from manyeyes.files import make_folder
from manyeyes.fusion import AutoConfig, KnownMoments
from manyeyes.progress import Progress

if TYPE_CHECKING:
    from manyeyes.ensemble.training import Extraction

MADE = "made"
PER_PICTURE = 3
AT_LEAST = 60


@dataclass(frozen=True, eq=False)
class Chosen:
    """The ensemble that remains, why, and the made defects that it was chosen by."""

    ensemble: Ensemble
    choice: Choice
    made: tuple[Sample, ...]
    wide: Ensemble
    """With all candidates, for those who want to know what the others would have said."""
    normal: dict[str, Array]
    """Scores of the validation normals by the wide one's heads."""

    @property
    def record(self) -> dict[str, Any]:
        """What a run's figures say of the choice."""
        return self.choice.record

    def verified(self, test: TapSource, labels: Array, progress: Progress) -> dict[str, dict[str, float]]:
        """See `manyeyes.ensemble.choice.verified`. Empty unless there are good and defective pictures.

        Shapes: labels (n,) in {0, 1}.
        """
        if len(set(labels.tolist())) < 2:
            return {}
        scores = arrays(self.wide.read(test, progress.step("judging test pictures with all candidates"))[0])
        good, defective = ({name: values[labels == label] for name, values in scores.items()} for label in (0, 1))
        return verified(self.wide.config, self.choice, self.normal, good, defective)


def fit_and_choose(
    wide: Ensemble,
    train: StoredTaps,
    validation: StoredTaps,
    samples: Sequence[Sample],
    extraction: Extraction,
    progress: Progress,
    memory: Memory = fit_anew,
) -> Chosen:
    """Fit an ensemble with ``fusion.kind: auto``, and give the one that it chooses, fitted and calibrated.

    The members' own heads come first, so that no fused map is fitted with a member that is weak on this part.
    ``samples`` are the validation normals, ``validation`` their taps. Made pictures are kept in the store's folder;
    what is there from a killed run is used again.

    Raises: DataError if no defect can be made.
    """
    made_taps, made = _made(wide, samples, extraction, progress)
    groups, known = [sample.group for sample in made], KnownMoments()
    read: dict[str, Tensor] = {}
    maps: dict[str, Tensor] = {}
    spoilt: dict[str, Array] = {}

    def judged(branches: Sequence[Branch], whose: str) -> None:
        wide.fit_heads(train, validation, progress, memory, branches, known)
        scores, drawn = wide.read(validation, progress.step(f"scoring validation normals, {whose}"), branches)
        read.update(scores)
        maps.update(drawn)
        spoilt.update(arrays(wide.read(made_taps, progress.step(f"judging made defects, {whose}"), branches)[0]))

    own, fused = wide.parted()
    entering = frozenset(member for branch in fused for member in branch.members)
    if own:
        judged(own, "members")
    weak = weak_members(wide.config, Evidence(arrays(read), spoilt, groups, entering))
    if weak:
        wide.bar(weak)
    if fused:
        judged(wide.parted()[1], "fused maps")
    normal = arrays({name: read[name] for name in wide.names})
    choice = choose(wide.config, Evidence(normal, spoilt, groups, entering, weak))

    def kept(parts: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: parts[old] for name, old in choice.origin.items() if old in parts}

    calibration = None
    if len(samples) >= FEWEST:
        members, apart = wide.left_out(validation)
        evidence = Evidence(normal, spoilt, groups, entering)
        held_out = left_out_scores(wide.config, evidence, members.numpy(), arrays(apart))
        calibration = torch.from_numpy(held_out)
    ensemble = narrowed(wide, choice).settle(
        validation, progress=progress, known=(kept(read), kept(maps)), calibration=calibration
    )
    ensemble.notes += choice.notes
    return Chosen(ensemble, choice, made, wide, normal)


def _made(
    wide: Ensemble, samples: Sequence[Sample], extraction: Extraction, progress: Progress
) -> tuple[StoredTaps, tuple[Sample, ...]]:
    """Taps of made defects, and the defects."""
    fusion, frame = cast(AutoConfig, wide.config.fusion), wide.config.frame.sized(wide.canvas)
    folder = make_folder(extraction.store.folder / MADE / samples_fingerprint(samples, frame, extraction.skip_bad))
    count = min(fusion.defects, max(AT_LEAST, PER_PICTURE * len(samples)))
    with FileLock(folder / ".lock"):
        made = make_defects(
            samples,
            frame,
            folder,
            count=count,
            seed=wide.config.seed,
            skip_bad=extraction.skip_bad,
            progress=progress.step("making defects"),
        )
    return extraction(wide.eyes, made, made_frame(frame), "extracting made defects", progress)


def narrowed(wide: Ensemble, choice: Choice) -> Ensemble:
    """The chosen ensemble with the fitted blocks and heads of the wide one, still to be settled."""
    config = choice.config.model_copy(update={"frame": choice.config.frame.sized(wide.canvas)})
    sources = {name: cast(Branch, branch) for branch in wide.branches for name in cast(Branch, branch).names}
    extractors = {
        member: extractor
        for branch in wide.branches
        for member, extractor in zip(cast(Branch, branch).members, cast(Branch, branch).extractors, strict=True)
    }
    ensemble = Ensemble(config, extractors=extractors)
    ensemble.trunk_dtype = wide.trunk_dtype
    for branch in (cast(Branch, branch) for branch in ensemble.branches):
        source = sources[choice.origin[branch.names[0]]]
        if branch.fusion is not None:
            branch.fusion = source.fusion
        branch.heads = nn.ModuleDict({name: source.heads[choice.origin[name]] for name in branch.names})
        branch.folded = source.folded
    return ensemble.to(next(wide.buffers()).device)


def arrays(scores: dict[str, Tensor]) -> dict[str, Array]:
    return {name: np.asarray(value.double().cpu().numpy()) for name, value in scores.items()}
