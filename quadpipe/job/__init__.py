"""The main job: plan, one shard's work, the engines that run it, the merge."""

from quadpipe.job.config import DatasetConfig, JobConfig
from quadpipe.job.progress import Preview, Progress
from quadpipe.job.run import Job, tokenize
from quadpipe.job.run_config import RunConfig

__all__ = ["DatasetConfig", "Job", "JobConfig", "Preview", "Progress", "RunConfig", "tokenize"]
