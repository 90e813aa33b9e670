"""The choice of a scorer: its name, options, network and weights, and whose code is run."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any

from quadpipe.errors import ConfigError
from quadpipe.fields import option
from quadpipe.geometry import Geometry
from quadpipe.scorers import SCORERS, Network, Scorer, ScorerCode, make_scorer, scorer_type
from quadpipe.scorers.feature import FeatureOptions
from quadpipe.scorers.network import find_network
from quadpipe.scorers.network_scorer import NetworkScorer
from quadpipe.scorers.own import NamedScorer, OwnScorer


@dataclass(frozen=True, kw_only=True)
class _ScorerName:
    scorer: str = option(
        "saliency",
        "Scorer that ranks the patches; `quadpipe scorers` lists them. MODULE:CALLABLE is your "
        "own, imported and called.",
    )


# A scorer's own options are declared beside it; their class is a base here.
@dataclass(frozen=True, kw_only=True)
class ScorerChoice(FeatureOptions, _ScorerName, ABC):
    """The part of a configuration that decides the scorer.

    A configuration may come from a file, so `make_scorer` never runs a user's code by its name
    alone: it needs the `ScorerCode`. `find_code` gives it for a user's configuration, `same_code`
    for one from a file if the user names the same code.
    """

    @property
    @abstractmethod
    def geometry(self) -> Geometry:
        """The geometry that the scorer is made for."""

    @property
    def names_user_code(self) -> bool:
        """Whether the scorer or its backbone is a `module:callable`."""
        return ":" in self.scorer or ":" in (self.backbone or "")

    def find_code(self, weights: str | PathLike[str] | None = None) -> ScorerCode | None:
        """The network or the user's own scorer; None where the scorer needs neither.

        Imports and calls a `module:callable`: only for a configuration that the user has given,
        never for one from a file. Raises ConfigError when it cannot be made, and when weights are
        given to a scorer without a network.
        """
        kind = scorer_type(self.scorer)
        self._check_options(kind)
        if issubclass(kind, NetworkScorer):
            return find_network(self.backbone or kind.default_backbone, weights)
        if weights is not None:
            raise ConfigError(f"scorer {self.scorer} has no network; omit the scorer's weights")
        if not issubclass(kind, OwnScorer):
            return None
        own = self.make_scorer(NamedScorer(target=self.scorer))
        assert isinstance(own, OwnScorer)
        own.check_repeatable()
        return NamedScorer(
            target=self.scorer, description=own.description, sha256=own.weights_sha256
        )

    def same_code(
        self,
        sha256: str | None,
        *,
        scorer: str | None = None,
        backbone: str | None = None,
        weights: str | PathLike[str] | None = None,
    ) -> ScorerCode | None:
        """The network or own scorer that shards were made with, for a configuration from them.

        sha256: of its weights. scorer, backbone, weights: as the user names them; a
        `module:callable` is run only if it is named there. ConfigError when they differ from those
        of the shards.
        """
        kind = scorer_type(self.scorer)
        if not issubclass(kind, NetworkScorer) and (backbone or weights):
            raise ConfigError(
                f"scorer {self.scorer} has no network; omit --backbone and --scorer-weights"
            )
        _check_named("scorer", self.scorer, scorer)
        if issubclass(kind, NetworkScorer):
            _check_named("backbone", self.backbone or kind.default_backbone, backbone)
        code = self.find_code(weights)
        if code and code.sha256 != sha256:
            raise ConfigError(
                f"the scorer's weights have sha256 {(code.sha256 or 'unknown')[:12]}.., those of "
                f"the shards {(sha256 or 'unknown')[:12]}..; give the same file with "
                f"--scorer-weights"
            )
        return code

    def make_scorer(
        self, code: ScorerCode | None = None, *, batch: int | None = None, device: str = "cpu"
    ) -> Scorer:
        """The scorer. batch and device are for network scorers, which need their network as `code`.

        ConfigError when the scorer is unknown, it does not fit the geometry, it has an option of
        another scorer, or its code is missing.
        """
        kind = scorer_type(self.scorer)
        self._check_options(kind)
        parameters: dict[str, Any] = {
            name.removeprefix("scorer_"): getattr(self, name)
            for name in kind.option_names()
            if getattr(self, name) is not None
        }
        if issubclass(kind, OwnScorer):
            if not isinstance(code, NamedScorer) or code.target != self.scorer:
                raise ConfigError(
                    f"scorer {self.scorer} is a user's own code; if you trust it, name it yourself "
                    f"with --scorer {self.scorer}"
                )
            parameters["code"] = code
        elif kind.uses_network:
            if not isinstance(code, Network):
                raise ConfigError(
                    f"scorer {self.scorer} needs its network; name it yourself with --backbone and "
                    f"--scorer-weights"
                )
            parameters |= {"network": code, "batch": batch, "device": device}
        return make_scorer(self.scorer, self.geometry, **parameters)

    def check_scorer(self) -> None:
        """Raise what `make_scorer` would raise, as far as can be checked without the code."""
        kind = scorer_type(self.scorer)
        self._check_options(kind)
        if not kind.uses_network and not issubclass(kind, OwnScorer):
            self.make_scorer()

    def _check_options(self, kind: type[Scorer]) -> None:
        for item in fields(self):
            users = [n for n, scorer in SCORERS.items() if item.name in _own_options(scorer)]
            if users and kind.name not in users and getattr(self, item.name) is not None:
                raise ConfigError(
                    f"{item.name} is for scorer {' and '.join(users)}, not {self.scorer}; omit it"
                )


def _own_options(scorer: type[Scorer]) -> set[str]:
    return {item.name for item in fields(scorer.options)}


def _check_named(what: str, theirs: str, named: str | None) -> None:
    """ConfigError unless the user names what the shards were made with, or need not name it."""
    if named not in (None, theirs):
        raise ConfigError(f"the shards were made with {what} {theirs}, not {named}; give that one")
    if named is None and ":" in theirs:
        raise ConfigError(
            f"the shards were made with {what} {theirs}, a user's own code; if you trust it, name "
            f"it with --{what} {theirs}"
        )
