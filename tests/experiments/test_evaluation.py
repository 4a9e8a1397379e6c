"""What ``evaluate`` writes: every key, figures against scikit-learn on the predictions, every null with a reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import draw_parts, picture, save, small_config, small_member
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score

from manyeyes.data import Frame, ImageBatches, ImageSet, Sample, ground_truth_mask, read_image_set
from manyeyes.ensemble import Prediction, load_run, train_run
from manyeyes.errors import DataError
from manyeyes.experiments.evaluation import evaluate_run, marked, measure, summary
from manyeyes.fusion import ScoreLevelConfig
from manyeyes.heads import AContrarioConfig, GaussianConfig, MemoryBankConfig


@pytest.fixture(scope="module")
def hard(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Holes, good pictures that are called defective, and masks of another size, so that no figure is trivial."""
    root = draw_parts(tmp_path_factory.mktemp("hard") / "parts", good=6, defective=3)
    rng = np.random.default_rng(9)
    for index in range(4):
        image, _ = picture(rng)
        save(root / f"test/stain/{index:03}.png", image)
        mask = np.zeros((84, 96), dtype=np.uint8)
        mask[10 + 5 * index : 30 + 5 * index, 20:50] = 255
        save(root / f"ground_truth/stain/{index:03}.png", mask)
    return read_image_set(root)


@pytest.fixture(scope="module")
def figures(trained: Path, hard: ImageSet) -> dict[str, Any]:
    return evaluate_run(trained, hard, device="cpu", batch_size=4)


@pytest.fixture(scope="module")
def predicted(trained: Path, hard: ImageSet) -> tuple[Prediction, tuple[Sample, ...]]:
    """The same pictures through the ensemble alone."""
    ensemble = load_run(trained)
    batches = ImageBatches(hard.test, ensemble.config.frame, 4)
    return Prediction.cat([ensemble.predict(batch.images) for batch in batches]), hard.test


def labels(samples: tuple[Sample, ...]) -> np.ndarray:
    return np.array([sample.label for sample in samples])


def test_everything_that_was_promised_is_there(figures: dict[str, Any]) -> None:
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert {"auroc", "aupr", "f1_max", "precision", "recall", "accuracy_good"} <= set(figures["image"])
    assert {"auroc", "au_pro", "aupr", "iou"} <= set(figures["pixel"])
    assert set(figures["by_defect"]) == {"hole", "stain"}
    assert set(figures["by_defect"]["hole"]) == {"image", "pixel"}
    assert set(figures["members"]) == {"one", "two"}
    assert set(figures["branches"]) == {"picturable", "unpicturable"}
    assert set(figures["heads"]) == {
        *("fused/discriminator", "fused/memory_bank", "one/memory_bank", "one/gaussian", "two/memory_bank")
    }
    assert all(set(item) == {"image_auroc"} for item in figures["members"].values())
    assert set(figures["false_alarm_rate"]) == {"asked", "guaranteed", "observed", "observed_interval"}
    assert {"ms_per_image", "ms_trunks", "ms_heads", "peak_memory_mb", "artefact_mb"} <= set(figures["cost"])
    assert all(value > 0 for value in figures["cost"].values())
    assert figures["counts"] == {"good": 6, "defective": 7, "by_defect": {"hole": 3, "stain": 4}}
    assert figures["left_out"] == []
    assert figures["undefined"] == {"by_defect.stain.image.precision": "no image is called defective"}


def test_every_path_names_a_figure(figures: dict[str, Any]) -> None:
    assert figures["intervals"]
    for path, (low, high) in figures["intervals"].items():
        value: Any = figures
        for key in path.split("."):
            value = value[key]
        assert low <= value <= high, path


def test_image_figures_equal_scikit_learns(figures: dict[str, Any], predicted: Any) -> None:
    prediction, samples = predicted
    y, scores = labels(samples), prediction.score.double().numpy()
    assert 0.5 < figures["image"]["auroc"] < 1, "too easy to tell"
    assert figures["image"]["auroc"] == pytest.approx(roc_auc_score(y, scores))
    assert figures["image"]["aupr"] == pytest.approx(average_precision_score(y, scores))
    precision, recall, _ = precision_recall_curve(y, scores)
    assert figures["image"]["f1_max"] == pytest.approx((2 * precision * recall / (precision + recall)).max())
    alarm = scores >= figures["threshold"]
    np.testing.assert_array_equal(alarm, prediction.alarm)
    assert figures["image"]["f1"] == pytest.approx(f1_score(y, alarm))
    assert figures["image"]["accuracy_good"] == pytest.approx(1 - alarm[y == 0].mean())
    assert figures["false_alarm_rate"]["observed"] == pytest.approx(alarm[y == 0].mean())
    for group in ("heads", "members", "branches"):
        for name, values in getattr(prediction, group).items():
            assert figures[group][name]["image_auroc"] == pytest.approx(roc_auc_score(y, values)), name
    for defect in ("hole", "stain"):
        chosen = np.array([sample.defect in ("good", defect) for sample in samples])
        assert figures["by_defect"][defect]["image"]["auroc"] == pytest.approx(roc_auc_score(y[chosen], scores[chosen]))


def test_a_score_at_the_threshold_raises_an_alarm(predicted: Any, trained: Path) -> None:
    prediction, samples = predicted
    ensemble = load_run(trained)
    good = prediction.score[[not sample.label for sample in samples]]
    ensemble.score_threshold_ = good.sort().values[2]
    found = measure(ensemble, [predicted], samples, ensemble.config.frame)
    alarms = [row["alarm"] for row in found.pictures]
    assert alarms == [score >= float(ensemble.score_threshold_) for score in prediction.score.tolist()]
    assert sum(alarms[: len(good)]) == 4
    assert found.figures["false_alarm_rate"]["observed"] == pytest.approx(4 / 6)
    assert found.figures["image"]["accuracy_good"] == pytest.approx(2 / 6)


def test_pixel_figures_equal_scikit_learns(figures: dict[str, Any], predicted: Any, trained: Path) -> None:
    prediction, samples = predicted
    ensemble = load_run(trained)

    def pixels(wanted: tuple[str, ...]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for canvas_map, sample in zip(prediction.map, samples, strict=True):
            if sample.defect in wanted:
                mask = ground_truth_mask(sample)
                yield mask.ravel(), ensemble.config.frame.to_image(canvas_map, mask.shape).ravel()

    truth, scores = (np.concatenate(part) for part in zip(*pixels(("good", "hole", "stain")), strict=True))
    assert figures["pixel"]["auroc"] == pytest.approx(roc_auc_score(truth, scores))
    assert figures["pixel"]["aupr"] == pytest.approx(average_precision_score(truth, scores))
    alarm = scores >= figures["map_threshold"]
    assert figures["pixel"]["iou"] == pytest.approx((alarm & truth).sum() / (alarm | truth).sum())
    assert figures["pixel"]["iou_mask"] == figures["pixel"]["iou"], "the conformal mask is the map at its threshold"
    truth, scores = (np.concatenate(part) for part in zip(*pixels(("good", "hole")), strict=True))
    assert figures["by_defect"]["hole"]["pixel"]["auroc"] == pytest.approx(roc_auc_score(truth, scores))


def test_the_iou_of_the_mask_is_that_of_what_is_marked(hard: ImageSet, tmp_path: Path) -> None:
    options: dict[str, Any] = {"members": (small_member("one"),), "heads": (MemoryBankConfig(ratio=0.05),)}
    config = small_config(mask=AContrarioConfig(windows=(3, 5), false_alarms=20), **options)
    ensemble = train_run(config, hard, tmp_path / "run", device="cpu", batch_size=4)
    figures = evaluate_run(tmp_path / "run", hard, device="cpu", batch_size=4, repetitions=0)
    frame, marks, truths, good = ensemble.config.frame, [], [], []
    for batch in ImageBatches(hard.test, frame, 1):
        mask, sample = ensemble.predict(batch.images).mask[0], batch.samples[0]
        truth = ground_truth_mask(sample)
        marks.append(frame.to_image(mask.float(), truth.shape).ravel() >= 0.5)
        truths.append(truth.ravel())
        if not sample.label:
            good.append(float(marks[-1].mean()))
    marked, true = np.concatenate(marks), np.concatenate(truths)
    assert 0 < figures["pixel"]["iou_mask"] < 1
    assert figures["pixel"]["iou_mask"] == pytest.approx((marked & true).sum() / (marked | true).sum())
    assert figures["pixel"]["iou_mask"] != figures["pixel"]["iou"]
    assert figures["mask"]["good_pixels"] == pytest.approx(np.mean(good))
    assert figures["mask"]["good_images"] == np.mean(np.array(good) > 0)
    assert "iou_mask" in figures["by_defect"]["hole"]["pixel"]


def test_masks_larger_than_their_pictures_leave_the_weights_of_good_pictures(
    trained: Path, parts: ImageSet, tmp_path: Path
) -> None:
    figures = evaluate_run(trained, parts, device="cpu", repetitions=0)
    test = []
    for number, sample in enumerate(parts.test):
        regions = []
        for region in sample.regions:
            mask = cv2.imread(str(region.path), cv2.IMREAD_UNCHANGED)
            wide = cv2.resize(mask, None, fx=3, fy=3, interpolation=cv2.INTER_NEAREST)
            save(tmp_path / f"masks/{number}.png", wide)
            regions.append(replace(region, path=tmp_path / f"masks/{number}.png"))
        test.append(replace(sample, regions=tuple(regions)))
    wide = evaluate_run(trained, replace(parts, test=tuple(test)), device="cpu", repetitions=0)
    for name in ("auroc", "aupr", "au_pro"):
        assert wide["pixel"][name] == pytest.approx(figures["pixel"][name], abs=0.003), name


def test_the_mask_of_a_picture_that_is_left_out_may_be_broken(trained: Path, tmp_path: Path) -> None:
    root = draw_parts(tmp_path / "parts", train=2, good=2, defective=2)
    for name in ("test/hole/000.png", "ground_truth/hole/000_mask.png"):
        (root / name).write_bytes(b"")
    figures = evaluate_run(trained, read_image_set(root), device="cpu", skip_bad=True, repetitions=0)
    assert figures["counts"]["defective"] == 1
    assert figures["pixel"]["auroc"] is not None


def test_margins_that_nobody_sees_are_no_marks(hard: ImageSet, tmp_path: Path) -> None:
    options: dict[str, Any] = {"members": (small_member("one"),), "heads": (MemoryBankConfig(ratio=0.05),)}
    config = small_config(**options, frame={"aspect": "keep"}, threshold={"false_alarm_rate": 0.5})
    ensemble = train_run(config, hard, tmp_path / "run", device="cpu")
    ensemble.map_threshold_ = torch.tensor(-1e6)  # everything is marked: of the picture's own pixels that is all
    frame = ensemble.config.frame.sized(ensemble.canvas)
    good = tuple(sample for sample in hard.test if not sample.label)
    judged = [(ensemble.predict(batch.images), batch.samples) for batch in ImageBatches(good, frame, 4)]
    assert measure(ensemble, judged, good, frame).figures["mask"] == {"good_images": 1, "good_pixels": 1}
    region = ensemble.config.frame.model_copy(update={"region": (0.25, 0.0, 0.75, 1.0)}).sized(ensemble.canvas)
    judged = [(ensemble.predict(batch.images), batch.samples) for batch in ImageBatches(good, region, 4)]
    assert measure(ensemble, judged, good, region).figures["mask"]["good_pixels"] == pytest.approx(0.5, abs=0.02)


def test_batch_size_changes_nothing(figures: dict[str, Any], trained: Path, hard: ImageSet) -> None:
    again = evaluate_run(trained, hard, device="cpu", batch_size=13, repetitions=0)
    assert again["image"] == pytest.approx(figures["image"], rel=1e-4)
    assert again["pixel"] == pytest.approx(figures["pixel"], rel=1e-3)
    assert again["intervals"] == {}


def nulls(tree: Any, path: str = "") -> Iterator[str]:
    if tree is None:
        yield path
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from nulls(value, f"{path}.{key}" if path else key)


def reasons(figures: dict[str, Any]) -> set[str]:
    """Paths of nulls that carry a reason, in ``undefined`` or beside them."""
    beside = {
        f"{group}.{name}.image_auroc"
        for group in ("members", "branches", "heads")
        for name, item in figures[group].items()
        if item.get("reason")
    }
    return set(figures["undefined"]) | beside


def test_a_set_without_masks(trained: Path, tmp_path: Path) -> None:
    root = draw_parts(tmp_path / "parts", train=2)
    for mask in (root / "ground_truth/hole").iterdir():
        mask.unlink()
    figures = evaluate_run(trained, read_image_set(root), device="cpu", repetitions=0)
    found = set(nulls(figures))
    assert {"pixel.auroc", "pixel.au_pro"} <= found <= reasons(figures)
    assert figures["undefined"]["pixel.auroc"] == "no defective image has a mask with defect pixels"
    assert figures["image"]["auroc"] > 0.9


def test_a_set_without_defects(trained: Path, tmp_path: Path) -> None:
    image_set = read_image_set(draw_parts(tmp_path / "parts", train=2, defective=0))
    figures = evaluate_run(trained, image_set, device="cpu")
    found = set(nulls(figures))
    assert {"image.auroc", "image.f1_max", "pixel.auroc", "members.one.image_auroc"} <= found
    assert found <= reasons(figures)
    assert figures["undefined"]["image.auroc"] == "there is no defective image"
    assert figures["image"]["accuracy_good"] is not None
    assert figures["false_alarm_rate"]["observed"] is not None


def test_a_set_without_good_test_pictures(trained: Path, tmp_path: Path) -> None:
    image_set = read_image_set(draw_parts(tmp_path / "parts", train=2, good=0))
    figures = evaluate_run(trained, image_set, device="cpu", repetitions=0)
    assert figures["undefined"]["image.auroc"] == "there is no good image"
    assert figures["false_alarm_rate"]["observed"] is None
    assert figures["mask"] == {"good_images": None, "good_pixels": None}
    assert set(nulls(figures)) <= reasons(figures)
    assert figures["image"]["recall"] == 1


def test_an_ensemble_without_maps(parts: ImageSet, tmp_path: Path) -> None:
    members = (small_member("one", heads=(GaussianConfig(),)), small_member("feeder", 1, heads=()))
    config = small_config(members=members[:1], fusion=ScoreLevelConfig(), heads=())
    train_run(config, parts, tmp_path / "run", device="cpu")
    figures = evaluate_run(tmp_path / "run", parts, device="cpu", repetitions=0)
    assert set(nulls(figures)) <= reasons(figures)
    assert "no picturable head" in figures["undefined"]["pixel.auroc"]
    assert figures["branches"]["picturable"] == {"image_auroc": None, "reason": "no such head"}
    assert figures["image"]["auroc"] == 1
    assert summary(figures)[0]["pixel AUROC"] == "-"


def test_a_member_without_heads_is_named_with_its_reason(parts: ImageSet, tmp_path: Path) -> None:
    members = (small_member("one"), small_member("feeder", 1, heads=()))
    train_run(small_config(members=members, heads=(MemoryBankConfig(ratio=0.05),)), parts, tmp_path / "run")
    figures = evaluate_run(tmp_path / "run", parts, repetitions=0)
    assert figures["members"]["feeder"]["image_auroc"] is None
    assert "only feeds the fused map" in figures["members"]["feeder"]["reason"]
    assert set(nulls(figures)) <= reasons(figures)


def test_bad_test_pictures(trained: Path, tmp_path: Path) -> None:
    root = draw_parts(tmp_path / "parts", train=2, good=3, defective=2)
    (root / "test/good/001.png").write_bytes(b"")
    image_set = read_image_set(root)
    with pytest.raises(DataError, match=r"001.png: is empty"):
        evaluate_run(trained, image_set, device="cpu")
    figures = evaluate_run(trained, image_set, device="cpu", skip_bad=True, repetitions=0)
    assert figures["counts"]["good"] == 2
    assert [Path(item["path"]).name for item in figures["left_out"]] == ["001.png"]
    assert "is empty" in figures["left_out"][0]["reason"]


def test_nothing_to_test_on(trained: Path, parts: ImageSet) -> None:
    bare = ImageSet("bare", parts.root, "folder", parts.train, (), ())
    with pytest.raises(DataError, match=r"has no test pictures; expected test/<defect> folders"):
        evaluate_run(trained, bare)


def test_the_summary_is_for_people(figures: dict[str, Any]) -> None:
    rows = summary(figures)
    assert rows[0]["what"] == "ensemble"
    assert rows[0]["image AUROC"] == f"{100 * figures['image']['auroc']:.1f}"
    assert len(rows) == 1 + 2 + 2 + 5
    assert len({tuple(row) for row in rows}) == 1, "all rows have the same columns"


def test_nothing_is_marked_outside_the_region_of_interest(hard: ImageSet, tmp_path: Path) -> None:
    """Not even where everything inside is wrong, so that the lowest value of the map is too high."""
    frame = Frame(size=64, region=(0.25, 0.25, 0.75, 0.75))
    ensemble = train_run(small_config(frame=frame), hard, tmp_path / "run", device="cpu")
    placed = ensemble.config.frame.sized(ensemble.canvas)
    batch = next(iter(ImageBatches(hard.test[:1], placed, 1)))
    prediction = ensemble.predict(batch.images)
    wrong = np.full((40, 80), float(ensemble.map_threshold_) + 1, np.float32)
    marks = marked(ensemble, placed, prediction, 0, wrong)
    assert marks[10:30, 20:60].all()
    assert marks.sum() == 20 * 40
