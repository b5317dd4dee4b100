"""The language suite's training at tiny size."""

import pytest

from rules2ranks import stages
from rules2ranks.runs import ParameterError

pytestmark = pytest.mark.usefixtures("store")


def test_the_language_suite_goes_on_from_where_its_schedule_stopped():
    short = stages.language(steps=5, stop=2, batch=7).metrics
    assert short["history"]["steps"] == 2
    whole = stages.language(steps=5, batch=7).metrics
    assert whole["history"]["loss"][:2] == short["history"]["loss"]


def test_a_stop_beyond_the_steps_is_refused():
    with pytest.raises(ParameterError, match="stop lies between 1 and the 5 steps, not at 6"):
        stages.language(steps=5, stop=6)
