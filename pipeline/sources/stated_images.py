"""Takes the rows of a table that state all of a single image, without a look at each.

    >>> images, are_stated = stated_images(batch, "path", None, (), place_of)     # doctest: +SKIP

A table of many million images mostly has plain names, each with a size and an identity. A row takes
some hundred microseconds if it is looked at alone. Here each folder is looked at, and of the files'
names only what characters they have. All other rows are left to the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import VdnaError
from pipeline.sources.archives.class_labels import label_arrays
from pipeline.sources.cell_cuts import folders_of
from pipeline.sources.listing import label_columns
from pipeline.sources.plain_images import IMAGE_SUFFIX

PLAIN_FILE = rf"(?:^|/)[A-Za-z0-9_][A-Za-z0-9_.-]*{IMAGE_SUFFIX}"
"""The end of a name whose file is an image, and has the same name in every uri. No secret can begin
in it, but one that `SECRET` finds."""

SECRET = "hf_"
"""What a token of Hugging Face begins with. Names that have it are looked at one by one."""

_NUMBER = "^[0-9]{1,18}$"

_FILE = "a_plain_name.jpg"
"""Stands for any file of a folder, as its name says nothing of where it lies. It is long enough for
every pattern of a secret that begins in the folder."""


def stated_images(
    batch: pa.RecordBatch,
    name: str,
    group: str | None,
    labels: Sequence[str],
    place_of: Callable[[str], str],
) -> tuple[pa.Table | None, NDArray[np.bool_]]:
    """Takes the rows that state a plain name, a size and an identity.

    Args:
        batch: N rows of a table, with the table's own columns.
        name: The column that names images.
        group: The column that names groups. None if none does.
        labels: The columns that hold labels.
        place_of: Returns the canonical uri of what a row names, or raises an error.

    Returns:
        The images as `ListingWriter.add_objects` takes them, and (N,) which rows they are. None and
        no row if a column has a type of which Arrow can take no rows out.
    """
    if any(map(_cannot_be_cut, batch.schema.types)):
        return None, np.zeros(batch.num_rows, np.bool_)
    names, identities = _texts(batch, name), _texts(batch, "identity")
    sizes, members = _sizes(batch), _texts(batch, "member")
    tests = (
        pc.match_substring_regex(names, PLAIN_FILE),
        pc.invert(pc.match_substring(names, SECRET, ignore_case=True)),
        pc.not_equal(identities, ""),
        pc.is_valid(sizes),
    )
    are_stated = np.logical_and.reduce([_is_true(test) for test in tests])
    if "member" in batch.schema.names:
        are_stated &= _is_true(pc.equal(members, "")) | batch["member"].is_null().to_numpy(False)
    places = _uris(names.filter(pa.array(are_stated)), place_of)
    are_stated[are_stated] = places.is_valid().to_numpy(False)
    rows = pa.array(are_stated)
    taken = batch.filter(rows)
    columns = {
        "uri": places.drop_null(),
        "size": sizes.filter(rows),
        "identity": identities.filter(rows),
    }
    if group is not None:
        columns["group"] = pc.fill_null(*label_arrays(taken, [group]), "")
    columns |= zip(label_columns(labels), label_arrays(taken, labels), strict=True)
    return pa.table(columns), are_stated


def _cannot_be_cut(kind: pa.DataType) -> bool:
    """Tells whether Arrow can take no rows out of a column of this type."""
    tests = (pa.types.is_string_view, pa.types.is_binary_view, pa.types.is_run_end_encoded)
    return any(test(kind) for test in tests)


def _is_true(test: pa.BooleanArray) -> NDArray[np.bool_]:
    """Returns where a test holds; not where it has no answer."""
    answers: NDArray[np.bool_] = pc.fill_null(test, False).to_numpy(zero_copy_only=False)
    return answers


def _texts(batch: pa.RecordBatch, name: str) -> pa.StringArray:
    """Returns the texts of a column; none where it has other values, or is not there."""
    if name not in batch.schema.names:
        return pa.nulls(batch.num_rows, pa.string())
    kind = batch[name].type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_text = pa.types.is_string(value) or pa.types.is_large_string(value)
    return batch[name].cast(pa.string()) if is_text else pa.nulls(batch.num_rows, pa.string())


def _sizes(batch: pa.RecordBatch) -> pa.Int64Array:
    """Returns the sizes that are whole numbers, or texts of such; none for other values."""
    if "size" not in batch.schema.names:
        return pa.nulls(batch.num_rows, pa.int64())
    sizes = batch["size"]
    if pa.types.is_floating(sizes.type):  # pandas has no integers beside gaps
        sizes = sizes.cast(pa.float64())
        is_size = pc.and_(pc.equal(pc.floor(sizes), sizes), pc.less(sizes, 2.0**53))
        sizes = pc.if_else(is_size, sizes, None).cast(pa.int64())
    if pa.types.is_uint64(sizes.type):
        sizes = pc.if_else(pc.less(sizes, pa.scalar(2**63, pa.uint64())), sizes, None)
    if pa.types.is_integer(sizes.type):
        sizes = sizes.cast(pa.int64())
        return pc.if_else(pc.greater_equal(sizes, 0), sizes, None)
    texts = _texts(batch, "size")
    return pc.if_else(pc.match_substring_regex(texts, _NUMBER), texts, None).cast(pa.int64())


def _uris(names: pa.StringArray, place_of: Callable[[str], str]) -> pa.StringArray:
    """Returns the uris of plain names; none where a folder is none that a table may name."""

    def place(folder: str) -> str | None:
        try:
            return place_of(f"{folder}{_FILE}").removesuffix(_FILE)
        except (VdnaError, ValueError):
            return None

    folders = folders_of(names).dictionary_encode()
    places = pa.array([place(folder) for folder in folders.dictionary.to_pylist()], pa.string())
    files = pc.replace_substring_regex(names, "(?s)^.*/", "")
    return pc.binary_join_element_wise(places.take(folders.indices), files, "")
