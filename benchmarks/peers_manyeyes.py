"""The other side of peers.py: the same PatchCore as one member of an ensemble, measured in a process of its own."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch
from sklearn.metrics import roc_auc_score

from manyeyes.backbones import TimmTrunkConfig
from manyeyes.data import ImageBatches, ImageSet, Sample
from manyeyes.ensemble import Ensemble, Extraction, FeatureStore, fit_ensemble
from manyeyes.ensemble.presets import single
from manyeyes.heads import MemoryBankConfig

BATCH = 8


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(task["threads"])
    trunk = TimmTrunkConfig(architecture="resnet18", weights=task["weights"], size=256)
    bank = MemoryBankConfig(ratio=task["ratio"], reweight=True, reweight_neighbours=9)
    # Two pictures stay out of the bank, because a normaliser and a threshold need some; the peer has neither.
    config = single("peer", trunk, (2, 3), (bank,)).model_copy(update={"validation": 2.5 / len(task["train"])})
    train = tuple(Sample(Path(path)) for path in task["train"])
    test = tuple(Sample(Path(path)) for path in task["test"])
    image_set = ImageSet("peer", Path(task["root"]), "folder", train, (), test)
    ensemble = Ensemble(config)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        fit_ensemble(config, image_set, Extraction(FeatureStore(folder), torch.device("cpu"), BATCH), ensemble=ensemble)
        fitted = time.perf_counter() - begun
    batches = [batch.images for batch in ImageBatches(test, config.frame.sized(ensemble.canvas), BATCH)]
    scores, seconds = [], []
    ensemble.predict(batches[0])
    for images in batches:
        begun = time.perf_counter()
        prediction = ensemble.predict(images)
        seconds.append((time.perf_counter() - begun) / len(images))
        scores += prediction.score.tolist()
    result = {
        "fit": fitted,
        "ms": 1000 * float(torch.tensor(seconds).median()),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "auroc": 100 * float(roc_auc_score(task["labels"], scores)),
        "entries": len(ensemble.state_dict()["branches.0.heads.member/memory_bank.bank_"]),
    }
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
