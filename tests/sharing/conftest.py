"""An S3 server and a Hugging Face Hub for the tests that use one."""

import pytest
from fake_hub import hub
from servers import proxy, s3

__all__ = ["hub", "proxy", "s3"]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch) -> None:
    """Between attempts, and for another writer; both are tested in tests/files."""
    monkeypatch.setattr("quadpipe.retries.PAUSES", (0.01,) * 4)
    monkeypatch.setattr("quadpipe.files.remote._SETTLE_SECONDS", 0.01)
