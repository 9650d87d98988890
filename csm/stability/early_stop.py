"""The metric that chooses checkpoints and may end a run: val/loss, or what is measured on generated speech."""

from __future__ import annotations

import math
from typing import Any

from csm.config import EarlyStopConfig

_HIGHER = ("accuracy", "recall", "ended", "similarity")
"""Parts of the names of metrics of which more is better; of losses, word errors and failures, less is."""
UNDIRECTED = ("rate", "chars_per_second", "entropy")
"""Parts of the names of metrics that are best neither high nor low."""


class EarlyStop:
    """The best value of `metric` so far, and how often it was missed since.

    Without a configured metric it follows val/loss and never ends a run.
    """

    def __init__(self, options: EarlyStopConfig) -> None:
        self._options = options
        self.metric = options.metric or "val/loss"
        self.best = math.inf  # of the metric, negated where higher is better
        self.misses = 0

    @property
    def done(self) -> bool:
        """Whether `patience` values in a row were no better than the best."""
        return self._options.metric is not None and self.misses >= self._options.patience

    def see(self, metrics: dict[str, float]) -> bool:
        """Takes the metrics of a validation; returns whether they are the best so far.

        Those without the metric count for nothing: samples are not spoken at every validation. Raises ValueError if
        it is no metric of a validation.
        """
        if self.metric not in metrics:
            if not self.metric.startswith("samples/"):
                known = ", ".join(name for name in metrics if name.startswith("val/"))
                raise ValueError(f"trainer.early_stop.metric={self.metric}: validation has {known}, and samples/*")
            return False
        value = metrics[self.metric] * (-1 if any(part in self.metric for part in _HIGHER) else 1)
        if value < self.best:
            self.best, self.misses = value, 0
            return True
        self.misses += 1  # NaN is no better than anything
        return False

    def state(self) -> dict[str, Any]:
        return {"metric": self.metric, "best": self.best, "misses": self.misses}

    @staticmethod
    def earlier_state(best_loss: float) -> dict[str, Any]:
        """State as in checkpoints of earlier versions, which followed val/loss."""
        return {"metric": "val/loss", "best": best_loss, "misses": 0}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues, unless the run now follows another metric."""
        if state["metric"] == self.metric:
            self.best, self.misses = state["best"], state["misses"]
