"""How many samples an anchor's pass takes at once, and that it changes nothing."""

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vla_tune.anchors import memory, passes
from vla_tune.anchors.memory import Footprint, Portions, checkpointed, free_bytes
from vla_tune.anchors.outputs import OutputGradients
from vla_tune.anchors.passes import answer_gradients
from vla_tune.resources import demo_vlm
from vla_tune.vlm.loading import load_vlm
from vla_tune.vqa.dataset import vqa_questions

CPU = torch.device("cpu")


def dealt(count, wish, work=lambda part: None):
    parts = []
    Portions(wish, CPU, "a pass").deal(count, lambda part: (parts.append(part), work(part)))
    return parts


@given(st.integers(0, 40), st.integers(1, 12))
def test_every_sample_is_dealt_once_and_in_order(count, wish):
    parts = dealt(count, wish)
    assert [number for part in parts for number in part] == list(range(count))
    assert all(len(part) <= wish for part in parts)
    assert all(len(part) == wish for part in parts[1:-1]), "a little work fits whatever the wish"


@given(st.integers(2, 40), st.integers(1, 12), st.integers(1, 20))
def test_no_more_is_dealt_than_fits(count, wish, fits):
    one = 1_000_000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "free_bytes", lambda device: int((fits + 0.5) * one * 4 / memory.SHARE))
        parts = dealt(count, wish, lambda part: torch.zeros(len(part), one).sum())
    assert [len(part) for part in parts[:-1]] == [1, *[min(wish, fits)] * (len(parts) - 2)]


def test_fewer_than_wished_are_told_once(monkeypatch, capsys):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 90_000_000)
    dealt(20, 10, lambda part: torch.zeros(len(part), 1_000_000).sum())
    assert capsys.readouterr().out.splitlines() == ["a pass: 5 at once instead of 10 (one takes 4 MB, 90 MB are free)"]


def test_a_footprint_tells_what_stays_from_what_goes():
    kept = []
    with Footprint("cpu") as seen:
        first = torch.zeros(1000)  # 4,000 bytes
        second = first + 1
        kept.append(second * 2)
        second.add_(1)  # in place: no memory
        view = second[:10]
        del first, second, view
    assert (seen.peak, seen.kept) == (8000, 4000)


def test_a_footprint_counts_what_autograd_keeps():
    x = torch.ones(1000, requires_grad=True)
    with Footprint("cpu") as seen:
        x.exp().exp().sum().backward()
    assert 8000 <= seen.peak <= 20_000
    assert seen.kept == 4000  # the gradient


def test_a_containers_limit_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert free_bytes(CPU) > 10_000
    (tmp_path / "memory.max").write_text("6000\n")
    assert free_bytes(CPU) == 5000


@pytest.fixture
def felt():
    """The second moments of the gradients of five questions' answers, so many at once."""
    vlm, processor = load_vlm(str(demo_vlm()))
    names = [
        "model.text_model.layers.2.mlp.down_proj",
        "model.vision_model.encoder.layers.1.mlp.fc1",
        "model.text_model.layers.0.mlp.up_proj",
    ]
    questions = vqa_questions("shapes", "anchor", 5)

    def gradients(batch_size):
        outputs = OutputGradients(exact_width=4096, rank=8)
        with outputs.watching(vlm, names):
            answer_gradients(vlm, processor, questions, batch_size, outputs)
        assert not any(module.training for module in vlm.modules())
        return outputs.moments

    return gradients


def test_gradients_do_not_depend_on_how_many_go_at_once(felt, monkeypatch):
    together = felt(5)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0)
    for name, alone in felt(5).items():
        assert (alone.total - together[name].total).norm() < 1e-4 * alone.total.norm()
        assert alone.total.norm() > 0


def test_a_checkpointed_pass_takes_less_and_has_the_same_gradients(felt, monkeypatch):
    with Footprint("cpu") as less:
        checked = felt(5)
    monkeypatch.setattr(passes, "checkpointed", lambda vlm: nullcontext())
    with Footprint("cpu") as more:
        plain = felt(5)
    assert less.peak < 0.7 * more.peak
    for name, moment in checked.items():
        assert torch.allclose(moment.total, plain[name].total)


def test_a_layer_that_an_answer_does_not_depend_on_has_zeros():
    both = nn.ModuleDict({"read": nn.Linear(3, 4), "idle": nn.Linear(3, 5)})
    outputs = OutputGradients(exact_width=8, rank=2)
    with outputs.watching(both, ["read", "idle"]):
        x = torch.ones(2, 6, 3)
        out, _ = both["read"](x), both["idle"](x)
        outputs.add((2 * out).sum())
    assert {name: moment.count for name, moment in outputs.moments.items()} == {"read": 12, "idle": 12}
    assert torch.equal(outputs.moments["read"].total, torch.full((4, 4), 48.0, dtype=torch.float64))
    assert not outputs.moments["idle"].total.any()
    assert all(parameter.grad is None for parameter in both.parameters())


def test_checkpointing_ends_with_its_block():
    vlm, _ = load_vlm(str(demo_vlm()))
    with checkpointed(vlm):
        assert vlm.is_gradient_checkpointing
    assert not vlm.is_gradient_checkpointing
    assert not any(module.training for module in vlm.modules())
