"""The ensemble: trunks once, branches on their taps, scores normalised and combined, a calibrated threshold."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Self, cast

import torch
from torch import Tensor, nn

from manyeyes.backbones import Eyes, FeatureExtractor, TrainableTrunk, TrunkPool
from manyeyes.device import Precision, full_precision, trunk_precision
from manyeyes.ensemble.branch import Branch, Judgement
from manyeyes.ensemble.config import EnsembleConfig, ThresholdConfig
from manyeyes.ensemble.memory import Memory, fit_anew
from manyeyes.ensemble.prediction import Prediction
from manyeyes.ensemble.reading import Gathered, Reading, Taps, TapSource, require_difference
from manyeyes.ensemble.spread import spread
from manyeyes.ensemble.threshold import conformal_threshold, guaranteed_rate
from manyeyes.ensemble.verdicts import Picture, Verdict, verdicts
from manyeyes.errors import ConfigError, DataError, NotFittedError, ShapeError
from manyeyes.fitted import Fitted
from manyeyes.fusion import Combiner, KnownMoments, ScoreNormaliser, ZScoreConfig
from manyeyes.maps import Grid, all_finite, even_step, to_grid
from manyeyes.progress import Advance, Progress, Silent

CAN_PROMISE = "validation normals can promise a false-alarm rate"
PIXELS = 65_536
"""Pixels per head that the map normaliser sees; more change nothing that shows."""
LEAVE_OUT_GROUPS = 64
FEWEST = 3
"""Validation normals without which no false-alarm rate is promised: none could be left out of its own normaliser."""
DRAWN = 32
"""Validation maps drawn on the canvas at once."""


class Ensemble(Fitted):
    """Declared by a config, fitted on stored taps of good parts, then a function from pictures to `Prediction`.

    ``canvas`` is the (H, W) that pictures are brought to: the config's frame size or, where it names none, the
    largest input of any trunk.
    """

    def __init__(
        self,
        config: EnsembleConfig,
        pool: TrunkPool | None = None,
        extractors: Mapping[str, FeatureExtractor] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        if extractors is None:
            pool = (pool or TrunkPool()).for_ensemble()
            extractors = {member.name: member.extractor.build(pool) for member in config.members}
        self.notes: list[str] = []
        """What a user must know about how the config was carried out."""
        self.trunk_dtype: str | None = None
        """Precision that the trunks had in the fit, such as ``float32``; None if nobody has said."""
        for name, extractor in extractors.items():
            if any(tap.trunk.weights_source.startswith("random") for tap in extractor.taps):
                self.notes.append(f"member {name!r} looks through random weights; give it trained ones")
        self.branches = nn.ModuleList(self._declare(extractors))
        self._declared_notes = tuple(self.notes)
        self.extractors = [e for branch in self.branches for e in cast(Branch, branch).extractors]
        self.eyes = Eyes(self.extractors)
        self.names = [name for branch in self.branches for name in cast(Branch, branch).names]
        self.normalisers = nn.ModuleDict({name: config.normaliser.build() for name in self.names})
        map_names = [name for branch in self._branches() for name in branch.map_names]
        self.map_normalisers = nn.ModuleDict({name: ZScoreConfig().build() for name in map_names})
        self.groups = self._groups(map_names)
        self.combiners = nn.ModuleDict({group: config.combiner.build(names) for group, names in self.groups.items()})
        self.a_contrario = config.mask.build() if config.mask.kind == "a_contrario" and map_names else None
        self.canvas: Grid = config.frame.sized(self._largest_input()).canvas
        self._look_at_canvas()
        self.declare(
            "score_threshold_", "map_threshold_", "guaranteed_rate_", "validation_scores_", "validation_peaks_"
        )
        self.eval()

    def _branches(self) -> list[Branch]:
        return [cast(Branch, branch) for branch in self.branches]

    def parted(self) -> tuple[list[Branch], list[Branch]]:
        """The branches of members by themselves, and those of fused maps."""
        kinds = {name for name, _ in self.config.fusions}
        branches = self._branches()
        return [b for b in branches if b.name not in kinds], [b for b in branches if b.name in kinds]

    def bar(self, members: Collection[str]) -> None:
        """Declare the fused maps anew, unfitted, without the maps of some members. At least one must be left."""
        fused, device = self.parted()[1], next(self.eyes.parameters()).device
        for index, branch in enumerate(self._branches()):
            if branch in fused:
                self.branches[index] = branch.without(members).to(device)

    def _declare(self, extractors: Mapping[str, FeatureExtractor]) -> Iterable[Branch]:
        config = self.config
        grid = (config.grid, config.grid) if config.grid else None
        if config.fusions:
            fused = []
            for member in config.members:
                if any(spec.spatial for spec in extractors[member.name].specs):
                    if member.fuse:
                        fused.append((member.name, extractors[member.name]))
                elif not member.heads:
                    raise DataError(f"member {member.name!r} has no feature map to fuse and no head: give it heads")
                else:
                    self.notes.append(
                        f"member {member.name!r} has no feature map to fuse; it joins the score at score level instead"
                    )
            if fused:
                for name, fusion in config.fusions:
                    yield Branch(name, fused, fusion, config.heads, grid)
            else:
                self.notes.append("no member has a feature map to fuse; scores are fused instead")
        for member in config.members:
            if member.heads:
                eyes = [(member.name, extractors[member.name])]
                yield Branch(member.name, eyes, member.fusion, member.heads, grid)

    def _groups(self, map_names: Sequence[str]) -> dict[str, list[str]]:
        """Which heads are combined into which score: all, each member's own, and both branches."""
        groups = {"all": list(self.names)}
        for member in self.config.members:
            groups[f"member {member.name}"] = [name for name in self.names if name.split("/")[0] == member.name]
        groups["branch picturable"] = list(map_names)
        groups["branch unpicturable"] = [name for name in self.names if name not in map_names]
        return {group: names for group, names in groups.items() if names}

    def look_again(self) -> None:
        """After a trunk was trained or restored: its features have another key now."""
        device = next(self.eyes.parameters()).device
        self.eyes = Eyes(self.extractors).to(device)

    @property
    def trainable(self) -> list[TrainableTrunk]:
        """Trunks that learn from good pictures before they look, trained or not."""
        return [trunk for trunk in self.eyes.each() if isinstance(trunk, TrainableTrunk)]

    def _look_at_canvas(self) -> None:
        """A note where a canvas that was asked for shows no trunk more than it would see anyway."""
        (H, W), sizes = self.canvas, [trunk.input_size for trunk in self.eyes.each()]
        where = "set members.NAME.extractor.trunk.size"
        if all(h < H or w < W for h, w in sizes):
            largest = " x ".join(map(str, self._largest_input()))
            self.notes.append(
                f"the canvas is {H} x {W} px, and no trunk looks at more than {largest}: {where}, too, to see finer"
            )
        elif all(H * w != W * h for h, w in sizes):
            self.notes.append(f"every trunk looks at the canvas of {H} x {W} px in another shape: {where} to keep it")

    def _largest_input(self) -> Grid:
        sizes = [trunk.input_size for trunk in self.eyes.each()]
        return max(h for h, _ in sizes), max(w for _, w in sizes)

    @property
    def picturable(self) -> bool:
        """Whether any head draws a map."""
        return len(self.map_normalisers) > 0

    @property
    def needs_labels(self) -> bool:
        """Whether the combiner learns from labelled pictures, defective ones among them."""
        return any(cast(Combiner, combiner).needs_labels for combiner in self.combiners.values())

    def tap_keys(self) -> list[str]:
        return list(dict.fromkeys(key for branch in self._branches() for key in branch.tap_keys))

    def fit(
        self,
        train: TapSource,
        validation: TapSource,
        labelled: tuple[TapSource, Tensor] | None = None,
        progress: Progress | None = None,
        memory: Memory = fit_anew,
    ) -> Self:
        """Fit every block and head on ``train``, every normaliser, the combiner and the threshold on ``validation``.

        ``train`` and ``validation`` are taps of good pictures that are not the same; ``labelled`` are taps of pictures
        with their labels (n,) in {0, 1}, for combiners that learn from labels. ``memory`` may know some parts already.

        Raises: DataError if all pictures of ``train`` are equal, or too few for a block or a head.
        """
        self.fit_heads(train, validation, progress, memory)
        self.settle(validation, labelled, progress)
        self.clear_checkpoints(train)
        return self

    def fit_heads(
        self,
        train: TapSource,
        validation: TapSource,
        progress: Progress | None = None,
        memory: Memory = fit_anew,
        branches: Sequence[Branch] | None = None,
        known: KnownMoments | None = None,
    ) -> Self:
        """The first part of `fit`: blocks and heads, so that raw scores can be had; `settle` is the second.

        All of them, or those of some ``branches``; ``known`` are moments that others took of the same taps.
        """
        progress = progress or Silent()
        require_difference(train)
        self.notes = list(self._declared_notes)
        known = known or KnownMoments()
        for branch in self._branches() if branches is None else branches:
            advance = progress.step(f"fitting {branch.name}")
            branch.fit(train.only(branch.tap_keys), self.config.seed, advance, memory, known)
            branch.calibrate(validation.only(branch.tap_keys))
        return self

    def clear_checkpoints(self, train: TapSource) -> None:
        """Of a fit that is over."""
        for branch in self._branches():
            for checkpoint in branch.checkpoints(train.only(branch.tap_keys), self.config.seed).values():
                checkpoint.unlink(missing_ok=True)

    def settle(
        self,
        validation: TapSource,
        labelled: tuple[TapSource, Tensor] | None = None,
        progress: Progress | None = None,
        known: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None,
        calibration: Tensor | None = None,
    ) -> Self:
        """Fit all that comes after the heads, which are fitted: normalisers, combiners, thresholds. See `fit`.

        ``known`` is what `read` gives of ``validation``, where that is known already. ``calibration`` (n,) are scores
        of ``validation`` for the threshold, each from all that was fitted without it; by default they are found here.
        """
        progress = progress or Silent()
        scores, maps = known or self.read(validation, progress.step("scoring validation normals"))
        learned = None
        if labelled is not None:
            judged, _ = self.read(labelled[0], progress.step("scoring labelled pictures"))
            learned = (judged, labelled[1])
        for name, normaliser in self.normalisers.items():
            cast(ScoreNormaliser, normaliser).fit(scores[name])
        for name, normaliser in self.map_normalisers.items():
            pixels = maps[name].flatten()
            step = even_step(len(pixels), PIXELS, maps[name][0].numel())
            cast(ScoreNormaliser, normaliser).fit(pixels[::step])
        self._fit_combiners(scores, learned)
        if calibration is None:
            calibration = self.held_out(scores, *self.left_out(validation))
        self.validation_scores_ = calibration.float().cpu()
        self.validation_peaks_ = self._peaks(maps) if maps else torch.zeros(1)
        self._promise(self.config.threshold.false_alarm_rate)
        if self.a_contrario is not None:
            self.a_contrario.fit(Reading(validation, lambda taps: self._evidence(self.judge(taps))))
        return self

    def read(
        self, taps: TapSource, advance: Advance, branches: Sequence[Branch] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Every head's raw scores (n,), and its maps (n, h, w) on the branch's small grid; or of some ``branches``."""
        scores, maps = Gathered(len(taps)), Gathered(len(taps))
        with torch.inference_mode():
            for batch in taps:
                judgement = self.judge(batch, branches)
                scores.add(judgement.scores)
                maps.add(judgement.maps)
                advance(scores.done, len(taps))
        for name, value in scores.values.items():
            if not bool(torch.isfinite(value).all()):
                raise DataError(
                    f"head {name}: scores of validation normals are not finite; the features are degenerate"
                )
        return scores.values, maps.values

    def _fit_combiners(self, scores: dict[str, Tensor], learned: tuple[dict[str, Tensor], Tensor] | None) -> None:
        for group, names in self.groups.items():
            combiner = cast(Combiner, self.combiners[group])
            if combiner.needs_labels and learned is not None:
                combiner.fit(self._normalised(learned[0], names), learned[1])
            else:
                combiner.fit(self._normalised(scores, names))

    def _normalised(self, scores: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
        """Shapes: {head: (n,)} -> (n, k)."""
        return torch.stack([cast(ScoreNormaliser, self.normalisers[name]).transform(scores[name]) for name in names], 1)

    def left_out(self, validation: TapSource) -> tuple[Tensor, dict[str, Tensor]]:
        """Groups of validation normals that are left out in turn, and the scores that depend on who is left out.

        With fewer than `FEWEST` nobody is left out, because too few would be left.
        Shapes: -> number of each picture's group (n,), {head: (groups, n)} for heads that were calibrated on them.
        """
        members = torch.arange(len(validation)) % LEAVE_OUT_GROUPS
        found: dict[str, Tensor] = {}
        for branch in self._branches() if len(members) >= FEWEST else ():
            found |= branch.left_out(validation.only(branch.tap_keys), members)
        return members, found

    def held_out(self, scores: Mapping[str, Tensor], members: Tensor, apart: Mapping[str, Tensor]) -> Tensor:
        """Scores of validation normals for the threshold, each with normalisers that have not seen it.

        A score normalised with its own image in the statistics is drawn towards normal, most on few images, and a
        threshold from such scores alarms too often. ``members`` and ``apart`` as `left_out` gives them.
        Shapes: {head: (n,)} -> (n,).
        """
        if len(members) < FEWEST:  # one normal has no spread
            return self.combine(self._normalised(scores, self.names))
        left_out = torch.zeros(len(members))
        for group in range(int(members.max()) + 1):
            inside, outside = members == group, members != group
            columns = []
            for name in self.names:
                raw = apart[name][group] if name in apart else scores[name]
                normaliser = self.config.normaliser.build().to(raw.device).fit(raw[outside])
                columns.append(normaliser.transform(raw[inside]))
            left_out[inside] = self.combine(torch.stack(columns, 1)).float().cpu()
        return left_out

    def _promise(self, rate: float) -> None:
        """Thresholds of score and mask for a false-alarm rate, and a note where it cannot be promised."""
        threshold, guaranteed = conformal_threshold(self.validation_scores_, rate)
        n, needed = len(self.validation_scores_), max(FEWEST, int(1 / rate))
        self.notes = [note for note in self.notes if CAN_PROMISE not in note]
        guaranteed = guaranteed if n >= FEWEST else 1.0
        if guaranteed > rate:
            guess = "" if n >= FEWEST else " (the threshold is a guess)"
            self.notes.append(
                f"{n} {CAN_PROMISE} of {guaranteed:.3f} at best, not {rate:.3f}{guess}; give at least {needed} "
                "validation normals"
            )
        self.score_threshold_ = torch.tensor(threshold)
        self.guaranteed_rate_ = torch.tensor(guaranteed, dtype=torch.float64)
        self.map_threshold_ = torch.tensor(conformal_threshold(self.validation_peaks_, rate)[0])

    def alarm_at(self, rate: float | None = None, threshold: float | None = None) -> Self:
        """Move the thresholds of a fitted ensemble, without a picture; `save_run` keeps them.

        ``rate``: score and conformal mask for another false-alarm rate, from the validation normals of the fit; it is
        promised for the score alone. An a-contrario mask has a limit of its own.
        ``threshold``: the score's alone, by hand; the guaranteed rate becomes what these normals say of it.

        Raises: NotFittedError before ``fit`` or load; ConfigError unless one of them is given, within its range.
        """
        self.require_fit()
        if (rate is None) == (threshold is None):
            raise ConfigError("expected a false-alarm rate or a threshold, one of them")
        if rate is not None:
            asked = ThresholdConfig.parse({"false_alarm_rate": rate}, "threshold")
            self.config = self.config.model_copy(update={"threshold": asked})
            self._promise(rate)
        elif threshold is not None:
            moved = torch.tensor(float(threshold), dtype=torch.float32)
            if not bool(moved.isfinite()):
                raise ConfigError(f"threshold: expected a number, got {threshold}")
            self.score_threshold_ = moved
            few = len(self.validation_scores_) < FEWEST
            promised = 1.0 if few else guaranteed_rate(self.validation_scores_, threshold)
            self.guaranteed_rate_ = torch.tensor(promised, dtype=torch.float64)
            self.notes = [note for note in self.notes if CAN_PROMISE not in note]
        return self

    def judge(self, taps: Taps, branches: Sequence[Branch] | None = None) -> Judgement:
        """Raw scores and maps of all heads, or of some ``branches``."""
        scores: dict[str, Tensor] = {}
        maps: dict[str, Tensor] = {}
        evidence: dict[str, tuple[Tensor, ...]] = {}
        for branch in self._branches() if branches is None else branches:
            judgement = branch.judge(taps)
            scores |= judgement.scores
            maps |= judgement.maps
            evidence |= judgement.evidence
        return Judgement(scores, maps, evidence)

    def _evidence(self, judgement: Judgement) -> tuple[Tensor, ...]:
        return tuple(value for name in self.map_normalisers for value in judgement.evidence[name])

    def _mask(self, judgement: Judgement, anomaly_map: Tensor) -> Tensor:
        """Shapes: (b, H, W) -> (b, H, W) bool."""
        if not judgement.maps:
            return torch.zeros_like(anomaly_map, dtype=torch.bool)
        if self.a_contrario is None:
            return anomaly_map >= self.map_threshold_
        return self.a_contrario.mask(self._evidence(judgement), self.canvas)

    def combine(self, normalised: Tensor, group: str = "all") -> Tensor:
        """Shapes: (n, k) -> (n,)."""
        return cast(Combiner, self.combiners[group]).combine(normalised)

    def _peaks(self, maps: Mapping[str, Tensor]) -> Tensor:
        """Maxima of the drawn maps, a few pictures at a time: on the canvas they are large. Shapes: -> (n,)."""
        parts = zip(*(torch.split(value, DRAWN) for value in maps.values()), strict=True)
        drawn = (self.draw(dict(zip(maps, part, strict=True))) for part in parts)
        return torch.cat([value.flatten(1).amax(1).cpu() for value in drawn])

    def draw(self, maps: Mapping[str, Tensor]) -> Tensor:
        """Mean of the heads' normalised maps, on the canvas and blurred. Shapes: {head: (b, h, w)} -> (b, H, W)."""
        grids = [tuple(value.shape[1:]) for value in maps.values()]
        grid = (max(h for h, _ in grids), max(w for _, w in grids))
        total = torch.zeros((), device=next(iter(maps.values())).device)
        for name, value in maps.items():
            normal = cast(ScoreNormaliser, self.map_normalisers[name]).transform(value)
            total = total + to_grid(normal[:, None], grid)
        return spread(total[:, 0] / len(maps), self.canvas, self.config.blur * min(self.canvas))

    @torch.inference_mode()
    def predict_taps(self, taps: Taps) -> Prediction:
        """Verdicts from taps, extracted or stored, in float32 also within somebody's autocast.

        Raises: NotFittedError before ``fit`` or load; DataError if a feature is not finite.
        """
        if not self.is_fitted:
            raise NotFittedError("the ensemble was used before fit; call fit, or load a run")
        if not all_finite(*taps.values()):
            key = next(key for key, value in taps.items() if not all_finite(value))
            raise DataError(
                f"features {key}: not finite; the picture or the weights may be broken, or the trunk's values too "
                "large for half precision: try --precision float32"
            )
        with full_precision(next(iter(taps.values())).device):
            return self._predicted(self.judge(taps))

    def _predicted(self, judgement: Judgement) -> Prediction:
        heads = {name: self._normalised(judgement.scores, [name])[:, 0] for name in self.names}
        combined = {
            group: self.combine(torch.stack([heads[name] for name in names], 1), group)
            for group, names in self.groups.items()
        }
        score = combined.pop("all")
        if judgement.maps:
            anomaly_map = self.draw(judgement.maps)
        else:
            anomaly_map = torch.zeros(len(score), *self.canvas, device=score.device)
        return Prediction(
            score=score,
            map=anomaly_map,
            heads=heads,
            members={g.removeprefix("member "): v for g, v in combined.items() if g.startswith("member ")},
            branches={g.removeprefix("branch "): v for g, v in combined.items() if g.startswith("branch ")},
            alarm=score >= self.score_threshold_,
            mask=self._mask(judgement, anomaly_map),
        )

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Prediction:
        """Verdicts on pictures that are on the canvas; `verdicts` takes any.

        Within somebody's autocast trunks keep to it; after a fit in bfloat16 they are in bfloat16.

        Shapes: (b, 3, H, W) RGB in [0, 1], H and W the canvas -> `Prediction`. Raises: ShapeError, NotFittedError.
        """
        expected = (3, *self.canvas)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ShapeError(
                f"expected pictures on the canvas, (b, {', '.join(map(str, expected))}), got {tuple(images.shape)}; "
                "`verdicts` takes pictures of any size"
            )
        coarse = self.trunk_dtype == "bfloat16"
        with trunk_precision(images.device, "bfloat16" if coarse else "float32"):
            taps = self.eyes(images)
        return self.predict_taps(taps)

    def agreed(self, precision: Precision) -> Precision:
        """The precision for trunks to judge with: ``auto`` is bfloat16 for an ensemble that was fitted in it.

        Raises: ConfigError if one of fit and judgement would be in bfloat16. Its rounding moves pooled features by more
        than what sets good parts apart (docs/decisions.md); float16 and float32 are near enough.
        """
        coarse = self.trunk_dtype == "bfloat16"
        if self.trunk_dtype is None or precision == "auto":
            return "bfloat16" if coarse else precision
        if coarse != (precision == "bfloat16"):
            raise ConfigError(
                f"precision {precision}: the trunks had {self.trunk_dtype} in the fit, and bfloat16 beside another one "
                "gives scores that mean nothing; leave it at auto, or train again with this precision"
            )
        return precision

    def verdicts(
        self, pictures: Iterable[Picture], batch_size: int = 8, precision: Precision = "auto"
    ) -> Iterator[Verdict]:
        """Verdicts on files, arrays or Pillow's pictures of any size, in their order; maps and masks have their size.

        Arrays are grey, RGB or RGBA, 8 or 16 bits or floats in 0..1; ``frame[..., ::-1]`` turns one of OpenCV's (BGR).
        Raises: DataError for a picture that cannot be read or used; NotFittedError before ``fit`` or load; ConfigError.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size: expected at least 1, got {batch_size}")
        return verdicts(self, pictures, batch_size, self.agreed(precision))

    def load_fitted(self, state: Mapping[str, Tensor]) -> None:
        """Take the fitted tensors of a saved ensemble of the same config.

        Raises: RuntimeError if they do not fit, NotFittedError if some are missing.
        """
        for index, branch in enumerate(self._branches()):
            branch.load_fitted(state, f"branches.{index}.")
        trunks = {key: value for key, value in self.state_dict().items() if key.startswith("eyes.")}
        self.load_state_dict({**state, **trunks})
        for module in self.modules():
            if isinstance(module, Fitted):
                module.require_fit()
