"""One side of peers.py, run in an environment that has Anomalib and not manyeyes: its PatchCore, measured.

Anomalib's torch model, its pre-processing and its reader are called directly, without Lightning's loop around them,
which only saves time. Its weights come from a hub; here they are loaded from a file into its own feature extractor.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import torch
from anomalib.data.utils import read_image
from anomalib.models.image.patchcore.lightning_model import Patchcore
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader, Dataset

BATCH = 8


class Pictures(Dataset):
    def __init__(self, paths: list[str]) -> None:
        self.paths = paths
        self.transform = Patchcore.configure_pre_processor((256, 256)).transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(read_image(self.paths[index], as_tensor=True))


def model_with(weights: str) -> PatchcoreModel:
    model = PatchcoreModel(layers=["layer2", "layer3"], backbone="resnet18", pre_trained=False, num_neighbors=9)
    state = {key: value.float() for key, value in load_file(weights).items()}
    missing = model.feature_extractor.feature_extractor.load_state_dict(state, strict=False).missing_keys
    if missing:
        raise SystemExit(f"{weights}: lacks {missing[:4]}")
    return model


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(task["threads"])
    torch.manual_seed(0)
    model = model_with(task["weights"])
    begun = time.perf_counter()
    model.train()
    model.feature_extractor.eval()
    for images in DataLoader(Pictures(task["train"]), BATCH, num_workers=task["threads"]):
        model(images)
    model.subsample_embedding(task["ratio"])
    fitted = time.perf_counter() - begun
    model.eval()
    batches = list(DataLoader(Pictures(task["test"]), BATCH))
    scores, seconds = [], []
    with torch.inference_mode():
        model(batches[0])
        for images in batches:
            begun = time.perf_counter()
            prediction = model(images)
            seconds.append((time.perf_counter() - begun) / len(images))
            scores += prediction.pred_score.flatten().tolist()
    result = {
        "fit": fitted,
        "ms": 1000 * float(torch.tensor(seconds).median()),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "auroc": 100 * float(roc_auc_score(task["labels"], scores)),
        "entries": len(model.memory_bank),
    }
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
