"""Match the classes of a dataset with those of a pretrained model."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from w2skd.errors import CheckpointError, suggest

_IMAGENET_ID = re.compile(r"n\d{8}")
_LISTED = 3
"""Maximum number of classes that an error message lists."""


@dataclass(frozen=True)
class ClassMatch:
    """The result of matching the data's classes with a model's.

    Attributes:
        columns: for each class of the data, its index in the model's logits; None if both have the same order.
        note: one line that describes the match.
        assumed: the model's classes are unknown, so equal order is an assumption.
    """

    columns: tuple[int, ...] | None
    note: str
    assumed: bool = False


def match_classes(
    theirs: Sequence[str] | None, their_ids: Sequence[str] | None, ours: Sequence[str], their_count: int
) -> ClassMatch:
    """Find every class of the data among a model's classes: by id, else by exact name, else by similar name.

    Names are similar if they differ only in case, underscores, hyphens, spaces, apostrophes or full stops. If a name
    lists synonyms separated by commas, each of them counts.

    Args:
        theirs: names of the model's classes in the order of its logits, if known.
        their_ids: ids of the model's classes, such as ImageNet's, if known.
        ours: names of the data's classes; may be ids, as folders are often named by them.
        their_count: number of the model's logits.

    Raises:
        CheckpointError: a class of the data is missing from the model or ambiguous; or the model's classes are unknown
            and their number differs from the data's.
    """
    for known in (theirs, their_ids):
        if known is not None and len(known) != their_count:
            raise CheckpointError(f"the teacher names {len(known):,} classes, but its head has {their_count:,}")
    if theirs is None and their_ids is None:
        if their_count != len(ours):
            raise CheckpointError(
                f"the teacher has {their_count:,} unnamed classes, the data has {len(ours):,}: cannot match them; "
                "use a teacher trained on these classes, or a file that names its classes"
            )
        return ClassMatch(None, f"class names unknown: assumed to be the data's {len(ours):,} in the same order", True)
    columns, ways = _find_all(theirs or (), their_ids or (), ours)
    if len(columns) < their_count:
        note = f"the data's {len(ours):,} classes are among its {their_count:,}, matched by {' and '.join(ways)}"
        return ClassMatch(columns, note)
    if columns == tuple(range(their_count)):
        return ClassMatch(None, f"the same {their_count:,} classes")
    return ClassMatch(columns, f"the same {their_count:,} classes in a different order")


def _find_all(
    theirs: Sequence[str], their_ids: Sequence[str], ours: Sequence[str]
) -> tuple[tuple[int, ...], list[str]]:
    """Return the index of each of our classes among theirs, and the ways of matching, most frequent first."""
    is_imagenet = all(_IMAGENET_ID.fullmatch(known) for known in their_ids)
    indices_by_way = {
        "ImageNet id" if is_imagenet else "id": _indices((known,) for known in their_ids),
        "name": _indices((name,) for name in theirs),
        "similar name": _indices(_synonyms(name) for name in theirs),
    }
    columns: list[int] = []
    unknown: list[str] = []
    ways: Counter[str] = Counter()
    for name in ours:
        for way, indices in indices_by_way.items():
            words = _synonyms(name) if way == "similar name" else {name}
            found = sorted({index for word in words for index in indices.get(word, ())})
            if len(found) > 1:
                candidates = " or ".join(_describe(index, theirs, their_ids) for index in found[:_LISTED])
                raise CheckpointError(
                    f"class '{name}' of the data could be the teacher's {candidates}: rename it to the teacher's id or "
                    "full name"
                )
            if found:
                columns += found
                ways[way] += 1
                break
        else:
            unknown.append(name)
    if unknown:
        # Suggestions help with a few typos; among many unknown names, chance resemblances would mislead.
        hints = [suggest(name, [*theirs, *their_ids]) if len(unknown) <= _LISTED else "" for name in unknown[:_LISTED]]
        listed = ", ".join(f"'{name}'{hint}" for name, hint in zip(unknown, hints, strict=False))
        raise CheckpointError(
            f"the teacher lacks {len(unknown):,} of the data's {len(ours):,} classes: {listed}"
            f"{', ...' if len(unknown) > _LISTED else ''}; "
            "rename them to its names or ids, or use a teacher trained on them"
        )
    first: dict[int, str] = {}
    for name, column in zip(ours, columns, strict=True):
        if column in first:
            raise CheckpointError(
                f"classes '{first[column]}' and '{name}' of the data both match the teacher's "
                f"{_describe(column, theirs, their_ids)}: it cannot distinguish them"
            )
        first[column] = name
    return tuple(columns), [way for way, _ in ways.most_common()]


def _describe(index: int, theirs: Sequence[str], their_ids: Sequence[str]) -> str:
    name = f" '{theirs[index]}'" if theirs else ""
    return f"number {index}{name}{f' ({their_ids[index]})' if their_ids else ''}"


def _indices(words_of_each: Iterable[Iterable[str]]) -> dict[str, list[int]]:
    """Map each word to the indices of the classes that it can stand for."""
    indices: defaultdict[str, list[int]] = defaultdict(list)
    for index, words in enumerate(words_of_each):
        for word in set(words):
            indices[word].append(index)
    return indices


def _synonyms(name: str) -> set[str]:
    """Return a name and the synonyms in it, in lower case without punctuation."""
    plain = re.sub(r"[\s_-]+", " ", re.sub(r"['\u2019.]", "", name.casefold()))
    return {word for word in (" ".join(part.split()) for part in (plain, *plain.split(","))) if word}
