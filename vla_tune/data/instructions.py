"""The instructions of a LeRobotDataset by their number."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata


def instructions(meta: LeRobotDatasetMetadata) -> dict[int, str]:
    """Instruction by `task_index`.

    lerobot reads its table by position; here the row goes by its number. The text is the table's index, as lerobot writes it, or its
    column `task`, as other writers do.
    """
    table = meta.tasks
    if table is None:
        return {}
    texts = table["task"] if "task" in table.columns else table.index
    return {int(number): str(text).strip() for number, text in zip(table["task_index"], texts, strict=True) if isinstance(text, str)}
