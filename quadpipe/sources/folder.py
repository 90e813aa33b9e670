"""A folder of images: classes and splits from its folders, in the order of the paths' bytes."""

from quadpipe.errors import ConfigError, SourceError
from quadpipe.names import SPLITS, path_to_text, text_to_path
from quadpipe.sources.base import ListOptions, Source
from quadpipe.sources.labels import ClassTable, GivenLabels, settle_listings
from quadpipe.sources.listing import Inputs, Listing
from quadpipe.sources.names import (
    is_compressed_tar_name,
    is_image_name,
    is_tar_name,
    split_of_word,
    unreadable_format,
)
from quadpipe.sources.roots import Root
from quadpipe.sources.walk import Walk


class FolderSource(Source):
    """The images below a folder.

    Splits when the top folders that hold images are named train, val or test (or validation,
    valid, training, testing; case does not matter); otherwise all images are of one `split`, by
    default train. The class of an image is its first folder, or what `labels` gives for its path or
    file name; images without a folder have none.

    Listing raises SourceError when only some images have a class, or when some top folders are
    named as splits, others hold images too, and no `split` is given.
    """

    takes_labels = True
    has_members = False

    @classmethod
    def matches(cls, root: Root, file: bytes) -> bool:
        return not file

    def _list(self, options: ListOptions) -> Inputs:
        walk = Walk(self.root)
        roots = _split_folders(walk, options.split) or {options.split or "train": b""}
        given = GivenLabels(options.labels) if options.labels else None
        table = ClassTable(options.classes)
        listings = {}
        for name in SPLITS:
            if name not in roots:
                continue
            prefix = roots[name]
            listing = listings[name] = Listing()
            for path in walk.files(prefix):
                if not is_image_name(path):
                    _skip(walk, path)
                    continue
                label = _label(path, path[len(prefix) :], given) if options.use_labels else None
                listing.append(path, None if label is None else table.id(label))
                walk.note_read(path)
        names = settle_listings(self.root, listings, table, options.labels)
        warnings = table.warnings + walk.warnings + (given.notes if given else [])
        if names and options.labels is None:
            splits = [name for name in names if split_of_word(text_to_path(name))]
            if splits:
                warnings.append(f"top folders named as splits are classes: {', '.join(splits[:3])}")
        return Inputs(
            splits=listings,
            classes=names,
            unused_classes=table.unused,
            read_twice=walk.read_twice,
            skipped=dict(walk.skipped),
            warnings=warnings,
        )


def _skip(walk: Walk, path: bytes) -> None:
    """Count a file that is not an image; SourceError for a tar, which may hold images."""
    if is_tar_name(path):
        raise _mixed(walk.root, path)
    cause = "not an image's name"
    if is_compressed_tar_name(path):
        cause = "a compressed archive"
    elif kind := unreadable_format(path):
        cause = f"{kind}, which cannot be read (convert it to JPEG)"
    walk.skipped[cause] += 1


def _mixed(root: Root, tar: bytes) -> SourceError:
    return SourceError(
        f"{root} holds images and tars ({path_to_text(tar)}); point --in at a folder that holds "
        f"one of the two"
    )


def _split_folders(walk: Walk, split: str | None) -> dict[str, bytes]:
    """Top folders by split, with a slash at the end; empty when all images are of one split."""
    root, top = walk.root, Walk(walk.root)
    entries = top.entries()
    named = {path: name for path in entries if (name := _split_of_folder(path))}
    if not named:
        return {}
    others = [path for path in entries if path not in named]
    images = [path for path in others if _holds_images(root, path)]
    splits = [path for path in named if _holds_images(root, path)]
    if images and splits and split is None:
        raise SourceError(
            f"{root} has folders named as splits ({_listed(splits)}) and other images beside them "
            f"({_listed(images)}): move the others away to read the splits, or give --split train "
            f"to read all of it as one split, in which top folders are classes"
        )
    if images:  # classes may be named as splits are
        return {}
    if split:
        raise ConfigError(
            f"{root} has split folders ({_listed(list(named))}); leave out --split, or point --in "
            f"at one of them"
        )
    roots: dict[str, bytes] = {}
    for path in [*splits, *(path for path in named if path not in splits)]:
        other = roots.setdefault(named[path], path)
        if other != path and path in splits:
            raise SourceError(
                f"{root} has both {_listed([other])} and {_listed([path])}; keep one of them"
            )
    walk.skipped += top.skipped
    for path in others + [path for path in named if path not in roots.values()]:
        if path.endswith(b"/"):
            walk.skipped["a folder without images"] += 1
        else:
            _skip(walk, path)
    return roots


def _split_of_folder(path: bytes) -> str | None:
    return split_of_word(path[:-1]) if path.endswith(b"/") else None


def _holds_images(root: Root, path: bytes) -> bool:
    """Whether a path of a folder is an image, or a folder with one; SourceError for tars."""
    for file in Walk(root).files(path) if path.endswith(b"/") else [path]:
        if is_tar_name(file):
            raise _mixed(root, file)
        if is_image_name(file):
            return True
    return False


def _listed(paths: list[bytes]) -> str:
    """Names of folders and files for a message, three at most."""
    names = [path_to_text(path.rstrip(b"/")) for path in paths[:3]]
    return ", ".join(names) + (", .." if len(paths) > 3 else "")


def _label(path: bytes, inside: bytes, given: GivenLabels | None) -> bytes | None:
    """Of an image by its path below the source, below its split, or by its file name."""
    if given is not None:
        return given.label(path, inside)
    folder, slash, _ = inside.partition(b"/")
    return folder if slash else None
