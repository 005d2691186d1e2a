"""Memory before training: traces without a GPU, and a model of them that answers at once."""

from autopeft.trial.prediction.predictor import MemoryPredictor
from autopeft.trial.prediction.setup import TrainingSetup
from autopeft.trial.prediction.trace import MemoryTrace, trace_peak

__all__ = ["MemoryPredictor", "MemoryTrace", "TrainingSetup", "trace_peak"]
