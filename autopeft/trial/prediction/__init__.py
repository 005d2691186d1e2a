"""Memory before training: traces without a GPU, and a model of them that answers at once."""

from autopeft.trial.prediction.model import MemoryModel
from autopeft.trial.prediction.trace import MemoryTrace, TrainingSetup, trace_peak

__all__ = ["MemoryModel", "MemoryTrace", "TrainingSetup", "trace_peak"]
