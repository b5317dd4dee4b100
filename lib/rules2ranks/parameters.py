"""Typed parameters, checked before any work starts: an unknown name, a wrong type or an impossible value is told."""

import contextlib
import difflib
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

#: Parts of pydantic's place of a mistake that nobody has written: ways of saying the same parameter, in brackets, and
#: the kinds of value that one may have.
_UNSAID = re.compile(r"\(|(constrained|function)-|(literal|list|dict|tuple)\[|(int|float|str|bool|none)$")


class ParameterError(ValueError):
    """A parameter has an unknown name, a wrong type or an impossible value; the message says what is allowed."""


class Params(BaseModel):
    """Typed parameters that refuse unknown names. Values that papermill hands over as text are read as YAML."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
    #: The `runs.Stage` that takes these parameters, if one does.
    stage: ClassVar[Any] = None

    def reads(self) -> tuple[Path, ...]:
        """Shipped files whose content decides the result of these parameters."""
        return ()

    @field_validator("*", mode="before")
    @classmethod
    def _read_text(cls, value: Any, info: Any) -> Any:
        kind = cls.model_fields[info.field_name].annotation
        # `papermill -p rates '[.2, .3]'` and YAML's `1e-4` both arrive as text.
        if isinstance(value, str) and kind is not str:
            with contextlib.suppress(yaml.YAMLError):
                value = read_yaml(value)
        if isinstance(value, bool) and (kinds := _kinds(kind)) & {int, float} and bool not in kinds:
            raise ValueError("a number is expected, not true or false")
        return kind.nested(value) if isinstance(kind, type) and issubclass(kind, Params) else value

    @classmethod
    def check(cls, values: Mapping[str, Any] | Self) -> Self:
        """The parameters with every value checked, or a ParameterError that names each mistake and its mending."""
        try:
            return values if isinstance(values, cls) else cls(**values)
        except ValidationError as error:
            raise ParameterError("\n".join(_told(cls, error.errors()))) from None

    def but(self, **changes: Any) -> Self:
        """These parameters with some of them changed, checked."""
        return self.check({**dict(self), **changes})

    @classmethod
    def nested(cls, values: Any) -> Any:
        """For parameters within others: mistakes are told with the names that are allowed here."""
        try:
            return cls.check(values) if isinstance(values, Mapping) else values
        except ParameterError as error:
            raise ValueError(str(error).rstrip(".")) from None


class _Yaml(yaml.SafeLoader):
    """YAML as 1.2 has it: 1:30 is no number of sixties, 010 no number of eights, and 1e-4 is a number."""


_Yaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if not tag.endswith((":int", ":float"))]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def read_yaml(text: str) -> Any:
    """What a text in YAML says, of which JSON is a part. Raises yaml.YAMLError."""
    return yaml.load(text, _Yaml)  # a safe loader: plain data only


def _kinds(annotation: Any) -> set[Any]:
    """The plain types that an annotation is made of."""
    parts = [part for part in get_args(annotation) if not isinstance(part, str | int | float)]
    return set().union(*map(_kinds, parts)) if parts else {annotation if isinstance(annotation, type) else None}


class OfFiles(Params):
    """Parameters that name files of your own: `fingerprint` follows from the content of these files, so that changed
    files are another result. Given with other parameters of a result, it has to be that of the files as they are now.
    """

    fingerprint: str = ""

    def fingerprints(self) -> dict[str, str]:
        """What the files are, and a digest of each; raises what is wrong with them."""
        raise TypeError(f"{type(self).__name__} names no files")

    @model_validator(mode="after")
    def _of_these_files(self) -> Self:
        now = self.fingerprints()
        for (what, current), then in zip(now.items(), self.fingerprint.split("-"), strict=False):
            if then not in ("", current):
                raise ValueError(f"the files of {what} have changed since: their fingerprint was {then}, is {current}")
        object.__setattr__(self, "fingerprint", "-".join(now.values()))
        return self


def _told(model: type[Params], items: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each mistake. Of a parameter that may be of several kinds, what each of them asks for is one line."""
    lines: dict[str, list[str]] = {}
    for item in items:
        what, why = _explain(model, item)
        lines.setdefault(what, []).append(why)
    again = "Input should be "
    return [
        what + ", or ".join([first, *(why.removeprefix(again) for why in others)]) + "."
        for what, (first, *others) in lines.items()
    ]


def _explain(model: type[Params], item: Mapping[str, Any]) -> tuple[str, str]:
    """What is wrong, and why, which may be nothing more."""
    own = inspect.get_annotations(model)  # what it says itself stands before what it inherits
    allowed = sorted(model.model_fields, key=lambda name: name not in own)
    name = ".".join(part for part in map(str, item["loc"]) if not _UNSAID.match(part))
    reason = item["msg"].removeprefix("Value error, ")
    if not name:  # parameters that do not go together
        return reason, ""
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, allowed, n=1)
        homes = [field for field, about in model.model_fields.items() if name in _names_within(about.annotation)]
        hint = f"did you mean {near[0]!r}? " if near else ""
        if homes:
            hint = f"it is a parameter of {' or '.join(map(repr, homes))}, and is given there. "
        return f"unknown parameter {name!r}: {hint}Allowed are {', '.join(allowed)}", ""
    if item["type"] == "missing":
        return f"parameter {name!r} is missing. Allowed are {', '.join(allowed)}", ""
    return f"parameter {name!r} = {item['input']!r}: ", reason


def _names_within(annotation: Any) -> set[str]:
    """The names of the parameters that a field takes, of whatever kind it is."""
    if isinstance(annotation, type) and issubclass(annotation, Params):
        return set(annotation.model_fields)
    return set().union(*map(_names_within, get_args(annotation)))
