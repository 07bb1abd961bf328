"""Configurations of earlier versions: what they lack, what is gone since, and where a run departs from them."""

from vla_tune.config import Config, completed, departures, load_config, structured


def test_an_option_that_an_earlier_version_did_not_have_stands_at_its_default():
    earlier = load_config("stream-drawn", []).to_dict()
    del earlier["method"]["igsp"]["routing"], earlier["stream"]
    sections = ("method", "train")
    assert departures(load_config("stream-drawn", []), earlier, sections, []) == ""
    assert (
        departures(load_config("stream-drawn", ["method.igsp.routing=task"]), earlier, sections, [])
        == "method.igsp.routing was token, is task"
    )
    earlier["train"]["steps"] = 7
    assert "train.steps was 7" in departures(load_config("stream-drawn", []), earlier, sections, [])


def test_an_option_that_is_gone_makes_no_difference():
    now = load_config("demo", ["policy.settings.freeze_vision_encoder=true"])
    earlier = now.to_dict()
    earlier["method"]["aegis"]["preset"] = "paper"
    assert completed(earlier) == now.to_dict()
    assert departures(now, earlier, ("method", "policy", "train"), []) == ""
    assert departures(load_config("demo", ["method.name=aegis"]), earlier, ("method",), []) == "method.name was subspace, is aegis"
    assert structured(Config, completed(earlier), [], "here") == now


def test_what_stands_beside_the_sections_is_kept():
    assert completed({"name": "mine", "methods": {"full": {}}})["methods"] == {"full": {}}
