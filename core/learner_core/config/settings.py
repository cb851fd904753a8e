"""The mechanism under every config: dataclass fields that check themselves when they are set.

A class that inherits from :class:`Settings` declares dataclass fields with a docstring under each. The annotation is
the check (:mod:`learner_core.config.validation`), the docstring is the documentation, and ``_METHODS`` says through
which method a field is set. Refuses: unknown names, ill-typed values, any change once frozen.
docs/decisions/settings.md says why.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import sys
import textwrap
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast, get_args, get_origin

from learner_core.errors import ConfigError

from . import foreign_names
from .validation import MismatchError, convert, copy_containers, expected, is_schedule_type
from .values import same

__all__ = ["Setting", "Settings"]


@dataclass(frozen=True)
class Setting:
    """One setting of a config class.

    Args:
        name: The field's name, ``config.<name>``.
        method: The method that sets it (``"training"``).
        keyword: The method's keyword for it, which may be shorter than the field's name.
        annotation: The resolved type, ranges included.
        default: The value of an unchanged config.
        owner: The class that declares the field.
    """

    name: str
    method: str
    keyword: str
    annotation: object
    default: Any
    owner: type

    @property
    def expected(self) -> str:
        """The type in words: ``"float or schedule [[timestep, value], ...] >= 0"``."""
        return expected(self.annotation)

    @property
    def doc(self) -> str:
        """The docstring under the field, read from the source on first use; ``""`` where there is no source."""
        return _field_docs(self.owner).get(self.name, "")


class Settings:
    """Base of config classes; see the module's text."""

    # method -> {keyword: field}; a field named nowhere is set by .training()
    _METHODS: ClassVar[dict[str, dict[str, str]]] = {}
    # Of this very class: a subclass makes its own.
    _settings_table: ClassVar[dict[str, Setting]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # A @dataclass decorator replaces these unless the class itself has them.
        for name in ("__repr__", "__eq__", "__hash__"):
            if name not in cls.__dict__:
                setattr(cls, name, getattr(cls, name))

    def __new__(cls, *arguments: Any, **settings: Any) -> Self:
        if arguments or settings:
            try:
                inspect.signature(cls.__init__).bind(None, *arguments, **settings)
            except TypeError:
                if arguments:
                    raise ConfigError(foreign_names.constructor(cls.__name__, arguments)) from None
                for name in settings:
                    if name not in cls.settings():
                        raise ConfigError(f"{cls.__name__} has no setting {name!r}.{cls._nearest(name)}") from None
        return super().__new__(cls)

    if not TYPE_CHECKING:  # for type checkers there are no more attributes than are written down

        def __getattr__(self, name: str) -> Any:
            raise foreign_names.unknown_attribute(self, name, foreign_names.OF_CONFIG)

    def __post_init__(self) -> None:
        own = [name for name, kind in inspect.get_annotations(type(self)).items() if "ClassVar" not in str(kind)]
        missing = [name for name in own if name not in self.settings()]
        if missing:
            raise ConfigError(
                f"{type(self).__name__} declares {missing[0]!r} but is not a dataclass: write @dataclass above it."
            )
        # The constructor has set every field; which of them are its arguments is seen by the values alone.
        given = {name for name, item in self.settings().items() if not same(getattr(self, name), item.default)}
        object.__setattr__(self, "_given", frozenset(given))

    # ---- what there is -------------------------------------------------------------------------------------------

    @classmethod
    def settings(cls) -> dict[str, Setting]:
        """All settings of this class by field name, in the order they are declared."""
        table: dict[str, Setting] | None = cls.__dict__.get("_settings_table")
        fields = dataclasses.fields(cast(Any, cls))  # a subclass is a dataclass
        if table is None or len(table) != len(fields):
            where = {field: (method, key) for method, keys in cls._METHODS.items() for key, field in keys.items()}
            table = {}
            for field in fields:
                owner = next(base for base in cls.__mro__ if field.name in inspect.get_annotations(base))
                method, keyword = where.get(field.name, ("training", field.name))
                default = field.default
                if default is dataclasses.MISSING:
                    if field.default_factory is dataclasses.MISSING:
                        raise ConfigError(f"{owner.__name__}.{field.name}: every setting needs a default value.")
                    default = field.default_factory()
                table[field.name] = Setting(
                    field.name, method, keyword, _resolve(owner, field.name, field.type), default, owner
                )
            cls._settings_table = table
        return table

    @classmethod
    def describe(cls) -> list[Setting]:
        """Every setting, grouped by method; each carries ``expected``, ``default`` and ``doc`` for tables and help."""
        order = [*cls._METHODS, "training"]
        return sorted(cls.settings().values(), key=lambda setting: order.index(setting.method))

    def traced_fields(self) -> tuple[str, ...]:
        """Names of the training settings whose value is a float or a schedule: 0-d arrays in a step, in field order.

        Changing one of the others recompiles the step.
        """
        return tuple(
            name
            for name, setting in self.settings().items()
            if setting.method == "training"
            and (
                type(getattr(self, name)) is float
                or (is_schedule_type(setting.annotation) and isinstance(getattr(self, name), list))
            )
        )

    # ---- setting -------------------------------------------------------------------------------------------------

    @classmethod
    def validate_setting(cls, name: str, value: object) -> Any:
        """Check one value as setting the attribute would.

        Args:
            name: The field's name.
            value: What came.

        Returns:
            The value in plain Python; never an alias of the caller's containers.

        Raises:
            ConfigError: Unknown name (the text has the nearest one and its method), wrong type, or out of range.
        """
        setting = cls.settings().get(name)
        if setting is None:
            raise ConfigError(f"{cls.__name__} has no setting {name!r}.{cls._nearest(name)}")
        try:
            return convert(setting.annotation, value)
        except MismatchError as error:
            raise ConfigError(f"{cls.__name__}.{setting.method}({setting.keyword}=...): {error}") from None

    def _set(self, method: str, given: Mapping[str, Any]) -> Self:
        keywords = self._METHODS.get(method)
        if keywords is None:
            keywords = {item.keyword: name for name, item in self.settings().items() if item.method == method}
        for keyword in given:
            if keyword not in keywords:
                raise ConfigError(
                    f"{type(self).__name__}.{method}() has no setting {keyword!r}.{self._nearest(keyword, method)}"
                )
        checked = {keywords[keyword]: self.validate_setting(keywords[keyword], given[keyword]) for keyword in given}
        for name, value in checked.items():  # all are good: a refused call changes nothing
            setattr(self, name, value)
        return self

    def __setattr__(self, name: str, value: object) -> None:
        if self.is_frozen:
            raise ConfigError(
                f"{type(self).__name__} is frozen, something was built from it: {name}={value!r} would have no effect. "
                "Numeric settings of a live learner change by learner.set_config(...); else start from config.copy()."
            )
        object.__setattr__(self, name, self.validate_setting(name, value))
        object.__setattr__(self, "_given", self.given | {name})
        if name in (remembered := self.__dict__.get("_remembered", frozenset())):
            object.__setattr__(self, "_remembered", remembered - {name})

    def __delattr__(self, name: str) -> None:
        raise ConfigError(f"{type(self).__name__}: settings cannot be deleted (got del config.{name}).")

    @classmethod
    def _nearest(cls, name: str, method: str | None = None) -> str:
        settings = cls.settings().values()
        exact = [item for item in settings if name in (item.name, item.keyword)]
        if not exact and (there := foreign_names.known(name, cls)):
            return there
        if not exact:
            here = [item for item in settings if method in (None, item.method)]
            for group in (here, list(settings)):
                words = [word for item in group for word in (item.keyword, item.name)]
                close = difflib.get_close_matches(name, words, n=1, cutoff=0.6)
                exact = [item for item in group if close and close[0] in (item.keyword, item.name)]
                if exact:
                    break
        if exact:
            best = exact[0]
            if method not in (None, best.method) and name == best.keyword:
                return f" It belongs to .{best.method}({best.keyword}=...)."
            return f" Did you mean {best.keyword!r}, set by .{best.method}({best.keyword}=...)?"
        names = sorted(item.keyword for item in settings if item.method == (method or "training"))
        return f" .{method or 'training'}() takes: {', '.join(names)}."

    # ---- copies --------------------------------------------------------------------------------------------------

    @property
    def is_frozen(self) -> bool:
        """Whether :meth:`freeze` was called: something was built from this config."""
        return bool(self.__dict__.get("_frozen", False))

    def copy(self) -> Self:
        """An unfrozen copy that shares no dict or list with this config."""
        twin = object.__new__(type(self))
        for name in self.settings():
            object.__setattr__(twin, name, copy_containers(getattr(self, name)))
        object.__setattr__(twin, "_remembered", self.__dict__.get("_remembered", frozenset()))
        object.__setattr__(twin, "_given", self.given)
        return twin

    @property
    def given(self) -> frozenset[str]:
        """Names of the settings that were set, to whatever value: by a method, an attribute, a file or a run."""
        given: frozenset[str] = self.__dict__.get("_given", frozenset())
        return given

    def remember(self) -> Self:
        """Take every value for one that a run had: it is no news, whatever else is set from here on.

        Returns:
            This config.
        """
        object.__setattr__(self, "_remembered", frozenset(self.settings()))
        return self

    @property
    def news(self) -> list[str]:
        """Names of the settings that are not remembered: those that were set here, and those that never were."""
        remembered = self.__dict__.get("_remembered", frozenset())
        return [name for name in self.settings() if name not in remembered]

    def freeze(self) -> Self:
        """Check everything once more, containers' contents included, and refuse changes from here on.

        Returns:
            This config.

        Raises:
            ConfigError: A setting, or two settings together, are not valid.
        """
        if not self.is_frozen:
            self._validate_all()
            self.validate_news()
            object.__setattr__(self, "_frozen", True)
        return self

    def _validate_all(self) -> None:
        for name in self.settings():
            object.__setattr__(self, name, self.validate_setting(name, getattr(self, name)))
        self.validate()

    def replaced(self, **settings: Any) -> Self:
        """A copy with some settings changed, frozen when this config is: how a live learner follows ``set_config``.

        Args:
            settings: Field names and new values.

        Returns:
            The changed copy.

        Raises:
            ConfigError: As :meth:`validate_setting`.
        """
        twin = self.copy()
        for name, value in settings.items():
            setattr(twin, name, value)
        if self.is_frozen:
            twin._validate_all()  # a run that changes says itself what would have no effect
            object.__setattr__(twin, "_frozen", True)
        return twin

    def validate(self) -> None:
        """Check settings against each other; called by :meth:`freeze`. Subclasses extend it and call ``super()``.

        Raises:
            ConfigError: Two settings exclude each other.
        """

    def validate_news(self) -> None:
        """Check what was set, beside all else, for having an effect; called by :meth:`freeze` after ``validate``.

        Raises:
            ConfigError: A setting that is no default would have none.
        """

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(same(getattr(self, name), getattr(other, name)) for name in self.settings())

    __hash__: ClassVar[None] = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        changed = [
            f"{name}={getattr(self, name)!r}"
            for name, item in self.settings().items()
            if not same(getattr(self, name), item.default)
        ]
        return f"{type(self).__name__}({', '.join(changed)})"


def _resolve(owner: type, name: str, annotation: object) -> Any:
    if not isinstance(annotation, str):
        return annotation
    module = sys.modules.get(owner.__module__)
    holder = type(name, (), {"__annotations__": {name: annotation}})
    try:
        resolved = typing.get_type_hints(holder, globalns=vars(module) if module else {}, include_extras=True)[name]
    except Exception as error:
        raise ConfigError(
            f"{owner.__name__}.{name}: the annotation {annotation!r} cannot be resolved in module "
            f"{owner.__module__} ({error}); import what it names at the top of that module."
        ) from error
    return get_args(resolved)[0] if get_origin(resolved) is dataclasses.InitVar else resolved


_DOCS: dict[type, dict[str, str]] = {}


def _field_docs(owner: type) -> dict[str, str]:
    if owner not in _DOCS:
        docs: dict[str, str] = {}
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        except (OSError, TypeError, SyntaxError):  # no source: a frozen application, an interactive session
            tree = ast.Pass()
        body = tree.body if isinstance(tree, ast.ClassDef) else []
        for field, text in itertools.pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                docs[field.target.id] = inspect.cleandoc(text.value.value)
        _DOCS[owner] = docs
    return _DOCS[owner]
