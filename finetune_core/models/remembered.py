"""A function cache that also caches ``ConfigError``.

A network that cannot be built is not built again on every call.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, ParamSpec, TypeVar

from finetune_core.errors import ConfigError

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_MAX_SIZE = 128


@dataclass(frozen=True)
class _CachedError:
    """The problems of a ``ConfigError``.

    The error itself would keep the half-built network alive by its traceback.
    """

    problems: dict[str, str]


class CacheWithErrors(Generic[_Arguments, _Result]):
    """Decorator that caches the latest results of a function of hashable arguments.

    A cached ``ConfigError`` is raised as a new exception.
    """

    def __init__(self, function: Callable[_Arguments, _Result]) -> None:
        def attempt(
            *arguments: _Arguments.args, **named: _Arguments.kwargs
        ) -> _Result | _CachedError:
            try:
                return function(*arguments, **named)
            except ConfigError as error:
                return _CachedError(error.problems)

        self._cached = lru_cache(maxsize=_MAX_SIZE)(attempt)
        self.__doc__ = function.__doc__
        self.cache_clear = self._cached.cache_clear

    def __call__(self, *arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
        """Return the cached result for these arguments, or call the function if there is none.

        Raises:
            ConfigError: if the function raises one, or a cached call has raised one.
        """
        # No type says that all arguments are hashable.
        result = self._cached(*arguments, **named)  # type: ignore[arg-type]
        if isinstance(result, _CachedError):
            raise ConfigError(result.problems)
        return result
