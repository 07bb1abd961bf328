"""What the training engine computes, by case, read from the files that the stages leave.

Only the configuration and the stage functions are called, so that the cases outlive whatever is changed behind them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors import safe_open

from vla_tune.config import METHODS, STRATEGIES, load_config
from vla_tune.stages import anchor, eval_vqa, train

FOLDER = Path(__file__).parent
GROUPS = ("anchor", "methods", "streams", "answers")
"""A JSON file each."""

SMALL = ["data.manifest=null", "data.repo_id=local/golden", "policy.settings.chunk_size=4", "policy.settings.n_action_steps=2"]
LOGGED = ["train.log_every=1", "train.checkpoint_every=1000"]
DEMO = [
    *SMALL,
    *LOGGED,
    "data.heldout=0",
    "anchor.samples=48",
    "anchor.batch_size=16",
    "anchor.frames=32",
    "anchor.gradients=16",
    "train.steps=15",
    "train.batch_size=4",
    "train.warmup_steps=2",
    "vqa.questions=60",
    "vqa.bootstrap=50",
    "vqa.ranked=0",
]
OWN = {
    "subspace": ["method.subspace.every=5"],
    "ewc": ["method.ewc.samples=8", "method.ewc.weight=1e5"],
    "agem": ["method.agem.samples=16", "method.agem.batch_size=4"],
    "warmup": ["method.warmup.steps=8"],
}
"""Options with which something happens within 15 steps."""
VARIANTS = {
    "aegis-update": ["method.name=aegis", "method.aegis.project=update"],
    "aegis-local": ["method.name=aegis", "method.aegis.local=true", "method.aegis.every=2"],
    "subspace-inputs": ["method.name=subspace", "method.subspace.sides=inputs", *OWN["subspace"]],
    "full-slow-vlm": ["method.name=full", "method.full.vlm_lr=0.1"],
}
METHOD_CASES = {name: [f"method.name={name}", *OWN.get(name, [])] for name in METHODS} | VARIANTS

SHAPES = "{name: shapes, manifest: invented-shapes}"
AGAIN = "{name: again, manifest: invented-shapes-again}"
THREE = f"stream.tasks=[{SHAPES}, {{name: textures, manifest: invented-textures}}, {AGAIN}]"
"""With two tasks the most similar of the earlier ones is all of them."""
ROUTERS = ["stream.router_samples=64", "stream.router_width=128"]
PHASES = ["method.igsp.check_every=2", "method.igsp.least=2"]
DRAWN = [
    *LOGGED,
    *ROUTERS,
    f"stream.tasks=[{SHAPES}, {AGAIN}]",
    "train.steps=8",
    "train.batch_size=8",
]
QUESTIONS = [
    *LOGGED,
    *ROUTERS,
    "policy.base_vlm=demo",
    "stream.tasks=[{name: colours, manifest: colours}, {name: sides, manifest: sides}]",
    "stream.reference=shapes",
    "train.steps=6",
    "train.batch_size=4",
]
DRAWER = "{name: drawer, tasks: [drawer-open-v3], instructions: [Open a drawer]}"
BUTTON = "{name: button, tasks: [button-press-v3], instructions: [Press a button]}"
ROBOT = [
    *SMALL,
    *LOGGED,
    *ROUTERS,
    f"stream.tasks=[{DRAWER}, {BUTTON}]",
    "train.steps=6",
    "train.batch_size=4",
    "train.warmup_steps=1",
    "rollout.episodes=2",
    "rollout.step_limit=4",
    "rollout.n_action_steps=2",
]
IGSP = ["method.name=igsp", *PHASES]
STREAM_CASES = {name: ("stream-drawn", [*DRAWN, f"method.name={name}", *(PHASES if name == "igsp" else [])]) for name in STRATEGIES} | {
    "igsp-task": ("stream-drawn", [*DRAWN, *IGSP, "method.igsp.routing=task"]),
    "igsp-similar": ("stream-drawn", [*DRAWN, *IGSP, THREE, "method.igsp.sharing=similar"]),
    "questions-igsp": ("stream-drawn", [*QUESTIONS, *IGSP]),
    "questions-replay": ("stream-drawn", [*QUESTIONS, "method.name=replay"]),
    "robot-igsp": ("stream-metaworld", [*ROBOT, *IGSP]),
}


class Work:
    """A folder in which the cases are computed; what several of them need is made once."""

    def __init__(self, folder):
        self.folder = Path(folder)

    @property
    def names(self):
        """All cases, `GROUP/NAME`."""
        return [
            "anchor/anchor",
            "anchor/subspace",
            *(f"methods/{name}" for name in METHOD_CASES),
            *(f"streams/{name}" for name in STREAM_CASES),
            "answers/full",
        ]

    def case(self, name):
        """What is recorded of one case."""
        group, own = name.split("/")
        if group == "anchor":
            return tensors_of(self.anchor / f"{own}.safetensors")
        if group == "methods":
            return self.method(own)
        return self.stream(own) if group == "streams" else self.answers()

    @cached_property
    def demonstrations(self):
        """Four short episodes of noise with two instructions, by lerobot's own writer; 15 batches of 4 go into a second epoch."""
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        root = self.folder / "demonstrations"
        coordinates = ["x", "y", "z", "gripper"]
        features = {
            "observation.image": {"dtype": "image", "shape": (64, 64, 3), "names": ["height", "width", "channels"]},
            "observation.state": {"dtype": "float32", "shape": (4,), "names": coordinates},
            "action": {"dtype": "float32", "shape": (4,), "names": coordinates},
        }
        dataset = LeRobotDataset.create("local/golden", fps=10, features=features, root=root, use_videos=False)
        rng = np.random.default_rng(0)
        for episode, length in enumerate((10, 12, 13, 16)):
            for _ in range(length):
                frame = {
                    "observation.image": rng.integers(0, 256, (64, 64, 3), dtype=np.uint8),
                    "observation.state": rng.normal(size=4).astype(np.float32),
                    "action": rng.uniform(-1, 1, 4).astype(np.float32),
                    "task": ("Open a drawer", "Press a button")[episode % 2],
                }
                dataset.add_frame(frame)
            dataset.save_episode()
        dataset.finalize()
        return root

    @cached_property
    def questions(self):
        """Two folders of questions about pictures of two plain halves."""
        colours = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (50, 70, 200)}
        rng = np.random.default_rng(0)
        for name, side in (("colours", None), ("sides", "left")):
            folder = self.folder / "questions" / name
            folder.mkdir(parents=True)
            rows = []
            for number in range(24):
                left, right = rng.permutation(list(colours))[:2].tolist()
                picture = np.zeros((64, 64, 3), dtype=np.uint8)
                picture[:, :32], picture[:, 32:] = colours[left], colours[right]
                Image.fromarray(picture).save(folder / f"{number}.png")
                asked = f"Which colour is on the {side}?" if side else "Which colour is missing?"
                answer = left if side else next(colour for colour in colours if colour not in (left, right))
                rows.append({"image": f"{number}.png", "question": asked, "answer": answer, "split": ("anchor", "test")[number % 4 == 0]})
            (folder / "qa.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return self.folder / "questions"

    def demo(self, *more):
        return load_config("demo", [*DEMO, f"data.root={self.demonstrations}", *more])

    @cached_property
    def anchor(self):
        anchor.run(self.demo("method.name=full"), self.folder / "run")
        return self.folder / "run" / "anchor"

    @cached_property
    def full(self):
        return self.trained("full", METHOD_CASES["full"])

    @cached_property
    def start(self):
        """The weights that training starts from: those after a step that is too short to change any."""
        return policy_of(self.trained("start", ["method.name=full", "train.steps=1", "train.lr=1e-30"]))

    def trained(self, name, overrides):
        """The train folder of a run."""
        run = self.folder / "methods" / name
        train.run(self.demo(f"anchor.path={self.anchor}", *overrides), run)
        return run / "train"

    def method(self, name):
        if name == "full":
            folder = self.full
        else:
            interpolated = [f"method.wise_ft.path={self.full}"] if name == "wise_ft" else []
            folder = self.trained(name, [*METHOD_CASES[name], *interpolated])
        policy = policy_of(folder)
        changed = {}
        for key, tensor in policy.items():
            changed.setdefault(part_of(key), []).append(norm(tensor.double() - self.start[key].double()))
        return {
            "steps": series(folder / "metrics.jsonl"),
            "policy": digest(policy),
            "changed": {part: math.hypot(*norms) for part, norms in sorted(changed.items())},
        }

    def stream(self, name):
        pipeline, overrides = STREAM_CASES[name]
        run = self.folder / "streams" / name
        data = [f"data.root={self.demonstrations}"] if pipeline == "stream-metaworld" else []
        data += [f"stream.folder={self.questions}"] if name.startswith("questions") else []
        train.run(load_config(pipeline, [*overrides, *data]), run)
        told = json.loads((run / "train" / "stream.json").read_text())
        for record in told["records"]:
            if shares := record.pop("shares", None):
                record["shares_digest"] = sha(json.dumps(shares).encode())
        return {
            "steps": series(run / "train" / "metrics.jsonl"),
            "after": [state(file) for file in sorted((run / "train" / "after").glob("*.safetensors"))],
            "stream": told,
        }

    def answers(self):
        """What the VLM says before and after plain fine-tuning, and how far its features have drifted."""
        eval_vqa.run(self.demo("method.name=full", f"anchor.path={self.anchor}", f"train.path={self.full}"), self.folder / "answers")
        folder = self.folder / "answers" / "eval-vqa"
        told = pq.read_table(folder / "predictions.parquet").slice(0, 10).to_pydict()
        drift = json.loads((folder / "report.json").read_text())["drift_by_layer"]
        return {"base": told["base_prediction"], "tuned": told["prediction"], "drift": drift}


def series(file):
    """The figures of all steps by name, without the times; a list a name, with `absent` where a step has no such figure."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    names = dict.fromkeys(name for row in rows for name in row if name not in ("step_s", "data_s"))
    return {name: [row.get(name, "absent") for row in rows] for name in names}


def policy_of(folder):
    return tensors_in(folder / "policy" / "model.safetensors")


def tensors_in(file):
    with safe_open(file, "pt") as stored:
        return {key: stored.get_tensor(key) for key in sorted(stored.keys())}


def part_of(key):
    """The coarse part of a policy that a weight belongs to."""
    found = re.search(r"vision_model|connector|text_model|lm_head|lm_expert", key)
    return found[0] if found else "rest"


def sha(data):
    return hashlib.sha256(data).hexdigest()


def bytes_of(tensor):
    return f"{tensor.dtype} {list(tensor.shape)} ".encode() + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def digest(tensors):
    return sha("".join(f"{key} {sha(bytes_of(tensor))}\n" for key, tensor in sorted(tensors.items())).encode())


def norm(tensor):
    return tensor.double().norm().item()


def tensors_of(file):
    """Of every tensor its digest and, in float64, mean and norm; a basis may have other signs elsewhere, so no mean of it."""
    told = {}
    for key, tensor in tensors_in(file).items():
        mean = {} if key.endswith(".basis") else {"mean": tensor.double().mean().item()}
        told[key] = {"digest": sha(bytes_of(tensor)), "norm": norm(tensor), **mean}
    return told


def state(file):
    """A digest of the names and one of the tensors whatever they are called; how many they are, and their norm."""
    tensors = tensors_in(file)
    return {
        "names_digest": sha("\n".join(tensors).encode()),
        "digest": sha("".join(sorted(sha(bytes_of(tensor)) for tensor in tensors.values())).encode()),
        "tensors": len(tensors),
        "numbers": sum(tensor.numel() for tensor in tensors.values()),
        "norm": math.hypot(*(norm(tensor) for tensor in tensors.values())),
    }


@contextmanager
def one_thread():
    """How sums are split among threads changes their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fingerprint():
    """What the last bits of a result depend on."""
    info = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if ":" in line)
    cpu = {key.strip(): value.strip() for key, value in info.items()}
    return {
        "cpu": " ".join(cpu.get(key, "?") for key in ("model name", "cpu family", "model", "stepping")),
        "instructions": sha(" ".join(sorted(cpu.get("flags", "").split())).encode())[:16],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        **{package: version(package) for package in ("torch", "transformers", "lerobot")},
    }
