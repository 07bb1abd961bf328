"""Features of small datasets."""

CAMERA = {"dtype": "image", "shape": (16, 24, 3), "names": ["height", "width", "channels"]}
FRONT = "observation.images.front"


def vector(size, dtype="float32"):
    return {"dtype": dtype, "shape": (size,), "names": None}
