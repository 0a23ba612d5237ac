"""What a site lets a server do: the rules of its owner's site-policy.yaml.

The server chooses what it asks for; the site chooses what it does. A rule that is not written
leaves things as they are without a policy: any file of the site's own `site_code` folder may be
named, and nothing is counted.

Nothing heavy may be imported here: the play checks a policy with this schema on login nodes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, model_validator

from fl.config import Arguments, ConfigError, PositiveInt, Section, TrainConfigs
from fl.config_files import load_section
from fl.errors import FederationError, in_one_line

Value = TypeVar("Value")
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""A SHA-256, as `sha256sum` gives it."""


class PolicyRefusal(FederationError):  # noqa: N818  (a refusal, and named so in answers)
    """The site's policy does not allow what the server asked for.

    Attributes:
        rule: Name of the rule; the message says no more of the site than that.
    """

    def __init__(self, rule: str, reason: str) -> None:
        super().__init__(f"this site's policy refuses the task: {rule}: {reason}")
        self.rule = rule


@dataclass(frozen=True)
class Code:
    """A function or class that a request names, and what that is at this site.

    Attributes:
        path: Its file, relative to `site_code`, links followed.
        name: Its name there.
        kwargs: The arguments that the server gives it.
        sha256: The file's digest, in hex.
        shipped: Whether it is a server's source; its path is then the server's word.
    """

    path: str
    name: str
    kwargs: Mapping[str, Any]
    sha256: str
    shipped: bool = False


class Rules(Section):
    """Rules of a site's owner, each with a value: what is commented out may leave a blank one."""

    @model_validator(mode="before")
    @classmethod
    def _says_something(cls, given: Any) -> Any:
        for rule, value in given.items() if isinstance(given, dict) else ():
            if value is None and rule in cls.model_fields:
                raise ValueError(
                    f"{rule} says nothing: leave it out for no rule; [] or {{}} allows none"
                )
        return given


class AllowedCode(Rules):
    """A function or class that the site's owner lets servers use."""

    path: str
    """Its file, relative to `site_code`."""
    name: str
    """Its name there."""
    sha256: Digest | None = None
    """What `sha256sum` says of the file: once it differs, it is not run. Absent: any of the site's
    own, and none that a server ships."""
    kwargs: Arguments | None = None
    """The only arguments that a server may give it. Absent: any."""


class SecureAggregation(Rules):
    """What a site asks of a sum that its update is to vanish in."""

    min_sites: Annotated[int, Field(ge=2)]
    """Sites that are in the sum at least, itself counted; below that nothing leaves."""
    peers: dict[str, Digest] | None = None
    """The only sites that may be in it, each with its identity: a server can then make up none.
    Absent: any."""


class Policy(Rules):
    """site-policy.yaml; an absent rule allows everything, but for `shipped_source`."""

    experiments: list[str] | None = None
    """Folders of `site_code` that models and loaders may be taken from."""
    models: list[AllowedCode] | None = None
    """Models that may be trained, and the losses and metrics of an experiment's own."""
    loaders: list[AllowedCode] | None = None
    """Loaders that may be run: each is a way to data."""
    min_samples: PositiveInt = 1
    """Samples that a data set has at least, or nothing is trained or evaluated on it."""
    max_rounds: PositiveInt | None = None
    """The last round of a run that is trained here, as the server counts."""
    max_tasks_per_day: PositiveInt | None = None
    """Tasks that may open data in any 24 hours, whoever sent them; counted in the audit log."""
    min_noise_multiplier: Annotated[float, Field(gt=0)] | None = None
    """The least `dp_sgd.noise_multiplier` that a model is trained with here. Absent: none."""
    min_local_noise_multiplier: Annotated[float, Field(gt=0)] | None = None
    """The least `local_dp.noise_multiplier` that an update leaves with. Absent: none."""
    metrics: list[str] | None = None
    """Names of metrics that may leave; others are left out of answers."""
    sealed_updates: bool = False
    """Train only for servers that have updates sealed."""
    secure_aggregation: SecureAggregation | None = None
    """Train only where the update leaves masked, and is seen in a sum alone."""
    shipped_source: Literal["none", "all"] | list[Digest] = "none"
    """Whether source that a server ships is run: `none` of it, the files of these SHA-256, or
    `all`, which lets the server run anything as the site's user."""
    error_messages: bool = True
    """Whether an error's message and traceback may leave; a loader's can quote data. If not, its
    type alone does, and the message stands in the audit log."""

    def require_code(self, rule: Literal["models", "loaders"], code: Code) -> None:
        """Refuse a model or loader that is not among the allowed.

        Args:
            rule: What it is to be used as.
            code: What the server named.

        Raises:
            PolicyRefusal: Its experiment, name, file or arguments are not allowed.
        """
        folder = PurePosixPath(code.path).parent.parts[:1]
        if self.experiments is not None and not set(folder) & set(self.experiments):
            raise PolicyRefusal("experiments", f"{code.path} is of none that its owner lists")
        allowed: list[AllowedCode] | None = getattr(self, rule)
        if allowed is None:
            return
        named = [entry for entry in allowed if (entry.path, entry.name) == (code.path, code.name)]
        if not named:
            raise PolicyRefusal(rule, f"{code.path}: {code.name} is not listed")
        # A path that is listed alone means the site's own file, and not what is shipped for it.
        fits = (code.sha256,) if code.shipped else (None, code.sha256)
        same = [entry for entry in named if entry.sha256 in fits]
        if not same:
            raise PolicyRefusal(rule, f"{code.path} is not the file that was listed (sha256)")
        if not any(entry.kwargs in (None, code.kwargs) for entry in same):
            raise PolicyRefusal(rule, f"{code.path}: {code.name} is not listed with such arguments")

    def require_source(self, shipped: Mapping[str, bytes]) -> None:
        """Refuse source of a server's that the owner has not let in.

        Args:
            shipped: The files that are not the site's own, by path.

        Raises:
            PolicyRefusal: One is not listed in `shipped_source`.
        """
        for path, source in shipped.items():
            digest = hashlib.sha256(source).hexdigest()
            listed = self.shipped_source
            if listed == "none" or (listed != "all" and digest not in listed):
                raise PolicyRefusal("shipped_source", f"{path} (sha256 {digest}) is not listed")

    def require_round(self, number: int) -> None:
        """Refuse a round after the last that is allowed.

        Args:
            number: The round, from 1, as the server counts.

        Raises:
            PolicyRefusal: It is beyond `max_rounds`.
        """
        if self.max_rounds is not None and number > self.max_rounds:
            raise PolicyRefusal("max_rounds", f"{self.max_rounds} at most")

    def require_noise(self, wanted: TrainConfigs) -> None:
        """Refuse training with less noise than the owner wants.

        Args:
            wanted: The server's settings, for DP-SGD and local differential privacy among them.

        Raises:
            PolicyRefusal: There is too little of one.
        """
        for rule, least, key, noise in (
            ("min_noise_multiplier", self.min_noise_multiplier, "dp_sgd", wanted.dp_sgd),
            (
                "min_local_noise_multiplier",
                self.min_local_noise_multiplier,
                "local_dp",
                wanted.local_dp,
            ),
        ):
            if least is not None and (noise is None or noise.noise_multiplier < least):
                raise PolicyRefusal(rule, f"{least:g} at least, in {key}")

    def require_sealing(self, *, sealed: bool) -> None:
        """Refuse to train where the update would travel in clear.

        Args:
            sealed: Whether the request has a key to seal it by.

        Raises:
            PolicyRefusal: It has none, and `sealed_updates` asks for one.
        """
        if self.sealed_updates and not sealed:
            raise PolicyRefusal("sealed_updates", "the server has its updates travel in clear")

    def require_masks(self, threshold: int | None) -> None:
        """Refuse to train where the server would see the update, or a sum of too few.

        Args:
            threshold: Sites that are in its sum at least; None where it travels unmasked.

        Raises:
            PolicyRefusal: That is less than `secure_aggregation` asks for.
        """
        asked = self.secure_aggregation
        if asked is not None and threshold is None:
            raise PolicyRefusal("secure_aggregation", "the server wants to see the update")
        if asked is not None and threshold is not None and threshold < asked.min_sites:
            raise PolicyRefusal("secure_aggregation", f"sums of {asked.min_sites} sites at least")

    def require_peers(self, identities: Mapping[str, str]) -> None:
        """Refuse a sum with a site that the owner does not know.

        Args:
            identities: Of all other sites in it, by their names.

        Raises:
            PolicyRefusal: `secure_aggregation.peers` lists one of them not, or as another.
        """
        known = self.secure_aggregation.peers if self.secure_aggregation else None
        for name, identity in identities.items():
            if known is not None and known.get(name) != identity:
                raise PolicyRefusal("secure_aggregation", f"{name} is no peer that is listed")

    def require_samples(self, sizes: Iterable[int]) -> None:
        """Refuse data sets that are too small to hide a person in; how small is not told.

        Args:
            sizes: Samples of each set that will be used.

        Raises:
            PolicyRefusal: One has fewer than `min_samples`.
        """
        if any(size < self.min_samples for size in sizes):
            raise PolicyRefusal("min_samples", f"{self.min_samples} at least")

    def require_metrics(self, names: Iterable[str]) -> None:
        """Refuse a task that is of no use without metrics that may not leave.

        Args:
            names: The metrics.

        Raises:
            PolicyRefusal: One is not listed.
        """
        if self.metrics is not None and not set(names) <= set(self.metrics):
            raise PolicyRefusal("metrics", f"{', '.join(sorted(names))} may not leave")

    def released(self, metrics: Mapping[str, Value]) -> dict[str, Value]:
        """The metrics that may leave.

        Args:
            metrics: All that there are, by name.

        Returns:
            Those that are listed.
        """
        listed = self.metrics
        return {n: value for n, value in metrics.items() if listed is None or n in listed}


def site_policy() -> Policy:
    """The policy in the file that `FL_SITE_POLICY` names, read anew: an edit counts at once.

    Returns:
        The site's policy; one that allows everything where the variable is not set.

    Raises:
        PolicyRefusal: The file is missing or is no policy. The owner finds the reason in the audit
            log, the server does not.
    """
    named = os.environ.get("FL_SITE_POLICY")
    if not named:
        return Policy()
    try:
        return load_section(Path(named), Policy)
    except ConfigError as error:
        raise PolicyRefusal("policy", "the site's policy cannot be read by its tasks") from error


def may_tell() -> bool:
    """Whether what an error says may leave the site."""
    try:
        return site_policy().error_messages
    except PolicyRefusal:
        return False


def told(error: Exception) -> str:
    """What a server is told of an error.

    Args:
        error: The error.

    Returns:
        One line; without its message, where the site's policy keeps that. A refusal is told.
    """
    if isinstance(error, PolicyRefusal) or may_tell():
        return in_one_line(error)
    return f"{type(error).__name__}: its message is kept at the site, by the site's policy"
