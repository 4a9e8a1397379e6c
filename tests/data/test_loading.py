"""Batches: order, bounded memory, bad files, and no thread left behind."""

import gc
import threading
import weakref

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from manyeyes.data import loading
from manyeyes.data.frame import Frame
from manyeyes.data.images import read_image
from manyeyes.data.loading import AHEAD, ImageBatches
from manyeyes.data.sample import Sample
from manyeyes.errors import ConfigError, DataError

FRAME = Frame(size=32)


@pytest.fixture
def samples(tmp_path):
    rng = np.random.default_rng(0)
    found = []
    for index in range(11):
        shape = (20 + index, 40 - index, 3)
        path = tmp_path / f"{index}.png"
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
        found.append(Sample(path))
    return found


def image_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("manyeyes-images")]


def spoil(sample):
    sample.path.write_bytes(sample.path.read_bytes()[:90])


def test_batches_hold_the_placed_pictures_in_order(samples):
    batches = ImageBatches(samples, FRAME, batch_size=4)
    seen = list(batches)
    assert len(batches) == len(seen) == 3
    assert [len(batch.images) for batch in seen] == [4, 4, 3]
    assert [sample for batch in seen for sample in batch.samples] == samples
    assert [size for batch in seen for size in batch.sizes] == [(20 + i, 40 - i) for i in range(11)]
    images = torch.cat([batch.images for batch in seen])
    assert images.dtype == torch.float32
    for image, sample in zip(images, samples, strict=True):
        expected = FRAME.place(read_image(sample.path)).transpose(2, 0, 1) / 255
        np.testing.assert_allclose(image.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("workers", [1, 3, None])
def test_every_pass_and_every_number_of_workers_gives_the_same(samples, workers):
    batches = ImageBatches(samples, FRAME, 3, workers)
    first, second, single = list(batches), list(batches), list(ImageBatches(samples, FRAME, 3, 1))
    for a, b, c in zip(first, second, single, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.images, c.images)
        assert a.samples == b.samples == c.samples


def test_two_passes_may_run_at_once(samples):
    batches = ImageBatches(samples, FRAME, 4)
    for a, b in zip(batches, batches, strict=True):
        assert torch.equal(a.images, b.images)


def test_opencv_has_its_threads_back_when_the_last_pass_ends(samples):
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        first, second = (iter(ImageBatches(samples, Frame(size=16), 2)) for _ in range(2))
        next(first), next(second)
        assert cv2.getNumThreads() == 1
        list(first)
        assert cv2.getNumThreads() == 1, "the second pass still decodes"
        second.close()
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)


def test_starting_later_gives_the_rest(samples):
    batches = ImageBatches(samples, FRAME, 4)
    whole, rest = list(batches), list(batches.starting(1))
    assert [batch.samples for batch in rest] == [batch.samples for batch in whole[1:]]
    assert list(batches.starting(3)) == []


def test_an_unreadable_file_stops_in_order_and_is_named(samples):
    spoil(samples[5])
    batches = iter(ImageBatches(samples, FRAME, 4))
    assert next(batches).samples == tuple(samples[:4])
    with pytest.raises(DataError, match=r"5\.png: is damaged or truncated"):
        next(batches)
    assert not image_threads()


def test_skip_bad_leaves_out_and_records(samples):
    for index in (1, 4, 5, 6, 7):
        spoil(samples[index])
    batches = ImageBatches(samples, FRAME, 4, skip_bad=True)
    for _ in range(2):  # a second pass does not record twice
        seen = list(batches)
        # A bad file moves no other from its batch.
        assert [[int(s.path.stem) for s in batch.samples] for batch in seen] == [[0, 2, 3], [], [8, 9, 10]]
        assert [tuple(batch.images.shape) for batch in seen] == [(3, 3, 32, 32), (0, 3, 32, 32), (3, 3, 32, 32)]
        assert [path.name for path, _ in batches.skipped] == ["1.png", "4.png", "5.png", "6.png", "7.png"]
        assert all("damaged" in reason for _, reason in batches.skipped)


def test_skipped_is_known_when_the_batch_is_handed_out_and_kept_when_resuming(samples):
    spoil(samples[1])
    spoil(samples[9])
    batches = ImageBatches(samples, FRAME, 4, skip_bad=True)
    running = iter(batches)
    next(running)
    assert [path.name for path, _ in batches.skipped] == ["1.png"]
    running.close()
    resumed = ImageBatches(samples, FRAME, 4, skip_bad=True)
    resumed.skipped[:] = batches.skipped
    list(resumed.starting(1))
    assert [path.name for path, _ in resumed.skipped] == ["1.png", "9.png"]


def test_an_iteration_that_is_left_leaves_no_thread(samples):
    running = iter(ImageBatches(samples, FRAME, 2, workers=3))
    next(running)
    assert image_threads()
    running.close()
    assert not image_threads()
    for _ in ImageBatches(samples, FRAME, 2, workers=3):
        break
    gc.collect()
    assert not image_threads()
    with pytest.raises(KeyboardInterrupt):
        interrupted(samples)
    assert not image_threads()


def interrupted(samples):
    for _ in ImageBatches(samples, FRAME, 2, workers=3):
        raise KeyboardInterrupt


def test_only_a_few_decoded_pictures_exist_at_once(samples, monkeypatch):
    alive, most, lock = 0, 0, threading.RLock()

    def tracked(path, bits):
        nonlocal alive, most
        image = read_image(path, bits)
        with lock:
            alive += 1
            most = max(most, alive)
        weakref.finalize(image, forgotten)
        return image

    def forgotten():
        nonlocal alive
        with lock:
            alive -= 1

    monkeypatch.setattr(loading, "read_image", tracked)
    many = samples * 6
    for batch in ImageBatches(many, Frame(size=16), 2, workers=2):
        assert batch.images.shape[0] == 2
    assert 1 <= most <= 2  # a full picture lives only while its worker places it
    assert alive == 0


def test_loading_stays_a_bounded_number_of_batches_ahead(samples, monkeypatch):
    started = []

    def counted(path, bits):
        started.append(path)
        return read_image(path, bits)

    monkeypatch.setattr(loading, "read_image", counted)
    running = iter(ImageBatches(samples * 6, FRAME, 2, workers=4))
    for number in range(1, 10):
        next(running)
        assert len(started) <= (number + AHEAD) * 2
    running.close()


def test_every_worker_has_a_picture_to_decode_however_small_the_batch(samples, monkeypatch):
    together = threading.Barrier(5)  # breaks, and so does the test, unless five decode at once

    def waiting(path, bits):
        together.wait(timeout=20)
        return read_image(path, bits)

    monkeypatch.setattr(loading, "read_image", waiting)
    assert len(list(ImageBatches(samples[:10], FRAME, 1, workers=5))) == 10


def test_twelve_bit_pictures_follow_the_frame(tmp_path):
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), np.full((16, 16), 4095, np.uint16))
    batch = next(iter(ImageBatches([Sample(tmp_path / "a.png")], Frame(size=16, bits=12), 1)))
    assert (batch.images == 1).all()


def test_edges(samples):
    assert list(ImageBatches([], FRAME, 4)) == []
    assert len(ImageBatches([], FRAME, 4)) == 0
    with pytest.raises(ConfigError, match=r"frame\.size"):
        ImageBatches(samples, Frame(), 4)
    with pytest.raises(ValueError, match="batch_size"):
        ImageBatches(samples, FRAME, 0)
