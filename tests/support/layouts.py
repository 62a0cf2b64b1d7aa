"""Miniature copies of the layouts that data sets have on a disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from videos import write_numbered

Make = Callable[[Path], object]


def placeholder(path: Path) -> None:
    path.write_bytes(b"x")


def short_video(path: Path) -> None:
    """12 frames, whatever the name ends in."""
    codec = "libvpx" if path.suffix == ".webm" else "mpeg4" if path.suffix == ".avi" else "libx264"
    write_numbered(path, 12, codec, **({"cpu-used": "8", "deadline": "realtime"} if codec == "libvpx" else {}))


def files(root: Path, names: list[str], make: Make = placeholder) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)


def texts(root: Path, contents: dict[str, str]) -> None:
    for name, content in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("utf-8"))


HMDB51 = {
    "brush_hair": [
        ("April_09_brush_hair_u_nm_np1_ba_goo_0.avi", 1),
        ("Brushing_Hair_with_Beth!_(#2)_brush_hair_h_nm_np1_le_goo_0.avi", 1),
        ("Haare_kämmen & waschen_brush_hair_u_nm_np1_ri_med_1.avi", 2),
        ("unused_brush_hair_u_nm_np1_ri_med_1.avi", 0),
    ],
    "wave": [
        ("50_FIRST_DATES_wave_f_cm_np1_fr_med_36.avi", 1),
        ("Dad & Mom; it's us [take 1]_wave_u_cm_np1_fr_bad_12.avi", 1),
        ("TrumanShow_wave_f_nm_np1_fr_med_26.avi", 2),
    ],
}


def hmdb51(root: Path, make: Make = placeholder) -> Path:
    """As hmdb51_org.rar and test_train_splits.rar unpack; split 2 is split 1 with training and test exchanged."""
    for label, clips in HMDB51.items():
        files(root / "hmdb51_org" / label, [name for name, _ in clips], make)
        for split, exchange in ((1, {}), (2, {1: 2, 2: 1})):
            lines = [f"{name} {exchange.get(use, use)} " for name, use in clips]
            folder = "testTrainMulti_7030_splits"
            texts(root, {f"{folder}/{label}_test_split{split}.txt": "\r\n".join(lines) + "\r\n"})
    return root


def ucf101(root: Path, make: Make = placeholder, flat: bool = False) -> Path:
    """As UCF101.rar and UCF101TrainTestSplits-RecognitionTask.zip unpack."""
    train = ["HandstandPushups/v_HandStandPushups_g08_c01", "YoYo/v_YoYo_g08_c01", "YoYo/v_YoYo_g08_c02"]
    test = ["HandstandPushups/v_HandStandPushups_g01_c01", "YoYo/v_YoYo_g01_c01"]
    files(root / "UCF-101", [f"{n.split('/')[1] if flat else n}.avi" for n in train + test], make)
    number = {"HandstandPushups": 1, "YoYo": 2}
    texts(
        root / "ucfTrainTestlist",
        {
            "classInd.txt": "1 HandstandPushups\r\n2 YoYo\r\n",
            "trainlist01.txt": "".join(f"{n}.avi {number[n.split('/')[0]]}\r\n" for n in train),
            "testlist01.txt": "".join(f"{n}.avi\r\n" for n in test),
        },
    )
    return root


def ssv2(root: Path, make: Make = placeholder) -> Path:
    templates = ["Moving [something] from left to right", "Pretending to put [something] onto [something]"]
    train = [{"id": str(n), "label": "…", "template": templates[n % 2], "placeholders": []} for n in range(100, 104)]
    val = [{"id": str(n), "label": "…", "template": templates[n % 2], "placeholders": []} for n in range(200, 202)]
    files(root / "20bn-something-something-v2", [f"{e['id']}.webm" for e in train + val], make)
    names = {template.replace("[", "").replace("]", ""): str(n) for n, template in enumerate(templates)}
    texts(
        root / "labels",
        {
            "labels.json": json.dumps(names, indent=1),
            "train.json": json.dumps(train, indent=1),
            "validation.json": json.dumps(val, indent=1),
            "test.json": json.dumps([{"id": "300"}]),
        },
    )
    return root


KINETICS = {
    "train": [
        ("abseiling", "0347ZoDXyP0", 95, 105),
        ("abseiling", "-3B32lodo2M", 59, 69),
        ("making a cake, slowly", "A_2_b-c__d0", 0, 10),
        ("making a cake, slowly", "zzzzzzzzzzz", 3, 13),
    ],
    "val": [("abseiling", "vvvvvvvvvv1", 20, 30), ("making a cake, slowly", "vvvvvvvvvv2", 1, 11)],
}


def kinetics(root: Path, make: Make = placeholder, flat: bool = False, timed: bool = True, name: str = "") -> Path:
    """The official lists, and all videos but the last of training; name: how they are called, of id, start and end."""
    name = name or ("{}_{:06d}_{:06d}.mp4" if timed else "{}.mp4")
    for split, clips in KINETICS.items():
        lines = ["label,youtube_id,time_start,time_end,split"]
        lines += [f'"{label}",{identity},{start},{end},{split}' for label, identity, start, end in clips]
        texts(root, {f"annotations/{split}.csv": "\n".join(lines) + "\n"})
        for label, identity, start, end in clips:
            if identity != "zzzzzzzzzzz":
                called = name.format(identity, start, end)
                files(root / split, [called if flat else f"{label}/{called}"], make)
    return root


def kinetics_json(root: Path, style: str) -> Path:
    """JSON in place of the official lists: "hara" and "activitynet" in one file, "deepmind" in one for each split."""
    subsets = {"train": "training", "val": "validation"}
    databases: dict[str, dict] = {split: {} for split in KINETICS}
    for split, clips in KINETICS.items():
        (root / "annotations" / f"{split}.csv").unlink()
        for label, identity, start, end in clips:
            key = f"{identity}_{start:06d}_{end:06d}" if style == "hara" else identity
            annotations = {"label": label, "segment": [1, 301] if style == "hara" else [float(start), float(end)]}
            databases[split][key] = {
                "subset": split if style == "deepmind" else subsets[split],
                "annotations": [annotations] if style == "activitynet" else annotations,
            }
    if style == "deepmind":
        databases["test"] = {"ttttttttttt": {"subset": "test", "duration": 10.0}}
        texts(root, {f"annotations/{name}.json": json.dumps(some) for name, some in databases.items()})
        return root
    whole = {"database": databases["train"] | databases["val"] | {"t": {"subset": "testing", "annotations": {}}}}
    if style == "hara":
        whole["labels"] = ["making a cake, slowly", "abseiling"]
    texts(root, {"kinetics.json": json.dumps(whole)})
    return root
