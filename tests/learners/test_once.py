"""What is kept with its object, and goes with it."""

from __future__ import annotations

import gc
import weakref

from vla_tune.learners.once import once


class Asked:
    def __init__(self):
        self.times = []

    @once
    def double(self, number):
        self.times.append(number)
        return 2 * number


def test_each_object_is_asked_once_for_each_argument():
    one, other = Asked(), Asked()
    assert [one.double(3), one.double(3), one.double(4), other.double(3)] == [6, 6, 8, 6]
    assert (one.times, other.times) == ([3, 4], [3])


def test_answers_go_with_their_object():
    one = Asked()
    one.double(3)
    gone = weakref.ref(one)
    del one
    gc.collect()
    assert gone() is None
