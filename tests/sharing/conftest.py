"""An S3 server for the tests that use one."""

from servers import proxy, s3

__all__ = ["proxy", "s3"]
