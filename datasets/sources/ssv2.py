"""Something-Something V2 (Goyal et al., ICCV 2017): 220847 clips of 174 classes, which are templates of a sentence.

    root/**/<id>.webm
    root/**/labels.json  train.json  validation.json  test.json       with or without "something-something-v2-" before
    root/**/test-answers.csv                                          <id>;<label>, if there is one

Some classes differ in left and right alone. Their names say so, and their clips are not flipped (transforms.py).
"""

from __future__ import annotations

from pathlib import Path

from softpool3d.datasets.manifest import Clip, Manifest
from softpool3d.datasets.video.find import data_root, find_named, index_videos
from softpool3d.errors import UsageError
from softpool3d.text import legible, read_json, read_text

_FILES = {"train": "train", "val": "validation", "test": "test"}


def read_ssv2(root: str | Path | None) -> dict[str, Manifest]:
    """Returns the splits "train", "val" and, where its labels are there, "test".

    Raises:
        UsageError: if label files or videos are missing altogether, or an entry of a label file is wrong.
    """
    root = data_root(root, "ssv2")
    path = _find(root, "labels")
    numbers = read_json(path)
    if not isinstance(numbers, dict) or not numbers:
        raise UsageError(f"{path}: not a JSON object of template: number")
    classes = tuple(sorted(numbers, key=lambda name: int(numbers[name])))
    order = {name: number for number, name in enumerate(classes)}
    videos = index_videos(root)
    manifests = {}
    for split, name in _FILES.items():
        if split == "test":
            entries, path = _test_entries(root)
        else:
            path = _find(root, name)
            entries = read_json(path)
        clips, missing = [], []
        for number, entry in enumerate(entries, 1):
            try:
                identity, template = str(entry["id"]), entry["template"].replace("[", "").replace("]", "")
                label = order[template]
            except KeyError as error:
                raise UsageError(f"{path}: entry {number} has no {error}, or it is not among the labels") from None
            except (TypeError, AttributeError):
                raise UsageError(f"{path}: entry {number} is not an object with id and template") from None
            if identity in videos:
                clips.append(Clip(videos[identity][0], label))
            else:
                missing.append(f"{identity}.webm")
        if clips or split != "test":
            manifests[split] = Manifest(classes, clips, tuple(missing), str(root))
        if not clips and split != "test":
            raise UsageError(
                f"data.root: none of the {len(missing)} {split} videos of ssv2 is below {root} "
                f"(looked for {', '.join(missing[:2])}, ...)"
            )
    return manifests


def _test_entries(root: Path) -> tuple[list[dict[str, str]], Path]:
    """Returns the entries of the test split, and their file; none without its labels, which were published later."""
    path = next(iter(find_named(root, "*test-answers.csv")), root)
    lines = legible(read_text(path), path).splitlines() if path != root else []
    pairs = (line.partition(";") for line in lines if line.strip())
    return [{"id": identity.strip(), "template": label.strip()} for identity, _, label in pairs], path


def _find(root: Path, name: str) -> Path:
    for candidate in (f"{name}.json", f"something-something-v2-{name}.json"):
        found = find_named(root, candidate)
        if found:
            return found[0]
    raise UsageError(f"data.root: no {name}.json (or something-something-v2-{name}.json) below {root}")
