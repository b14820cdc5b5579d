"""Data sets with small pictures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

VAL = "val2014/COCO_val2014_000000000042.jpg"
ITEMS = 7  # of nlvr_data


def write(folder: Path, name: str, content: Any) -> Path:
    """An annotation file, and a small picture for every image that it names."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = content if isinstance(content, list) else content.get("images", [])
    for entry in entries:
        place = entry.get("image") or entry.get("images") or f"{entry['filepath']}/{entry['filename']}"
        for image in [place] if isinstance(place, str) else place:
            (folder / image).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((20, 24, 3), len(image), dtype=np.uint8)).save(folder / image)
    (folder / name).write_text(json.dumps(content))
    return folder


def question(key: Any, **more: Any) -> dict[str, Any]:
    return {"question_id": key, "question": "the left image", "image": VAL, "answer": ["one"] * 10} | more


def write_images(folder: Path, names: Sequence[str]) -> None:
    """Small pictures, all different."""
    rng = np.random.default_rng(0)
    for name in dict.fromkeys(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)


def nlvr_data(folder: Path, **changes: Any) -> Path:
    """Seven sentences, the third long, but not too long to be read; `changes` go into every entry."""
    entries = [
        {
            "sentence": "a digit " * 15 if number == 2 else f"the left image shows {number} digits",
            "images": [f"dev/{number}-img0.png", f"dev/{number}-img1.png"],
            "label": str(number % 2 == 0),
            "identifier": f"test-{number}",
        }
        | changes
        for number in range(ITEMS)
    ]
    write_images(folder, [name for entry in entries for name in entry["images"]])
    (folder / "nlvr_test.json").write_text(json.dumps(entries))
    return folder


def vqa_data(folder: Path) -> Path:
    """Five questions with ten answers each, and a list to choose from."""
    entries = [
        {"question_id": 100 + number, "question": f"is it {number}?", "answer": ["yes"] * 10, "image": f"{number}.png"}
        for number in range(5)
    ]
    write_images(folder, [entry["image"] for entry in entries])
    (folder / "vqa_val.json").write_text(json.dumps(entries))
    (folder / "answer_list.json").write_text(json.dumps(["yes", "no", "the left digit"]))
    return folder


def coco_data(folder: Path) -> Path:
    """Five images with two captions each, one of them too long for the published reader."""
    entries = [
        {
            "image": f"val2014/COCO_val2014_{number:012d}.jpg",
            "caption": [f"a picture of digit {number}", "the right image " * (12 if number == 3 else 1)],
        }
        for number in range(1, 6)
    ]
    write_images(folder, [str(entry["image"]) for entry in entries])
    (folder / "coco_karpathy_test.json").write_text(json.dumps(entries))
    return folder
