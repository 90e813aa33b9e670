"""The main job: plan, one shard's work, the engines that run it, the merge."""

from quadpipe.job.config import DatasetConfig, JobConfig, RunConfig
from quadpipe.job.run import Job, Preview, Progress, tokenize

__all__ = ["DatasetConfig", "Job", "JobConfig", "Preview", "Progress", "RunConfig", "tokenize"]
