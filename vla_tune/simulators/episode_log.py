"""The finished episodes of an evaluation, kept on disk as they end, so that an interrupted one goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_tune.artifacts.store import BASIS, KeptRows
from vla_tune.console import say
from vla_tune.simulators.episodes import Episode
from vla_tune.simulators.videos import write_video

KEPT = ("success", "touched", "steps", "total_reward")
FILES = (BASIS, "episodes.jsonl")
"""Where the rows are in the working folder."""
VIDEOS = "videos"


class EpisodeLog:
    """Rows and videos of what is done.

    Args:
        folder: the stage's working folder, with what an earlier run of the stage left in it.
        basis: all that the results depend on; what was left from another is dropped.
    """

    def __init__(self, folder: Path, basis: dict[str, Any]) -> None:
        self._folder, self._kept = folder, KeptRows(folder, basis, "episodes")

    def restore(self, episodes: list[Episode]) -> list[Episode]:
        """Fill in the episodes that were done before; those that are left."""
        done = {(row["task"], row["seed"], row["given"]): row for row in self._kept.rows()}
        for episode in episodes:
            for key in KEPT if episode.name in done else ():
                setattr(episode, key, done[episode.name][key])
        if done:
            say(f"going on after {len(done)} episodes that an interrupted run finished")
        return [episode for episode in episodes if episode.name not in done]

    def add(self, episode: Episode) -> None:
        """Keep one that has ended; its pictures go into a video and are forgotten."""
        self._kept.begin()  # before a video lies there that belongs to nothing
        if episode.recorded:
            (self._folder / VIDEOS).mkdir(exist_ok=True)
            write_video(self._folder / VIDEOS / episode.video, episode.frames)
            episode.frames = []
        task, seed, given = episode.name
        self._kept.add({"task": task, "seed": seed, "given": given, **{key: getattr(episode, key) for key in KEPT}})
