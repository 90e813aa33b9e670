"""Makes the plan of a job: lists the source, orders its inputs, cuts them into shards."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from quadpipe.errors import ConfigError, OutputError
from quadpipe.files import Folder
from quadpipe.images.library import imaging_library
from quadpipe.job.config import TEXTS, JobConfig
from quadpipe.job.plan import SHARDS_PER_CHUNK, Plan, PlannedSplit, read_plan
from quadpipe.scorers import Scorer
from quadpipe.seeds import permutation
from quadpipe.shards.format import COPY, LISTING, MARKERS, PLAN, json_bytes, listing_name
from quadpipe.sources import ClassNames, Inputs, Source
from quadpipe.text import counted


class Planner:
    """Lists a source, puts its inputs in order, and stores or compares the plan."""

    def __init__(
        self,
        source: Source,
        config: JobConfig,
        scorer: Scorer,
        *,
        labels: Path | None,
        use_labels: bool,
        classes: ClassNames | None,
    ) -> None:
        dataset = config.dataset
        self._config = config
        self.inputs = inputs = source.list(
            split=dataset.split,
            labels=labels,
            use_labels=use_labels,
            classes=classes,
            wanted=dataset.wanted_members(),
        )
        scorer.check_classes(inputs.classes)
        self._ordered = {
            name: (inputs.splits[listed], order)
            for name, (listed, order) in _orders(inputs, config).items()
        }
        size = dataset.samples_per_shard
        self.plan = Plan(
            config=config,
            scorer=scorer.as_json() | {"device": scorer.device and config.run.scorer_device},
            classes=inputs.classes,
            splits={
                name: PlannedSplit(
                    inputs=len(order),
                    views=dataset.views if name == "train" else 1,
                    shards=-(-len(order) // size),
                    listing=[hashlib.sha256(rows).hexdigest() for rows in self._chunks(name)],
                )
                for name, (_, order) in self._ordered.items()
            },
            imaging_library=imaging_library(),
            members=inputs.kept.kinds,
        )

    def check(self, out: Folder) -> bool:
        """Whether the plan is stored in `out` already, perhaps with other texts.

        Raises OutputError when the folder holds something else, ConfigError when it holds another
        plan, naming what differs, and what `read_plan` raises.
        """
        if not out.exists(PLAN):
            strangers = out.names() or []
            if strangers:
                raise OutputError(
                    f"{out} is not empty ({strangers[0]}) and holds no quadpipe plan; choose a "
                    f"new or empty folder for --out"
                )
            return False
        stored = read_plan(out, advice=f"choose another --out, or remove {out}").to_json()
        given = {key: getattr(self._config.dataset, key) for key in TEXTS}
        stored["dataset"] |= {key: text for key, text in given.items() if text is not None}
        differences = list(_differences(stored, self.plan.to_json()))
        if differences:
            raise ConfigError(
                f"{out} was planned differently: {'; '.join(differences[:8])}; give the same "
                f"options and inputs as before, or another --out"
            )
        return True

    def store(self, out: Folder) -> None:
        """Write the listing, then the plan; removes leftovers of an attempt that stored no plan."""
        out.remove_folder(LISTING)
        out.remove_folder(MARKERS)
        for split in self._ordered:
            for chunk, rows in enumerate(self._chunks(split)):
                out.write(listing_name(split, chunk), rows)
        out.remove(COPY)  # of a copy that was here before
        self.store_plan(out)

    def has_other_texts(self, out: Folder) -> bool:
        """Whether the name, license or source of the stored plan, which was checked, is another."""
        return read_plan(out).to_json() != self.plan.to_json()

    def store_plan(self, out: Folder) -> None:
        """Write the plan alone, first or in place of one with other texts."""
        out.write(PLAN, json_bytes(self.plan.to_json(), indent=2))

    def _chunks(self, split: str) -> Iterator[bytes]:
        """The rows of a split's inputs in plan order, some shards at a time."""
        listing, order = self._ordered[split]
        size = self._config.dataset.samples_per_shard * SHARDS_PER_CHUNK
        for first in range(0, len(order), size):
            rows = (listing[int(row)].as_row() for row in order[first : first + size])
            yield b"".join(json_bytes(row) for row in rows)


def _orders(inputs: Inputs, config: JobConfig) -> dict[str, tuple[str, np.ndarray]]:
    """For each split of the plan: the split it was found in, and its rows in plan order."""
    dataset, seed = config.dataset, config.tokenizer.seed
    if dataset.views > 1 and "train" not in inputs.splits:
        raise ConfigError(
            f"--views is for a split train, there is only {', '.join(inputs.splits)}; omit it"
        )
    orders: dict[str, tuple[str, np.ndarray]] = {}
    for name, listing in inputs.splits.items():
        rows = np.arange(len(listing))
        if not inputs.ordered:
            rows = permutation(len(rows), "job/order", name, seed)
        orders[name] = (name, rows)
    if dataset.val_share:
        if set(orders) != {"train"}:
            raise ConfigError(
                f"--val-share draws from training inputs, but there are splits "
                f"{', '.join(orders)}; omit it"
            )
        if inputs.read_twice:
            raise ConfigError(
                f"--val-share would draw images that training reads too: "
                f"{counted(inputs.read_twice, 'file')} read more than once, through links in the "
                f"source; remove the links"
            )
        rows = orders["train"][1]
        count = round(len(rows) * dataset.val_share)
        if not 0 < count < len(rows):
            raise ConfigError(
                f"--val-share {dataset.val_share:g} of {len(rows)} inputs leaves a split empty; "
                f"choose another share"
            )
        drawn = np.zeros(len(rows), bool)
        drawn[permutation(len(rows), "job/val", seed)[:count]] = True
        orders = {"train": ("train", rows[~drawn]), "val": ("train", rows[drawn])}
    return {name: (listed, rows[: dataset.limit]) for name, (listed, rows) in orders.items()}


def _differences(stored: Any, wanted: Any, where: str = "") -> Iterator[str]:
    """One line per difference between two JSON documents."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in sorted(stored.keys() | wanted.keys()):
            name = f"{where}.{key}" if where else key
            yield from _differences(stored.get(key), wanted.get(key), name)
    elif stored != wanted:
        if where.endswith(".listing"):
            yield (
                "the inputs (files were added, removed, renamed or relabeled, or kept members "
                "changed)"
            )
        elif where == "classes":
            yield f"classes were {len(stored or [])}, now {len(wanted or [])}, or have other names"
        else:
            yield f"{where} was {json.dumps(stored)}, now {json.dumps(wanted)}"
