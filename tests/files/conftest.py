"""An S3 server for the tests that use one."""

from collections.abc import Iterator

import fsspec
import pytest
from servers import Proxy, s3_server


@pytest.fixture(scope="module")
def s3() -> Iterator[Proxy]:
    """The proxy before the server, with a bucket and the environment to find it."""
    with pytest.MonkeyPatch.context() as patched, s3_server() as proxy:
        patched.setenv("AWS_ENDPOINT_URL", proxy.url)
        for name, value in (
            ("AWS_ACCESS_KEY_ID", "anybody"),
            ("AWS_SECRET_ACCESS_KEY", "anything"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            patched.setenv(name, value)
        system = fsspec.filesystem("s3")
        system.makedirs("bucket", exist_ok=True)  # the server's state outlives it
        yield proxy
        type(system).clear_instance_cache()


@pytest.fixture
def proxy(s3: Proxy) -> Iterator[Proxy]:
    """The same, without the faults that another test has set."""
    yield s3
    s3.troubles.clear()
