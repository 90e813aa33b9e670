"""Random damage to a small dataset: to its shards, lists, index, manifest and markers."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from forging import edit_manifest, put_index, rewrite_index

SPLIT = "train"
TEXTUAL = {"bytes", "headers", "members", "texts"}
"""Kinds of damage that may change the description of a sample."""

ODD_VALUES = [
    None, True, False, 0, 1, -1, 5, 2**31, 2**63, 2**64, 10**30, 10**400, 0.5, -0.0, 1e308, "", "x",
    "../x", "/etc/passwd", "http://example.org/", "\ud800", "\0", "\x1b[31m", "9" * 30, [], {}, [0],
    [[]], {"a": 1}, float("nan"), float("inf"), [1, 2, 3, 4], ["a", None], "train-000001.tar",
]  # fmt: skip
ODD_NUMBERS = [0, 1, 3, 9, 255, 256, 511, 512, 513, 1024, 2**20, 2**31 - 1, 2**31, 2**33 - 1]
ODD_HEADERS = [
    b"'<i4'", b"'|O'", b"'<i8'", b"'>i4'", b"'|u1'", b"'<f4'", b"True", b"False", b"(20, 4)",
    b"(-20, 4)", b"(1099511627776, 4)", b"(20,)", b"()", b"(20, 4, 1)", b"[('x', '<i4')]", b"(4,)",
    b"(20, 4, 4, 3)", b"'\x00'", b"9" * 60,
]  # fmt: skip


def damage(chance: random.Random, dataset: Path) -> set[str]:
    """Change one to three things; their kinds."""
    kinds = set()
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        kind = chance.choice(sorted(DAMAGES))
        DAMAGES[kind](chance, dataset)
        kinds.add(kind)
    if chance.random() < 0.7:
        seal(dataset)
        if not kinds.isdisjoint({"list", "manifest"}) or chance.random() < 0.5:
            shutil.rmtree(dataset / ".quadpipe", ignore_errors=True)
    return kinds


def seal(dataset: Path) -> None:
    """Make sizes, checksums and totals those of the files, where lists and manifest allow it."""
    path = dataset / f"{SPLIT}.shards.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_bytes().splitlines()]
        for row in rows:
            tar = dataset / str(row["name"])
            if tar.is_file() and tar.parent == dataset and type(row["bytes"]) is int:
                data = tar.read_bytes()
                # A list with an empty shard would itself be wrong.
                row |= {"bytes": len(data) or 1, "sha256": hashlib.sha256(data).hexdigest()}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        edit_manifest(dataset, splits__train__shard_list_sha256=digest)
        edit_manifest(dataset, splits__train__bytes=sum(row["bytes"] for row in rows))
        samples = sum(row["samples"] for row in rows)
        edit_manifest(dataset, splits__train__samples=samples, splits__train__inputs=samples)
        edit_manifest(dataset, splits__train__shards=len(rows))
        rewrite_index(dataset, SPLIT)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError):
        return  # lists and manifest that are damaged themselves stay as they are


def change_shard(
    change: Callable[[random.Random, bytearray], bytes | bytearray],
) -> Callable[[random.Random, Path], None]:
    def apply(chance: random.Random, dataset: Path) -> None:
        tars = [tar for tar in sorted(dataset.glob(f"{SPLIT}-*.tar")) if tar.is_file()]
        if tars:
            tar = chance.choice(tars)
            data = tar.read_bytes()
            tar.unlink()  # it may be a link
            tar.write_bytes(change(chance, bytearray(data)))

    return apply


def bytes_of(chance: random.Random, data: bytearray) -> bytes | bytearray:
    """Flip bits, cut, splice, or repeat pieces, anywhere or at blocks."""
    unit = chance.choice((1, 512))
    for _ in range(chance.randint(1, 4)):
        if not data:
            break
        at = chance.randrange(len(data)) // unit * unit
        length = chance.choice((1, 2, 8, 100, 512, 1024, 4096))
        kind = chance.randrange(6)
        if kind == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at : at + length] = chance.randbytes(len(data[at : at + length]))
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif kind == 4:
            data[at : at + length] = bytes(len(data[at : at + length]))
        else:
            del data[at:]
    return data


def parts_of(data: bytes | bytearray) -> list[bytearray]:
    """The members of an archive that is whole: headers with content and padding."""
    parts, at = [], 0
    while data[at : at + 512].strip(b"\0"):
        try:
            size = int(data[at + 124 : at + 135], 8)
        except ValueError:
            break
        after = at + 512 + -(-max(size, 0) // 512) * 512
        parts.append(bytearray(data[at:after]))
        at = after
    return parts


def archive(parts: list[bytearray]) -> bytes:
    return b"".join(parts) + bytes(1024)


def members_of(chance: random.Random, data: bytearray) -> bytes:
    """Swap, double, drop or move members, of one sample or between samples."""
    parts = parts_of(data)
    for _ in range(chance.randint(1, 3)):
        if len(parts) < 2:
            break
        one, other = chance.sample(range(len(parts)), 2)
        kind = chance.randrange(5)
        if kind == 0:
            parts[one], parts[other] = parts[other], parts[one]
        elif kind == 1:
            parts.insert(other, bytearray(parts[one]))
        elif kind == 2:
            del parts[one]
        elif kind == 3:  # the content of another member
            parts[one] = parts[one][:100] + parts[other][100:]
            fix_checksum(parts[one])
        else:
            parts = parts[one:] + parts[:one]
    return archive(parts)


def fix_checksum(part: bytearray) -> None:
    part[148:156] = b" " * 8
    part[148:156] = b"%06o\0 " % (sum(part[:512]) % 8**6)


def headers_of(chance: random.Random, data: bytearray) -> bytes:
    """Other sizes, names, types or prefixes of members, with checksums that fit."""
    parts = parts_of(data)
    for part in chance.sample(parts, min(len(parts), chance.randint(1, 2))):
        kind = chance.randrange(4)
        if kind == 0:
            size = chance.choice((b"%011o" % chance.choice(ODD_NUMBERS), b"-1", b"", b"\x80" * 12))
            part[124:136] = size.ljust(12, b"\0")[:12]
        elif kind == 1:
            part[156] = chance.choice(b"0123456789SLKxgVDMN\0A")
        elif kind == 2:
            name = bytes(part[:100]).rstrip(b"\0")
            name = chance.choice((
                b"../" + name, b"/" + name, name.replace(b"0", b"/"), name + b"\0x", b"", b".",
                name.partition(b".")[0], name.upper(), b"\xff" + name, b"x" * 100, b"\x1b" + name,
                name.replace(b"00", b"0"), name[:-1], b"." + name.partition(b".")[2],
            ))  # fmt: skip
            part[:100] = name[:100].ljust(100, b"\0")
        else:
            part[chance.randrange(512)] = chance.randrange(256)
        if chance.random() < 0.9:
            fix_checksum(part)
    return archive(parts)


def put(part: bytearray, content: bytes) -> bytearray:
    """A member with other content, its size and checksum made to fit."""
    header = part[:512]
    header[124:136] = b"%011o\0" % len(content)
    fix_checksum(header)
    return header + content + bytes(-len(content) % 512)


def content_of(part: bytearray) -> bytearray:
    return part[512 : 512 + int(part[124:135], 8)]


def change_content(
    suffix: bytes, change: Callable[[random.Random, bytearray], bytes | bytearray]
) -> Callable[[random.Random, bytearray], bytes | bytearray]:
    def apply(chance: random.Random, data: bytearray) -> bytes | bytearray:
        parts = parts_of(data)
        chosen = [n for n, part in enumerate(parts) if suffix in part[:100]]
        if chosen:
            number = chance.choice(chosen)
            try:
                content = content_of(parts[number])
            except ValueError:
                return data
            parts[number] = put(parts[number], bytes(change(chance, content)))
        return archive(parts)

    return apply


def array_of(chance: random.Random, content: bytearray) -> bytes | bytearray:
    """Another header of a NumPy file, or other numbers."""
    kind = chance.randrange(4)
    if kind == 0:
        parts = bytes(content[:128]).split(b": ")
        at = chance.randrange(len(parts))
        parts[at] = chance.choice(ODD_HEADERS) + parts[at][chance.randrange(len(parts[at]) + 1) :]
        header = b": ".join(parts)
        header = header[:127].ljust(127) + b"\n" if chance.random() < 0.7 else header
        return header + content[128:]
    if kind == 1:
        content[8:10] = chance.choice(ODD_NUMBERS).to_bytes(8, "little")[:2]
        content[6] = chance.choice((0, 1, 2, 3, 255))
        return content
    if kind == 2 and len(content) > 132:
        for _ in range(chance.randint(1, 3)):
            at = 128 + chance.randrange((len(content) - 128) // 4) * 4
            value = chance.choice((-(2**31), -2, -1, 0, 1, 2, 3, 4, 7, 8, 2**31 - 1))
            content[at : at + 4] = value.to_bytes(4, "little", signed=True)
        return content
    return bytes_of(chance, content)


def text_of(chance: random.Random, content: bytearray) -> bytes | bytearray:
    """Another label or description."""
    if content[:1] == b"{" and chance.random() < 0.7:
        return changed_json(chance, bytes(content))
    return chance.choice((
        b"", b"0", b"1", b"2", b"-1", b"1e0", b" 1", b"1\n", b"9" * 30, b"\xb2", b"[" * 9999,
        b"0" * 9, b"true", b"\xff\xfe", b'"x"', bytes_of(chance, content),
    ))  # fmt: skip


def changed_json(chance: random.Random, data: bytes) -> bytes:
    """One value replaced, removed or added, or the text itself damaged."""
    if chance.random() < 0.15:
        return bytes(bytes_of(chance, bytearray(data)))
    try:
        document = json.loads(data)
    except ValueError:
        return data
    place: Any = document
    while isinstance(place, dict | list) and place:
        key: Any = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if isinstance(place[key], dict | list) and place[key] and chance.random() < 0.7:
            place = place[key]
            continue
        kind = chance.randrange(6)
        if kind == 0:
            del place[key]
        elif kind == 1 and isinstance(place, dict):
            place[chance.choice(("x", "name", "samples", "view", "", "\ud800"))] = place[key]
        elif kind == 2 and type(place[key]) is int:
            place[key] += chance.choice((-1, 1, 512, -512, 3, 2**40))
        else:
            place[key] = chance.choice(ODD_VALUES)
        break
    return json.dumps(document).encode()


def change_list(chance: random.Random, dataset: Path) -> None:
    """Values, lines or bytes of the shard list."""
    path = dataset / f"{SPLIT}.shards.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    if not lines:
        return
    kind, number = chance.randrange(5), chance.randrange(len(lines))
    if kind == 0:
        lines.append(lines[number])
    elif kind == 1:
        del lines[number]
    elif kind == 2:
        chance.shuffle(lines)
    else:
        lines[number] = changed_json(chance, lines[number]) + b"\n"
    path.write_bytes(b"".join(lines))


def change_manifest(chance: random.Random, dataset: Path) -> None:
    path = dataset / "dataset.json"
    path.write_bytes(changed_json(chance, path.read_bytes()))


def change_marker(chance: random.Random, dataset: Path) -> None:
    markers = sorted((dataset / ".quadpipe").rglob(f"{SPLIT}/*/*.json"))
    if markers:
        marker = chance.choice(markers)
        marker.write_bytes(changed_json(chance, marker.read_bytes()))


def change_index(chance: random.Random, dataset: Path) -> None:
    """Change a number of the index, with a checksum in the manifest that fits."""
    if not (dataset / f"{SPLIT}.index.npy").exists():
        return
    rows = np.load(dataset / f"{SPLIT}.index.npy")
    column = chance.choice(rows.dtype.names)
    numbers = np.iinfo(rows.dtype[column])
    near = int(rows[column][0]) + chance.choice((-512, -1, 1, 512))
    value = chance.choice((numbers.min, numbers.max, 0, min(max(near, numbers.min), numbers.max)))
    rows[column][chance.randrange(len(rows))] = value
    with suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
        put_index(dataset, SPLIT, rows)  # the manifest may be damaged


def lose_shard(chance: random.Random, dataset: Path) -> None:
    """Remove a shard, or make it something that is not a file, or another shard."""
    tars = [tar for tar in sorted(dataset.glob(f"{SPLIT}-*.tar")) if tar.is_file()]
    if not tars:
        return
    tar, kind = chance.choice(tars), chance.randrange(4)
    tar.unlink()
    if kind == 0:
        tar.mkdir()
    elif kind == 1:
        tar.symlink_to("/dev/zero")
    elif kind == 2:
        tar.symlink_to(sorted(dataset.glob("val-*.tar"))[0])


DAMAGES: dict[str, Callable[[random.Random, Path], None]] = {
    "arrays": change_shard(change_content(b".npy", array_of)),
    "bytes": change_shard(bytes_of),
    "headers": change_shard(headers_of),
    "index": change_index,
    "list": change_list,
    "manifest": change_manifest,
    "markers": change_marker,
    "members": change_shard(members_of),
    "missing": lose_shard,
    "texts": change_shard(
        lambda chance, data: change_content(chance.choice((b".cls", b".json")), text_of)(
            chance, data
        )
    ),
}
