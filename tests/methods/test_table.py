"""The table of methods says of each what its class says."""

import pytest

from vla_tune.methods import method_class
from vla_tune.methods.options import METHODS, STREAM_METHODS, TASK_METHODS


@pytest.mark.parametrize("name", TASK_METHODS)
def test_what_a_method_needs_is_what_its_class_asks_for(name):
    kind, needs = method_class(name), METHODS[name].needs
    assert (kind.needs_anchor, kind.needs_memory, not kind.trains) == ("anchor" in needs, "questions" in needs, "run" in needs)


@pytest.mark.parametrize("name", STREAM_METHODS)
def test_every_way_to_learn_a_stream_has_a_class(name):
    assert method_class(name, of_stream=True).name == name
