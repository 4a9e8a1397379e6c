"""Stacking: combiners learnt from validation images with labelled defects, where there are any.

Source: Wolpert 1992. scikit-learn fits; what is kept are plain tensors, so that nothing is pickled, and the forest is
walked here. Unlike the other combiners these need not rise with every head's score, and they know only the defects
that they were shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from einops import repeat
from pydantic import Field
from torch import Tensor

from manyeyes.config import Config, Seed
from manyeyes.fusion.contract import Combiner


class StackingLogistic(Combiner):
    """Logistic regression on standardised scores, good and defective images weighing the same.

    Units: log-odds. Equals scikit-learn's ``decision_function`` (tests/fusion/test_combine.py).
    """

    needs_labels = True
    weights_: Tensor
    bias_: Tensor

    def __init__(self, names: Sequence[str], regularisation: float) -> None:
        super().__init__(names)
        self.regularisation = regularisation
        self.declare("weights_", "bias_")

    def _fit(self, scores: Tensor, labels: Tensor) -> None:
        from sklearn.linear_model import LogisticRegression

        values = scores.cpu().double().numpy()
        centre, spread = values.mean(axis=0), values.std(axis=0)
        spread = np.where(spread > 1e-6 * np.abs(values).max(axis=0), spread, 1.0)
        model = LogisticRegression(C=1 / self.regularisation, class_weight="balanced", max_iter=1000)
        model.fit((values - centre) / spread, labels.cpu().numpy())
        weights = model.coef_[0] / spread
        self.weights_ = torch.from_numpy(weights).float().to(scores.device)
        self.bias_ = torch.tensor(float(model.intercept_[0] - weights @ centre), device=scores.device)

    def _combine(self, scores: Tensor) -> Tensor:
        return (scores * self.weights_).sum(dim=1) + self.bias_


class StackingForest(Combiner):
    """Random forest, good and defective images weighing the same.

    Units: probability of a defect. Equals scikit-learn's ``predict_proba`` (tests/fusion/test_combine.py). All trees
    are one list of nodes; a leaf is its own child, so that every image walks the same number of steps.
    """

    needs_labels = True
    feature_: Tensor
    threshold_: Tensor
    children_: Tensor
    probability_: Tensor
    roots_: Tensor
    depth_: Tensor

    def __init__(self, config: StackingForestConfig, names: Sequence[str]) -> None:
        super().__init__(names)
        self.config = config
        self.declare("feature_", "threshold_", "children_", "probability_", "roots_", "depth_")

    def _fit(self, scores: Tensor, labels: Tensor) -> None:
        from sklearn.ensemble import RandomForestClassifier

        forest = RandomForestClassifier(
            n_estimators=self.config.trees,
            max_depth=self.config.depth,
            class_weight="balanced",
            random_state=self.config.seed,
        )
        forest.fit(scores.cpu().float().numpy(), labels.cpu().numpy())
        trees = [tree.tree_ for tree in forest.estimators_]
        roots = np.cumsum([0] + [tree.node_count for tree in trees[:-1]])
        children, probability = [], []
        for root, tree in zip(roots, trees, strict=True):
            pair = np.stack([tree.children_left, tree.children_right])
            children.append(root + np.where(pair < 0, np.arange(tree.node_count), pair))
            probability.append(tree.value[:, 0, 1] / tree.value[:, 0].sum(axis=1))
        features = np.concatenate([np.maximum(tree.feature, 0) for tree in trees])

        def keep(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(scores.device)

        self.feature_, self.roots_ = keep(features.astype(np.int64)), keep(roots.astype(np.int64))
        self.children_ = keep(np.concatenate(children, axis=1).astype(np.int64))
        self.threshold_ = keep(np.concatenate([tree.threshold for tree in trees]))
        self.probability_ = keep(np.concatenate(probability))
        self.depth_ = torch.tensor(max(tree.max_depth for tree in trees), device=scores.device)

    def _combine(self, scores: Tensor) -> Tensor:
        # scikit-learn compares float32 values with float64 thresholds.
        values = scores.float().to(self.threshold_.dtype)
        node = repeat(self.roots_, "t -> n t", n=len(values))
        left, right = self.children_
        for _ in range(int(self.depth_)):
            goes_left = values.gather(1, self.feature_[node]) <= self.threshold_[node]
            node = torch.where(goes_left, left[node], right[node])
        return self.probability_[node].mean(dim=1).to(scores.dtype)


class StackingLogisticConfig(Config):
    """See `StackingLogistic`."""

    kind: Literal["stacking_logistic"] = "stacking_logistic"
    regularisation: float = Field(1.0, gt=0, description="strength of the penalty on squared weights (1 / C)")

    def build(self, names: Sequence[str]) -> StackingLogistic:
        return StackingLogistic(names, self.regularisation)


class StackingForestConfig(Config):
    """See `StackingForest`."""

    kind: Literal["stacking_forest"] = "stacking_forest"
    trees: int = Field(200, ge=1, description="number of trees")
    depth: int = Field(4, ge=1, le=64, description="deepest level of a tree")
    seed: Seed = Field(0, description="seed of the bootstrap and of the features tried")

    def build(self, names: Sequence[str]) -> StackingForest:
        return StackingForest(self, names)
