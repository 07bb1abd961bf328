"""Features of small datasets, and changes of their tables."""

import pyarrow as pa
import pyarrow.parquet as pq

CAMERA = {"dtype": "image", "shape": (16, 24, 3), "names": ["height", "width", "channels"]}
FRONT = "observation.images.front"


def vector(size, dtype="float32"):
    return {"dtype": dtype, "shape": (size,), "names": None}


def rewrite_column(root, key, change):
    """Change a column of a dataset's frames: `change(values)`."""
    (file,) = root.rglob("data/**/*.parquet")
    table = pq.read_table(file)
    place, field = table.column_names.index(key), table.schema.field(key)
    pq.write_table(table.set_column(place, field, pa.array(change(table[key].to_pylist()), type=field.type)), file)
