"""Helpers for fsspec's file systems: retries, sizes, unfinished uploads, error messages."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from quadpipe import retries

T = TypeVar("T")


def retry(operation: Callable[[], T]) -> T:
    """Retry an operation with back-off.

    All kinds of errors are retried, since file systems raise many, except that a file is missing
    or a server refuses the request.
    """

    def attempt() -> T:
        try:
            return operation()
        except FileNotFoundError:
            raise
        except Exception as error:
            if any(_is_refused(cause) for cause in (error, error.__cause__)):
                raise PermissionError(reason_of(error)) from error
            raise

    return retries.retry(attempt, on=Exception)


def _is_refused(error: BaseException | None) -> bool:
    """Whether a server refuses the request itself, by its HTTP status, or it cannot be sent."""
    response = getattr(error, "response", None)
    metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    status = (
        metadata.get("HTTPStatusCode")
        or getattr(error, "status", None)
        or getattr(response, "status_code", None)
    )
    # Of botocore and huggingface_hub.
    not_sent = type(error).__name__ in ("NoCredentialsError", "OfflineModeIsEnabled")
    wrong = isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
    return wrong or not_sent


def size_of(system: Any, path: str) -> int | None:
    try:
        size: int | None = system.size(path)
    except FileNotFoundError as error:
        # The HTTP file system raises FileNotFoundError for every failure.
        status = getattr(error.__cause__, "status", None)
        if error.__cause__ is not None and status not in (403, 404, 410):
            raise ConnectionError(f"{error.__cause__}") from error
        raise
    return size


def uploads(system: Any, bucket: str, prefix: str) -> Iterator[dict[str, str]]:
    """Key and id of the unfinished uploads below a prefix of an S3 bucket."""
    more: dict[str, str] = {}
    while True:
        found = system.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **more)
        for upload in found.get("Uploads", []):
            yield {"Key": upload["Key"], "UploadId": upload["UploadId"]}
        if not found.get("IsTruncated"):
            return
        more = {
            "KeyMarker": found["NextKeyMarker"],
            "UploadIdMarker": found["NextUploadIdMarker"],
        }


def reason_of(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return " ".join(str(text).split())
