"""The finished episodes of an evaluation, kept on disk as they end, so that an interrupted one goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vla_tune.artifacts.folder import empty, write_json
from vla_tune.console import say, warn
from vla_tune.simulators.episodes import Episode
from vla_tune.simulators.videos import write_video

KEPT = ("success", "touched", "steps", "total_reward")


class EpisodeLog:
    """Rows and videos of what is done.

    Args:
        folder: the stage's working folder, with what an earlier run of the stage left in it.
        basis: all that the results depend on; what was left from another is dropped.
    """

    def __init__(self, folder: Path, basis: dict[str, Any]) -> None:
        self._folder, self._basis = folder, json.loads(json.dumps(basis))
        self._head, self._rows = folder / "basis.json", folder / "episodes.jsonl"

    def restore(self, episodes: list[Episode]) -> list[Episode]:
        """Fill in the episodes that were done before; those that are left."""
        if not self._same():
            empty(self._folder)
            return episodes
        done = {(row["task"], row["seed"], row["given"]): row for row in self._read()}
        for episode in episodes:
            for key in KEPT if episode.name in done else ():
                setattr(episode, key, done[episode.name][key])
        if done:
            say(f"going on after {len(done)} episodes that an interrupted run finished")
        return [episode for episode in episodes if episode.name not in done]

    def add(self, episode: Episode) -> None:
        """Keep one that has ended; its pictures go into a video and are forgotten."""
        if not self._head.exists():
            write_json(self._head, self._basis)
        if episode.recorded:
            (self._folder / "videos").mkdir(exist_ok=True)
            write_video(self._folder / "videos" / episode.video, episode.frames)
            episode.frames = []
        task, seed, given = episode.name
        row = {"task": task, "seed": seed, "given": given, **{key: getattr(episode, key) for key in KEPT}}
        with self._rows.open("a") as stream:
            stream.write(json.dumps(row) + "\n")

    def close(self) -> None:
        """Everything is done, and stands elsewhere."""
        self._head.unlink(missing_ok=True)
        self._rows.unlink(missing_ok=True)

    def _same(self) -> bool:
        if not self._head.is_file():
            return not any(self._folder.iterdir())
        same: bool = json.loads(self._head.read_text()) == self._basis
        if not same:
            warn(f"{self._folder} holds episodes of another policy or other settings; they are dropped")
        return same

    def _read(self) -> list[dict[str, Any]]:
        """Every whole row; a last one that was cut off is dropped."""
        if not self._rows.exists():
            return []
        lines = self._rows.read_text().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        if whole != lines:
            self._rows.write_text("".join(whole))
        return [json.loads(line) for line in whole]
