"""Numbers as text for people."""


def bytes_text(count: float) -> str:
    """1.3 GB, in powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:,.0f} bytes" if unit == "bytes" else f"{count:,.1f} {unit}"


def counted(count: int, noun: str) -> str:
    """1 shard, 2,000 shards, 0 classes."""
    return f"{count:,} {noun}{'' if count == 1 else 'es' if noun.endswith('s') else 's'}"
