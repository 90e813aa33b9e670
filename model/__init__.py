"""The Quadformer: model, pretrained weights, trainer, evaluation."""

from quadpipe.model.config import TrainConfig
from quadpipe.model.evaluate import EvalResult, evaluate
from quadpipe.model.quadformer import PRESETS, Quadformer, QuadformerConfig
from quadpipe.model.run_folder import RunFolder
from quadpipe.model.train import train

__all__ = [
    "PRESETS",
    "EvalResult",
    "Quadformer",
    "QuadformerConfig",
    "RunFolder",
    "TrainConfig",
    "evaluate",
    "train",
]
