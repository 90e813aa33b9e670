"""An S3 server and a Hugging Face Hub for the tests that use one."""

from fake_hub import hub
from servers import proxy, s3

__all__ = ["hub", "proxy", "s3"]
