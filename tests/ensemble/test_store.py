"""The feature store: resumed, shared, never stale, and honest about bad pictures and full disks."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw_parts, small_config, small_member, small_trunk
from torch import Tensor

from manyeyes import files
from manyeyes.backbones import PatchCoreConfig
from manyeyes.backbones.trunk import TimmTrunk
from manyeyes.data import ImageBatches, ImageSet, Sample, read_image_set
from manyeyes.device import trunk_precision
from manyeyes.ensemble import Ensemble, FeatureStore, store, train_run
from manyeyes.ensemble.reading import Embeddings
from manyeyes.ensemble.store import StoredTaps
from manyeyes.errors import DataError, ManyeyesError, RunError
from manyeyes.files import write_text

CPU = torch.device("cpu")
FRAME = small_config().frame


def samples_of(root: Path) -> tuple[Sample, ...]:
    return read_image_set(root).train


def extract(
    folder: Path | str, samples: tuple[Sample, ...], ensemble: Ensemble | None = None, **options: Any
) -> tuple[StoredTaps, tuple[Sample, ...], list[tuple[Path, str]]]:
    eyes = (ensemble or Ensemble(small_config())).eyes
    return FeatureStore(folder).extract(eyes, samples, FRAME, batch_size=4, device=CPU, **options)


def values(taps: StoredTaps) -> dict[str, Tensor]:
    batches = list(taps)
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def equal(one: StoredTaps, other: StoredTaps) -> bool:
    mine, yours = values(one), values(other)
    return mine.keys() == yours.keys() and all(torch.equal(mine[key], yours[key]) for key in mine)


def extract_and_die(folder: str, root: str, at: int, seconds: float) -> None:
    store.CHECKPOINT_SECONDS = seconds

    def progress(done: int, total: int) -> None:
        if done >= at:
            os.kill(os.getpid(), signal.SIGKILL)

    extract(folder, samples_of(Path(root)), progress=progress)


def train_on_a_disk_with(free: int, disk: str, root: str) -> None:
    """Leaves with 0 if the run was written or refused in words, with another code for anything else."""
    Path(disk, "ballast").write_bytes(bytes(max(0, os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - free)))
    try:
        train_run(small_config(), read_image_set(root), Path(disk, "run"), device="cpu", batch_size=4)
    except RunError as error:
        sys.exit(0 if "free some space" in str(error) else str(error))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return draw_parts(tmp_path / "parts", good=0, defective=0)


def test_features_come_back_as_the_trunks_gave_them_with_channels_last(root: Path, tmp_path: Path) -> None:
    samples, ensemble = samples_of(root), Ensemble(small_config())
    taps, _, _ = extract(tmp_path, samples, ensemble)
    batches = zip(taps, ImageBatches(samples, FRAME, 4), strict=True)
    for stored, pictures in batches:
        for key, seen in ensemble.eyes(pictures.images).items():
            assert torch.equal(stored[key], seen.half().float())
            assert stored[key].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("at", "seconds", "left"),
    [(8, 0.0, [2]), (4, 0.0, [4, 2]), (8, 1e9, [4, 4, 2]), (10, 0.0, [])],
    ids=["late", "early", "before the first checkpoint", "after the last batch"],
)
def test_a_killed_extraction_goes_on_where_it_was(
    at: int, seconds: float, left: list[int], root: Path, tmp_path: Path, forwards: list[int], in_process: Any
) -> None:
    whole, _, _ = extract(tmp_path / "whole", samples_of(root))
    forwards.clear()
    assert in_process(extract_and_die, str(tmp_path / "killed"), str(root), at, seconds) == -signal.SIGKILL
    resumed, kept, _ = extract(tmp_path / "killed", samples_of(root))
    assert forwards == [size for size in left for _ in range(2)]
    assert kept == samples_of(root)
    assert equal(whole, resumed)


def test_trunks_that_came_unequally_far_go_on_with_the_last(
    root: Path, tmp_path: Path, forwards: list[int], in_process: Any
) -> None:
    whole, _, _ = extract(tmp_path / "whole", samples_of(root))
    forwards.clear()
    assert in_process(extract_and_die, str(tmp_path / "killed"), str(root), 8, 0.0) == -signal.SIGKILL
    trunk = next(path for path in (tmp_path / "killed").iterdir() if path.is_dir())
    shutil.rmtree(trunk)
    resumed, _, _ = extract(tmp_path / "killed", samples_of(root))
    assert forwards == [4, 4, 4, 4, 2, 2]
    assert equal(whole, resumed)


def test_a_picture_that_changed_meanwhile_is_extracted_anew(
    root: Path, tmp_path: Path, forwards: list[int], in_process: Any
) -> None:
    assert in_process(extract_and_die, str(tmp_path / "killed"), str(root), 8, 0.0) == -signal.SIGKILL
    changed = root / "train/good/001.png"
    changed.write_bytes((root / "train/good/002.png").read_bytes())
    resumed, _, _ = extract(tmp_path / "killed", samples_of(root))
    assert forwards == [4, 4, 4, 4, 2, 2]
    assert all(torch.equal(value[1], value[2]) for value in values(resumed).values())


def test_a_checkpoint_of_another_batch_size_is_not_continued(
    root: Path, tmp_path: Path, forwards: list[int], in_process: Any
) -> None:
    assert in_process(extract_and_die, str(tmp_path / "killed"), str(root), 8, 0.0) == -signal.SIGKILL
    eyes = Ensemble(small_config()).eyes
    FeatureStore(tmp_path / "killed").extract(eyes, samples_of(root), FRAME, batch_size=5, device=CPU)
    assert forwards == [5, 5, 5, 5]


def extract_in_ones_and_die(folder: str, root: str) -> None:
    """Another batch size, killed before the first checkpoint."""

    def progress(done: int, total: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    store.CHECKPOINT_SECONDS = 1e9
    eyes = Ensemble(small_config()).eyes
    samples = samples_of(Path(root))
    FeatureStore(folder).extract(eyes, samples, FRAME, batch_size=1, device=CPU, progress=progress)


def extract_one_trunk_and_die(folder: str, root: str) -> None:
    def progress(done: int, total: int) -> None:
        if done >= 8:
            os.kill(os.getpid(), signal.SIGKILL)

    store.CHECKPOINT_SECONDS = 0.0
    one = Ensemble(small_config(members=(small_member("one"),)))
    extract(folder, samples_of(Path(root)), one, progress=progress)


def test_an_old_checkpoint_is_not_taken_for_a_later_one(root: Path, tmp_path: Path, in_process: Any) -> None:
    """The second attempt, of another batch size, makes the files anew and dies before it says how far it came."""
    killed = str(tmp_path / "killed")
    eyes = Ensemble(small_config()).eyes
    whole, _, _ = FeatureStore(tmp_path / "whole").extract(eyes, samples_of(root), FRAME, batch_size=1, device=CPU)
    assert in_process(extract_and_die, killed, str(root), 8, 0.0) == -signal.SIGKILL
    for _ in range(2):
        assert in_process(extract_in_ones_and_die, killed, str(root)) == -signal.SIGKILL
    found, _, _ = FeatureStore(killed).extract(eyes, samples_of(root), FRAME, batch_size=1, device=CPU)
    assert equal(whole, found)


def test_an_old_checkpoint_of_one_trunk_does_not_outlive_its_files(root: Path, tmp_path: Path, in_process: Any) -> None:
    killed, one = str(tmp_path / "killed"), Ensemble(small_config(members=(small_member("one"),)))
    whole, _, _ = extract(tmp_path / "whole", samples_of(root), one)
    assert in_process(extract_one_trunk_and_die, killed, str(root)) == -signal.SIGKILL
    assert in_process(extract_and_die, killed, str(root), 4, 1e9) == -signal.SIGKILL, "both trunks, no checkpoint"
    found, _, _ = extract(killed, samples_of(root), one)
    assert equal(whole, found)


def test_rows_of_different_pictures_are_refused(root: Path, tmp_path: Path) -> None:
    """A picture that could be read for one trunk only: the same size and date, so that the fingerprint stays."""
    broken = samples_of(root)[1].path
    content, status = broken.read_bytes(), broken.stat()
    broken.write_bytes(bytes(len(content)))
    os.utime(broken, ns=(status.st_atime_ns, status.st_mtime_ns))
    extract(tmp_path, samples_of(root), Ensemble(small_config(members=(small_member("one"),))), skip_bad=True)
    broken.write_bytes(content)
    os.utime(broken, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(RunError, match="features of different pictures"):
        extract(tmp_path, samples_of(root), skip_bad=True)


def test_names_that_are_no_utf_8_are_names(root: Path, tmp_path: Path) -> None:
    strange = root / "train/good" / os.fsdecode(b"b\xfc.png")
    shutil.copy(root / "train/good/001.png", strange)
    _, kept, _ = extract(tmp_path, samples_of(root))
    assert strange in [sample.path for sample in kept]
    write_text(tmp_path / "list.txt", str(strange))
    assert "b\\udcfc.png" in (tmp_path / "list.txt").read_text()


def test_features_of_other_code_are_not_taken(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = store.samples_fingerprint(samples_of(root), FRAME, False)
    with monkeypatch.context() as patch:
        patch.setattr(store, "source_digest", lambda *parts: "0123456789abcdef")
        assert store.samples_fingerprint(samples_of(root), FRAME, False) != before
    with monkeypatch.context() as patch:
        patch.setattr(files, "library_versions", lambda: {"torch": "1.0"})
        files.source_digest.cache_clear()
        assert store.samples_fingerprint(samples_of(root), FRAME, False) != before
    files.source_digest.cache_clear()
    assert store.samples_fingerprint(samples_of(root), FRAME, False) == before


def test_what_is_there_is_not_extracted_again(root: Path, tmp_path: Path, forwards: list[int]) -> None:
    one = Ensemble(small_config(members=(small_member("one"),)))
    first, _, _ = extract(tmp_path, samples_of(root), one)
    assert forwards == [4, 4, 2]
    both, _, _ = extract(tmp_path, samples_of(root))
    assert forwards == [4, 4, 2, 4, 4, 2], "the second trunk only"
    assert equal(first, both.only(list(first.arrays)))
    extract(tmp_path, samples_of(root)[::-1])
    assert len(forwards) == 12, "another order is another list"


def test_another_stage_of_a_known_trunk(root: Path, tmp_path: Path) -> None:
    extract(tmp_path, samples_of(root), Ensemble(small_config(members=(small_member("one"),))))
    deeper = PatchCoreConfig(trunk=small_trunk(), stages=(1, 3))
    ensemble = Ensemble(small_config(members=(small_member("one", extractor=deeper),)))
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in tmp_path.rglob("*.npy")}
    taps, _, _ = extract(tmp_path, samples_of(root), ensemble)
    fresh, _, _ = extract(tmp_path / "fresh", samples_of(root), ensemble)
    assert equal(taps, fresh)
    assert len(before) == 2
    after = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in before}
    assert after == before, "somebody may be reading what is stored"


def test_stages_that_were_extracted_apart_are_all_known(root: Path, tmp_path: Path, forwards: list[int]) -> None:
    def looking(*stages: int) -> Ensemble:
        member = small_member("one", extractor=PatchCoreConfig(trunk=small_trunk(), stages=stages))
        return Ensemble(small_config(members=(member,)))

    for stages in ((1,), (3,), (1, 3), (3,)):
        extract(tmp_path, samples_of(root), looking(*stages))
    assert forwards == [4, 4, 2, 4, 4, 2]


def test_half_and_single_precision_lie_apart(root: Path, tmp_path: Path) -> None:
    eyes = Ensemble(small_config()).eyes
    half, single = (
        FeatureStore(tmp_path, precision).extract(eyes, samples_of(root), FRAME, batch_size=4, device=CPU)[0]
        for precision in ("float16", "float32")
    )
    assert {np.load(path).dtype for path in half.arrays.values()} == {np.dtype(np.float16)}
    assert {np.load(path).dtype for path in single.arrays.values()} == {np.dtype(np.float32)}
    assert half.fingerprint != single.fingerprint
    with trunk_precision(CPU, "bfloat16"):
        other, _, _ = extract(tmp_path, samples_of(root))
    assert other.fingerprint != half.fingerprint, "what the trunks compute in differs, too"


def test_a_bad_picture_stops_the_run_and_is_named(root: Path, tmp_path: Path) -> None:
    bad = root / "train/good/004.png"
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises(DataError, match=r"004.png: is damaged or truncated"):
        extract(tmp_path / "features", samples_of(root))
    # Mended, the same store goes on.
    bad.write_bytes((root / "train/good/005.png").read_bytes())
    taps, kept, _ = extract(tmp_path / "features", samples_of(root))
    assert len(taps) == len(kept) == 10


def test_bad_pictures_are_left_out_and_listed(root: Path, tmp_path: Path, forwards: list[int]) -> None:
    for index, content in ((0, b""), (4, b"no picture"), (5, b""), (6, b""), (7, b"")):
        (root / f"train/good/{index:03}.png").write_bytes(content)
    samples = samples_of(root)
    for _ in range(2):  # extracted, then found
        taps, kept, skipped = extract(tmp_path / "features", samples, skip_bad=True)
        assert [sample.path.stem for sample in kept] == ["001", "002", "003", "008", "009"]
        assert [path.stem for path, _ in skipped] == ["000", "004", "005", "006", "007"]
        assert "is empty (0 bytes)" in skipped[0][1]
        assert "no image that Pillow or OpenCV can read" in skipped[1][1]
        assert len(taps) == 5
    assert forwards == [3, 3, 2, 2], "a batch of bad pictures only is not run"
    clean, _, _ = extract(tmp_path / "clean", kept)
    for key, value in values(clean).items():
        torch.testing.assert_close(values(taps)[key], value, rtol=2e-3, atol=1e-3)


def test_a_missing_picture(root: Path, tmp_path: Path) -> None:
    samples = samples_of(root)
    samples[3].path.unlink()
    with pytest.raises(DataError, match=r"003.png: cannot be read \(No such file"):
        extract(tmp_path / "features", samples)
    _, kept, skipped = extract(tmp_path / "features", samples, skip_bad=True)
    assert len(kept) == 9
    assert "does not exist" in skipped[0][1]


def test_nothing_to_extract(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no picture"):
        extract(tmp_path / "features", ())
    samples = samples_of(root)
    for sample in samples:
        sample.path.write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 10 pictures could be read; the first: .*000.png: is empty"):
        extract(tmp_path / "features", samples, skip_bad=True)


def test_features_that_half_precision_cannot_hold(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = TimmTrunk.forward
    monkeypatch.setattr(TimmTrunk, "forward", lambda *a: {key: value + 1e5 for key, value in forward(*a).items()})
    with pytest.raises(DataError, match=r"not finite in float16; .*set store: float32"):
        extract(tmp_path / "half", samples_of(root))
    eyes = Ensemble(small_config()).eyes
    taps, _, _ = FeatureStore(tmp_path, "float32").extract(eyes, samples_of(root), FRAME, batch_size=4, device=CPU)
    assert min(float(value.min()) for value in values(taps).values()) > 9e4


def test_too_little_space_is_said_before_anything_is_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("manyeyes.files.shutil.disk_usage", lambda path: usage)
    with pytest.raises(RunError, match=r"MB are needed and 0.00 MB are free; free some space") as caught:
        extract(tmp_path / "features", samples_of(root))
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    taps, _, _ = extract(tmp_path / "features", samples_of(root))
    assert len(taps) == 10


@pytest.mark.parametrize("kilobytes", [12, 300, 520, 660])
def test_a_disk_that_fills_up_at_any_point(
    kilobytes: int, small_disk: Path, root: Path, in_process: Callable[..., int]
) -> None:
    # A write through a memory map into a full disk would kill the process with a bus error.
    assert in_process(train_on_a_disk_with, kilobytes * 1024, str(small_disk), str(root)) == 0


def test_embeddings_are_computed_once_and_read_again(root: Path, tmp_path: Path) -> None:
    taps, _, _ = extract(tmp_path, samples_of(root))
    key, calls = next(iter(taps.arrays)), []

    def embed(batch: Any) -> Tensor:
        calls.append(len(batch[key]))
        return batch[key]

    with Embeddings(taps, embed) as embeddings:
        first, second = torch.cat(list(embeddings)), torch.cat(list(embeddings))
    assert calls == [4, 4, 2]
    assert torch.equal(first, second)
    assert torch.equal(first, values(taps)[key])
    # An interrupted first pass starts over.
    with Embeddings(taps, embed) as embeddings:
        next(iter(embeddings))
        assert torch.equal(torch.cat(list(embeddings)), first)


def test_embeddings_that_half_precision_cannot_hold_are_told(root: Path, tmp_path: Path) -> None:
    taps, _, _ = extract(tmp_path, samples_of(root))
    key = next(iter(taps.arrays))
    with (
        Embeddings(taps, lambda batch: batch[key] * 1e7) as embeddings,
        pytest.raises(DataError, match=r"the fused map reaches [\d.e+]+, more than half precision holds \(65,504\)"),
    ):
        list(embeddings)


def test_embeddings_of_a_precise_store_are_precise(root: Path, tmp_path: Path) -> None:
    eyes = Ensemble(small_config()).eyes
    taps, _, _ = FeatureStore(tmp_path, "float32").extract(eyes, samples_of(root), FRAME, batch_size=4, device=CPU)
    key = next(iter(taps.arrays))
    with Embeddings(taps, lambda batch: batch[key] * 1e5 + 1e-3) as embeddings:
        first, second = torch.cat(list(embeddings)), torch.cat(list(embeddings))
    assert torch.equal(first, values(taps)[key] * 1e5 + 1e-3)
    assert torch.equal(second, first)


def test_the_error_of_a_store_is_one_that_users_can_mend(tmp_path: Path, parts: ImageSet) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ManyeyesError, match=r"part of the path is a file"):
        extract(tmp_path / "file/features", parts.train)
