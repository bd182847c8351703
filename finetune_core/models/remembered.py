"""A cache that remembers refusals, too: what cannot be built is not built again each time that it is asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, ParamSpec, TypeVar

from finetune_core.errors import ConfigError

_Arguments = ParamSpec("_Arguments")
_Found = TypeVar("_Found")
_MOST = 128


@dataclass(frozen=True)
class _Refusal:
    """What a ``ConfigError`` said. The error itself would keep alive what was being built when it was raised."""

    problems: dict[str, str]


class Remembered(Generic[_Arguments, _Found]):
    """Decorates a function of hashable arguments: its latest results are kept, and its ``ConfigError``\\ s are raised anew."""

    def __init__(self, function: Callable[_Arguments, _Found]) -> None:
        def attempt(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Found | _Refusal:
            try:
                return function(*arguments, **named)
            except ConfigError as error:
                return _Refusal(error.problems)

        self._kept = lru_cache(maxsize=_MOST)(attempt)
        self.__doc__ = function.__doc__
        self.cache_clear = self._kept.cache_clear

    def __call__(self, *arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Found:
        found = self._kept(*arguments, **named)  # type: ignore[arg-type]  # no type says that all of them are hashable
        if isinstance(found, _Refusal):
            raise ConfigError(found.problems)
        return found
