"""The house rules that the source must keep: which room may import which, no circles, small files, one place for training gradients."""

import ast
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from imports import PACKAGE, ROOT, Import, at_start, circle, imports, own, trees

FLOORS = (
    ("geometry", "stats", "artifacts", "config", "errors", "console", "resources", "fields", "programs", "interrupts", "trust"),
    ("policies", "vlm"),
    ("anchors", "experts", "vqa", "data"),
    ("methods", "learners", "simulators", "preflight"),
    ("engine", "reports"),
    ("evaluation",),
    ("stages",),
    ("cli", "studies", "reproduce", "library", "optim", "rollout", "__main__", ""),  # programs, and doors for users of the library
)
"""From the lowest; a room imports from its own floor and from those below. The last room is the package itself."""
PLACED = {"vla_tune.methods.options": "config"}
"""Modules that stand with the files they belong to and are of another room: a method's options are part of the schema."""
FUNCTIONS = ("anchor", "train", "eval_vqa", "eval_rollout", "report")
"""Names of the package that are functions, so that no module may have them."""
LIGHT = ("config", "errors", "console", "resources", "fields")
"""What is imported before a slip is told; it must take no longer than half a second."""
HEAVY = {"torch", "lerobot", "transformers", "datasets", "accelerate", "peft"}
TRAINS = ("vla_tune.engine", "vla_tune.library")
"""Where training gradients are taken."""
MEASURES = ("vla_tune.anchors", "vla_tune.methods.ewc")
"""Where gradients are taken that train nothing: an anchor's, a Fisher matrix."""
REPLACES = ("vla_tune.policies.base", "vla_tune.policies.checkpointing", "vla_tune.policies.compiling")
"""What takes the place of a `forward`: lerobot's own that it calls itself, a block's parts' that are called as ever."""
MOST_LINES = 350

KNOWN: dict[str, set[str]] = {
    "floors": set(),
    "rooms": set(),
    "files": set(),
    "lines": set(),
    "gradients": set(),
    "forward": set(),
}
"""What breaks a rule today, by rule. It may only shrink: what is mended must go from here."""


def hold(rule: str, found: set[str]) -> None:
    """Compare what breaks a rule with what is known to."""
    new, mended = sorted(found - KNOWN[rule]), sorted(KNOWN[rule] - found)
    assert not new, f"these break the rule '{rule}': {new}"
    assert not mended, f"these are mended, take them out of KNOWN['{rule}']: {mended}"


def room_of(module: str) -> str:
    return PLACED.get(module) or module.removeprefix(PACKAGE).removeprefix(".").partition(".")[0]


def floor_of(module: str) -> int:
    found = [number for number, rooms in enumerate(FLOORS) if room_of(module) in rooms]
    assert found, f"{module}: this room is on no floor; give it one in FLOORS"
    return found[0]


def climbs(edges: list[Import]) -> set[str]:
    return {f"{one.source} -> {one.target}" for one in edges if floor_of(one.source) < floor_of(one.target)}


def room_circles(edges: list[Import]) -> set[str]:
    pairs = {(room_of(one.source), room_of(one.target)) for one in edges}
    return {" - ".join(sorted(rooms)) for rooms in circle({pair for pair in pairs if pair[0] != pair[1]})}


def file_circles(edges: list[Import]) -> set[str]:
    found = circle({(one.source, one.target) for one in edges if not one.typing})
    return {" - ".join(sorted(name.removeprefix(f"{PACKAGE}.") for name in files)) for files in found}


def test_rooms_import_downwards():
    hold("floors", climbs(own()))


def test_no_rooms_are_in_a_circle():
    """What climbs is known already; a circle is told where it is one without."""
    hold("rooms", room_circles([one for one in own() if floor_of(one.source) >= floor_of(one.target)]))


def test_no_files_are_in_a_circle():
    hold("files", file_circles(own()))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_module_has_the_name_of_a_function(name):
    assert f"{PACKAGE}.{name}" not in trees()


@pytest.mark.parametrize("name", [name for name in trees() if room_of(name) in LIGHT])
def test_what_tells_a_slip_imports_nothing_heavy(name):
    modules = at_start(name)
    assert {module.partition(".")[0] for module in modules} & HEAVY == set()


def test_no_file_is_long():
    files = [file for folder in (PACKAGE, "tests", "scripts", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    hold("lines", {file.relative_to(ROOT).as_posix() for file in files if file.read_bytes().count(b"\n") > MOST_LINES})


def gradients(tree: ast.Module) -> bool:
    """Whether a module takes gradients: by any `backward`, also one that it is handed, or by torch's functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (node.attr in ("backward", "autograd") or ast.unparse(node) == "torch.func"):
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "backward":
            return True
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(("torch.autograd", "torch.func")):
            return True
    return False


def inside(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def test_training_gradients_are_taken_in_one_place():
    hold("gradients", {name for name, tree in trees().items() if gradients(tree) and not inside(name, TRAINS + MEASURES)})


def forwards(tree: ast.Module) -> bool:
    """Whether a module uses a model's `forward`, but its own parent's: hooks of shards and wrappers would not run."""
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "forward"]
    return any(ast.unparse(node.value) != "super()" for node in used)


def test_models_are_called():
    hold("forward", {name for name, tree in trees().items() if forwards(tree) and name not in REPLACES})


# The rules themselves, on a package that breaks them.


@pytest.fixture
def broken(tmp_path):
    """A package whose source is given: `{module: text}`."""

    def write(**modules):
        for name, text in modules.items():
            file = tmp_path / PACKAGE / f"{name.replace('__', '/')}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            for folder in file.relative_to(tmp_path).parents[:-1]:
                (tmp_path / folder / "__init__.py").touch()
        return tmp_path

    return write


IMPORTS = {
    "from vla_tune.stages.train import run": "vla_tune.stages.train",
    "from vla_tune.stages import train": "vla_tune.stages.train",
    "from ..stages import train": "vla_tune.stages.train",
    "from .gaussian import gather": "vla_tune.geometry.gaussian",
    "import vla_tune.stages.train": "vla_tune.stages.train",
    "def f():\n    import vla_tune.stages.train as t": "vla_tune.stages.train",
    "if TYPE_CHECKING:\n    from vla_tune.stages.train import run": "vla_tune.stages.train",
}


@pytest.mark.parametrize("text", IMPORTS)
def test_every_kind_of_import_is_seen(broken, text):
    root = broken(geometry__moments=text, geometry__gaussian="", stages__train="")
    (found,) = own(root)
    assert (found.source, found.target) == ("vla_tune.geometry.moments", IMPORTS[text])
    assert found.typing == ("TYPE_CHECKING" in text)
    assert found.late == ("def " in text)
    assert climbs([found]) == ({"vla_tune.geometry.moments -> vla_tune.stages.train"} if "stages" in IMPORTS[text] else set())


def test_circles_are_found(broken):
    root = broken(
        vqa__a="import vla_tune.data.b",
        data__b="def f():\n    import vla_tune.vqa.c",
        vqa__c="from vla_tune.vqa.a import x",
        data__d="if TYPE_CHECKING:\n    import vla_tune.data.e",
        data__e="import vla_tune.data.d",
    )
    assert room_circles(own(root)) == {"data - vqa"}
    assert file_circles(own(root)) == {"data.b - vqa.a - vqa.c"}


def test_what_is_imported_at_the_start_is_followed_to_its_end(broken):
    late = "import typing\nif 1:\n    import torch.nn\ndef f():\n    import lerobot"
    root = broken(config__load="from vla_tune.errors import E", errors=late)
    assert {"torch.nn", "typing", "vla_tune.config"} <= at_start("vla_tune.config.load", root)
    assert "lerobot" not in at_start("vla_tune.config.load", root)
    assert {one.target for one in imports(root) if one.late} == {"lerobot"}


@pytest.mark.parametrize(
    "text",
    [
        "loss.backward()",
        "accelerator.backward(loss)",
        "def f(b=Tensor.backward): ...",
        "def f(backward):\n    backward(loss)",
        "torch.autograd.grad(loss, x)",
        "from torch.autograd import grad",
        "torch.func.grad(f)",
        "from torch.func import vjp",
    ],
)
def test_gradients_are_seen(text):
    assert gradients(ast.parse(text))


@pytest.mark.parametrize("text", ["def backward(self): ...", "x.grad = None", "with torch.no_grad(): ..."])
def test_what_is_no_gradient_is_not_taken_for_one(text):
    assert not gradients(ast.parse(text))


def test_calls_of_forward_are_seen():
    assert forwards(ast.parse("policy.forward(batch)"))
    assert forwards(ast.parse("run = policy.forward"))
    assert not forwards(ast.parse("class A(B):\n    def forward(self, x):\n        return super().forward(x)"))
