"""Training runs that resume exactly: checkpoints, locks, logs."""

from svclib.training.api import TrainingSettings as TrainingSettings
