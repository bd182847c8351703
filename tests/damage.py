"""Ways to damage a run's folder.

A copy, a sync, a full disk, another program or a stranger may leave such files.
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

DEEP = "[" * 50_000
# Values as they stand in JSON. Some are invalid, and some Python would not write.
VALUES = [
    "null",
    "true",
    "-1",
    "0",
    "1",
    "1e308",
    "1e999",
    "NaN",
    "-Infinity",
    "0.5",
    '""',
    "[]",
    "{}",
    '"../../x"',
    '"\\u0000"',
]
VALUES += [
    '"\\ud800"',
    '"\\u001b[31m"',
    '"' + "x" * 50_000 + '"',
    "9" * 400,
    "9" * 5000,
    DEEP,
    "[" * 900 + "]" * 900,
    '{"a": {"b": 1}}',
    '[1, "a", null]',
]
MARK = "@@@"
OFTEN = {
    "config.json": 4,
    "events.jsonl": 8,
    "predictions.parquet": 4,
    "best.safetensors": 3,
    "last.safetensors": 2,
    "about.json": 2,
}


def damage(run_dir: Path, chance: random.Random) -> str:
    """Damage one file of a run, and return a description of the damage."""
    files = sorted(path for path in run_dir.rglob("*") if path.is_file() and not path.is_symlink())
    path = chance.choices(files, [OFTEN.get(file.name, 1) for file in files])[0]
    ways = [*BYTES, *BYTES, *KINDS]
    if path.suffix == ".json":
        ways += [change_json] * 25
    elif path.suffix == ".jsonl":
        ways += [change_line, change_lines] * 20
    elif path.suffix == ".parquet":
        ways += [change_table] * 25
    elif path.suffix == ".safetensors":
        ways += [change_tensors, change_header] * 12
    way = chance.choice(ways)
    change = way(path, chance)
    return f"{path.relative_to(run_dir)}: {way.__name__} {change or ''}"


def cut(path: Path, chance: random.Random) -> str:
    at = chance.randint(0, max(0, path.stat().st_size - 1))
    os.truncate(path, at)
    return f"at {at}"


def flip(path: Path, chance: random.Random) -> str:
    content = bytearray(path.read_bytes())
    places = (
        [chance.randrange(len(content)) for _ in range(chance.choice([1, 1, 8, 100]))]
        if content
        else []
    )
    for place in places:
        content[place] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    return f"at {places[:8]}"


def delete(path: Path, chance: random.Random) -> None:
    path.unlink()


def empty(path: Path, chance: random.Random) -> None:
    path.write_bytes(b"")


def swap(path: Path, chance: random.Random) -> str:
    other = chance.choice([one for one in path.parent.iterdir() if one.is_file()])
    shutil.copyfile(other, path) if other != path else None
    return f"with {other.name}"


def garbage(path: Path, chance: random.Random) -> None:
    path.write_bytes(chance.randbytes(chance.choice([1, 100, 5000])))


def zeros(path: Path, chance: random.Random) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def enormous(path: Path, chance: random.Random) -> None:
    os.truncate(path, 2**41)


def insert(path: Path, chance: random.Random) -> str:
    content = path.read_bytes()
    at = chance.randint(0, len(content))
    path.write_bytes(
        content[:at]
        + chance.choice([b"\0", b"\n", b"{", b"\xff\xfe", DEEP.encode(), b"x" * 100])
        + content[at:]
    )
    return f"at {at}"


def folder(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.mkdir()


def fifo(path: Path, chance: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path, chance: random.Random) -> str:
    to = chance.choice(
        [
            "/dev/zero",
            "/etc/hostname",
            path.name,
            "..",
            "nowhere",
            *(one.name for one in path.parent.iterdir()),
        ]
    )
    path.unlink()
    path.symlink_to(to)
    return f"to {to}"


BYTES: list[Callable] = [
    cut,
    cut,
    flip,
    flip,
    delete,
    empty,
    swap,
    garbage,
    zeros,
    enormous,
    insert,
]
KINDS: list[Callable] = [folder, fifo, link, link]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of everything in a JSON value."""
    keys = (
        value.keys()
        if isinstance(value, dict)
        else range(len(value))
        if isinstance(value, list)
        else ()
    )
    return [found for key in keys for found in ((value, key), *places(value[key]))]


def mutate_json(text: str, chance: random.Random) -> tuple[str, str]:
    """Return a JSON text with one part replaced, left out, or added."""
    value = json.loads(text)
    found = places(value)
    if not found:
        return chance.choice(VALUES), "all of it"
    holder, key = chance.choice(found)
    way = chance.randrange(10)
    if way == 0:
        del holder[key]
        return json.dumps(value), f"without {key}"
    new = chance.choice(VALUES)
    if way == 1 and isinstance(holder, dict):
        holder["more"] = MARK
    else:
        holder[key] = MARK
    return json.dumps(value).replace(f'"{MARK}"', new), f"{key} becomes {new[:40]}"


def change_json(path: Path, chance: random.Random) -> str:
    text, result = mutate_json(path.read_text(), chance)
    path.write_text(text)
    return result


def change_line(path: Path, chance: random.Random) -> str:
    lines = path.read_text().splitlines()
    # Most depends on the first step, and there are many steps.
    at = chance.choice(
        [
            number
            for number, line in enumerate(lines)
            if "Progress" not in line or chance.random() < 0.1
        ]
        or [0]
    )
    at = (
        next(number for number, line in enumerate(lines) if "RunStarted" in line)
        if chance.random() < 0.4
        else at
    )
    lines[at], result = mutate_json(lines[at], chance)
    path.write_text("\n".join(lines) + "\n")
    return (
        f"line {at} ({json.loads(path.read_text().splitlines()[0])['event']}): {result}"
        if at == 0 and result == ""
        else f"line {at}: {result}"
    )


def change_lines(path: Path, chance: random.Random) -> str:
    lines = path.read_text().splitlines()
    way = chance.choice(
        ["drop", "drop some", "twice", "shuffle", "reverse", "none", "between", "only"]
    )
    at = chance.randrange(len(lines))
    match way:
        case "drop":
            del lines[at]
        case "drop some":
            kind = chance.choice(
                ["RunStarted", "EpochEnded", "StepEnded", "RunFinished", "CheckpointSaved"]
            )
            lines = [line for line in lines if kind not in line]
        case "twice":
            lines.insert(chance.randrange(len(lines)), lines[at])
        case "shuffle":
            chance.shuffle(lines)
        case "reverse":
            lines.reverse()
        case "none":
            lines = ["\0" * 100] * chance.choice([1, 20_000])
        case "between":
            lines[at:at] = [chance.choice(VALUES)]
        case "only":
            lines = [lines[at]]
    path.write_text("\n".join(lines) + "\n")
    return way


def change_table(path: Path, chance: random.Random) -> str:
    table = pq.read_table(path)
    names, rows = table.schema.names, len(table)
    name = chance.choice(names)
    matrix = np.stack(table["logits"].to_numpy()).copy()
    at = names.index(name)
    new = {
        "without": lambda: table.drop_columns(name),
        "renamed": lambda: table.rename_columns(["x" if one == name else one for one in names]),
        "missing": lambda: table.set_column(at, name, pa.nulls(rows, table.schema.field(at).type)),
        "texts": lambda: table.set_column(at, name, pa.array(["x"] * rows)),
        "numbers": lambda: table.set_column(
            at, name, pa.array([chance.choice([0, -1, 7, 2**40])] * rows)
        ),
        "floats": lambda: table.set_column(
            at, name, pa.array([chance.choice([0.5, float("nan")])] * rows)
        ),
        "lists": lambda: table.set_column(at, name, pa.array([[1]] * rows)),
        "empty": lambda: table.slice(0, 0),
        "fewer": lambda: table.slice(0, chance.randint(1, rows)),
        "twice": lambda: pa.concat_tables([table, table]),
        "one split": lambda: table.set_column(
            names.index("split"),
            "split",
            pa.array([chance.choice(["val", "test", "train", ""])] * rows),
        ),
        "wider": lambda: table.set_column(
            names.index("logits"), "logits", pa.array(list(np.hstack([matrix, matrix])))
        ),
        "narrower": lambda: table.set_column(
            names.index("logits"), "logits", pa.array(list(matrix[:, :1]))
        ),
        "not finite": lambda: table.set_column(
            names.index("logits"), "logits", pa.array(list(matrix * np.float32(np.inf)))
        ),
        "names": lambda: table.set_column(
            names.index("id"), "id", pa.array([f"../{one}\0" for one in range(rows)])
        ),
    }
    way = chance.choice(sorted(new))
    pq.write_table(new[way](), path, compression=chance.choice(["snappy", "gzip", "none"]))
    return f"{name} {way}"


def change_tensors(path: Path, chance: random.Random) -> str:
    change = header(path).get("__metadata__", {})
    tensors = load_file(path)
    name = chance.choice(sorted(tensors))
    one = tensors[name]
    way = chance.choice(
        ["none", "without", "renamed", "more", "shape", "type", "nan", "huge", "zeros", "scalar"]
    )
    match way:
        case "none":
            tensors.clear()
        case "without":
            del tensors[name]
        case "renamed":
            tensors[
                chance.choice(["x", f"{name}/x", "optimizer/0/step", "average/x", "optimizer/x"])
            ] = tensors.pop(name)
        case "more":
            tensors[chance.choice(["x", "conv_stem.weight", "optimizer/99/step", "average/x"])] = (
                torch.zeros(3)
            )
        case "shape":
            tensors[name] = torch.zeros(7, 2)
        case "type":
            tensors[name] = one.to(
                chance.choice([torch.float16, torch.int64, torch.float64, torch.bool])
            )
        case "nan":
            tensors[name] = torch.full(one.shape, torch.nan)
        case "huge":
            tensors[name] = torch.full(one.shape, 3e38)
        case "zeros":
            tensors[name] = torch.zeros_like(one)
        case "scalar":
            tensors[name] = torch.tensor(1.0)
    save_file(tensors, path, change)
    return f"{name} {way}"


def header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return json.loads(file.read(int.from_bytes(file.read(8), "little")))


def change_header(path: Path, chance: random.Random) -> str:
    """Change what the file says of its tensors, or of itself."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    found = json.loads(content[8 : 8 + length])
    if "info" in found.get("__metadata__", {}) and chance.random() < 0.7:
        found["__metadata__"]["info"], result = mutate_json(found["__metadata__"]["info"], chance)
        text = json.dumps(found)
    else:
        text, result = mutate_json(json.dumps(found), chance)
    raw = text.encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + content[8 + length :])
    return result
