"""Training runs that resume exactly: checkpoints, locks, logs."""

from svclib.training.session import TrainingSettings as TrainingSettings
