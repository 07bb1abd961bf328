"""Data run nothing and are no pickles, and no place opens a stranger's folder that is not known here."""

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
from strangers import PICKLE

import vla_tune
from vla_tune.data.parquet import parquet_table
from vla_tune.data.pictures import read_rgb
from vla_tune.errors import UserError

SCRIPT = "import os, pathlib\npathlib.Path(os.environ['CANARY']).touch()\n"


def test_a_datasets_script_does_not_run(canary, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.py").write_text(SCRIPT)
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "set" / "part.parquet")
    assert len(parquet_table(tmp_path / "set", "*.parquet", SimpleNamespace(dataset="set"))) == 2


@pytest.mark.parametrize("name", ["picture.npy", "picture.png"])
def test_a_picture_is_no_pickle(canary, tmp_path, name):
    (tmp_path / name).write_bytes(b"\x93NUMPY\x01\x00" + PICKLE if name.endswith("npy") else PICKLE)
    with pytest.raises(UserError):
        read_rgb(tmp_path / name, name)


READS = {
    "lerobot's policy": {"policies/smolvla.py", "policies/paligemma.py", "policies/loading.py"},
    "transformers, behind check_model": {"vlm/loading.py", "learners/pictures.py", "policies/smolvla.py"},
    "transformers, on what `configuration` has looked at": {"engine/plan.py", "learners/planned.py"},
}
"""The files that open what may be a stranger's; one that is new belongs here, behind the look at it."""
PICKLES = {"torch.load", "np.load", "numpy.load", "pickle.load", "pickle.loads", "joblib.load", "PolicyProcessorPipeline.from_pretrained"}


def test_no_other_place_opens_a_folder_and_none_a_pickle():
    root = Path(vla_tune.__file__).parent
    opening, pickles = set(), set()
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute):
                opening |= {file.relative_to(root).as_posix()} if node.attr == "from_pretrained" else set()
                pickles |= {f"{file}: {ast.unparse(node)}"} if ast.unparse(node) in PICKLES else set()
    assert opening == set().union(*READS.values())
    assert not pickles
