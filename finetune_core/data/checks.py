"""Findings from the index alone: files, copies, classes, light and sharpness.

No file is read again.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from finetune_core.data.findings import Finding, Severity
from finetune_core.data.listing import Note
from finetune_core.data.splits import SPLITS, TEST, TRAIN, VAL
from finetune_core.formatting import SPLIT_TITLES, format_percent, pluralize

_FEW = 10  # training images per class
_MANY_TIMES = 10  # the largest class over the smallest
# A property of a quarter of the images is the nature of the set, not a fault of single images.
_WHOLE_SET = 0.25
# Pixels of the shorter side; longer over shorter side; number of pixels.
_TINY, _LONG, _LARGE = (32, 3.0, 25e6)
# 95th and 5th percentile and standard deviation of the gray levels, 0…255.
_DARK, _BRIGHT, _PLAIN = (40, 225, 4.0)
# Robust deviations below the set's median log sharpness, and the sharpness itself.
_BLUR_DEVIATIONS, _BLURRED = (5.0, 0.02)
_FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jfif", ".jpe"),
    "MPO": (".jpg", ".jpeg", ".mpo"),
    "PNG": (".png",),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
_TRANSPARENT = ("RGBA", "LA", "PA", "P")  # modes of an ordinary PNG, WebP or GIF
_HARMLESS = ("wrong_extension", "over_large", "odd_mode", "transparent")
# These hide a part of the image from the network, which is a loss in a whole set, too.
_HIDING = ("extreme_aspect",)
_LEFT_OUT: dict[str, Severity] = {
    "damaged": "error",
    "unreadable": "error",
    "empty_file": "error",
    "missing_file": "error",
    "outside": "error",
    "bad_name": "error",
    "no_class": "warning",
    "empty_class": "warning",
    "ignored_folder": "warning",
    "not_an_image": "info",
}


def find_file_problems(rows: pd.DataFrame, notes: Sequence[Note]) -> Iterator[Finding]:
    """Yield findings about files that were left out.

    Args:
        rows: rows of the index that have a problem.
        notes: files and folders that the listing left out.
    """
    reasons = dict(zip(rows["id"], rows["reason"], strict=True))
    passed = pd.DataFrame(
        [*notes, *zip(rows["problem"], rows["id"], strict=True)], columns=["kind", "path"]
    )
    for kind, severity in _LEFT_OUT.items():
        paths = tuple(passed.loc[passed["kind"] == kind, "path"])
        if paths:
            first = reasons.get(paths[0], paths[0])
            message = f"{pluralize(len(paths), _name_thing(kind))} left out: {first}" + (
                "" if len(paths) == 1 else ", …"
            )
            yield Finding(
                kind,
                severity,
                f"{message}.",
                len(paths),
                paths,
                notes={path: reasons.get(path, "") for path in paths},
            )


def find_image_problems(table: pd.DataFrame) -> Iterator[Finding]:
    """Yield findings about single images.

    Args:
        table: the table of the data set.
    """
    shorter, longer = table[["width", "height"]].min(axis=1), table[["width", "height"]].max(axis=1)
    sharp = _compute_log_sharpness(table)
    found = {
        "wrong_extension": (
            _has_wrong_extension(table),
            "are not what the extension says",
            table["id"],
        ),
        "animated": (
            table["frames"] > 1,
            "have more than one frame; the first is used",
            table["id"],
        ),
        "extreme_aspect": (
            longer > _LONG * shorter,
            f"are more than {_LONG:.0f} times as long as wide",
            -longer / shorter,
        ),
        "tiny": (shorter < _TINY, f"are smaller than {_TINY} pixels on the shorter side", shorter),
        "over_large": (
            table["width"] * table["height"] > _LARGE,
            f"have more than {_LARGE / 1e6:.0f} million pixels",
            -longer,
        ),
        "odd_mode": (
            ~table["mode"].isin(("RGB", "L", *_TRANSPARENT)),
            "are neither RGB nor 8-bit gray",
            table["mode"],
        ),
        "transparent": (
            table["mode"].isin(_TRANSPARENT),
            "have transparency or a palette; what is transparent becomes white",
            table["mode"],
        ),
        "uniform": (table["contrast"] < _PLAIN, "show nearly one colour only", table["contrast"]),
        "dark": (
            (table["high"] < _DARK) & (table["contrast"] >= _PLAIN),
            "are very dark",
            table["high"],
        ),
        "bright": (
            (table["low"] > _BRIGHT) & (table["contrast"] >= _PLAIN),
            "are very bright",
            -table["low"],
        ),
        "blurry": (
            _is_blurred(sharp, table["contrast"]),
            "are much less sharp than the rest",
            sharp,
        ),
    }
    for kind, (mask, words, order) in found.items():
        rows = table[np.asarray(mask)]
        if rows.empty:
            continue
        rows = rows.iloc[order[rows.index].argsort(kind="stable")]
        nature = len(rows) > _WHOLE_SET * len(table)
        harmless = kind in _HARMLESS or (nature and kind not in _HIDING)
        notes = rows["format"] if kind == "wrong_extension" else _describe_sizes(rows)
        finding = _make_image_finding(
            kind, "info" if harmless else "warning", rows["id"], words, len(table), notes
        )
        yield replace(finding, whole_set=nature)


def find_copy_problems(table: pd.DataFrame) -> Iterator[Finding]:
    """Yield findings about copies and near-duplicates.

    Those across splits come first, because they inflate a score.
    """
    # Usually a few of a million images.
    alike = table[table["content"].duplicated(keep=False) | table["near"].duplicated(keep=False)]
    rank = alike["split"].map({split: number for number, split in enumerate(SPLITS)})
    ordered = alike.assign(rank=rank).sort_values(["rank", "id"])
    exact = ordered[ordered["content"].duplicated(keep=False)]
    conflicting = _has_other_values(exact, "content", "label")
    yield from _find_conflicts(exact[conflicting])
    agreeing = exact[~conflicting]
    yield from _find_leaks(
        "leakage", agreeing[_has_other_values(agreeing, "content", "split")], "content", table
    )
    yield from _find_surplus("exact_duplicates", agreeing, "content")
    # The most confident come first.
    ordered = ordered.sort_values(["rank", "closeness", "id"], ascending=[True, False, True])
    # Including exact copies, which have to move with the rest.
    near = ordered[_has_other_values(ordered, "near", "content")]
    yield from _find_leaks(
        "near_leakage", near[_has_other_values(near, "near", "split")], "near", table
    )
    yield from _find_surplus("near_duplicates", near[~near["content"].duplicated()], "near")


def find_class_problems(table: pd.DataFrame, classes: Sequence[str]) -> Iterator[Finding]:
    """Yield findings about the sizes and names of the classes."""
    if len(classes) == 1:
        message = f"There is only one class: “{classes[0]}”. A classifier needs at least two."
        yield Finding("single_class", "error", message, 1, classes=tuple(classes))
    counts = {split: table[table["split"] == split].groupby("label").size() for split in SPLITS}
    training = counts[TRAIN]
    for split, kind, words in (
        (TRAIN, "class_not_trained", "No training images for {}: the network cannot learn it."),
        (
            VAL,
            "class_not_validated",
            "No validation images for {}: it is not evaluated during training.",
        ),
        (TEST, "class_not_tested", "No test images for {}: the test metrics do not cover it."),
    ):
        if split == TEST and counts[split].empty:
            message = (
                "There are no test images: accuracy is measured on the images that choose the best "
                "epoch."
            )
            yield Finding("no_test_split", "warning", message, 1)
            continue
        missing = tuple(
            name for label, name in enumerate(classes) if label not in counts[split].index
        )
        if missing:
            yield Finding(
                kind, "warning", words.format(join_names(missing)), len(missing), classes=missing
            )
    few = tuple(classes[label] for label in training.index if training[label] < _FEW)
    if few:
        message = f"Fewer than {_FEW} training images in {join_names(few)}."
        yield Finding("few_images", "warning", message, len(few), classes=few)
    if len(training) > 1 and training.max() >= _MANY_TIMES * training.min():
        times = training.max() / training.min()
        message = (
            f"The largest class has {times:.0f} times the training images of the smallest: "
            "accuracy alone is misleading."
        )
        extremes = (
            classes[training.index[int(training.argmax())]],
            classes[training.index[int(training.argmin())]],
        )
        yield Finding("imbalance", "warning", message, len(extremes), classes=extremes)
    yield from _find_similar_names(table, classes)


def join_names(names: Sequence[str], limit: int = 3) -> str:
    """Join names as ``a, b, c and 4 more``."""
    listed = ", ".join(names[:limit])
    return listed if len(names) <= limit else f"{listed} and {len(names) - limit:,} more"


def _name_thing(kind: str) -> str:
    return {"no_class": "image", "empty_class": "folder", "ignored_folder": "folder"}.get(
        kind, "file"
    )


def _has_wrong_extension(table: pd.DataFrame) -> np.ndarray:
    """Return which files have another extension than their format, boolean ``[n]``."""
    names, misnamed = table["id"].str.lower(), np.zeros(len(table), dtype=bool)
    for name, endings in _FORMATS.items():
        misnamed |= ((table["format"] == name) & ~names.str.endswith(endings)).to_numpy(dtype=bool)
    return misnamed


def _describe_sizes(rows: pd.DataFrame) -> pd.Series:
    """Return size and mode of each image as text; equal texts are one object."""
    number, kinds = (
        rows.groupby(["width", "height", "mode"], sort=False).ngroup(),
        rows[["width", "height", "mode"]].drop_duplicates(),
    )
    words = [
        f"{w} × {h}, {mode}"
        for w, h, mode in zip(kinds["width"], kinds["height"], kinds["mode"], strict=True)
    ]
    return pd.Series(np.array(words, dtype=object)[number], dtype=object)


def _make_image_finding(
    kind: str, severity: Severity, ids: pd.Series, words: str, total: int, notes: pd.Series
) -> Finding:
    paths = tuple(ids)
    message = f"{pluralize(len(paths), 'image')} ({format_percent(len(paths) / total)}) {words}."
    if len(paths) == 1:
        message = (
            message.replace(" are ", " is ", 1)
            .replace(" have ", " has ", 1)
            .replace(" show ", " shows ", 1)
        )
    return Finding(
        kind, severity, message, len(paths), paths, notes=dict(zip(paths, notes, strict=True))
    )


def _compute_log_sharpness(table: pd.DataFrame) -> pd.Series:
    logs: pd.Series = np.log(table["sharpness"].clip(lower=1e-9))
    return logs


def _is_blurred(sharp: pd.Series, contrast: pd.Series) -> pd.Series:
    """Return which images are blurred: far below the median of the set, and below a fixed limit.

    A set that is soft by nature has no blurred images.
    """
    usual = sharp[contrast >= _PLAIN]
    if len(usual) < _FEW:
        return pd.Series(False, index=sharp.index)
    deviation = 1.4826 * (usual - usual.median()).abs().median()
    limit = min(usual.median() - _BLUR_DEVIATIONS * max(deviation, 0.1), np.log(_BLURRED))
    blurred: pd.Series = (sharp < limit) & (contrast >= _PLAIN)
    return blurred


def _has_other_values(rows: pd.DataFrame, key: str, column: str) -> pd.Series:
    """Return which rows share their key with rows of another value in the column, boolean."""
    return rows.groupby(key)[column].transform("nunique") > 1


def _collect_sets(rows: pd.DataFrame, keys: list[str]) -> tuple[tuple[str, ...], ...]:
    return tuple(rows.groupby(keys, sort=False)["id"].agg(tuple))


def _find_conflicts(rows: pd.DataFrame) -> Iterator[Finding]:
    if rows.empty:
        return
    sets = _collect_sets(rows, ["content"])
    paths = tuple(path for one in sets for path in one)
    message = (
        f"{pluralize(len(paths), 'file')} hold {pluralize(len(sets), 'image')} in two or more "
        "classes."
    )
    notes = dict(zip(rows["id"], rows["class"], strict=True))
    yield Finding("conflicting_labels", "error", message, len(paths), paths, sets=sets, notes=notes)


def _find_leaks(kind: str, rows: pd.DataFrame, key: str, table: pd.DataFrame) -> Iterator[Finding]:
    """Yield the finding about sets of copies that lie in more than one split, training first.

    Exact copies are to be excluded from training, or from validation if the other copy is a test
    image, so the evaluated images stay the same. Evaluated near-duplicates are to move to training.
    They are a warning, because it is uncertain whether they are duplicates.
    """
    if rows.empty:
        return
    sets = _collect_sets(rows, [key])
    first, last = (rows.groupby(key)["split"].transform(which) for which in ("first", "last"))
    evaluated = rows[rows["split"] != first]
    exact = kind == "leakage"
    can = "can" if exact else "could"
    inflated = [
        f"{pluralize(count, 'image')} of {SPLIT_TITLES[str(split)].lower()}: its accuracy {can} "
        f"come out up to {format_percent(count / (table['split'] == split).sum())} too high"
        for split, count in evaluated["split"].value_counts().items()
    ]
    copied = "copied" if exact else "possibly copied"
    message = f"{pluralize(len(sets), 'image')} {copied} across splits. {'; '.join(inflated)}."
    proposed = (
        rows[rows["split"] != last]
        if exact
        else evaluated.sort_values(["closeness", "id"], ascending=[False, True])
    )
    to = {} if exact else dict(zip(evaluated["id"], first[evaluated.index], strict=True))
    notes = dict(zip(rows["id"], rows["split"].map(SPLIT_TITLES), strict=True))
    yield Finding(
        kind,
        "error" if exact else "warning",
        message,
        len(proposed),
        tuple(proposed["id"]),
        sets=sets,
        to=to,
        notes=notes,
    )


def _find_surplus(kind: str, rows: pd.DataFrame, key: str) -> Iterator[Finding]:
    keys = [key, "split"]
    rows = rows[rows.duplicated(keys, keep=False)]
    if rows.empty:
        return
    sets = _collect_sets(rows, keys)
    later = rows[rows.duplicated(keys)]
    paths = tuple(
        later.sort_values(["closeness", "rank", "id"], ascending=[False, True, True])["id"]
    )
    copies = (
        pluralize(len(paths), "copy", "copies")
        if kind == "exact_duplicates"
        else pluralize(len(paths), "possible near-duplicate")
    )
    message = f"{copies} of {pluralize(len(sets), 'image')} in the same split."
    yield Finding(
        kind,
        "warning" if kind == "exact_duplicates" else "info",
        message,
        len(paths),
        paths,
        sets=sets,
    )


def _find_similar_names(table: pd.DataFrame, classes: Sequence[str]) -> Iterator[Finding]:
    """Yield the finding about class names that are nearly equal.

    They differ only in case, spaces, signs and a plural s, or in one letter. Digits are meant to
    differ.
    """
    plain = [re.sub(r"[^\w]|_", "", name.casefold()).removesuffix("s") or name for name in classes]
    keys: dict[str, list[int]] = {}
    for label, name in enumerate(plain):
        shortened = {
            name[:at] + name[at + 1 :]
            for at in range(len(name))
            if len(name) >= 6 and not name[at].isdigit()
        }
        for key in {name} | shortened:
            keys.setdefault(key, []).append(label)
    alike = {tuple(sorted(set(labels))) for labels in keys.values() if len(set(labels)) > 1}
    pairs = sorted(
        {
            (a, b)
            for labels in alike
            for a in labels
            for b in labels
            if a < b and _is_typo(plain[a], plain[b])
        }
    )
    if not pairs:
        return
    sizes = table["label"].value_counts()

    def rank(label: int) -> tuple[int, int]:
        return sizes.get(label, 0), label

    larger: dict[int, int] = {}
    for pair in pairs:
        small, large = sorted(pair, key=rank)
        larger[small] = max(larger.get(small, large), large, key=rank)
    to: dict[str, str] = {}
    for small, large in larger.items():
        while large in larger:  # the larger class is merged into another one itself
            large = larger[large]
        to |= dict.fromkeys(table.loc[table["label"] == small, "id"], classes[large])
    names = tuple(sorted({classes[label] for pair in pairs for label in pair}))
    message = (
        "Possibly the same class, spelled in two ways: "
        + join_names([f"{classes[a]} and {classes[b]}" for a, b in pairs])
        + "."
    )
    notes = dict(zip(table["id"], table["label"].map(dict(enumerate(classes))), strict=True))
    notes = {path: notes[path] for path in to}
    yield Finding(
        "similar_class_names",
        "warning",
        message,
        len(names),
        tuple(to),
        classes=names,
        to=to,
        notes=notes,
    )


def _is_typo(a: str, b: str) -> bool:
    """Return whether two names are equal, or one letter is added, dropped or replaced.

    Digits tell classes apart on purpose.
    """
    if re.findall(r"\d", a) != re.findall(r"\d", b):
        return False
    if len(a) == len(b):
        return sum(x != y for x, y in zip(a, b, strict=True)) <= 1
    short, long = sorted((a, b), key=len)
    return len(long) - len(short) == 1 and any(
        long[:at] + long[at + 1 :] == short for at in range(len(long))
    )
