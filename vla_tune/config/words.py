"""Words whose form can be judged without torch or a disk: what a run is called, and where it computes."""

from __future__ import annotations

import re

from vla_tune.errors import UserError, brief, folded, nearest

DEVICES = ("auto", "cpu", "cuda", "mps", "xpu", "hpu", "npu")
"""`auto`, and what torch calls the kinds of devices that models compute on."""
_NUMBERED = re.compile(r"([a-z]+)(?::(0|[1-9][0-9]{0,2}))?")
_LIKE_NUMBERED = re.compile(r"([a-z]*)[:_]*([0-9]{0,3})")
_OTHERS = {"gpu": "cuda", "nvidia": "cuda", "rocm": "cuda", "metal": "mps"}


def check_name(name: str) -> None:
    """Stop at a name that the run's folder cannot have."""
    if name in ("", ".", "..") or "/" in name or not name.isprintable():
        raise UserError(f"name='{brief(name)}': the run's folder is called by it; give a name without slashes, or leave it out")


def check_device_name(name: str) -> None:
    """Stop at what is no device's name; whether the machine has it is another question."""
    found = _NUMBERED.fullmatch(name)
    if found and found[1] in DEVICES and not (found[1] == "auto" and found[2]):
        return
    words = _LIKE_NUMBERED.fullmatch(folded(name))
    kind, number = (_OTHERS.get(words[1], words[1] or "cuda"), words[2]) if words else (folded(name), "")
    known = kind in DEVICES[1:]
    meant = f"did you mean {kind}{f':{int(number)}' if number else ''}?" if known else nearest(kind, list(DEVICES))
    raise UserError(f"device={brief(name)}: there is no such device; {meant} (auto, cpu, cuda, cuda:1)")
