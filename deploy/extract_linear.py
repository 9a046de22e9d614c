"""Reads the weights of a published linear model out of its pickles: `make models`.

Comes in: the two joblib files of the package alt-profanity-check 1.9.1 (MIT), whose hashes are
known here. Goes out: `workers/moderation/linear.bin`, which `workers.moderation.linear` reads with
the standard library alone. Run by hand, in an environment of its own with that package; nothing at
run time needs it, scikit-learn or numpy.

A pickle may run anything while it is read, so the files are hashed before they are opened, and the
unpickler knows the few names below and no other: scikit-learn's objects come out as plain
attributes and none of its code runs.

The model: five linear SVMs with a sigmoid each, over the l2-normalised tf-idf of a comment's words;
the answer is the mean of the five.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import sys
import zlib
from pathlib import Path
from typing import Any, Final

import joblib.numpy_pickle
import numpy as np

PACKAGE: Final = "alt-profanity-check"
VERSION: Final = "1.9.1"
SHA256: Final = {
    "vectorizer.joblib": "19c5200dc6a41f026e0558e2f164f5fe8d8f58e502b46b37e4385037fcfa4831",
    "model.joblib": "aeafc04849d4d93db4721cf30a86ebf22085595294b8a07d51918e7fa98f538b",
}
TARGET: Final = Path(__file__).parents[1] / "workers" / "moderation" / "linear.bin"
MAGIC: Final = b"uproar-linear 1\n"

# What the files may name. Of scikit-learn only attributes are kept.
_PLAIN: Final = {
    ("joblib.numpy_pickle", "NumpyArrayWrapper"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy", "float64"),
    ("numpy", "int64"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
}
_ATTRIBUTES_ONLY: Final = ("sklearn.", "scipy.sparse.")


class Attributes:
    """Stands for an object of a library: what it held, none of what it did."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class Reader(joblib.numpy_pickle.NumpyUnpickler):
    """An unpickler that refuses every name it does not know."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the class for a name in the file; raises ValueError for an unknown one."""
        if module.startswith(_ATTRIBUTES_ONLY):
            return Attributes
        if (module, name) in _PLAIN:
            return super().find_class(module, name)
        raise ValueError(f"the file names {module}.{name}, which no such model needs; not read")


def read(folder: Path, name: str) -> Any:
    """Return a file's object; raises ValueError when it is not the file that is known here."""
    path = folder / name
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256[name]:
        raise ValueError(f"{path}: SHA-256 {found}, not that of {PACKAGE} {VERSION}; not read")
    with path.open("rb") as file:
        return Reader(str(path), file, ensure_native_byte_order=True).load()


def extract(folder: Path) -> bytes:
    """Return the bytes of linear.bin; raises ValueError for another kind of model."""
    vectorizer, model = read(folder, "vectorizer.joblib"), read(folder, "model.joblib")
    words: list[str] = sorted(vectorizer.vocabulary_)
    order = np.array([int(vectorizer.vocabulary_[word]) for word in words])
    parts = model.calibrated_classifiers_
    calibrators = [part.calibrators[0] for part in parts]
    if not vectorizer.lowercase or vectorizer.norm != "l2" or vectorizer.ngram_range != (1, 1):
        raise ValueError("the words are not counted as workers.moderation.linear counts them")
    if any(list(part.classes) != [0, 1] for part in parts) or any("\n" in word for word in words):
        raise ValueError("not a model of two classes over words")
    arrays = [vectorizer._tfidf.idf_, *(part.estimator.coef_[0] for part in parts)]
    spelled = "\n".join(words).encode()
    body = spelled + b"".join(np.asarray(a)[order].astype("<f4").tobytes() for a in arrays)
    head = {
        "source": f"{PACKAGE} {VERSION}",
        "licence": "MIT",
        "source_sha256": SHA256,
        "words": len(words),
        "words_bytes": len(spelled),
        "intercept": [float(part.estimator.intercept_[0]) for part in parts],
        "sigmoid_a": [float(calibrator.a_) for calibrator in calibrators],
        "sigmoid_b": [float(calibrator.b_) for calibrator in calibrators],
        "body_sha256": hashlib.sha256(body).hexdigest(),
    }
    return MAGIC + json.dumps(head).encode() + b"\n" + zlib.compress(body, 9)


def main() -> int:
    """Write the file and say what is in it."""
    parser = argparse.ArgumentParser(description="Read the linear model's weights out.")
    parser.add_argument("--folder", type=Path, help="where the two joblib files lie")
    parser.add_argument("--target", type=Path, default=TARGET)
    arguments = parser.parse_args()
    folder = arguments.folder
    if folder is None:
        # Found, not imported: importing the package would open the pickles without looking.
        spec = importlib.util.find_spec("profanity_check")
        if spec is None or spec.origin is None:
            print(f"install {PACKAGE}=={VERSION} first, or give --folder", file=sys.stderr)
            return 2
        folder = Path(spec.origin).parent / "data"
    try:
        made = extract(folder)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    arguments.target.write_bytes(made)
    print(f"{arguments.target}: {len(made):,} bytes, from {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
