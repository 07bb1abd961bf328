"""Answers of a method that are kept with its object."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate


def once[S, **P, T](method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """The method, asked once for the same positional arguments; unlike `functools.cache` its answers go when their object goes."""

    @functools.wraps(method)
    def asked(self: S, *arguments: P.args, **named: P.kwargs) -> T:
        answers = vars(self).setdefault(f"_answers_{method.__name__}", {})
        if arguments not in answers:
            answers[arguments] = method(self, *arguments, **named)
        answer: T = answers[arguments]
        return answer

    return asked  # type: ignore[return-value]
